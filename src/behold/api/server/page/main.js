// The chat page put together.

import { models, onKeyNeeded } from "./api.js";
import { Chat, Turn } from "./chat.js";
import { Composer } from "./composer.js";
import { byId, el } from "./dom.js";
import { showLook } from "./look.js";
import { Follower } from "./scroll.js";
import { askForKey, Settings } from "./settings.js";
import { Speaker } from "./speaker.js";
import { TurnView } from "./turn.js";

const SUGGESTIONS = ["What do we see in this image?", "What does the text say?"];
const DEMO = "The demo model knows drawn shapes, colours, numbers and short words, such as the pictures in examples/. " +
  "It is of no use on photographs.";

let chat = new Chat();
let model = null;
const settings = new Settings();
const speaker = new Speaker(byId("spoken"));
const follower = new Follower(byId("scroller"), byId("turns"), byId("to-latest"));
const composer = new Composer({
  send: (text, pictures) => start(new Turn(text, pictures)),
  stop: () => chat.stop(),
  busy: () => chat.busy,
  look: (text, pictures, index) => lookAt(new Turn(text, [pictures[index]]), 0),
});
const views = new Map(); // turn → how it looks

function start(turn) {
  if (chat.busy) return;
  const mine = chat;
  const view = views.get(turn) ?? newView(turn);
  const { system, ...options } = settings.request;
  byId("welcome").hidden = true;
  composer.busy = true;
  follower.follow();
  speaker.begin(turn);
  mine.run(turn, { ...options, system, ...(model && { model }) }, () => {
    if (mine !== chat) return; // of a conversation that was left
    view.update();
    speaker.update(turn);
    composer.busy = mine.busy;
  });
}

function newView(turn) {
  const view = new TurnView(turn, {
    look: (one, index = null) => (index === null ? showLook(one.messages, { names: namesOf(one) }) : lookAt(one, index)),
    again: (one) => start(one),
    edit: (one) => {
      forget(one);
      composer.restore(one.text, one.pictures);
    },
    blame: (one) => chat.pictureAt(one, one.error?.param),
  });
  views.set(turn, view);
  byId("turns").append(view.element);
  return view;
}

function forget(turn) {
  chat.remove(turn);
  views.get(turn).element.remove();
  views.delete(turn);
  byId("welcome").hidden = chat.turns.length > 0;
}

/** One picture of a turn, whatever else the conversation holds. */
function lookAt(turn, index) {
  const picture = turn.pictures[index];
  return showLook([new Turn(turn.text, [picture]).message], { names: [picture.name], only: 0 });
}

/** Names of all pictures that a turn was sent with, in order: those of the turns before it, then its own. */
function namesOf(turn) {
  const all = chat.turns.flatMap(({ pictures }) => pictures);
  const uris = turn.messages.flatMap(({ content }) => (Array.isArray(content) ? content : []))
    .map((part) => part.image_url?.url).filter(Boolean);
  return uris.map((uri) => all.find((picture) => picture.uri === uri).name);
}

function newChat() {
  chat.stop();
  chat = new Chat();
  views.clear();
  byId("turns").replaceChildren();
  byId("welcome").hidden = false;
  composer.busy = false;
  composer.clear();
  speaker.silence();
}

async function greet() {
  try {
    [model] = await models();
  } catch (error) {
    composer.notice(error.title ?? "Something went wrong on this page.");
    return;
  }
  byId("model").textContent = model;
  byId("welcome-note").textContent = DEMO;
  byId("welcome-note").hidden = model !== "demo";
}

onKeyNeeded(askForKey);
byId("new-chat").addEventListener("click", newChat);
byId("suggestions").append(...SUGGESTIONS.map((text) =>
  el("button", { type: "button", className: "suggestion", onclick: () => composer.suggest(text) }, text)));
greet();
