// The box that a question is written in, with the pictures that go with it: dropped, pasted or chosen.

import { byId } from "./dom.js";
import { read, sort, thumbnail } from "./pictures.js";

const WITH_PICTURES = "What do we see in this image?";
const WITHOUT = "Ask about a picture";

export class Composer {
  /** actions: send(text, pictures), stop(), lookAt(picture, question), busy() */
  constructor(actions) {
    this.actions = actions;
    this.pictures = [];
    this.reading = Promise.resolve(true); // whether all that was added could be read
    this.form = byId("composer");
    this.question = byId("question");
    this.#listen();
    this.#listenForPictures();
  }

  /** Put a question back, before whatever has been written since. */
  restore(text, pictures) {
    this.question.value = [text, this.question.value].filter(Boolean).join("\n");
    this.pictures = [...pictures, ...this.pictures];
    this.#draw();
    this.question.focus();
  }

  suggest(text) {
    this.question.value = text;
    this.#draw();
    this.question.focus();
  }

  clear() {
    this.#empty();
    this.question.focus();
  }

  #empty() {
    this.question.value = "";
    this.pictures = [];
    this.notice("");
    this.#draw();
  }

  /** Whether an answer is on its way: the arrow becomes a stop sign. */
  set busy(busy) {
    const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    if (hadFocus) this.question.focus();
  }

  notice(text) {
    byId("notice").textContent = text;
  }

  /** Take files in; the order is that of arrival, however long each takes to read. */
  add(files) {
    const { pictures, others } = sort(files);
    this.notice(others.length ? `${others.join(", ")}: not a picture.` : "");
    if (!pictures.length) return;
    this.reading = this.reading
      .then(() => read(pictures))
      .then((made) => {
        this.pictures = [...this.pictures, ...made];
        this.#draw();
        return true;
      })
      .catch(() => {
        this.notice("A file could not be read. Is it a folder, or was it moved or deleted?");
        return false;
      });
    this.question.focus();
  }

  async #send() {
    if (!(await this.reading)) {
      this.reading = Promise.resolve(true); // said once; who sends again means it without that file
      return;
    }
    const typed = this.question.value.trim();
    const text = typed || (this.pictures.length ? WITH_PICTURES : "");
    if (!text || this.actions.busy()) return;
    const { pictures } = this;
    this.#empty();
    this.actions.send(text, pictures);
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.question.addEventListener("keydown", (event) => {
      // While a word is being composed (Chinese, Japanese, accents), Enter belongs to that.
      const composing = event.isComposing || event.keyCode === 229; // the latter in Safari
      if (event.key !== "Enter" || event.shiftKey || composing) return;
      event.preventDefault();
      this.#send();
    });
    this.question.addEventListener("input", () => this.#fit());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.actions.stop();
    });
    byId("stop").addEventListener("click", () => this.actions.stop());
    for (const id of ["choose", "choose-first"]) byId(id).addEventListener("click", () => byId("files").click());
    byId("files").addEventListener("change", (event) => {
      this.add(event.target.files);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }

  #listenForPictures() {
    document.addEventListener("paste", (event) => {
      const { files, types } = event.clipboardData;
      const richText = types.includes("text/plain") && types.includes("text/html"); // office programs add a picture of it
      if (!files.length || richText) return;
      event.preventDefault();
      this.add(files);
    });
    const hasFiles = (event) => event.dataTransfer.types.includes("Files");
    const shade = byId("drop-here");
    addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      shade.hidden = false;
    });
    addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) shade.hidden = true;
    });
    addEventListener("drop", (event) => {
      shade.hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
  }

  #draw() {
    const shown = this.pictures.map((picture) => thumbnail(picture, {
      onLook: () => this.actions.lookAt(picture, this.question.value.trim() || WITH_PICTURES),
      onRemove: () => {
        this.pictures = this.pictures.filter((one) => one !== picture);
        this.#draw();
        this.question.focus();
      },
    }));
    byId("pictures").replaceChildren(...shown);
    this.question.placeholder = this.pictures.length ? WITH_PICTURES : WITHOUT;
    this.#fit();
  }

  #fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
  }
}
