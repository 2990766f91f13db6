// The whole run as one narrow picture, and a window on it that can be moved, drawn and widened.

import { el, prepared } from "./dom.js";
import { duration, moment } from "./words.js";

const HEIGHT = 40;
const GRIP = 10; // pixels from an edge of the window that take hold of it

export class Minimap {
  constructor(section) {
    this.section = section;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.window = el("div", { class: "window" });
    this.before = el("div", { class: "shade" });
    this.after = el("div", { class: "shade" });
    this.element = el(
      "div",
      { class: "minimap", tabindex: "0", role: "slider", "aria-label": "Part of the run that is shown", "aria-valuemin": "0", "aria-valuemax": "100" },
      this.canvas, this.before, this.after, this.window,
    );
    this.width = 1;
    this.#listen();
  }

  /** Draw the run itself: only when the width or the colours have changed. */
  draw(palette) {
    const { run, lanes, view } = this.section;
    const { width } = this;
    const pen = prepared(this.canvas, width, HEIGHT);
    pen.clearRect(0, 0, width, HEIGHT);
    const shown = lanes.filter((lane) => lane.slices.length);
    const inner = HEIGHT - 6;
    const pitch = Math.min(inner / Math.max(shown.length, 1), 14);
    const margin = (HEIGHT - shown.length * pitch) / 2;
    const columns = Math.ceil(width);
    const stages = run.stages.length + 1;
    const scale = columns / view.length;
    shown.forEach((lane, number) => {
      // Seconds of each stage in each column, in columns.
      const time = new Float32Array(columns * stages);
      for (const slice of lane.slices) {
        const stage = run.stage[slice] + 1;
        const [left, right] = [run.begin[slice] * scale, run.end[slice] * scale];
        const [first, last] = [Math.floor(left), Math.min(Math.floor(right), columns - 1)];
        if (first === last) time[first * stages + stage] += right - left;
        else {
          time[first * stages + stage] += first + 1 - left;
          for (let column = first + 1; column < last; column += 1) time[column * stages + stage] += 1;
          time[last * stages + stage] += right - last;
        }
      }
      const y = margin + number * pitch;
      const high = Math.max(pitch - (pitch > 3 ? 1 : 0), 1);
      for (let column = 0; column < columns; column += 1) {
        let [all, best] = [0, 0];
        for (let stage = 0; stage < stages; stage += 1) {
          const share = time[column * stages + stage];
          all += share;
          if (share > time[column * stages + best]) best = stage;
        }
        if (!(all > 0)) continue;
        pen.globalAlpha = 0.35 + 0.65 * Math.min(1, all / lane.most);
        pen.fillStyle = palette.stages[best - 1].css;
        pen.fillRect(column, y, 1, high);
      }
    });
    pen.globalAlpha = 1;
    for (const mark of run.marks) {
      if (mark.kind !== "blocked" && mark.kind !== "guard" && mark.kind !== "worker") continue;
      pen.fillStyle = palette.marks[mark.kind];
      pen.fillRect(Math.min(mark.at * scale, width - 2), 0, 2, HEIGHT);
    }
  }

  /** Put the window where the view is. */
  place() {
    const { view } = this.section;
    const left = (view.from / view.length) * this.width;
    const right = (view.to / view.length) * this.width;
    const wide = Math.max(right - left, 3);
    this.window.style.transform = `translateX(${Math.min(left, this.width - wide)}px)`;
    this.window.style.width = `${wide}px`;
    this.before.style.width = `${Math.max(left, 0)}px`;
    this.after.style.width = `${Math.max(this.width - right, 0)}px`;
    this.element.classList.toggle("whole", view.whole);
    const middle = (view.from + view.to) / 2;
    this.element.setAttribute("aria-valuenow", String(Math.round((middle / view.length) * 100)));
    this.element.setAttribute("aria-valuetext", `${moment(view.from, view.span)} to ${moment(view.to, view.span)}, ${duration(view.span)}`);
  }

  #listen() {
    const { element } = this;
    let hold = null;
    const at = (event) => {
      const box = this.element.getBoundingClientRect();
      return ((event.clientX - box.left) / this.width) * this.section.view.length;
    };
    element.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const { view } = this.section;
      const time = at(event);
      const grip = (GRIP / this.width) * view.length;
      element.setPointerCapture(event.pointerId);
      if (!view.whole && Math.abs(time - view.from) < grip && time < (view.from + view.to) / 2) hold = { kind: "edge", other: view.to };
      else if (!view.whole && Math.abs(time - view.to) < grip) hold = { kind: "edge", other: view.from };
      else if (!view.whole && time > view.from && time < view.to) hold = { kind: "window", off: time - view.from };
      else hold = { kind: "new", other: time, x: event.clientX };
    });
    element.addEventListener("pointermove", (event) => {
      if (!hold) return;
      const { view } = this.section;
      const time = at(event);
      if (hold.kind === "window") view.set(time - hold.off, time - hold.off + view.span);
      else if (hold.kind === "edge" || Math.abs(event.clientX - hold.x) > 4) {
        hold.kind = "edge";
        view.set(Math.min(time, hold.other), Math.max(time, hold.other));
      }
    });
    element.addEventListener("pointerup", () => {
      const { view } = this.section;
      if (hold?.kind === "new" && !view.whole) view.glide(hold.other - view.span / 2, hold.other + view.span / 2);
      hold = null;
    });
    element.addEventListener("pointercancel", () => {
      hold = null;
    });
  }
}
