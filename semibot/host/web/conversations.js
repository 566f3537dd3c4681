// The list of conversations beside the one that is shown.

import { api } from "./api.js";
import { make } from "./markup.js";
import { when } from "./words.js";

export class Conversations {
  /** `list` and `more` are elements; `onChange()` is called after each refresh. */
  constructor(list, more, onChange) {
    this.list = list;
    this.more = more;
    this.onChange = onChange;
    this.sessions = [];
    this.pages = 1;
    this.currentId = null;
    this.isBusy = false;
    this.isWanted = false;
    more.addEventListener("click", () => {
      this.pages += 1;
      this.refresh();
    });
  }

  /** Ask the host anew; never fails, as the list is not what anybody waits for. */
  async refresh() {
    this.isWanted = true;
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      while (this.isWanted) {
        this.isWanted = false;
        await this.#load();
      }
    } catch {
      // The conversation itself says what is wrong with the host.
    } finally {
      this.isBusy = false;
    }
  }

  async #load() {
    const sessions = [];
    let cursor = null;
    for (let page = 0; page < this.pages; page += 1) {
      const answer = await api.sessions(cursor);
      sessions.push(...answer.sessions);
      cursor = answer.next_cursor;
      if (!cursor) break;
    }
    this.sessions = sessions;
    this.more.hidden = !cursor;
    this.#render();
    this.onChange();
  }

  titleOf(id) {
    return this.sessions.find((session) => session.id === id)?.title;
  }

  mark(id) {
    this.currentId = id;
    for (const link of this.list.querySelectorAll("a")) {
      if (link.dataset.sessionId === id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #render() {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.sessionId : null;
    this.list.replaceChildren(...this.sessions.map(item));
    this.mark(this.currentId);
    // Whoever goes through the list by keyboard keeps their place when it is made anew.
    if (focused) [...this.list.querySelectorAll("a")].find((link) => link.dataset.sessionId === focused)?.focus();
  }
}

function item({ id, title, updated_at: updated }) {
  const name = title || "Untitled";
  const link = make("a", { href: `#/${encodeURIComponent(id)}`, title: name }, make("span", {}, name));
  link.dataset.sessionId = id;
  link.append(make("time", { datetime: updated }, when(updated)));
  return make("li", {}, link);
}
