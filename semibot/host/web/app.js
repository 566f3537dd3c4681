// The page: one conversation at a time, followed through its event stream.

import { api, HostError, onSignIn } from "./api.js";
import { follow } from "./events.js";
import { Answer, describeReceipt, make, renderText } from "./view.js";

const $ = (id) => document.getElementById(id);
const turns = $("turns"), scroll = $("scroll"), box = $("message");

/** What is shown. `answers` and `seen` make repeats harmless; `epoch` tells views apart. */
const view = {
  sessionId: null,
  following: null,
  seen: new Set(),
  answers: new Map(),
  current: null,
  earlier: null,
  stopping: null,
};

// --- small things -------------------------------------------------------------------------

function showNotice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function explain(error) {
  if (error instanceof HostError) {
    const wait = error.details.retryAfterMs ? ` Try again in ${Math.ceil(error.details.retryAfterMs / 1000)} s.` : "";
    if (error.code === "EXECUTION_PLANE_NOT_READY") {
      const why = error.details.lastError ? ` It said: ${error.details.lastError}` : "";
      return `The execution plane is ${error.details.status}.${why}${wait} Nothing was sent.`;
    }
    return `${error.message}.${wait}`.replace("..", ".");
  }
  return "The host cannot be reached. Is it running?";
}

const nearEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 120;

/** Change the log, and stay at its end if that is where the reader is. */
function change(work) {
  const stays = nearEnd();
  const result = work();
  if (stays) requestAnimationFrame(() => scroll.scrollTo({ top: scroll.scrollHeight }));
  return result;
}

function showLink(state, problem, seconds) {
  document.body.dataset.link = state === "up" ? "up" : view.sessionId ? "down" : "idle";
  const words = { up: "Connected", connecting: "Connecting…", gone: "Deleted" };
  $("link").textContent = words[state] || `Reconnecting in ${Math.ceil(seconds)} s: ${problem}`;
}

function showControls() {
  const run = view.current;
  $("stop").hidden = !run;
  $("stop").disabled = Boolean(view.stopping);
  $("stop").textContent = view.stopping ? "Stopping…" : "Stop";
  $("delete").hidden = !view.sessionId;
  $("welcome").hidden = turns.childElementCount > 0;
  scroll.setAttribute("aria-busy", String(Boolean(run)));
}

// --- the conversation ---------------------------------------------------------------------

function showQuestion(messageId, text, before = null) {
  if (view.seen.has(messageId)) return;
  view.seen.add(messageId);
  turns.insertBefore(make("li", { class: "turn", "data-role": "user", "data-message-id": messageId }, text), before);
}

function showStored(message, before = null) {
  if (message.role === "user") return showQuestion(message.id, message.content, before);
  if (view.seen.has(message.id)) return undefined;
  view.seen.add(message.id);
  const answer = new Answer(message.run_id);
  const text = make("div", { class: "text" });
  renderText(text, message.content);
  if (message.content) answer.element.append(text);
  const { outcome, error } = message.metadata || {};
  answer.close(outcome || "completed");
  if (outcome === "cancelled") answer.line("Stopped.");
  else if (outcome && outcome !== "completed") {
    answer.line(error?.message || error?.error || `This answer was ${outcome}.`, { isBad: true });
  }
  turns.insertBefore(answer.element, before);
  return undefined;
}

function answerOf(runId) {
  let answer = view.answers.get(runId);
  if (!answer) {
    answer = new Answer(runId);
    view.answers.set(runId, answer);
    turns.append(answer.element);
  }
  return answer;
}

/** Begin anew from what the host knows: the first thing on a stream, and after a gap. */
function resync(event) {
  turns.replaceChildren();
  view.seen.clear();
  view.answers.clear();
  view.current = null;
  for (const message of event.messages) showStored(message);
  $("earlier").hidden = !event.truncated;
  view.earlier = null;
  if (event.run) {
    const answer = answerOf(event.run.run_id);
    view.current = answer;
    answer.say(event.run.text);
    for (const call of event.run.open_calls || []) answer.callBegan(call.call_id, "Tool", call.tool_name);
  }
  scroll.scrollTo({ top: scroll.scrollHeight });
}

function ended(event) {
  const answer = answerOf(event.run_id || view.current?.runId);
  if (event.type === "execution_complete") {
    if (!answer.whole && (event.final_response || event.partial_response)) {
      answer.say(event.final_response || event.partial_response);
    }
    answer.close(event.cancelled ? "cancelled" : "completed");
    if (event.cancelled) answer.line("Stopped.");
    else if (event.termination_reason) answer.line(`Ended early: ${event.termination_reason}.`);
    $("spoken").textContent = event.cancelled ? "Stopped." : answer.whole;
  } else {
    answer.close("failed");
    const again = event.retryable
      ? make("button", { type: "button", onclick: () => sayAgain(answer) }, "Send again")
      : null;
    answer.line(event.error || event.code, { isBad: true, action: again });
    $("spoken").textContent = event.error || event.code;
  }
  if (view.current === answer) view.current = null;
  if (view.stopping?.runId === answer.runId && view.stopping.receipt) showReceipt(answer, view.stopping.receipt);
  if (view.stopping?.runId === answer.runId) view.stopping = null;
  listConversations();
}

function onEvent(event) {
  change(() => {
    switch (event.type) {
      case "resync":
        return resync(event);
      case "run_started":
        showQuestion(event.message_id, event.message);
        view.current = answerOf(event.run_id);
        return undefined;
      case "execution_complete":
      case "execution_error":
        return ended(event);
      default:
        return view.current?.take(event);
    }
  });
  showControls();
}

function openConversation(sessionId) {
  view.following?.abort();
  Object.assign(view, { sessionId, following: null, current: null, earlier: null, stopping: null });
  view.seen.clear();
  view.answers.clear();
  turns.replaceChildren();
  $("earlier").hidden = true;
  showNotice("");
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
  if (sessionId) {
    const following = (view.following = new AbortController());
    follow({
      open: (lastId, signal) => api.stream(sessionId, lastId, signal),
      signal: following.signal,
      onEvent: (event) => following === view.following && onEvent(event),
      onLink: (...state) => following === view.following && showLink(...state),
    });
  }
  showLink("idle", "", 0);
  $("link").textContent = "";
  showControls();
  markCurrent();
}

// --- saying and stopping ------------------------------------------------------------------

async function say(text) {
  const key = crypto.randomUUID?.() || `${Date.now()}-${Math.random()}`;
  showNotice("");
  $("send").disabled = true;
  try {
    const stored = await api.say(view.sessionId, text, key);
    if (box.value === text) box.value = "";
    if (!view.sessionId) {
      location.hash = `#/${encodeURIComponent(stored.sessionId)}`;
    }
    listConversations();
  } catch (error) {
    showNotice(explain(error));
  } finally {
    $("send").disabled = false;
    box.focus();
  }
}

function sayAgain(answer) {
  const question = answer.element.previousElementSibling;
  if (question?.dataset.role === "user") say(question.textContent);
}

function showReceipt(answer, receipt) {
  const { text, details } = describeReceipt(receipt);
  change(() => answer.line(text, { details }));
}

async function stop() {
  const answer = view.current;
  if (!answer || view.stopping) return;
  view.stopping = { runId: answer.runId, receipt: null };
  showControls();
  try {
    const receipt = await api.cancel(view.sessionId, answer.runId);
    if (receipt.pending) return;
    if (answer.isRunning && view.stopping) view.stopping.receipt = receipt;
    else showReceipt(answer, receipt);
  } catch (error) {
    view.stopping = null;
    showNotice(explain(error));
  }
  showControls();
}

// --- conversations ------------------------------------------------------------------------

let shownConversations = [];
let nextConversations = null;

async function listConversations(cursor = null) {
  try {
    const page = await api.sessions(cursor);
    shownConversations = cursor ? [...shownConversations, ...page.sessions] : page.sessions;
    nextConversations = page.next_cursor;
  } catch (error) {
    if (error instanceof HostError) showNotice(explain(error));
    return;
  }
  $("conversations").replaceChildren(
    ...shownConversations.map((session) =>
      make(
        "li",
        {},
        make(
          "a",
          { href: `#/${encodeURIComponent(session.id)}`, "data-session-id": session.id, title: session.title },
          session.title || "Untitled",
          make("time", { datetime: session.updated_at }, when(session.updated_at)),
        ),
      ),
    ),
  );
  $("more-conversations").hidden = !nextConversations;
  markCurrent();
}

function when(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday
    ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

function markCurrent() {
  let title = "New conversation";
  for (const link of $("conversations").querySelectorAll("a")) {
    const isCurrent = link.dataset.sessionId === view.sessionId;
    if (isCurrent) {
      link.setAttribute("aria-current", "page");
      title = link.title || title;
    } else link.removeAttribute("aria-current");
  }
  $("title").textContent = title;
  document.title = view.sessionId ? `${title} · semibot` : "semibot";
}

async function showEarlier() {
  try {
    if (!view.earlier) {
      // What is shown came with the stream; page back until something older turns up.
      view.earlier = { cursor: null };
    }
    for (;;) {
      const page = await api.messages(view.sessionId, view.earlier.cursor);
      view.earlier.cursor = page.next_cursor;
      const fresh = page.messages.filter((message) => !view.seen.has(message.id));
      const first = turns.firstElementChild;
      for (const message of fresh) showStored(message, first);
      $("earlier").hidden = !page.next_cursor;
      if (fresh.length || !page.next_cursor) return;
    }
  } catch (error) {
    showNotice(explain(error));
  }
}

async function remove() {
  const dialog = $("confirm");
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "yes") return;
  try {
    await api.remove(view.sessionId);
    location.hash = "";
    listConversations();
  } catch (error) {
    showNotice(explain(error));
  }
}

// --- beginning ----------------------------------------------------------------------------

let asking = null;
onSignIn((wasWrong) => {
  asking ??= new Promise((resolve) => {
    const dialog = $("sign-in");
    if (wasWrong) $("sign-in-why").textContent = "The host does not accept this token. Paste another one.";
    $("token").value = "";
    dialog.addEventListener("close", () => resolve($("token").value.trim() || null), { once: true });
    dialog.showModal();
  }).finally(() => {
    asking = null;
  });
  return asking;
});

function readAddress() {
  const id = decodeURIComponent(location.hash.replace(/^#\/?/, ""));
  openConversation(id || null);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (box.value.trim() && !$("send").disabled) say(box.value);
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  if (location.hash) location.hash = "";
  else openConversation(null);
  box.focus();
});
$("delete").addEventListener("click", remove);
$("earlier").addEventListener("click", showEarlier);
$("more-conversations").addEventListener("click", () => listConversations(nextConversations));
$("menu").addEventListener("click", () => {
  const isOpen = $("side").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(isOpen));
});
addEventListener("hashchange", readAddress);

readAddress();
listConversations();
box.focus();
