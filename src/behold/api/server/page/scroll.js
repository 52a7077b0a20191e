// Keeps the newest words in sight, unless the person has scrolled up to read.

const NEAR = 48; // pixels from the end that still count as the end

export class Follower {
  constructor(scroller, content, button) {
    this.scroller = scroller;
    this.button = button;
    this.following = true;
    this.top = 0; // where the view was
    scroller.addEventListener("scroll", () => this.#note(), { passive: true });
    button.addEventListener("click", () => this.follow());
    const watch = new ResizeObserver(() => (this.following ? this.#toEnd() : this.#note()));
    watch.observe(content);
    watch.observe(scroller);
  }

  follow() {
    this.following = true;
    this.#toEnd();
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
    this.button.hidden = true;
  }

  #note() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    // Far from the end without having gone up: words have come since the view moved, and it is about to follow them.
    this.following = near || (this.following && scrollTop >= this.top);
    this.top = scrollTop;
    this.button.hidden = this.following;
  }
}
