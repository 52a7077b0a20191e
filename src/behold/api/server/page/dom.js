// Building elements. Text always becomes a text node: nothing here, or anywhere on the page, parses HTML.

/** An element: el("p", {className: "help", onclick: f, "aria-label": "…"}, "text", node, …). */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** 1234 → "1,234" */
export const count = (number) => number.toLocaleString("en");

/** "1 token", "2 tokens" */
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** 0.1234 → "0.12 s", 83.2 → "83 s" */
export const seconds = (value) => `${value.toFixed(value < 10 ? 2 : value < 60 ? 1 : 0)} s`;
