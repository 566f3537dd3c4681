// One conversation on the page: what is stored, what comes in, and stopping it.
//
// Theory of operation. A page begins with the stored messages and follows the stream from the
// event that they cover, so an answer under way is replayed with all its rows. Everything that
// is shown goes by its id, a question by its message and an answer by its run, so whatever is
// told twice is shown once. All tabs show what the stream says, the one that asked among them.

import { Answer } from "./answer.js";
import { api } from "./api.js";
import { follow } from "./events.js";
import { make } from "./markup.js";
import { describeFailure, describeReceipt } from "./words.js";

export class Conversation {
  /**
   * `list` is the element for the turns. `hooks`: onChange() after anything that controls
   * depend on, onLink(state), onSay(text) to send it and learn whether it was,
   * onSpeak(text) for screen readers, onRun() when one begins or ends.
   */
  constructor(id, list, hooks) {
    this.id = id;
    this.list = list;
    this.hooks = hooks;
    this.questions = new Map(); // message id -> element
    this.asked = new Map(); // run id -> element of a question whose message id is not known yet
    this.expected = null; // {runId, text} of the message that this page sent last
    this.answers = new Map(); // run id -> Answer
    this.current = null; // the answer under way
    this.taking = null; // the answer that events are for: the current one, or none
    this.stopping = null; // {runId, receipt} from the click on stop until it is told
    this.earlier = null; // {cursor} of the page before what is shown; null: there is none
    this.leaving = new AbortController();
  }

  /** Show the conversation until `leave()`. */
  open() {
    const { signal } = this.leaving;
    const unlessLeft = (work) => (...told) => signal.aborted || work(...told);
    this.list.replaceChildren();
    return follow({
      signal,
      begin: () => this.#begin(signal),
      open: (lastId) => api.stream(this.id, lastId, signal),
      onEvent: unlessLeft((event) => this.#take(event)),
      onLink: unlessLeft(this.hooks.onLink),
    });
  }

  leave() {
    this.leaving.abort();
  }

  // --- what is stored -----------------------------------------------------------------

  async #begin(signal) {
    const page = await api.messages(this.id, null, signal);
    signal.throwIfAborted();
    this.#clear();
    for (const message of page.messages) this.#showStored(message);
    this.#catchUp();
    this.earlier = page.next_cursor ? { cursor: page.next_cursor } : null;
    this.hooks.onChange();
    return page.last_event_id;
  }

  /** Show the page of messages before the first one. */
  async showEarlier() {
    while (this.earlier) {
      const page = await api.messages(this.id, this.earlier.cursor, this.leaving.signal);
      this.earlier = page.next_cursor ? { cursor: page.next_cursor } : null;
      const first = this.list.firstElementChild;
      const shown = page.messages.filter((message) => this.#showStored(message, first));
      this.hooks.onChange();
      if (shown.length) return;
    }
  }

  /** What waited for the host may have happened while nobody told us. */
  #catchUp() {
    if (this.expected) this.expect(this.expected.runId, this.expected.text);
    if (!this.answers.get(this.stopping?.runId)?.isOpen) this.stopping = null;
  }

  #clear() {
    this.list.replaceChildren();
    this.questions.clear();
    this.asked.clear();
    this.answers.clear();
    this.current = this.taking = null;
  }

  /** Show a stored message, and return whether it was not there yet. */
  #showStored(message, before = null) {
    if (message.role === "user") return this.#showQuestion(message, before);
    if (this.answers.has(message.run_id)) return false;
    const { outcome = "completed", error = {} } = message.metadata || {};
    const answer = new Answer(message.run_id);
    this.answers.set(message.run_id, answer);
    answer.showText(message.content);
    this.list.insertBefore(answer.element, before); // below its question, which can be sent again
    if (outcome !== "completed" && outcome !== "cancelled") this.#fail(answer, error);
    else answer.close(outcome);
    if (outcome === "cancelled") answer.line("Stopped.");
    return true;
  }

  #showQuestion({ id, run_id: runId, content }, before = null) {
    if (this.questions.has(id)) return false;
    let element = this.asked.get(runId);
    if (!element) {
      element = makeQuestion(content);
      this.list.insertBefore(element, before);
    }
    element.dataset.runId = runId;
    this.asked.set(runId, element);
    this.questions.set(id, element);
    return true;
  }

  // --- what comes in ------------------------------------------------------------------

  #take(event) {
    switch (event.type) {
      case "resync":
        this.#resync(event);
        break;
      case "run_started":
        this.#showQuestion({ id: event.message_id, run_id: event.run_id, content: event.message });
        this.#follow(event.run_id);
        this.hooks.onRun();
        break;
      case "execution_complete":
      case "execution_error":
        this.#end(event);
        this.hooks.onRun();
        break;
      default:
        this.taking?.take(event);
        return; // nothing that controls depend on
    }
    this.hooks.onChange();
  }

  /** There is a gap: begin anew from what the host says. */
  #resync({ messages, run, truncated }) {
    this.#clear();
    for (const message of messages) this.#showStored(message);
    this.earlier = truncated ? { cursor: null } : null; // from the newest, past what is shown
    if (run) {
      this.#follow(run.run_id);
      this.current?.say(run.text);
      for (const call of run.open_calls || []) this.current?.showCall(call.call_id, call.tool_name);
    }
    this.#catchUp();
  }

  #follow(runId) {
    const answer = this.#answerOf(runId, "running");
    if (answer.element.dataset.state === "waiting") answer.element.dataset.state = "running";
    this.current = this.taking = answer.isOpen ? answer : null;
  }

  #answerOf(runId, state) {
    let answer = this.answers.get(runId);
    if (!answer) {
      answer = new Answer(runId, state);
      this.answers.set(runId, answer);
      // Another question, which waits for its turn, may stand below already.
      const question = this.asked.get(runId);
      if (question) question.after(answer.element);
      else this.list.append(answer.element);
    }
    return answer;
  }

  /** A message of ours is stored: show it, and that an answer is to come, which can be stopped. */
  expect(runId, text) {
    if (this.answers.has(runId)) return;
    this.expected = { runId, text };
    if (!this.asked.has(runId)) {
      this.asked.set(runId, makeQuestion(text));
      this.list.append(this.asked.get(runId));
    }
    const answer = this.#answerOf(runId, "waiting");
    this.current ??= answer;
    this.hooks.onChange();
  }

  #end(event) {
    const answer = this.answers.get(event.run_id) || this.taking;
    this.current = this.taking = null;
    if (this.expected?.runId === answer?.runId) this.expected = null;
    if (!answer?.isOpen) return;
    if (event.type === "execution_complete") this.#complete(answer, event);
    else this.hooks.onSpeak(this.#fail(answer, { ...event, message: event.error }));
    if (this.stopping?.runId === answer.runId) {
      if (this.stopping.receipt) this.#showReceipt(answer, this.stopping.receipt);
      this.stopping = null;
    }
    for (const other of this.answers.values()) if (other.isOpen) this.current = other;
  }

  #complete(answer, event) {
    // An agent that does not stream says everything at the end.
    if (!answer.text) answer.say(event.final_response || event.partial_response);
    answer.close(event.cancelled ? "cancelled" : "completed");
    if (event.cancelled) answer.line("Stopped.");
    else if (event.termination_reason) answer.line(`It ended early: ${event.termination_reason}.`);
    this.hooks.onSpeak(event.cancelled ? "Stopped." : answer.text);
  }

  /** Show how an answer failed, with a button if it may be asked again; returns the words. */
  #fail(answer, { code, message, retryable }) {
    const words = describeFailure({ code, message });
    answer.close("failed");
    const again = make("button", { type: "button" }, "Send again");
    again.addEventListener("click", async () => {
      again.disabled = true; // once is enough
      again.disabled = await this.hooks.onSay(this.#questionOf(answer));
    });
    answer.line(words, { isBad: true, action: retryable && this.#questionOf(answer) ? again : null });
    return words;
  }

  #questionOf(answer) {
    const question = answer.element.previousElementSibling;
    return question?.dataset.role === "user" ? question.lastChild.textContent : "";
  }

  // --- stopping -----------------------------------------------------------------------

  /** Stop the answer under way, and show the receipt. */
  async stop() {
    const answer = this.current;
    if (!answer || this.stopping) return;
    const stopping = (this.stopping = { runId: answer.runId, receipt: null });
    this.hooks.onChange();
    try {
      const receipt = await api.cancel(this.id, answer.runId);
      if (receipt.pending) return; // the end of the run says the rest
      stopping.receipt = receipt;
      const shown = this.answers.get(answer.runId);
      if (shown && !shown.isOpen) this.#showReceipt(shown, receipt);
    } catch (error) {
      if (this.stopping === stopping) this.stopping = null;
      throw error;
    } finally {
      this.hooks.onChange();
    }
  }

  #showReceipt(answer, receipt) {
    // What had ended by itself has its own last line.
    if (receipt.already) return;
    const { text, details } = describeReceipt(receipt);
    answer.line(text, { details });
    this.hooks.onSpeak(text);
  }
}

function makeQuestion(text) {
  return make("li", { class: "turn", "data-role": "user" }, make("span", { class: "sr" }, "You: "), text);
}
