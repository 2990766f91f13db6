// What lies beneath what: marks, groups, lanes and charts as bands with their place, and what stands beside them.

import { byLane, atOnce, covered, pack } from "./rows.js";
import { count, digits, percent } from "./words.js";

/** Rows of a lane at most, as it opens and when it is unfolded. */
const ROWS = 8;
const MORE_ROWS = 48;
const STRIP = 34; // the height of a chart of how many ran at once
const CHART = 46;
const GAP = 6;

/** Prepare each lane of a run: its slices in rows, how many ran at once, and how busy it was. */
export function lanesOf(run) {
  const slices = byLane(run);
  return run.lanes.map((what, index) => {
    const lane = { ...what, index, slices: slices[index], open: false, ...packed(run, slices[index], ROWS) };
    lane.steps = lane.rows.length > 1 ? atOnce(run, lane.slices) : null;
    lane.most = lane.steps?.most ?? Math.min(1, lane.slices.length);
    lane.busy = run.span > 0 ? covered(run, lane.slices) / run.span : 0;
    /** Positions of what did not simply succeed. */
    lane.odd = Array.from(lane.slices.keys()).filter((position) => run.outcome[lane.slices[position]]);
    return lane;
  });
}

function packed(run, slices, most) {
  const { rows, row } = pack(run, slices, most);
  return { rows, row, over: row.includes(255) };
}

/** Show many more rows of a lane, or few again. */
export function unfold(run, lane, open) {
  lane.open = open;
  Object.assign(lane, packed(run, lane.slices, open ? MORE_ROWS : ROWS));
}

export function rowHeight(lane) {
  const number = lane.rows.length;
  return number <= 1 ? 24 : number <= 4 ? 17 : number <= ROWS ? 12 : 7;
}

/** What is said of a lane beneath its name. */
export function said(lane) {
  const kind = { loop: "event loop", thread: "thread", process: "process", task: "task" }[lane.kind] ?? lane.kind;
  if (!lane.slices.length) return `${kind}, idle`;
  // A task that waits is not busy.
  const word = lane.kind === "task" ? "under way" : "busy";
  const what = lane.most > 1 ? `${lane.most.toLocaleString("en")} at once` : `${percent(lane.busy)} ${word}`;
  return lane.name.startsWith(lane.kind) ? what : `${kind}, ${what}`;
}

/**
 * The bands of a section from top to bottom: `{kind, y, height, ...}`. `above` is room for the names over their bands,
 * where there is none beside them.
 */
export function bands(section, above) {
  const { run, lanes } = section;
  const found = [];
  let y = 2;
  const put = (band, height) => {
    const named = band.kind === "group" ? 0 : above;
    found.push({ ...band, top: y, y: y + named, height });
    y += named + height + GAP;
  };
  if (run.marks.length) put({ kind: "marks", name: "Marks", about: count(run.marks.length, "mark") }, 20);
  const groups = [...new Set([...lanes.map((lane) => lane.group), ...run.counters.map((counter) => counter.group)])];
  const named = groups.some((group) => group !== "");
  for (const group of groups) {
    const folded = section.folded.has(group);
    const mine = lanes.filter((lane) => lane.group === group);
    if (named) {
      const about = `${count(mine.length, "lane")}`;
      put({ kind: "group", group, name: group || "Elsewhere", about, folded }, 26);
      if (folded) continue;
    }
    for (const lane of mine) {
      const rows = Math.max(1, lane.rows.length) * rowHeight(lane);
      const strip = lane.over ? STRIP : 0;
      put({ kind: "lane", lane, name: lane.name, about: said(lane), rows, strip }, rows + strip);
    }
    for (const counter of run.counters.filter((one) => one.group === group)) {
      const unit = counter.unit === "cores" ? `of ${run.cores}` : counter.unit === "items" && counter.top === 1 ? "item" : counter.unit;
      put({ kind: "chart", counter, name: counter.name, about: `up to ${digits(counter.top)} ${unit}` }, CHART);
    }
  }
  return { bands: found, height: Math.max(y, 40) };
}

/** Where a slice lies in its band: `[y, height]`. What found no row lies in the strip, spread so that one sees several. */
export function placeIn(band, position) {
  const { lane } = band;
  const height = rowHeight(lane);
  const row = lane.row[position];
  if (row !== 255) return [band.y + row * height, height - 1];
  return [band.y + band.rows + 4 + ((position * 7) % (STRIP - 12)), 6];
}

/** The position of a slice among those of its lane. */
export function positionOf(lane, slice) {
  let [low, high] = [0, lane.slices.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane.slices[middle] < slice) low = middle + 1;
    else high = middle;
  }
  return low;
}
