// The part of the time that is shown. Sections that share a scale share a view.

import { calm } from "./dom.js";

const CLOSEST = 2e-6; // seconds: below that there is nothing to see
const GLIDE = 160; // milliseconds

export class View {
  /** `length` is the end of all that can be shown, in seconds. */
  constructor(length) {
    // Room to the right, so that the last slice does not lie on the edge.
    this.length = (length > 0 ? length : 1e-3) * 1.004;
    this.from = 0;
    this.to = this.length;
    this.watchers = new Set();
    this.gliding = 0;
  }

  get span() {
    return this.to - this.from;
  }

  get whole() {
    return this.span >= this.length * 0.9999;
  }

  /** Show from one moment to another; what lies outside the run is cut off, or moved into it. */
  set(from, to) {
    cancelAnimationFrame(this.gliding);
    this.#put(from, to);
  }

  #put(from, to) {
    const span = Math.min(Math.max(to - from, Math.min(CLOSEST, this.length)), this.length);
    const middle = (from + to) / 2;
    const start = Math.min(Math.max(to - from === span ? from : middle - span / 2, 0), this.length - span);
    if (start === this.from && start + span === this.to) return;
    this.from = start;
    this.to = start + span;
    for (const watcher of this.watchers) watcher();
  }

  /** As `set`, but the eye can follow. */
  glide(from, to) {
    cancelAnimationFrame(this.gliding);
    if (calm()) {
      this.#put(from, to);
      return;
    }
    const [wasFrom, wasTo, began] = [this.from, this.to, performance.now()];
    const step = (now) => {
      const share = Math.min(1, Math.max(0, (now - began) / GLIDE));
      const eased = 1 - (1 - share) ** 3;
      this.#put(wasFrom + (from - wasFrom) * eased, wasTo + (to - wasTo) * eased);
      if (share < 1) this.gliding = requestAnimationFrame(step);
    };
    this.gliding = requestAnimationFrame(step);
  }

  /** Show `factor` times as much time, with the moment `at` where it is. */
  zoom(factor, at, gently = false) {
    const span = Math.min(Math.max(this.span * factor, CLOSEST), this.length);
    const from = at - ((at - this.from) / this.span) * span;
    if (gently) this.glide(from, from + span);
    else this.set(from, from + span);
  }

  /** Move by a share of what is shown. */
  pan(share, gently = false) {
    const from = Math.min(Math.max(this.from + share * this.span, 0), this.length - this.span);
    if (gently) this.glide(from, from + this.span);
    else this.set(from, from + this.span);
  }

  home() {
    this.glide(0, this.length);
  }

  /** Move as little as needed for a slice to be seen whole, or its beginning where it is longer than the view. */
  reveal(begin, end) {
    const margin = this.span * 0.06;
    if (begin >= this.from && end <= this.to) return;
    if (end - begin > this.span * 0.88) {
      if (begin < this.from || begin > this.to - margin) this.glide(begin - margin, begin - margin + this.span);
    } else if (begin < this.from + margin) this.glide(begin - margin, begin - margin + this.span);
    else this.glide(end + margin - this.span, end + margin);
  }

  /** Show a stretch of time with some of what is around it. */
  frame(begin, end, around = 0.15) {
    const length = Math.max(end - begin, CLOSEST);
    this.glide(begin - length * around, begin + length * (1 + around));
  }
}
