// Make elements. Text from outside only ever becomes text nodes, never markup.

/** Make an element: tag, attributes or listeners ("onclick"), children. */
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

/**
 * A growing text, shown with the little markup that models like. Only what changed is made
 * anew, so that a selection, or a code block scrolled sideways, outlives the next word.
 */
export class Prose {
  constructor(text = "") {
    this.element = make("div", { class: "text" });
    this.text = "";
    this.blocks = [];
    this.isScheduled = false;
    if (text) {
      this.text = text;
      this.#render();
    }
  }

  append(text) {
    this.text += text;
    if (this.isScheduled) return;
    this.isScheduled = true; // many chunks of one frame become one rendering
    requestAnimationFrame(() => this.flush());
    // A tab in the background has no frames, and yet should not fall behind for ever.
    setTimeout(() => this.flush(), 200);
  }

  /** Show now what is due. */
  flush() {
    if (!this.isScheduled) return;
    this.isScheduled = false;
    this.#render();
  }

  #render() {
    const blocks = splitBlocks(this.text);
    let same = 0;
    while (same < blocks.length && isSame(blocks[same], this.blocks[same])) same += 1;
    while (this.element.children.length > same) this.element.lastElementChild.remove();
    this.element.append(...blocks.slice(same).map(makeBlock));
    this.blocks = blocks;
  }
}

const isSame = (one, other) => other && one.kind === other.kind && one.lines.join("\n") === other.lines.join("\n");

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

/** Split a text into blocks: {kind, lines}. What is not closed yet counts as closed at the end. */
export function splitBlocks(text) {
  const blocks = [];
  let open = null;
  let fence = null;
  const add = (kind, line) => {
    if (open?.kind !== kind) blocks.push((open = { kind, lines: [] }));
    open.lines.push(line);
  };
  for (const line of text.split("\n")) {
    const mark = FENCE.exec(line);
    if (fence) {
      if (mark?.[1].startsWith(fence) && !mark[2].trim()) fence = open = null;
      else open.lines.push(line);
    } else if (mark) {
      fence = mark[1];
      blocks.push((open = { kind: "code", lines: [] }));
    } else if (!line.trim()) open = null;
    else if (/^#{1,6}\s/.test(line)) {
      open = null;
      add("heading", line);
      open = null;
    } else if (ITEM.test(line)) add(ITEM.exec(line)[2] ? "ol" : "ul", line);
    else if (/^\s/.test(line) && (open?.kind === "ul" || open?.kind === "ol")) open.lines.push(line);
    else if (/^>/.test(line)) add("quote", line);
    else if (/^\|/.test(line)) add("table", line);
    else add("paragraph", line);
  }
  return blocks;
}

function makeBlock({ kind, lines }) {
  switch (kind) {
    case "code":
      return codeBlock(lines.join("\n"));
    case "table":
      return make("pre", { tabindex: "0", role: "group", "aria-label": "Table" }, lines.join("\n"));
    case "heading":
      return make("h3", {}, ...inline(lines[0].replace(/^#+\s+/, "")));
    case "quote":
      return make("blockquote", {}, ...inline(lines.map((line) => line.replace(/^>\s?/, "")).join("\n")));
    case "ul":
    case "ol":
      return list(kind, lines);
    default:
      return make("p", {}, ...inline(lines.join("\n")));
  }
}

function codeBlock(code) {
  const copy = make("button", { type: "button", class: "copy", "aria-label": "Copy this code" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not allowed";
    }
    copy.removeAttribute("aria-label");
  });
  // What scrolls sideways must be reachable by keyboard.
  return make("div", { class: "code" }, make("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, make("code", {}, code)), copy);
}

function list(kind, lines) {
  const items = [];
  for (const line of lines) {
    const [, indent, , text] = ITEM.exec(line) || [];
    if (text === undefined) items.at(-1).text += `\n${line.trim()}`;
    else items.push({ text, level: Math.min(3, Math.floor(indent.length / 2)) });
  }
  const start = kind === "ol" ? ITEM.exec(lines[0])[2] : undefined;
  return make(kind, { start }, ...items.map(({ text, level }) => make("li", { "data-level": level || null }, ...inline(text))));
}

const PIECES = /(`[^`\n]+`|\*\*[^*\n]+\*\*|\[[^\]\n]+\]\(https?:\/\/[^\s)]+\)|https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?])/;

function inline(text) {
  return text.split(PIECES).map((piece, index) => {
    if (index % 2 === 0) return piece;
    if (piece.startsWith("`")) return make("code", {}, piece.slice(1, -1));
    if (piece.startsWith("**")) return make("strong", {}, piece.slice(2, -2));
    const [, words, address] = /^\[(.+)\]\((.+)\)$/.exec(piece) || [null, piece, piece];
    return make("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, words);
  });
}
