// What a person can set: temperature, length, instructions. And the key, where the server asks for one.

import { setKey } from "./api.js";
import { byId } from "./dom.js";

export class Settings {
  constructor() {
    const [temperature, length, dialog] = ["temperature", "max-tokens", "settings"].map(byId);
    this.length = Number(length.value);
    const show = () => { byId("temperature-shown").textContent = Number(temperature.value).toFixed(1); };
    temperature.addEventListener("input", show);
    dialog.addEventListener("close", () => {
      if (length.checkValidity()) this.length = Number(length.value);
      else length.value = this.length; // left by Esc with something that is no number of tokens
    });
    byId("open-settings").addEventListener("click", () => dialog.showModal());
    show();
  }

  /** Fields of the next request; `system` goes in front of its messages. */
  get request() {
    return {
      temperature: Number(byId("temperature").value),
      max_tokens: this.length,
      system: byId("system").value.trim(),
    };
  }
}

let asking = null;

/** Ask the person for a key; resolves to whether one was given. `refused`: there was one already, and it is wrong. */
export function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-title").textContent = refused ? "The server does not accept this key" : "This server asks for a key";
    byId("key").value = "";
    dialog.returnValue = "";
    byId("key-cancel").onclick = () => dialog.close();
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use";
      if (given) setKey(byId("key").value.trim());
      byId("key").value = "";
      resolve(given);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
