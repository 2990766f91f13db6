// What is said of a slice, a mark or a moment: beside the pointer, and aloud.

import { byId, el } from "./dom.js";
import { keyOf, nameOf } from "./data.js";
import { count, digits, duration, moment, OUTCOMES } from "./words.js";

const MANY = 3; // keys that are named before the rest is counted

/** The facts of a slice as pairs of a name and a value. */
export function factsOf(section, slice) {
  const { run, view } = section;
  const lane = run.lanes[run.lane[slice]];
  const facts = [
    ["on", lane.group ? `${lane.name}, ${lane.group}` : lane.name],
    ["at", `${moment(run.begin[slice], view.span)} to ${moment(run.end[slice], view.span)}`],
    ["took", duration(run.end[slice] - run.begin[slice])],
  ];
  if (run.waited[slice] > 0) facts.push(["waited", `${duration(run.waited[slice])} for its turn`]);
  if (run.items[slice] !== 1) facts.push(["items", run.items[slice].toLocaleString("en")]);
  if (run.outcome[slice]) facts.push(["outcome", OUTCOMES[run.outcome[slice]]]);
  const keys = keysOf(run, slice);
  if (keys) facts.push([run.offsets[slice + 1] - run.offsets[slice] > 1 ? "inputs" : "input", keys]);
  return facts;
}

function keysOf(run, slice) {
  const [first, last] = [run.offsets[slice], run.offsets[slice + 1]];
  const named = [];
  for (let at = first; at < Math.min(last, first + MANY); at += 1) named.push(keyOf(run, run.inputOf[at]));
  const rest = last - first - named.length;
  return rest > 0 ? `${named.join(", ")} and ${rest.toLocaleString("en")} more` : named.join(", ");
}

/** A slice in one sentence, for those who hear it. */
export function sentenceOf(section, slice) {
  const { run } = section;
  const facts = factsOf(section, slice).filter(([name]) => name !== "on");
  return `${nameOf(run, slice)} on ${run.lanes[run.lane[slice]].name}: ${facts.map(([name, value]) => `${name} ${value}`).join("; ")}.`;
}

/** The square in a stage's colour. */
export function swatch(stage) {
  return el("i", { class: "swatch", "data-stage": stage < 0 ? "none" : String((stage % 8) + 1), "data-again": stage >= 8 });
}

function titled(stage, words) {
  return el("p", { class: "tip-title" }, swatch(stage), words);
}

export function listed(facts) {
  const list = el("dl");
  for (const [name, value] of facts) list.append(el("dt", {}, name), el("dd", {}, value));
  return list;
}

/** What to show for what `Plot.at` has found, or null. */
function content(section, found) {
  const { run, view } = section;
  const { band, slice, slices, marks, value, time } = found;
  if (!band) return null;
  if (marks) return marks.slice(0, 6).map((mark) => markLine(section, mark)).concat(marks.length > 6 ? [`and ${marks.length - 6} more`] : []);
  if (band.kind === "chart") {
    return [el("p", { class: "tip-title" }, band.name), `${digits(value)} ${band.counter.unit} at ${moment(time, view.span)}`];
  }
  if (band.kind !== "lane") return null;
  if (value !== undefined) return [el("p", { class: "tip-title" }, band.name), `${count(value, "call")} at once at ${moment(time, view.span)}`];
  if (!slices?.length) return null;
  const width = (run.end[slice] - run.begin[slice]) / (view.span / section.plot.width);
  if (slices.length > 2 && width < 3) return crowd(section, band, slices);
  return [titled(run.stage[slice], nameOf(run, slice)), listed(factsOf(section, slice))];
}

/** Many slices on one pixel: what they are together. */
function crowd(section, band, slices) {
  const { run } = section;
  const sums = new Map();
  for (const slice of slices) {
    const sum = sums.get(run.stage[slice]) ?? { number: 0, seconds: 0 };
    sums.set(run.stage[slice], { number: sum.number + 1, seconds: sum.seconds + run.end[slice] - run.begin[slice] });
  }
  const rows = [...sums].map(([stage, { number, seconds }]) =>
    titled(stage, `${run.stages[stage]?.name ?? "work"}: ${number.toLocaleString("en")}, together ${duration(seconds)}`));
  return [el("p", {}, `${count(slices.length, "call")} here; zoom in to tell them apart`), ...rows];
}

export function markLine(section, mark) {
  const lasted = mark.lasted > 0 ? `, for ${duration(mark.lasted)}` : "";
  const where = mark.lane < 0 ? "" : `, ${section.run.lanes[mark.lane].name}`;
  return el("p", {}, el("b", {}, moment(mark.at, section.view.span) + lasted + where), " ", mark.text);
}

/** Show the tip at a place of the window; nothing to show hides it. */
export function showTip(section, found, x, y) {
  const tip = byId("tip");
  const parts = found && content(section, found);
  if (!parts) {
    hideTip();
    return;
  }
  tip.replaceChildren(...parts.map((part) => (typeof part === "string" ? el("p", {}, part) : part)));
  tip.hidden = false;
  const { offsetWidth: wide, offsetHeight: high } = tip;
  const left = x + 16 + wide > innerWidth - 8 ? Math.max(8, x - 16 - wide) : x + 16;
  const top = y + 18 + high > innerHeight - 8 ? Math.max(8, y - 14 - high) : y + 18;
  tip.style.transform = `translate(${left}px, ${top}px)`;
}

export function hideTip() {
  byId("tip").hidden = true;
}
