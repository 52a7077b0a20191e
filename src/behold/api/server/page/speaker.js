// What a screen reader hears: whole sentences of the answer as they are finished, not every word as it arrives.

import { el } from "./dom.js";

const SENTENCE = /[^]*[.!?:\n](?=\s)/; // everything up to the last end of a sentence

export class Speaker {
  constructor(region) {
    this.region = region;
    this.said = 0;
  }

  begin(turn) {
    this.said = 0;
    this.region.replaceChildren(el("p", {}, turn.pictures.length ? "Looking at the picture" : "Thinking"));
  }

  update(turn) {
    const rest = turn.answer.slice(this.said);
    const sentence = turn.running ? (rest.match(SENTENCE)?.[0] ?? "") : rest;
    this.said += sentence.length;
    if (sentence.trim()) this.region.append(el("p", {}, sentence.trim()));
    if (turn.state === "stopped") this.region.append(el("p", {}, "Stopped"));
  }

  silence() {
    this.region.replaceChildren();
  }
}
