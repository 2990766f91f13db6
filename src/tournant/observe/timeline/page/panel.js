// What stands beside the picture: a slice with its inputs, or an input with its steps.

import { byId, el } from "./dom.js";
import { keyOf, nameOf } from "./data.js";
import { factsOf, listed, swatch } from "./tip.js";
import { count, duration, ENDINGS, moment, OUTCOMES } from "./words.js";

const LISTED = 300; // inputs or steps that are listed; more would make the page slow

function open(title, subtitle, close, ...parts) {
  const button = el("button", { type: "button", class: "quiet close", "aria-label": "Close" }, "✕");
  button.addEventListener("click", close);
  const panel = byId("panel");
  panel.replaceChildren(
    el("header", {}, el("h2", { id: "panel-title" }, title), button),
    ...(subtitle ? [el("p", { class: "subtitle" }, subtitle)] : []),
    ...parts.filter(Boolean),
  );
  panel.hidden = false;
  panel.scrollTop = 0;
  document.documentElement.classList.add("with-panel");
}

export function closePanel() {
  byId("panel").hidden = true;
  document.documentElement.classList.remove("with-panel");
}

/** Show a slice and let the reader choose which of its inputs to follow. */
export function showSlice(section, slice) {
  const { run } = section;
  const inputs = [...new Set(run.inputOf.subarray(run.offsets[slice], run.offsets[slice + 1]))];
  const list = el("ol", { class: "inputs" });
  for (const input of inputs.slice(0, LISTED)) {
    const button = el("button", { type: "button", "data-input": String(input) }, keyOf(run, input));
    button.addEventListener("click", () => section.follow(input));
    list.append(el("li", {}, button));
  }
  const rest = inputs.length - LISTED;
  open(
    el("span", {}, swatch(run.stage[slice]), nameOf(run, slice)),
    "",
    () => section.leave(),
    listed(factsOf(section, slice).filter(([name]) => !name.startsWith("input"))),
    inputs.length ? el("h3", {}, `Follow one of its ${count(inputs.length, "input")}`) : null,
    inputs.length ? list : null,
    rest > 0 ? el("p", { class: "subtitle" }, `and ${rest.toLocaleString("en")} more, which the search finds`) : null,
  );
}

/** Show what an input went through. */
export function showInput(section, { input, steps, time }) {
  const { run } = section;
  const known = run.inputs.keys[input] !== null;
  const ending = known ? ENDINGS[run.inputs.outcome[input]] : "its beginning was overwritten";
  const shares = time.life > 0 ? `: ${duration(time.busy)} at work, ${duration(time.idle)} waiting` : "";
  const zoom = el("button", { type: "button" }, "Fill the width");
  zoom.addEventListener("click", () => section.view.frame(time.began, time.ended, 0.05));
  open(
    keyOf(run, input),
    `${ending[0].toUpperCase()}${ending.slice(1)}. ${duration(time.life)}${shares}.`,
    () => section.leave(),
    life(section, steps, time),
    el("div", { class: "row" }, zoom),
    steps.length ? table(section, steps) : el("p", { class: "subtitle" }, "None of its calls was recorded."),
    steps.length > LISTED ? el("p", { class: "subtitle" }, `and ${(steps.length - LISTED).toLocaleString("en")} more`) : null,
  );
}

/** The input's life as one strip: its steps in their colours, and the waits between them. */
function life(section, steps, time) {
  const { run } = section;
  const strip = el("div", { class: "life", "aria-hidden": "true" });
  if (!(time.life > 0)) return strip;
  for (const { slice, began } of steps.slice(0, LISTED)) {
    const part = el("i", { class: "swatch", "data-stage": run.stage[slice] < 0 ? "none" : String((run.stage[slice] % 8) + 1) });
    part.style.left = `${((began - time.began) / time.life) * 100}%`;
    part.style.width = `${((run.end[slice] - began) / time.life) * 100}%`;
    strip.append(part);
  }
  return strip;
}

function table(section, steps) {
  const { run } = section;
  const body = el("tbody");
  const longest = Math.max(...steps.map(({ slice, gap, began }) => Math.max(gap, run.end[slice] - began)), 1e-9);
  const cell = (seconds, kind) => {
    const bar = el("i", { class: kind, "aria-hidden": "true" });
    bar.style.width = `${(seconds / longest) * 100}%`;
    return el("td", {}, seconds > 0 ? duration(seconds) : "–", bar);
  };
  for (const { slice, gap, began } of steps.slice(0, LISTED)) {
    const button = el("button", { type: "button" }, swatch(run.stage[slice]), nameOf(run, slice));
    button.addEventListener("click", () => section.visit(slice));
    const outcome = run.outcome[slice] ? `, ${OUTCOMES[run.outcome[slice]]}` : "";
    const items = run.items[slice] > 1 ? `, ${count(run.items[slice], "item")}` : "";
    body.append(
      el(
        "tr",
        { "data-outcome": OUTCOMES[run.outcome[slice]] },
        el("td", {}, button, el("small", {}, `${run.lanes[run.lane[slice]].name}, ${moment(began, 1)}${items}${outcome}`)),
        cell(gap, "gap"),
        cell(run.end[slice] - began, "took"),
      ),
    );
  }
  const head = ["Step", "Waited", "Took"].map((name) => el("th", { scope: "col" }, name));
  return el("table", { class: "steps" }, el("thead", {}, el("tr", {}, ...head)), body);
}
