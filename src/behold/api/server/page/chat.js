// The conversation: what was asked, what was answered, and what of it is sent with the next question.

import { ask } from "./api.js";

/**
 * One question and its answer.
 * state: "waiting" for the first word, "answering", "done", "stopped" by the person, "failed" with `error`.
 * times: of performance.now(): start, first and last piece of text, end. timings: as the server took them, in seconds.
 */
export class Turn {
  constructor(text, pictures) {
    this.text = text;
    this.pictures = pictures;
    this.clear();
  }

  clear() {
    this.answer = "";
    this.state = "waiting";
    this.error = null;
    this.usage = null;
    this.timings = null;
    this.ending = null;
    this.times = { start: performance.now() };
  }

  get running() {
    return this.state === "waiting" || this.state === "answering";
  }

  /** Whether later questions are asked with this turn before them. */
  get counts() {
    return this.state === "done" || this.answer !== "";
  }

  /** The picture that the server refused, if that is what went wrong: param is messages[0].content[1]… */
  get refusedPicture() {
    const [, message, part] = /^messages\[(\d+)\]\.content\[(\d+)\]/.exec(this.error?.param ?? "") ?? [];
    const uri = this.sent?.messages[message]?.content[part]?.image_url?.url;
    return this.sent?.pictures.find((picture) => picture.uri === uri);
  }

  get message() {
    const images = this.pictures.map(({ uri }) => ({ type: "image_url", image_url: { url: uri } }));
    return { role: "user", content: [...images, { type: "text", text: this.text }] };
  }
}

export class Chat {
  constructor() {
    this.turns = [];
    this.control = null;
  }

  get busy() {
    return this.control !== null;
  }

  /** What is sent to ask `turn` after the turns that were answered before it: messages, and the pictures in them. */
  compose(turn, system) {
    const before = this.turns.slice(0, this.turns.includes(turn) ? this.turns.indexOf(turn) : undefined);
    const earlier = before.filter(({ counts }) => counts);
    const pairs = earlier.flatMap((one) => [one.message, { role: "assistant", content: one.answer }]);
    return {
      messages: [...(system ? [{ role: "system", content: system }] : []), ...pairs, turn.message],
      pictures: [...earlier, turn].flatMap(({ pictures }) => pictures),
    };
  }

  /** Ask for a turn's answer, or for another one; `onChange` is called whenever there is something new to show. */
  async run(turn, { system, ...options }, onChange) {
    turn.clear();
    if (!this.turns.includes(turn)) this.turns.push(turn);
    turn.sent = this.compose(turn, system);
    const control = (this.control = new AbortController());
    onChange();
    try {
      for await (const chunk of ask({ ...options, messages: turn.sent.messages }, control.signal)) {
        take(turn, chunk);
        onChange();
      }
      turn.state = "done";
    } catch (error) {
      turn.state = error.name === "AbortError" ? "stopped" : "failed";
      turn.error = turn.state === "failed" ? error : null;
    }
    turn.times.end = performance.now();
    if (this.control === control) this.control = null;
    onChange();
  }

  stop() {
    this.control?.abort();
  }

  remove(turn) {
    this.turns = this.turns.filter((one) => one !== turn);
  }
}

function take(turn, chunk) {
  if (chunk.usage) turn.usage = chunk.usage;
  if (chunk.timings) turn.timings = chunk.timings;
  const [choice] = chunk.choices;
  if (!choice) return;
  if (choice.finish_reason) turn.ending = choice.ended_by ?? choice.finish_reason;
  if (!choice.delta?.content) return;
  turn.answer += choice.delta.content;
  turn.state = "answering";
  turn.times.last = performance.now();
  turn.times.first ??= turn.times.last;
}
