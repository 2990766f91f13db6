// A quantity over time as a filled step chart. Where many samples fall on one pixel, a band shows their least and most.

import { above } from "./rows.js";

/** The highest value of a chart, for its scale. */
export function topOf(value) {
  let top = 0;
  for (const one of value) if (one > top) top = one;
  return top;
}

/** The value that holds at a moment; 0 before the first sample. */
export function valueAt({ at, value }, seconds) {
  const index = above(at, seconds) - 1;
  return index < 0 ? 0 : value[index];
}

/**
 * Draw `steps` (`at` ascending, `value`) into a box of height `height` for values up to `top`. `last` is when the final value ends to
 * hold. Steps are rectangles: they are painted many times faster than a path with as many corners.
 */
export function chart(brush, steps, { y, height, top, colour, last, wash = 0.18 }) {
  const { pen, width, from, to, scale } = brush;
  const { at, value } = steps;
  if (!at.length || !(top > 0)) return;
  const base = y + height;
  const level = (one) => base - (Math.max(one, 0) / top) * height;
  const edges = []; // left, top, width, height of each stroke
  let index = above(at, from) - 1;
  let held = index < 0 ? null : value[index];
  let x = index < 0 ? 0 : Math.max(0, brush.x(at[index]));
  pen.fillStyle = colour;
  pen.globalAlpha = wash;
  const hold = (until) => {
    if (held === null || until <= x) return;
    const high = level(held);
    pen.fillRect(x, high, until - x, base - high);
    edges.push(x, high - 0.6, until - x, 1.2);
  };
  for (index += 1; index < at.length && at[index] <= to; ) {
    const here = Math.floor((at[index] - from) * scale);
    let [least, most] = held === null ? [value[index], value[index]] : [held, held];
    hold(here);
    // All samples of one pixel together.
    while (index < at.length && Math.floor((at[index] - from) * scale) === here) {
      held = value[index];
      if (held < least) least = held;
      if (held > most) most = held;
      index += 1;
    }
    const [high, low] = [level(most), level(least)];
    pen.fillRect(here, low, 1, base - low);
    edges.push(here, high - 0.6, 1.2, low - high + 1.2);
    x = here + 1;
  }
  hold(Math.min(width, brush.x(last)));
  pen.globalAlpha = 1;
  for (let edge = 0; edge < edges.length; edge += 4) pen.fillRect(edges[edge], edges[edge + 1], edges[edge + 2], edges[edge + 3]);
}
