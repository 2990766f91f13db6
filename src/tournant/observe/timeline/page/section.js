// One recording: its picture, what stands around it, and what is in focus, followed or put away.

import { announce, byId, el, narrow } from "./dom.js";
import { drawAxis } from "./axis.js";
import { colours } from "./colours.js";
import { topOf } from "./charts.js";
import { keyOf, nameOf } from "./data.js";
import { byInput, spent, steps } from "./follow.js";
import { listenToKeys } from "./keys.js";
import { lanesOf, positionOf, unfold } from "./layout.js";
import { Legend } from "./legend.js";
import { kindOf } from "./marks.js";
import { Minimap } from "./minimap.js";
import { closePanel, showInput, showSlice } from "./panel.js";
import { Plot } from "./plot.js";
import { listenToPointer } from "./pointer.js";
import { above } from "./rows.js";
import { hideTip, sentenceOf, showTip } from "./tip.js";
import { count, duration, moment } from "./words.js";

export class Section {
  constructor(app, run, host, view) {
    Object.assign(this, { app, run, host, view });
    for (const counter of run.counters) counter.top = topOf(counter.value);
    this.lanes = lanesOf(run);
    this.followed = null;
    this.cursor = null;
    this.only = null;
    this.hidden = new Set();
    this.folded = new Set();
    this.visible = true;
    this.stale = true; // the minimap and the legend need to be drawn
    this.markAt = -1;
    this.pointer = null; // where the mouse is, in the window
    this.#build();
    this.watch = () => this.invalidate();
    view.watchers.add(this.watch);
    listenToPointer(this);
    listenToKeys(this);
  }

  #build() {
    this.minimap = new Minimap(this);
    this.legend = new Legend(this);
    this.axis = el("canvas", { class: "axis", "aria-hidden": "true" });
    this.now = el("output", { class: "now", hidden: true });
    const button = (name, label, act) => {
      const made = el("button", { type: "button", class: "quiet", "aria-label": label, title: label }, name);
      made.addEventListener("click", act);
      return made;
    };
    this.tools = el("div", { class: "tools", role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => this.view.zoom(2, this.middle(), true)),
      button("+", "Zoom in", () => this.view.zoom(0.5, this.middle(), true)),
      button("⟷", "The whole run", () => this.view.home()));
    this.canvas = el("canvas", { "aria-hidden": "true" });
    const overlay = (name) => el("div", { class: name, "aria-hidden": "true", hidden: true });
    [this.line, this.glow, this.ring, this.range] = ["line", "glow", "ring", "range"].map(overlay);
    this.frame = el("div", { class: "frame" }, this.canvas, this.glow, this.ring, this.range, this.line);
    this.field = el("div", {
      class: "field",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "timeline",
      "aria-label": `Timeline of ${this.run.title}, ${count(this.run.count, "call")} on ${count(this.lanes.length, "lane")} in ${duration(this.run.span)}. ` +
        "Arrow keys move, plus and minus zoom, Enter steps into the calls.",
    }, this.frame);
    this.names = el("div", { class: "names", role: "list", "aria-label": "Lanes" });
    this.body = el("div", { class: "body" }, this.names, this.field);
    const strip = el("div", { class: "strip" }, this.tools, el("div", { class: "rulers" }, this.minimap.element, this.axis, this.now));
    this.host.append(this.legend.element, el("div", { class: "board" }, strip, this.body));
    if (!this.run.count) this.host.append(el("p", { class: "nothing" }, "No call was recorded."));
    this.plot = new Plot(this, this.canvas, this.frame);
    this.field.addEventListener("blur", () => this.#place());
    this.field.addEventListener("focus", () => this.#place());
  }

  /** Take another view, when scales are joined or parted. */
  look(view) {
    this.view.watchers.delete(this.watch);
    this.view = view;
    view.watchers.add(this.watch);
    this.stale = true;
    this.invalidate();
  }

  /** Measure and lay out: after a change of width, theme, folding or rows. */
  arrange() {
    this.palette = colours(this.run.stages);
    this.plot.width = Math.max(80, this.field.clientWidth);
    this.minimap.width = this.plot.width;
    this.plot.arrange(narrow() ? 19 : 0);
    this.#label();
    this.stale = true;
    this.invalidate();
  }

  invalidate() {
    this.app.draw(this);
  }

  draw() {
    if (this.stale) {
      this.minimap.draw(this.palette);
      this.legend.draw(this.palette);
      this.stale = false;
    }
    this.plot.draw(this.palette, this.app.printing);
    drawAxis(this.axis, this.view, this.plot.width, this.palette);
    this.minimap.place();
    if (this.pointer) this.read();
    else this.#place();
  }

  /** What lies under the pointer, which may have come there because the picture moved. */
  read() {
    const here = this.offset(this.pointer);
    const found = this.plot.at(here.x, here.y);
    this.hover(found, here);
    showTip(this, found, this.pointer.clientX, this.pointer.clientY);
  }

  /** The pointer is elsewhere, or the keyboard is in use. */
  forget() {
    if (!this.pointer) return;
    this.pointer = null;
    hideTip();
    this.hover(null);
  }

  /** The names beside the bands, or above them where there is little room. */
  #label() {
    this.names.replaceChildren(...this.plot.bands.map((band) => {
      const about = el("small", {}, band.about);
      const item = el("div", { class: `name ${band.kind}`, role: "listitem" });
      if (band.kind === "group") {
        const button = el("button", { type: "button", "aria-expanded": String(!band.folded) }, band.name, about);
        button.addEventListener("click", () => {
          if (!this.folded.delete(band.group)) this.folded.add(band.group);
          this.arrange();
        });
        item.append(button);
      } else if (band.kind === "lane") {
        const { lane } = band;
        const button = el("button", { type: "button", class: "lane-name", title: lane.name }, el("span", {}, band.name), about);
        button.addEventListener("click", () => this.enter(lane));
        item.append(button);
        if (lane.over || lane.open) {
          const more = el("button", { type: "button", class: "more", "aria-expanded": String(lane.open), "aria-label": `More rows of ${lane.name}` });
          more.addEventListener("click", () => {
            unfold(this.run, lane, !lane.open);
            this.arrange();
          });
          item.append(more);
        }
      } else item.append(el("span", { class: "lane-name", title: band.name }, el("span", {}, band.name), about));
      item.style.top = `${band.top}px`;
      item.style.height = `${band.y - band.top + band.height}px`;
      return item;
    }));
    this.names.style.height = `${this.plot.height}px`;
  }

  /** Put the rings of focus and hovering where their slices are. */
  #place() {
    const put = (element, slice) => {
      const place = slice === null ? null : this.plot.place(slice);
      const left = place && this.plot.x(this.run.begin[slice]);
      const right = place && this.plot.x(this.run.end[slice]);
      element.hidden = !place || right < -2 || left > this.plot.width + 2;
      if (element.hidden) return;
      const start = Math.max(left, -6);
      element.style.transform = `translate(${start - 3}px, ${place.y - 3}px)`;
      element.style.width = `${Math.max(Math.min(right, this.plot.width + 6) - start, 2) + 6}px`;
      element.style.height = `${place.height + 6}px`;
    };
    put(this.ring, this.cursor);
    this.ring.classList.toggle("away", document.activeElement !== this.field);
    put(this.glow, this.hovered ?? null);
  }

  /** Where an event is, in the picture. */
  offset(event) {
    const box = this.frame.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  /** The moment around which keys and buttons zoom: the slice in focus, or the middle. */
  middle() {
    const { cursor, run, view } = this;
    const at = cursor === null ? null : (Math.max(run.begin[cursor], view.from) + Math.min(run.end[cursor], view.to)) / 2;
    return at !== null && at >= view.from && at <= view.to ? at : (view.from + view.to) / 2;
  }

  hover(found, here) {
    const slice = found?.slice >= 0 ? found.slice : null;
    this.hovered = slice;
    this.#place();
    this.line.hidden = this.now.hidden = !found;
    if (!found) return;
    this.line.style.transform = `translateX(${here.x}px)`;
    this.now.textContent = moment(found.time, this.view.span);
    this.now.style.transform = `translateX(${Math.min(Math.max(here.x, 30), this.plot.width - 30)}px) translateX(-50%)`;
  }

  stretch(one, other) {
    this.range.hidden = one === null;
    if (one === null) return;
    const [left, right] = [this.plot.x(Math.min(one, other)), this.plot.x(Math.max(one, other))];
    this.range.style.transform = `translateX(${left}px)`;
    this.range.style.width = `${right - left}px`;
  }

  /** A click or a tap. */
  press(found, event) {
    this.app.current = this;
    if (found.marks) {
      this.#read(found.marks[0]);
      showTip(this, found, event.clientX, event.clientY);
    } else if (found.slice >= 0) {
      this.focus(found.slice);
      this.select(found.slice, false);
    } else if (this.followed || this.cursor !== null) {
      this.focus(null);
      this.unfollow();
    }
    if (event.pointerType !== "mouse" && !found.marks) showTip(this, null);
  }

  /** Put the cursor on a slice, or nowhere. */
  focus(slice) {
    this.cursor = slice;
    this.app.current = this;
    if (slice !== null) {
      this.view.reveal(this.run.begin[slice], this.run.end[slice]);
      this.#bring(slice);
      announce(`${sentenceOf(this, slice)} ${this.#rank(slice)}`);
    }
    this.invalidate();
  }

  #rank(slice) {
    const lane = this.lanes[this.run.lane[slice]];
    return `Call ${(positionOf(lane, slice) + 1).toLocaleString("en")} of ${lane.slices.length.toLocaleString("en")}.`;
  }

  /** Scroll the page so far that a slice is seen. */
  #bring(slice) {
    const place = this.plot.place(slice);
    if (!place) return;
    const top = this.frame.getBoundingClientRect().top + place.y;
    const head = this.axis.getBoundingClientRect().bottom;
    const foot = innerHeight - (narrow() && !byId("panel").hidden ? byId("panel").offsetHeight : 0);
    if (top < head + 8) scrollBy(0, top - head - 24);
    else if (top + place.height > foot - 8) scrollBy(0, top + place.height - foot + 24);
  }

  /** Step into the slices: of a lane, or of the first that has any in view. */
  enter(lane) {
    const { view, run } = this;
    const middle = (view.from + view.to) / 2;
    const candidates = lane ? [lane] : this.plot.bands.filter((band) => band.kind === "lane").map((band) => band.lane);
    const seen = (one) => one.slices.find((slice) => run.end[slice] >= view.from && run.begin[slice] <= view.to);
    const found = candidates.find((one) => seen(one) !== undefined) ?? candidates.find((one) => one.slices.length);
    if (!found) {
      announce(lane ? `${lane.name} has no calls.` : "There are no calls.");
      return;
    }
    this.field.focus({ preventScroll: true });
    this.focus(view.whole ? found.slices[0] : this.#nearest(found, middle));
  }

  #nearest(lane, time) {
    const { begin, end } = this.run;
    const begins = Float64Array.from(lane.slices, (slice) => begin[slice]);
    const at = Math.max(0, above(begins, time) - 1);
    const next = Math.min(at + 1, lane.slices.length - 1);
    const away = (slice) => Math.max(begin[slice] - time, time - end[slice], 0);
    return away(lane.slices[next]) < away(lane.slices[at]) ? lane.slices[next] : lane.slices[at];
  }

  /** To the next slice of the same lane, or the one before. */
  along(way) {
    const lane = this.lanes[this.run.lane[this.cursor]];
    const position = positionOf(lane, this.cursor) + way;
    if (position < 0 || position >= lane.slices.length) announce(way < 0 ? "The first call of this lane." : "The last call of this lane.");
    else this.focus(lane.slices[position]);
  }

  /** To the slice of the next lane that is nearest in time, or of the one above. */
  across(way) {
    const shown = this.plot.bands.filter((band) => band.kind === "lane" && band.lane.slices.length).map((band) => band.lane);
    const at = shown.indexOf(this.lanes[this.run.lane[this.cursor]]) + way;
    if (at < 0 || at >= shown.length) announce(way < 0 ? "The first lane." : "The last lane.");
    else this.focus(this.#nearest(shown[at], (this.run.begin[this.cursor] + this.run.end[this.cursor]) / 2));
  }

  /** To the next slice after the cursor, or after the view's beginning, for which `wanted` is true; then around again. */
  next(wanted) {
    const { run, view } = this;
    const start = this.cursor ?? above(run.begin, view.from) - 1;
    for (let step = 1; step <= run.count; step += 1) {
      const slice = (start + step + run.count) % run.count;
      if (wanted(slice)) {
        this.visit(slice);
        return;
      }
    }
    announce("There is none.");
  }

  /** Go to a slice, close enough to see it. */
  visit(slice) {
    const { run, view } = this;
    const took = run.end[slice] - run.begin[slice];
    this.focus(slice);
    if ((took / view.span) * this.plot.width < 6) {
      const span = Math.min(view.span, Math.max(took * 40, 1e-5));
      const middle = (run.begin[slice] + run.end[slice]) / 2;
      view.glide(middle - span / 2, middle + span / 2);
    }
    this.field.focus({ preventScroll: true });
  }

  nextMark() {
    const shown = this.run.marks.filter((mark) => !this.hidden.has(kindOf(mark)));
    if (!shown.length) {
      announce("There are no marks.");
      return;
    }
    this.markAt = (this.markAt + 1) % shown.length;
    this.#read(shown[this.markAt]);
  }

  #read(mark) {
    if (!this.app.alone) this.app.current = this;
    this.view.reveal(mark.at, mark.at + mark.lasted);
    this.markAt = this.run.marks.indexOf(mark);
    announce(`${kindOf(mark)} at ${moment(mark.at, this.view.span)}: ${mark.text}`);
  }

  /** Look at one stage alone, or at all. */
  alone(stage) {
    this.only = stage;
    this.legend.update();
    this.invalidate();
  }

  /** Follow the only input of a slice, or show its inputs to choose from. */
  select(slice, byKey) {
    const { run } = this;
    const inputs = new Set(run.inputOf.subarray(run.offsets[slice], run.offsets[slice + 1]));
    if (inputs.size === 1) this.follow([...inputs][0]);
    else {
      // One that is followed already and passes through here stays so.
      if (this.followed && !inputs.has(this.followed.input)) this.unfollow();
      showSlice(this, slice);
      const panel = byId("panel");
      this.#bring(slice);
      if (byKey) (panel.querySelector(".inputs button") ?? panel.querySelector(".close")).focus();
    }
  }

  /** Follow an input through all its lanes. */
  follow(input) {
    this.app.release(this);
    this.index ??= byInput(this.run);
    const found = steps(this.run, this.index, input);
    this.followed = { input, steps: found, time: spent(this.run, found, input) };
    for (const { slice } of found) this.folded.delete(this.run.lanes[this.run.lane[slice]].group);
    showInput(this, this.followed);
    announce(`Following ${keyOf(this.run, input)}: ${count(found.length, "step")}, ${found.map(({ slice }) => nameOf(this.run, slice)).slice(0, 12).join(", ")}.`);
    this.arrange();
    // The panel may have come to lie over it.
    if (this.cursor !== null) this.#bring(this.cursor);
  }

  unfollow() {
    this.followed = null;
    closePanel();
    this.invalidate();
  }

  /** One step back: the panel and what is followed, then the cursor. False where there was nothing to leave. */
  leave() {
    if (this.followed || !byId("panel").hidden) {
      const within = byId("panel").contains(document.activeElement);
      this.unfollow();
      announce("No longer following.");
      if (within) this.field.focus({ preventScroll: true });
      return true;
    }
    if (this.cursor === null && this.only === null) return false;
    this.cursor = null;
    this.alone(null);
    return true;
  }
}
