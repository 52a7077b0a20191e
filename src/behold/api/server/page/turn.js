// How one question and its answer look.

import { count, el, plural, seconds } from "./dom.js";
import { thumbnail } from "./pictures.js";
import { LiveText } from "./text.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");

/** actions: look(turn), lookAt(picture, question), again(turn), edit(turn) */
export class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.clock = null;
    this.frame = null;
    this.text = el("div", { className: "text" });
    this.live = new LiveText(this.text);
    this.progress = el("p", { className: "progress" });
    this.problem = el("div", { className: "problem", role: "alert" });
    this.facts = el("p", { className: "facts" });
    this.tools = el("p", { className: "tools" });
    this.answer = el("div", { className: "answer", role: "group", "aria-label": "Answer" },
      this.text, this.progress, this.problem, this.facts, this.tools);
    this.element = el("article", { className: "turn" }, this.#asked(), this.answer);
  }

  /** Show the turn as it is now; many changes within one frame cost one drawing. */
  update() {
    const { running } = this.turn;
    this.element.dataset.state = this.turn.state;
    this.answer.setAttribute("aria-busy", String(running));
    if (running && this.clock === null) this.clock = setInterval(() => this.#tick(), CALM.matches ? 1000 : 100);
    if (!running) {
      clearInterval(this.clock);
      this.clock = null;
      cancelAnimationFrame(this.frame);
      this.#draw();
    } else {
      this.frame ??= requestAnimationFrame(() => this.#draw());
    }
  }

  #asked() {
    const { turn, actions } = this;
    const pictures = turn.pictures.map((picture) =>
      thumbnail(picture, { onLook: () => actions.lookAt(picture, turn.text) }));
    return el("div", { className: "asked", role: "group", "aria-label": "Question" },
      pictures.length ? el("ul", { className: "thumbnails" }, ...pictures) : null,
      el("p", { className: "bubble" }, turn.text));
  }

  #draw() {
    this.frame = null;
    const { turn } = this;
    this.live.set(turn.answer);
    this.#tick();
    this.problem.replaceChildren(...this.#problem());
    this.facts.replaceChildren(...(turn.running ? [] : facts(turn)));
    this.#drawTools();
  }

  #tick() {
    const { turn } = this;
    const passed = (performance.now() - turn.times.start) / 1000;
    const clock = `${passed.toFixed(CALM.matches ? 0 : 1)} s`;
    const doing = { 0: "Thinking", 1: "Looking at the picture" }[turn.pictures.length] ?? "Looking at the pictures";
    const shown = { waiting: `${doing}… ${clock}`, answering: `Answering… ${clock}` };
    this.progress.textContent = shown[turn.state] ?? "";
  }

  #problem() {
    const { turn } = this;
    if (turn.state === "stopped" && !turn.answer) {
      return [el("p", {}, "Stopped before the first word. This question is not part of the conversation.")];
    }
    if (turn.state !== "failed") return [];
    const { error } = turn;
    const picture = turn.refusedPicture;
    const title = picture ? `${picture.name} cannot be used.` : (error.title ?? "Something went wrong on this page.");
    return [
      el("p", { className: "title" }, title),
      error.message ? el("p", {}, inWords(error)) : "",
      turn.answer ? "" : el("p", {}, "This question is not part of the conversation."),
    ].filter(Boolean);
  }

  #drawTools() {
    const { turn, actions } = this;
    if (turn.running) return this.tools.replaceChildren();
    if (this.tools.children.length) return undefined; // made anew, a button would lose the keyboard's focus
    const button = (label, action, className = "") =>
      el("button", { type: "button", className: `tool ${className}`, onclick: (event) => action(event.currentTarget) }, label);
    const tools = [
      turn.answer && button("Copy", (target) => copy(turn.answer, target)),
      !turn.refusedPicture && button("What the model saw", () => actions.look(turn)),
      button("Try again", () => actions.again(turn), "last-only"),
      button("Edit", () => actions.edit(turn), "last-only"),
    ];
    return this.tools.replaceChildren(...tools.filter(Boolean));
  }
}

/** The server's reason without the name of the field, which says nothing to a person. */
export function inWords({ message, param }) {
  const reason = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  return reason.charAt(0).toUpperCase() + reason.slice(1);
}

/** What an answer cost and how long it took; a line may break between facts, not inside of one. */
function facts({ usage, timings, times, state, ending, answer }) {
  const parts = [];
  if (usage) {
    const { image_tokens: image = 0, cached_tokens: cached = 0 } = usage.prompt_tokens_details ?? {};
    const of = [image && `${count(image)} for pictures`, cached && `${count(cached)} cached`].filter(Boolean);
    parts.push(`${plural(usage.prompt_tokens, "token")} in${of.length ? ` (${of.join(", ")})` : ""}`);
    parts.push(`${plural(usage.completion_tokens, "token")} out`);
  }
  if (times.first) parts.push(`first word after ${seconds((times.first - times.start) / 1000)}`);
  if (timings?.vision_s) parts.push(`${seconds(timings.vision_s)} of it for the picture`);
  if (usage?.completion_tokens > 2 && timings) parts.push(`${count(Math.round(timings.tokens_per_s))} tokens/s`);
  if (state === "stopped" && answer) parts.push(`stopped by you after ${seconds((times.end - times.start) / 1000)}`);
  if (ending === "length") parts.push("cut off at the longest answer set");
  if (ending === "loop") parts.push("stopped, as it repeated itself");
  if (state === "done" && !answer) parts.push("the model said nothing");
  return parts.flatMap((part, index) => [index ? " · " : "", el("span", {}, part)]);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyByHand(text); // the clipboard is closed to pages that came over plain http from another machine
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function copyByHand(text) {
  const area = el("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
