// An answer's text as elements: paragraphs, headings, lists, code, bold and italic. Only text nodes are made of what
// the model wrote, so whatever it writes stays text. Links stay text too: nothing here can be clicked by mistake.

import { el } from "./dom.js";

const FENCE = /^\s*```/;
const ITEM = /^\s*(?:[-*•]|(\d+)[.)])\s+(.*)$/;
const HEADING = /^#{1,6}\s+(.*)$/;
const INLINE = /`([^`\n]+)`|\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*|(?<![\w*])\*([^\s*](?:[^*\n]*[^\s*])?)\*(?![\w*])/g;

/** Keeps an element up to date with a growing text: only blocks that changed are made anew. */
export class LiveText {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  set(text) {
    const sources = blocks(text);
    sources.forEach((source, index) => {
      if (source === this.sources[index]) return;
      const block = render(source);
      if (index < this.element.children.length) this.element.children[index].replaceWith(block);
      else this.element.append(block);
    });
    while (this.element.children.length > sources.length) this.element.lastChild.remove();
    this.sources = sources;
  }
}

/** Text cut where paragraphs, headings, lists and fenced code begin and end. */
export function blocks(text) {
  const found = [];
  let lines = [];
  let kind = null; // of the lines collected: "code", "list", "text"
  const end = () => {
    if (lines.length) found.push(lines.join("\n"));
    lines = [];
    kind = null;
  };
  for (const line of text.split("\n")) {
    if (kind === "code") {
      lines.push(line);
      if (FENCE.test(line)) end();
      continue;
    }
    const now = FENCE.test(line) ? "code" : ITEM.test(line) ? "list" : HEADING.test(line) ? "heading" : "text";
    if (!line.trim()) end();
    else {
      if (now !== kind || now === "heading") end();
      kind = now;
      lines.push(line);
    }
  }
  end();
  return found;
}

function render(source) {
  const lines = source.split("\n");
  if (FENCE.test(lines[0])) {
    const last = lines.length > 1 && FENCE.test(lines.at(-1)) ? -1 : undefined;
    return el("pre", { tabIndex: 0 }, el("code", {}, lines.slice(1, last).join("\n")));
  }
  const heading = lines[0].match(HEADING);
  if (heading) return el("p", { className: "heading" }, ...inline(heading[1]));
  if (ITEM.test(lines[0])) return list(lines);
  return el("p", {}, ...inline(source));
}

function list(lines) {
  const items = lines.map((line) => line.match(ITEM));
  const first = items[0][1];
  const made = first ? el("ol", { start: Number(first) }) : el("ul");
  made.append(...items.map((item) => el("li", {}, ...inline(item[2]))));
  return made;
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(from, match.index));
    const [, code, bold, italic] = match;
    nodes.push(code ? el("code", {}, code) : bold ? el("strong", {}, bold) : el("em", {}, italic));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}
