// What a person does before the page's modules are there is kept, and done again as soon as they can answer it. Modules
// run only when all of them have come, which over a slow line is well after the page can be seen; this is no module, so
// that it runs before anything can be pressed. main.js says when it is over, with the event "ready".

{
  const kept = [];
  const over = new AbortController();
  const on = (type, handler) => addEventListener(type, handler, { capture: true, signal: over.signal });
  const keep = (event, again) => {
    event.preventDefault();
    kept.push(again);
  };
  const filesOf = (transfer) => {
    const copy = new DataTransfer(); // the browser empties its own as soon as the event is over
    for (const file of transfer.files) copy.items.add(file);
    return copy;
  };

  on("click", (event) => {
    const button = event.target.closest("button");
    if (button) keep(event, () => button.click());
  });
  on("keydown", (event) => {
    const enter = event.keyCode === 13 && !event.isComposing; // 229 while a word is being composed in Safari
    const sends = event.target.id === "question" && enter && !event.shiftKey;
    if (sends) keep(event, () => event.target.form.requestSubmit());
  });
  on("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (files.items.length && !event.clipboardData.types.includes("text/plain")) {
      keep(event, () => document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files })));
    }
  });
  on("dragover", (event) => event.preventDefault()); // else the browser would leave the page for the file
  on("drop", (event) => {
    const dataTransfer = filesOf(event.dataTransfer);
    if (dataTransfer.items.length) keep(event, () => dispatchEvent(new DragEvent("drop", { dataTransfer })));
  });
  addEventListener("ready", () => {
    over.abort();
    for (const again of kept) again();
  }, { once: true });
}
