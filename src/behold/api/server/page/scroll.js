// Keeps the newest words in sight, unless the person has scrolled up to read.

const NEAR = 48; // pixels from the end that still count as the end

export class Follower {
  constructor(scroller, content, button) {
    this.scroller = scroller;
    this.button = button;
    this.following = true;
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
    this.button.hidden = true;
  }

  #note() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.button.hidden = this.following;
  }
}
