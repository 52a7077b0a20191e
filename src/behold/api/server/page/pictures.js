// Pictures on their way into a question. What is sent are the file's own bytes; what is shown is a small copy.

import { el } from "./dom.js";

const PREVIEW = 224; // pixels of the longer side, twice what is shown, for sharp screens

/** Read files as pictures: {name, uri, preview}. preview is null where the browser cannot draw the format. */
export function read(files) {
  return Promise.all([...files].map(async (file) => ({
    name: file.name || "picture",
    uri: await dataUri(file),
    preview: await preview(file),
  })));
}

/** Files that are pictures, or may be (some systems know no type for HEIC or TIFF), and the names of those that are not. */
export function sort(files) {
  const maybe = (file) => file.type.startsWith("image/") || file.type === "";
  return {
    pictures: [...files].filter(maybe),
    others: [...files].filter((file) => !maybe(file)).map((file) => file.name),
  };
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function preview(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return null;
  }
  const scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL();
}

/** A picture's thumbnail: a button that shows what the model sees of it, and one that removes it where that is possible. */
export function thumbnail(picture, { onLook, onRemove = null }) {
  const face = picture.preview
    ? el("img", { src: picture.preview, alt: "" })
    : el("span", { className: "no-preview" }, "no preview");
  const look = el("button", {
    type: "button", className: "thumbnail", onclick: onLook,
    title: `${picture.name}: what the model sees`, "aria-label": `What the model sees of ${picture.name}`,
  }, face);
  const remove = onRemove && el("button", {
    type: "button", className: "remove", onclick: onRemove, title: "Remove", "aria-label": `Remove ${picture.name}`,
  }, "×");
  return el("li", {}, look, remove);
}
