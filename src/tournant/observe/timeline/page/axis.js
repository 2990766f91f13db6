// The ruler: round moments, no closer than they can be read.

import { prepared } from "./dom.js";
import { clock } from "./words.js";

const APART = 92; // pixels
const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];

/** The distance of the ruler's lines in seconds. */
export function stepOf(view, width) {
  const least = (view.span * APART) / width;
  if (least > 1 && view.length >= 60) return CLOCK.find((one) => one >= least) ?? Math.ceil(least / 86400) * 86400;
  const size = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((one) => one * size >= least * 0.9999) * size;
}

/** The moments with a line. */
export function ticks(view, width) {
  const step = stepOf(view, width);
  const found = [];
  for (let number = Math.ceil(view.from / step - 1e-9); number * step <= view.to; number += 1) found.push(number * step);
  return found;
}

/** A moment as the ruler shows it, exact to its step. */
export function label(seconds, step, length) {
  const places = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  if (seconds >= 60) return clock(seconds, places);
  if (length < 0.5) return seconds ? `${(seconds * 1e3).toFixed(Math.max(0, places - 3))} ms` : "0";
  return seconds ? `${seconds.toFixed(places)} s` : "0";
}

export function drawAxis(canvas, view, width, palette) {
  const height = 22;
  const pen = prepared(canvas, width, height);
  pen.clearRect(0, 0, width, height);
  pen.font = `11px ${palette.sans}`;
  pen.textBaseline = "middle";
  const step = stepOf(view, width);
  const scale = width / view.span;
  for (const at of ticks(view, width)) {
    const x = Math.round((at - view.from) * scale);
    pen.fillStyle = palette.edge;
    pen.fillRect(x, height - 6, 1, 6);
    pen.fillStyle = palette.soft;
    const words = label(at, step, view.length);
    // The last one stays inside.
    const wide = pen.measureText(words).width;
    pen.fillText(words, Math.min(x + 4, width - wide), 9);
  }
}
