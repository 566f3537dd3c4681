// Make elements out of events. Text from outside only ever becomes text nodes.

/** Make an element: tag, properties or attributes, children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show a text with the little markup that models like: code blocks, `code` and **bold**. */
export function renderText(into, text) {
  const parts = text.split(/^```[^\n]*\n?/m);
  into.replaceChildren(
    ...parts.flatMap((part, index) => {
      if (index % 2) return [make("pre", {}, make("code", {}, part.replace(/\n$/, "")))];
      return part
        .split(/\n{2,}/)
        .filter((paragraph) => paragraph.trim())
        .map((paragraph) => make("p", {}, ...inline(paragraph.replace(/^\n+|\n+$/g, ""))));
    }),
  );
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((piece, index) => {
    if (index % 2 === 0) return piece;
    return piece.startsWith("`")
      ? make("code", {}, piece.slice(1, -1))
      : make("strong", {}, piece.slice(2, -2));
  });
}

const short = (value, limit = 90) => {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const line = (text ?? "").replace(/\s+/g, " ").trim();
  return line.length > limit ? `${line.slice(0, limit)}…` : line;
};

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

function duration(milliseconds) {
  if (typeof milliseconds !== "number") return "";
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** A row that can be opened: what it is, a brief word, a state, and what is inside. */
class Row {
  constructor(kind, what, brief = "", state = "") {
    this.brief = make("span", { class: "brief" }, brief);
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
    if (value === undefined || value === null || value === "") return;
    this.inside.append(make("h3", {}, title), make("pre", {}, pretty(value)));
  }

  end(isGood, state) {
    this.element.dataset.state = isGood ? "good" : "bad";
    this.state.textContent = state;
  }
}

/** The answer to one message, as it grows. */
export class Answer {
  constructor(runId) {
    this.runId = runId;
    this.element = make("li", { class: "turn", "data-role": "assistant", "data-run-id": runId, "data-state": "running" });
    this.whole = "";
    this.block = null;
    this.thinking = null;
    this.plan = null;
    this.steps = new Map();
    this.calls = new Map();
    this.isDirty = false;
  }

  get isRunning() {
    return this.element.dataset.state === "running";
  }

  /** Take one event of the run; anything unknown is left out. */
  take(event) {
    switch (event.type) {
      case "text_chunk":
        return this.say(event.content);
      case "thinking":
        return this.think(event);
      case "plan_created":
        return this.planned(event);
      case "plan_step_start":
        return this.step(event, "under way");
      case "plan_step_complete":
        return this.step(event, `done ${duration(event.duration_ms)}`);
      case "plan_step_failed":
        return this.step(event, `failed: ${short(event.error)}`);
      case "tool_call_start":
        return this.callBegan(event.call_id || event.tool_name, "Tool", event.tool_name, event.arguments);
      case "tool_call_complete":
        return this.callEnded(event.call_id || event.tool_name, event);
      case "skill_call_start":
        return this.callBegan(`skill ${event.skill_id}`, "Skill", event.skill_name, event.arguments);
      case "skill_call_complete":
        return this.callEnded(`skill ${event.skill_id}`, event);
      case "mcp_call_start":
        return this.callBegan(`mcp ${event.server_id} ${event.tool_name}`, "MCP", event.tool_name, event.arguments);
      case "mcp_call_complete":
        return this.callEnded(`mcp ${event.server_id} ${event.tool_name}`, event);
      case "tool_auth_required":
        return this.note("ask", "Permission needed", `${event.tool_name}: ${event.reason}`, event.arguments_preview);
      case "tool_auth_denied":
        return this.note("ask", "Not allowed", `${event.tool_name}: ${event.reason}`);
      case "file_created":
        return this.note("file", "File", `${event.filename} (${event.size} bytes)`, event.url);
      default:
        return undefined;
    }
  }

  append(element) {
    this.block?.element.classList.remove("last");
    this.block = null;
    this.element.append(element);
  }

  say(text) {
    if (!text) return;
    this.whole += text;
    if (!this.block) {
      const element = make("div", { class: "text last" });
      this.append(element);
      this.block = { element, text: "" };
      this.thinking = null;
    }
    this.block.text += text;
    const block = this.block;
    if (block.isDirty) return;
    block.isDirty = true; // many chunks a frame become one rendering
    requestAnimationFrame(() => {
      block.isDirty = false;
      renderText(block.element, block.text);
    });
  }

  think(event) {
    if (!this.thinking) {
      this.thinking = new Row("thinking", "Thinking");
      this.thinking.text = make("pre", {});
      this.thinking.inside.append(this.thinking.text);
      this.append(this.thinking.element);
    }
    this.thinking.text.append(event.content);
    this.thinking.brief.textContent = short(this.thinking.text.textContent.slice(-200));
    this.thinking.state.textContent = event.stage || "";
  }

  planned(event) {
    this.thinking = null;
    this.plan = new Row("plan", "Plan", `${event.steps.length} steps`);
    const list = make("ol");
    for (const step of event.steps) {
      const state = make("span", { class: "state" });
      list.append(make("li", {}, `${step.title} `, state));
      this.steps.set(step.id, state);
    }
    this.plan.inside.append(list);
    this.append(this.plan.element);
  }

  step(event, state) {
    const known = this.steps.get(event.step_id);
    if (known) known.textContent = `· ${state}`;
  }

  callBegan(key, kind, name, args) {
    this.thinking = null;
    const row = new Row("call", `${kind} ${name}`, args === undefined ? "" : short(args), "running…");
    row.element.dataset.call = name;
    row.add("Asked with", args);
    this.calls.set(key, row);
    this.append(row.element);
  }

  callEnded(key, event) {
    let row = this.calls.get(key);
    if (!row) {
      this.callBegan(key, "Tool", event.tool_name || event.skill_name || "call");
      row = this.calls.get(key);
    }
    this.calls.delete(key);
    row.add("Answered", event.result);
    row.add("Error", event.error);
    const isGood = event.success !== false && !event.error;
    row.end(isGood, `${isGood ? "✓" : "failed"} ${duration(event.duration)}`.trim());
  }

  note(kind, what, brief, inside) {
    const row = new Row(kind, what, brief);
    row.add("Details", inside);
    this.append(row.element);
  }

  /** Put a line under the answer, in words; a list of details and a button may follow. */
  line(text, { isBad = false, details = [], action = null } = {}) {
    this.element.querySelector(":scope > .end")?.remove();
    this.element.append(
      make(
        "div",
        { class: isBad ? "end bad" : "end" },
        text,
        details.length ? make("ul", {}, ...details.map((detail) => make("li", {}, detail))) : null,
        action,
      ),
    );
  }

  /** The run has ended; whatever still looks as if it went on does not. */
  close(state) {
    this.element.dataset.state = state;
    this.block?.element.classList.remove("last");
    for (const row of this.calls.values()) row.end(false, "stopped");
    this.calls.clear();
  }
}

/** A receipt in words: a sentence, and what was stopped. */
export function describeReceipt(receipt) {
  if (!receipt) return { text: "Stopped.", details: [] };
  if (receipt.vm_lost) return { text: "The execution plane was lost; what it did last is not known.", details: [] };
  if (receipt.already) return { text: "It had ended already.", details: [] };
  if (receipt.started === false) return { text: "Stopped before it began.", details: [] };
  const usage = receipt.usage || {};
  const seconds = typeof receipt.seconds === "number" ? ` in ${receipt.seconds.toFixed(2)} s` : "";
  const tokens = usage.tokens_in || usage.tokens_out ? `; ${usage.tokens_in || 0} tokens in, ${usage.tokens_out || 0} out` : "";
  const item = (word) => (record) =>
    `${word} ${String(record.kind).replace("_", " ")} ${record.name}${record.effect ? `, ${record.effect}` : ""}`;
  return {
    text: `Stopped${seconds}${tokens}.`,
    details: [...(receipt.stopped || []).map(item("stopped")), ...(receipt.abandoned || []).map(item("could not stop"))],
  };
}
