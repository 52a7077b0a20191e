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
  lookAt,
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
    look: (one) => showLook(one.sent.messages, one.sent.pictures),
    lookAt,
    again: (one) => {
      start(one);
      byId("question").focus(); // the button that had it is gone
    },
    edit: (one) => {
      forget(one);
      composer.restore(one.text, one.pictures);
    },
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

/** One picture, whatever else the conversation holds. */
function lookAt(picture, question) {
  return showLook([new Turn(question, [picture]).message], [picture], { alone: true });
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
dispatchEvent(new Event("ready")); // to early.js
