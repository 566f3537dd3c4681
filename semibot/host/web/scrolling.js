// Keep the end of a growing log in view, but only while the reader is there.

const NEAR = 80; // pixels from the end that still count as the end

export class Follower {
  /** `box` scrolls, `content` grows, `button` takes the reader back to the end. */
  constructor(box, content, button) {
    this.box = box;
    this.button = button;
    this.isFollowing = true;
    this.top = 0;
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // Opening a row at the end must not pull its own heading out of sight.
    content.addEventListener("click", (event) => {
      if (event.target.closest("summary")) this.isFollowing = false;
    });
    button.addEventListener("click", () => {
      box.focus({ preventScroll: true }); // the button goes away, and must not take the focus along
      this.toEnd();
    });
    button.addEventListener("blur", () => this.#show());
    const watcher = new ResizeObserver(() => this.#grew());
    watcher.observe(content);
    watcher.observe(box);
  }

  toEnd() {
    this.isFollowing = true;
    this.#grew();
  }

  /** Wait for work that puts something above, and leave what the reader sees where it is. */
  async keepPlace(work) {
    const { scrollTop, scrollHeight } = this.box;
    this.isFollowing = false;
    await work();
    this.box.scrollTop = scrollTop + this.box.scrollHeight - scrollHeight;
  }

  get #isAtEnd() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR;
  }

  #scrolled() {
    // Content that grows faster than we scroll also leaves a distance; only the reader goes up.
    if (this.#isAtEnd) this.isFollowing = true;
    else if (this.box.scrollTop < this.top - 1) this.isFollowing = false;
    this.top = this.box.scrollTop;
    this.#show();
  }

  #grew() {
    if (this.isFollowing) this.box.scrollTop = this.box.scrollHeight;
    this.top = this.box.scrollTop;
    this.#show();
  }

  #show() {
    const isNeeded = !this.isFollowing && !this.#isAtEnd;
    this.button.hidden = !isNeeded && document.activeElement !== this.button;
  }
}
