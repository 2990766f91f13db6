// The picture of a section: bands of lanes and charts, what is followed, and what lies under the pointer.

import { Brush } from "./bars.js";
import { ticks } from "./axis.js";
import { chart, valueAt } from "./charts.js";
import { prepared } from "./dom.js";
import { bands, placeIn, positionOf, rowHeight } from "./layout.js";
import { drawSigns, drawSpells, signs } from "./marks.js";
import { above } from "./rows.js";

const SPARE = 240; // pixels drawn above and below the window, so that scrolling shows no blank
const LINES = 800;

export class Plot {
  constructor(section, canvas, frame) {
    Object.assign(this, { section, canvas, frame });
    this.width = 1;
    this.shift = 0;
    this.signs = [];
    this.arrange(0);
  }

  /** Lay the bands out anew. */
  arrange(above) {
    const found = bands(this.section, above);
    this.bands = found.bands;
    this.height = found.height;
    this.ofLane = new Map(found.bands.filter((band) => band.kind === "lane").map((band) => [band.lane.index, band]));
    this.frame.style.height = `${this.height}px`;
  }

  /** Draw what can be seen. With `all`, what is scrolled out too, for printing. */
  draw(palette, all) {
    const { section, width, canvas } = this;
    const { run, view } = section;
    const box = this.frame.getBoundingClientRect();
    const window_ = window.innerHeight;
    const fits = all || this.height <= window_ + 2 * SPARE;
    const shift = fits ? 0 : Math.min(Math.max(-box.top - SPARE, 0), this.height - window_ - 2 * SPARE);
    const high = fits ? this.height : window_ + 2 * SPARE;
    this.shift = shift;
    canvas.style.transform = shift ? `translateY(${shift}px)` : "";
    const pen = prepared(canvas, width, high);
    pen.clearRect(0, 0, width, high);
    pen.font = `11px ${palette.sans}`;
    pen.textBaseline = "middle";
    pen.save();
    pen.translate(0, -shift);
    const { only, followed } = section;
    const quiet = (stage) => followed !== null || (only !== null && stage !== only);
    const brush = new Brush(pen, run, palette, view, width, quiet);
    const seen = this.bands.filter((band) => band.top + band.height + 40 > shift && band.top < shift + high);
    pen.fillStyle = palette.faint;
    for (const band of seen) if (band.kind === "lane") pen.fillRect(0, band.y - 1, width, band.height + 1);
    this.#grid(pen, palette, shift, high);
    for (const band of seen) {
      if (band.kind === "lane") this.#lane(brush, band);
      else if (band.kind === "chart") this.#chart(brush, band);
    }
    drawSpells(brush, run.marks, section.hidden, this.ofLane, this.height);
    this.signs = signs(brush, run.marks, section.hidden);
    for (const band of seen) if (band.kind === "marks") drawSigns(brush, this.signs, band.y, band.height);
    if (followed) this.#way(brush, followed);
    pen.restore();
  }

  #grid(pen, palette, top, high) {
    const { view } = this.section;
    pen.fillStyle = palette.rule;
    for (const at of ticks(view, this.width)) {
      pen.fillRect(Math.round(((at - view.from) / view.span) * this.width), top, 1, high);
    }
  }

  #lane(brush, band) {
    const { lane } = band;
    const { palette, run } = brush;
    const height = rowHeight(lane);
    lane.rows.forEach((row, number) => brush.row(row, band.y + number * height, height));
    if (band.strip) {
      const y = band.y + band.rows + 3;
      const colour = this.section.followed ? palette.edge : brush.tones[run.stage[lane.slices[0]]].css;
      chart(brush, lane.steps, { y, height: band.strip - 5, top: lane.most, colour, last: run.span, wash: 0.35 });
    }
    const odd = lane.odd;
    const last = new Map();
    if (this.section.followed) brush.pen.globalAlpha = 0.35;
    for (const position of odd) {
      const slice = lane.slices[position];
      if (run.begin[slice] > brush.to) break;
      if (run.end[slice] < brush.from) continue;
      const [y, high] = placeIn(band, position);
      // One to a pixel is enough.
      const x = Math.round(brush.x(run.end[slice]));
      if (last.get(y) === x) continue;
      last.set(y, x);
      brush.odd(slice, y, high);
    }
    brush.pen.globalAlpha = 1;
  }

  #chart(brush, band) {
    const { palette, run, pen } = brush;
    const { counter } = band;
    pen.fillStyle = palette.rule;
    pen.fillRect(0, band.y + band.height, this.width, 1);
    const stage = run.stages.findIndex(({ name }) => counter.name.endsWith(` ${name}`) || counter.name === name);
    const colour = stage < 0 ? palette.accent : palette.stages[stage].css;
    const ceiling = counter.unit === "cores" ? Math.max(run.cores, counter.top) : counter.top;
    chart(brush, counter, { y: band.y + 4, height: band.height - 4, top: ceiling, colour, last: run.span });
    if (counter.unit === "cores" && ceiling > 0) {
      const y = Math.round(band.y + 4 + (band.height - 4) * (1 - run.cores / ceiling)) + 0.5;
      pen.strokeStyle = palette.edge;
      pen.lineWidth = 1;
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(0, y);
      pen.lineTo(this.width, y);
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  /** The slices of the followed input in full colour, and lines from each to those that came of it. */
  #way(brush, { steps, time }) {
    const { pen, palette, run, width } = brush;
    const places = steps.map(({ slice }) => this.place(slice));
    pen.strokeStyle = palette.accent;
    pen.setLineDash([2, 3]);
    pen.lineWidth = 1;
    for (const at of [time.began, time.ended]) {
      const x = Math.round(brush.x(at)) + 0.5;
      if (x < 0 || x > width) continue;
      pen.beginPath();
      pen.moveTo(x, 0);
      pen.lineTo(x, this.height);
      pen.stroke();
    }
    pen.setLineDash([]);
    pen.lineWidth = 1.5;
    steps.slice(0, LINES).forEach(({ slice, from, began }, number) => {
      const to = places[number];
      if (!to) return;
      const x = brush.x(began);
      const y = to.y + to.height / 2;
      const waited = Math.max(brush.x(run.begin[slice] - run.waited[slice]), -10);
      if (x - waited > 2) {
        pen.globalAlpha = 0.45;
        pen.fillStyle = palette.accent;
        pen.fillRect(waited, y - 2, x - waited, 4);
        pen.globalAlpha = 1;
      }
      const before = from < 0 ? null : places[from];
      if (!before) return;
      const start = brush.x(run.end[steps[from].slice]);
      if (Math.max(start, x) < 0 || Math.min(start, x) > width) return;
      const origin = before.y + before.height / 2;
      const bend = Math.min(Math.max((x - start) / 2, 6), 120);
      pen.beginPath();
      pen.moveTo(start, origin);
      pen.bezierCurveTo(start + bend, origin, x - bend, y, x, y);
      pen.stroke();
    });
    steps.forEach(({ slice }, number) => {
      const place = places[number];
      if (!place) return;
      brush.one(slice, place.y, place.height);
      if (run.outcome[slice]) brush.odd(slice, place.y, place.height);
    });
  }

  /** Where a slice lies: its top, its height and its band; null where its group is folded. */
  place(slice) {
    const band = this.ofLane.get(this.section.run.lane[slice]);
    if (!band) return null;
    const [y, height] = placeIn(band, positionOf(band.lane, slice));
    return { y, height, band };
  }

  /** What is drawn in the strip beneath the rows, of slices that found no row, at a place of it; -1 for none. */
  #loose(band, time, y) {
    const { run, followed, view } = this.section;
    const { lane } = band;
    const reach = (view.span / this.width) * 3;
    const drawn = (followed?.steps ?? []).map(({ slice }) => slice).filter((slice) => run.lane[slice] === lane.index);
    for (const position of [...drawn.map((slice) => positionOf(lane, slice)), ...lane.odd]) {
      const slice = lane.slices[position];
      if (lane.row[position] !== 255 || run.begin[slice] > time + reach || run.end[slice] < time - reach) continue;
      const [top, height] = placeIn(band, position);
      if (y >= top - 2 && y <= top + height + 2) return slice;
    }
    return -1;
  }

  x(seconds) {
    const { view } = this.section;
    return ((seconds - view.from) / view.span) * this.width;
  }

  time(x) {
    const { view } = this.section;
    return view.from + (x / this.width) * view.span;
  }

  /** What lies at a place of the picture: `{band, time, slice, slices, marks, value}`, as far as there is any. */
  at(x, y) {
    const band = this.bands.find((one) => y >= one.top && y < one.y + one.height + 3);
    const time = this.time(x);
    if (!band) return { band: null, time };
    if (band.kind === "marks") {
      const near = this.signs.filter((one) => Math.abs(one.x - x) < 9);
      near.sort((one, other) => Math.abs(one.x - x) - Math.abs(other.x - x));
      return { band, time, marks: near[0]?.marks };
    }
    if (band.kind === "chart") return { band, time, value: valueAt(band.counter, time) };
    if (band.kind !== "lane") return { band, time };
    const { lane } = band;
    const row = lane.rows[Math.floor((y - band.y) / rowHeight(lane))];
    if (y < band.y) return { band, time };
    if (!row) {
      const slice = this.#loose(band, time, y);
      return slice < 0 ? { band, time, value: lane.steps ? valueAt(lane.steps, time) : 0 } : { band, time, slice, slices: [slice] };
    }
    const reach = this.section.view.span / this.width;
    const slices = [];
    for (let index = above(row.end, time - reach); index < row.slices.length && row.begin[index] <= time + reach; index += 1) {
      slices.push(row.slices[index]);
    }
    const { begin, end } = this.section.run;
    const away = (slice) => Math.max(begin[slice] - time, time - end[slice], 0);
    const slice = slices.reduce((one, other) => (one < 0 || away(other) < away(one) ? other : one), -1);
    return { band, time, slice, slices };
  }
}
