// The answer to one message, as it grows: text, and rows for what the agent did.

import { make, Prose } from "./markup.js";
import { brief, duration, whole } from "./words.js";

/** A row that can be opened: what it is, a brief word, a state, and what is inside. */
class Row {
  constructor(kind, what, word = "", state = "") {
    this.brief = make("span", { class: "brief" }, word);
    this.state = make("span", { class: "state" }, state);
    this.inside = make("div", { class: "inside" });
    this.element = make(
      "details",
      { class: "row", "data-kind": kind },
      make("summary", {}, make("span", { class: "what" }, what), this.brief, this.state),
      this.inside,
    );
  }

  add(title, value) {
    if (value === undefined || value === null || value === "" || value === "{}") return;
    this.inside.append(make("h3", {}, title), make("pre", { tabindex: "0", role: "group", "aria-label": title }, whole(value)));
  }

  end(state, words) {
    this.element.dataset.state = state;
    this.state.textContent = words;
  }
}

const CALLS = { tool: "tool", skill: "skill", mcp: "MCP" };

export class Answer {
  /** `state` is waiting, running, completed, cancelled or failed. */
  constructor(runId, state = "running") {
    this.runId = runId;
    this.text = "";
    this.steps = new Map();
    this.calls = new Map();
    this.prose = null;
    this.thinking = null;
    this.body = make("div", { class: "body" });
    this.element = make(
      "li",
      { class: "turn", "data-role": "assistant", "data-run-id": runId, "data-state": state },
      make("span", { class: "sr" }, "semibot"),
      this.body,
    );
  }

  get isOpen() {
    return this.element.dataset.state === "running" || this.element.dataset.state === "waiting";
  }

  /** Take one event of the run; anything unknown is left out. */
  take(event) {
    const [kind, what] = /^(tool|skill|mcp)_call_(start|complete)$/.exec(event.type)?.slice(1) || [];
    if (what) return this.#call(kind, what, event);
    switch (event.type) {
      case "text_chunk":
        return this.say(event.content);
      case "thinking":
        return this.#think(event);
      case "plan_created":
        return this.#plan(event.steps || []);
      case "plan_step_start":
        return this.#step(event, "under way");
      case "plan_step_complete":
        return this.#step(event, `done ${duration(event.duration_ms)}`.trim());
      case "plan_step_failed":
        return this.#step(event, `failed: ${brief(event.error)}`);
      case "tool_auth_required":
        return this.#permission(event);
      case "tool_auth_denied":
        return this.#ask("Not allowed", event);
      case "file_created":
        return this.#file(event);
      default:
        return undefined;
    }
  }

  say(text) {
    if (!text) return;
    this.text += text;
    if (!this.prose) {
      this.prose = new Prose();
      this.thinking = null;
      this.body.append(this.prose.element);
    }
    this.prose.append(text);
  }

  /** Show a text that is whole already. */
  showText(text) {
    this.text = text;
    if (text) this.body.append(new Prose(text).element);
  }

  /** A call of which only the start is known, as after a gap. */
  showCall(callId, name) {
    this.#call("tool", "start", { call_id: callId, tool_name: name });
  }

  /** Put a line under the answer, in words; a list of details and a button may follow. */
  line(text, { isBad = false, details = [], action = null } = {}) {
    this.element.querySelector(":scope > .end")?.remove();
    const list = details.length ? make("ul", {}, ...details.map((detail) => make("li", {}, detail))) : null;
    this.element.append(make("div", { class: isBad ? "end bad" : "end" }, make("p", {}, text), list, action));
  }

  /** The run has ended; whatever still looks as if it went on does not. */
  close(state) {
    this.element.dataset.state = state;
    for (const row of this.calls.values()) row.end("stopped", "stopped");
    this.calls.clear();
    this.prose?.flush();
    this.prose = this.thinking = null;
  }

  #add(row) {
    this.prose = this.thinking = null;
    this.body.append(row.element);
    return row;
  }

  #think(event) {
    // That it is done is what the end of the answer says.
    if (!event.content || (event.stage === "concluding" && this.text)) return;
    if (!this.thinking) {
      const row = this.#add(new Row("thinking", "Thinking"));
      this.thinking = row;
      row.text = make("pre", { tabindex: "0", role: "group", "aria-label": "Thoughts" });
      row.inside.append(row.text);
      row.tail = "";
    }
    const row = this.thinking;
    // Models send pieces of words; agents send whole thoughts, which belong on lines of their own.
    const isNext = row.stage && row.stage !== event.stage && !row.tail.endsWith("\n");
    const separator = isNext ? "\n" : "";
    row.stage = event.stage;
    row.text.append(separator + event.content);
    row.tail = (row.tail + separator + event.content).slice(-400);
    row.brief.textContent = brief(row.tail.trim().split("\n").at(-1));
  }

  #plan(steps) {
    const row = this.#add(new Row("plan", "Plan", steps.length === 1 ? steps[0].title : `${steps.length} steps`));
    const list = make("ol");
    for (const step of steps) {
      const state = make("span", { class: "state" });
      list.append(make("li", {}, `${step.title} `, state));
      this.steps.set(step.id, state);
    }
    row.inside.append(list);
  }

  #step(event, state) {
    const known = this.steps.get(event.step_id);
    if (known) known.textContent = `· ${state}`;
  }

  #call(kind, what, event) {
    const name = event.tool_name || event.skill_name || "something";
    // Only tools number their calls; of the others there is one at a time by a name.
    const key = `${kind} ${event.call_id || event.skill_id || `${event.server_id} ${name}`}`;
    let row = this.calls.get(key);
    if (!row) {
      row = this.#add(new Row("call", name, brief(event.arguments), "running"));
      row.element.dataset.call = name;
      row.element.dataset.state = "running";
      row.element.querySelector(".what").prepend(make("span", { class: "kind" }, `${CALLS[kind]} `));
      row.add("Asked with", event.arguments);
      this.calls.set(key, row);
    }
    if (what === "start") return;
    this.calls.delete(key);
    row.add("Answered", event.result);
    row.add("Error", event.error);
    const isGood = event.success !== false && !event.error;
    row.end(isGood ? "good" : "bad", `${isGood ? "✓" : "failed"} ${duration(event.duration)}`.trim());
  }

  #ask(what, event) {
    const row = this.#add(new Row("ask", what, event.reason || event.tool_name));
    row.add("For", event.arguments_preview ?? event.tool_name);
    row.add("Why", event.reason);
    return row;
  }

  #permission(event) {
    const row = this.#ask("Permission needed", event);
    const grants = (event.suggested_grants || []).join(", ");
    if (grants) row.add("To allow it, start the host with", `semibot serve --allow ${grants}`);
    row.element.open = true;
  }

  #file(event) {
    const row = this.#add(new Row("file", event.filename, `${event.size} bytes`));
    const isSafe = /^(\/(?!\/)|https?:\/\/)/.test(event.url || "");
    if (isSafe) row.inside.append(make("a", { href: event.url, rel: "noopener", target: "_blank" }, event.url));
    else row.add("Where", event.url);
  }
}
