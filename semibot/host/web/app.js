// The page: which conversation is shown, what is typed, and what the buttons do.

import { api, onSignIn } from "./api.js";
import { Conversation } from "./conversation.js";
import { Conversations } from "./conversations.js";
import { askForToken, askToDelete } from "./dialogs.js";
import { Follower } from "./scrolling.js";
import { describePlane, explain } from "./words.js";

const $ = (id) => document.getElementById(id);
const box = $("message");

const follower = new Follower($("scroll"), $("log"), $("to-end"));
const conversations = new Conversations($("conversations"), $("more-conversations"), listed);

let shown = null; // the conversation, or null for a new one
let sending = null; // {id, text, key}: kept after a failure, so that a repeat is the same request
let isSending = false;

// --- what is shown --------------------------------------------------------------------------

function open(id) {
  shown?.leave();
  $("turns").replaceChildren();
  shown = id ? new Conversation(id, $("turns"), hooks) : null;
  document.body.dataset.link = "idle";
  $("link").textContent = $("spoken").textContent = "";
  showNotice("");
  showMenu(false);
  conversations.mark(id);
  showTitle();
  showControls();
  follower.toEnd();
  shown?.open();
}

const hooks = {
  onChange: () => showControls(),
  onLink: (state) => showLink(state),
  onSay: (text) => say(text),
  onSpeak: (text) => ($("spoken").textContent = text),
  onRun: () => conversations.refresh(),
};

const LINKS = {
  connecting: "Connecting…",
  up: "Connected",
  down: "Reconnecting…",
  again: "Reconnecting…",
  gone: "Deleted",
  refused: "Signed out",
};

function showLink(state) {
  const wasDown = document.body.dataset.link === "down";
  document.body.dataset.link = state === "again" ? "down" : state;
  if ($("link").textContent !== LINKS[state]) $("link").textContent = LINKS[state];
  if (state === "up" && wasDown) conversations.refresh();
  if (state === "gone") {
    showNotice("This conversation does not exist any more.");
    conversations.refresh();
  }
  if (state === "refused") showNotice("The host asks who you are. Reload the page to sign in.");
  showControls();
}

function showControls() {
  const isGone = document.body.dataset.link === "gone";
  const isStopping = Boolean(shown?.stopping);
  $("stop").hidden = isGone || (!shown?.current && !isStopping);
  // Not disabled: a button that is would lose the focus of whoever pressed it by keyboard.
  $("stop").setAttribute("aria-disabled", String(isStopping));
  $("stop").textContent = isStopping ? "Stopping…" : "Stop";
  $("send").disabled = isSending || isGone;
  $("send").textContent = isSending ? "Sending…" : "Send";
  box.disabled = isGone;
  $("delete").hidden = !shown || isGone;
  $("earlier").hidden = !shown?.earlier;
  $("welcome").hidden = Boolean(shown);
}

/** Say how the execution plane does, while somebody waits for an answer of it. */
async function showPlane() {
  const isWaiting = Boolean(shown?.current) && document.body.dataset.link === "up" && !document.hidden;
  const status = isWaiting ? await api.plane().catch(() => null) : null;
  const text = describePlane(status?.liveness);
  if ($("plane").textContent !== text) $("plane").textContent = text;
}

function showTitle() {
  const title = shown ? conversations.titleOf(shown.id) || shown.title || "Conversation" : "New conversation";
  $("title").textContent = title;
  document.title = shown ? `${title} · semibot` : "semibot";
}

/** The list is here; what is too far down to be in it has a title all the same. */
async function listed() {
  showTitle();
  const conversation = shown;
  if (!conversation || "title" in conversation) return;
  conversation.title = conversations.titleOf(conversation.id); // or it is asked for, once
  if (conversation.title) return;
  conversation.title = (await api.session(conversation.id).catch(() => null))?.title;
  if (shown === conversation) showTitle();
}

function showNotice(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

function showMenu(isOpen) {
  $("side").classList.toggle("open", isOpen);
  $("shade").hidden = !isOpen;
  $("menu").setAttribute("aria-expanded", String(isOpen));
  $("main").inert = isOpen; // behind the list, for the keyboard too
}

/** Do what a button says; what goes wrong is said in words. */
const attempt = (work) => async () => {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") showNotice(explain(error));
  }
};

// --- saying and stopping --------------------------------------------------------------------

/** Send a message, and return whether it is stored. */
async function say(text) {
  if (isSending || !text.trim()) return false;
  const from = shown;
  const id = from?.id ?? null;
  if (sending?.id !== id || sending.text !== text) sending = { id, text, key: newKey() };
  isSending = true;
  showNotice("");
  showControls();
  try {
    const { sessionId, runId } = await api.say(id, text, sending.key);
    sending = null;
    if (box.value === text) box.value = "";
    if (shown === from) arrived(sessionId, runId, text);
    conversations.refresh();
    return true;
  } catch (error) {
    showNotice(explain(error));
    return false;
  } finally {
    isSending = false;
    showControls();
    if (document.activeElement === document.body) box.focus();
  }
}

/** The message is stored; show where. */
function arrived(sessionId, runId, text) {
  follower.toEnd();
  if (!shown) {
    history.pushState(null, "", `#/${encodeURIComponent(sessionId)}`);
    open(sessionId);
    shown.title = text.trim().split("\n")[0].slice(0, 80);
    showTitle();
  }
  shown.expect(runId, text);
}

/** A random name for a request; randomUUID exists on https and loopback only. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const stop = attempt(async () => {
  await shown?.stop();
});

const remove = attempt(async () => {
  const doomed = shown;
  if (!doomed || !(await askToDelete())) return;
  await api.remove(doomed.id);
  if (shown === doomed) leave();
  conversations.refresh();
});

/** Begin a new conversation. */
function leave() {
  if (location.hash) history.pushState(null, "", location.pathname);
  open(null);
  box.focus();
}

const showEarlier = attempt(() => follower.keepPlace(() => shown?.showEarlier()));

// --- beginning ------------------------------------------------------------------------------

function readAddress() {
  let id = "";
  try {
    id = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  } catch {
    // Not an address of ours.
  }
  if ((shown?.id ?? "") !== id) open(id || null);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say(box.value);
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if ($("side").classList.contains("open")) {
    showMenu(false);
    $("menu").focus();
  } else stop();
});
$("stop").addEventListener("click", () => {
  if (document.activeElement === $("stop")) box.focus(); // the button goes away in a moment
  stop();
});
$("new").addEventListener("click", leave);
$("delete").addEventListener("click", remove);
$("earlier").addEventListener("click", showEarlier);
$("notice-close").addEventListener("click", () => {
  showNotice("");
  box.focus();
});
$("menu").addEventListener("click", () => {
  showMenu(true);
  $("new").focus();
});
$("shade").addEventListener("click", () => showMenu(false));
$("conversations").addEventListener("click", () => showMenu(false));
addEventListener("popstate", readAddress);
addEventListener("hashchange", readAddress);
document.addEventListener("visibilitychange", () => document.hidden || conversations.refresh());
onSignIn(askForToken);
setInterval(showPlane, 5_000);

open(null);
readAddress();
conversations.refresh();
box.focus();
