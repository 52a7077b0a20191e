// The window that shows what the model sees: every picture as the tower gets it, the prompt, and what each costs.

import { look } from "./api.js";
import { byId, count, el, plural } from "./dom.js";
import { inWords } from "./turn.js";

let control = null;

/** Ask the server what it makes of `messages`. pictures: those in them, in order. alone: show the first, and no prompt. */
export async function showLook(messages, pictures, { alone = false } = {}) {
  const dialog = byId("look");
  const body = byId("look-body");
  control?.abort();
  const mine = (control = new AbortController());
  byId("look-title").textContent = alone ? `What the model sees of ${pictures[0].name}` : "What the model saw";
  body.replaceChildren(el("p", { className: "progress" }, "Looking…"));
  if (!dialog.open) dialog.showModal();
  dialog.addEventListener("close", () => mine.abort(), { once: true });
  try {
    const seen = await look(messages, mine.signal);
    body.replaceChildren(...describe(seen, pictures, alone));
  } catch (error) {
    if (error.name === "AbortError") return;
    body.replaceChildren(el("div", { className: "problem" },
      el("p", { className: "title" }, error.title ?? "Something went wrong on this page."), el("p", {}, inWords(error))));
  }
}

function describe(seen, pictures, alone) {
  const shown = seen.images.map((image, index) => picture(image, pictures[index], alone));
  if (alone) return shown;
  const tokens = `${plural(seen.prompt_tokens, "token")}, ${count(seen.image_tokens)} of them for pictures`;
  return [
    ...shown,
    el("h3", {}, "Prompt"), el("p", { className: "facts" }, tokens),
    el("pre", { tabIndex: 0 }, seen.prompt),
  ];
}

function picture({ width, height, tokens, parts }, { name, preview }, alone) {
  const size = (part) => `${part.width} × ${part.height}`;
  const became = parts.length === 1 ? size(parts[0]) : `${parts.length} parts`;
  const sent = preview && el("figure", { className: "sent" },
    el("img", { src: preview, alt: `${name} as it was sent` }), el("figcaption", {}, `sent: ${width} × ${height}`));
  const seen = parts.map((part, index) => el("figure", {},
    el("img", { src: part.url, width: part.width, height: part.height, alt: `${name}, part ${index + 1} of what the model gets` }),
    el("figcaption", {}, `seen: ${size(part)} · ${plural(part.tokens, "token")}`)));
  return el("section", { className: "seen" },
    alone ? null : el("h3", {}, name),
    el("p", { className: "facts" }, `${width} × ${height} → ${became} · ${plural(tokens, "token")}`),
    el("div", { className: "parts" }, sent, ...seen));
}
