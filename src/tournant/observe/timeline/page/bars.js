// The slices of a row. What is only a few pixels wide is added up: a column of pixels shows which stages took how much of its time.

import { nameOf, keyOf } from "./data.js";
import { above } from "./rows.js";

const NARROWEST = 6; // pixels; narrower slices are added up
const TEXTS = 260; // texts in one frame at most: they cost more than all the rest

/** What painting needs to know and what it may still do, for one frame. */
export class Brush {
  /** `quiet` says whether a stage steps back, because something else is followed or looked at. */
  constructor(pen, run, palette, view, width, quiet) {
    Object.assign(this, { pen, run, palette, width });
    const tone = (shade, stage) => (quiet(stage) ? { fill: shade.dim, css: shade.dim, ink: shade.dimInk } : shade);
    this.tones = palette.stages.map(tone);
    this.tones[-1] = tone(palette.stages[-1], -1);
    this.from = view.from;
    this.to = view.to;
    this.scale = width / view.span;
    this.texts = TEXTS;
    this.letter = 6;
    // For each column of pixels what share of it each stage took; and how high the column is already.
    this.columns = Math.ceil(width);
    this.kinds = run.stages.length + 1;
    this.shares = new Float32Array(this.columns * this.kinds);
    this.base = new Float32Array(this.columns + 1);
  }

  x(seconds) {
    return (seconds - this.from) * this.scale;
  }

  /** Paint what of a row is in view. */
  row(row, y, height) {
    const { pen, run, tones, scale, width } = this;
    const { begin, end, slices } = row;
    const wides = [];
    let [first, last] = [this.columns, -1];
    for (let at = above(end, this.from); at < slices.length && begin[at] < this.to; at += 1) {
      const left = (begin[at] - this.from) * scale;
      const right = (end[at] - this.from) * scale;
      if (right - left >= NARROWEST) {
        wides.push(slices[at], left < 0 ? 0 : left | 0, right > width ? width : right | 0);
        continue;
      }
      const column = left < 0 ? 0 : left | 0;
      const stop = Math.min(right | 0, this.columns - 1);
      const stage = run.stage[slices[at]] + 1;
      if (column < first) first = column;
      if (stop > last) last = stop;
      if (stop > column) {
        this.shares[column * this.kinds + stage] += column + 1 - Math.max(left, 0);
        for (let full = column + 1; full < stop; full += 1) this.shares[full * this.kinds + stage] += 1;
        this.shares[stop * this.kinds + stage] += Math.min(right - stop, 1);
      } else this.shares[column * this.kinds + stage] += Math.max(right - Math.max(left, 0), 0.02); // even a moment is seen
    }
    this.#columns(first, last, y, height - 1);
    let colour = null;
    for (let at = 0; at < wides.length; at += 3) {
      const wanted = tones[run.stage[wides[at]]].fill;
      if (wanted !== colour) {
        pen.fillStyle = wanted;
        colour = wanted;
      }
      const wide = wides[at + 2] - wides[at + 1];
      pen.fillRect(wides[at + 1], y, Math.max(wide - 1, 1), height - 1); // a hair between neighbours
    }
    if (height < 12) return;
    for (let at = 0; at < wides.length; at += 3) {
      const wide = wides[at + 2] - wides[at + 1];
      if (wide > 30) this.text(wides[at], wides[at + 1], wide, y, height, tones);
    }
  }

  /** Columns of slices too narrow to be drawn: each stage as high as its share of the time. */
  #columns(first, last, y, height) {
    const { pen, tones, shares, kinds } = this;
    if (last < first) return;
    this.base.fill(y + height, first, last + 2);
    for (let stage = 0; stage < kinds; stage += 1) {
      let [start, top, bottom] = [-1, 0, 0];
      pen.fillStyle = tones[stage - 1].css;
      for (let column = first; column <= last + 1; column += 1) {
        const share = column <= last ? shares[column * kinds + stage] : 0;
        const high = share > 0 ? Math.min(Math.max(Math.round(share * height * 2) / 2, 0.75), this.base[column] - y) : 0;
        // Neighbours of one height are one rectangle.
        if (start >= 0 && (high !== bottom - top || this.base[column] !== bottom)) {
          pen.fillRect(start, top, column - start, bottom - top);
          start = -1;
        }
        if (!high) continue;
        if (start < 0) [start, top, bottom] = [column, this.base[column] - high, this.base[column]];
        this.base[column] -= high;
        shares[column * kinds + stage] = 0;
      }
    }
  }

  /** Write on a slice what it is, and for whom where there is room. */
  text(slice, x, wide, y, height, tones) {
    if (this.texts <= 0) return;
    this.texts -= 1;
    const { pen, run } = this;
    const room = Math.floor((wide - 8) / this.letter);
    let words = nameOf(run, slice);
    const inputs = run.offsets[slice + 1] - run.offsets[slice];
    if (room > words.length + 6) {
      if (inputs === 1) words += `  ${keyOf(run, run.inputOf[run.offsets[slice]])}`;
      else if (run.items[slice] > 1) words += `  × ${run.items[slice].toLocaleString("en")}`;
    }
    if (words.length > room) words = room > 3 ? `${words.slice(0, room - 1)}…` : "";
    if (!words) return;
    pen.fillStyle = tones[run.stage[slice]].ink;
    pen.fillText(words, x + 4, y + (height - 1) / 2 + 0.5);
  }

  /** One slice in full colour, with an outline; for what is followed. */
  one(slice, y, height) {
    const { pen, run, palette, width } = this;
    const left = this.x(run.begin[slice]);
    const right = this.x(run.end[slice]);
    if (right < 0 || left > width) return;
    const start = Math.max(left, -4);
    const wide = Math.max(Math.min(right, width + 4) - start, 3);
    const shade = palette.stages[run.stage[slice]];
    pen.fillStyle = shade.fill;
    pen.fillRect(start, y, wide, height);
    pen.strokeStyle = palette.ink;
    pen.lineWidth = 1;
    pen.strokeRect(start - 0.5, y - 0.5, wide + 1, height + 1);
    if (height >= 11 && wide > 30) this.text(slice, Math.max(start, 0), wide, y, height + 1, palette.stages);
  }

  /** What did not simply succeed: seen however narrow it is. */
  odd(slice, y, height) {
    const { pen, run, palette, width } = this;
    const left = this.x(run.begin[slice]);
    const right = this.x(run.end[slice]);
    if (right < 0 || left > width) return;
    const wide = Math.max(Math.min(right, width) - Math.max(left, 0), 2);
    const x = Math.max(left, 0);
    const outcome = run.outcome[slice];
    pen.fillStyle = outcome === 1 ? palette.bad : outcome === 2 ? palette.warn : palette.edge;
    const high = Math.min(height, Math.max(3, height * 0.25));
    pen.fillRect(x, y + height - high, wide, high);
    if (wide < 9 || height < 11) return;
    pen.fillRect(x + wide - 9, y, 9, height);
    pen.strokeStyle = palette.paper;
    pen.lineWidth = 1.5;
    const [cx, cy] = [x + wide - 4.5, y + height / 2];
    pen.beginPath();
    if (outcome === 2) {
      pen.arc(cx, cy, 2.5, -2.4, 2.4);
    } else {
      pen.moveTo(cx - 2.25, cy - 2.25);
      pen.lineTo(cx + 2.25, cy + 2.25);
      if (outcome === 1) {
        pen.moveTo(cx + 2.25, cy - 2.25);
        pen.lineTo(cx - 2.25, cy + 2.25);
      }
    }
    pen.stroke();
  }
}
