// The window that shows what the model sees: every picture as the tower gets it, the prompt, and what each costs.

import { look } from "./api.js";
import { byId, count, el, plural } from "./dom.js";

let control = null;

/** Ask the server what it makes of `messages`; `only`: the number of the one picture to show, counted over all of them. */
export async function showLook(messages, { names, only = null }) {
  const dialog = byId("look");
  const body = byId("look-body");
  control?.abort();
  const mine = (control = new AbortController());
  byId("look-title").textContent = only === null ? "What the model saw" : `What the model sees of ${names[only]}`;
  body.replaceChildren(el("p", { className: "progress" }, "Looking…"));
  if (!dialog.open) dialog.showModal();
  dialog.addEventListener("close", () => mine.abort(), { once: true });
  try {
    const seen = await look(messages, mine.signal);
    body.replaceChildren(...describe(seen, names, only));
  } catch (error) {
    if (error.name === "AbortError") return;
    body.replaceChildren(el("div", { className: "problem" },
      el("p", { className: "title" }, error.title ?? "Something went wrong on this page."), el("p", {}, error.message)));
  }
}

function describe(seen, names, only) {
  const pictures = seen.images.map((image, index) => picture(image, names[index] ?? "picture"));
  const chosen = only === null ? pictures : [pictures[only]];
  if (only !== null) return chosen;
  const tokens = `${plural(seen.prompt_tokens, "token")}, ${count(seen.image_tokens)} of them for pictures`;
  return [
    ...chosen,
    el("h3", {}, "Prompt"), el("p", { className: "facts" }, tokens),
    el("pre", { tabIndex: 0 }, seen.prompt),
  ];
}

function picture(image, name) {
  const { parts } = image;
  const became = parts.length === 1 ? `${parts[0].width} × ${parts[0].height}` : `${parts.length} parts`;
  const figures = parts.map((part, index) => el("figure", {},
    el("img", {
      src: part.url, width: part.width, height: part.height,
      alt: parts.length === 1 ? `${name} as the model gets it` : `Part ${index + 1} of ${name}`,
    }),
    parts.length > 1 ? el("figcaption", {}, `${part.width} × ${part.height} · ${plural(part.tokens, "token")}`) : ""));
  return el("section", { className: "seen" },
    el("h3", {}, name),
    el("p", { className: "facts" }, `${image.width} × ${image.height} → ${became} · ${plural(image.tokens, "token")}`),
    el("div", { className: "parts" }, ...figures));
}
