// What the colours and signs mean. A stage can be looked at alone, a kind of mark can be put away, and outcomes lead to where they lie.

import { el, prepared } from "./dom.js";
import { KINDS, kindOf, sign } from "./marks.js";
import { swatch } from "./tip.js";
import { count, duration, OUTCOMES } from "./words.js";

const WHERE = { loop: "on the loop", threads: "in threads", processes: "in processes", engine: "by the engine" };

export class Legend {
  constructor(section) {
    this.section = section;
    this.signs = [];
    this.element = el("div", { class: "legend", role: "group", "aria-label": "Legend" });
    this.#stages();
    this.#outcomes();
    this.#marks();
  }

  #stages() {
    const { section, element } = this;
    const { run } = section;
    const time = new Float64Array(run.stages.length);
    for (let slice = 0; slice < run.count; slice += 1) {
      if (run.stage[slice] >= 0) time[run.stage[slice]] += run.end[slice] - run.begin[slice];
    }
    run.stages.forEach(({ name, on }, stage) => {
      const button = el("button", { type: "button", "aria-pressed": "false", "data-legend": "stage" },
        swatch(stage), el("span", {}, name), el("small", {}, ` ${WHERE[on] ?? on}, ${duration(time[stage])}`));
      button.title = `${name}\nShow this stage alone`;
      button.addEventListener("click", () => section.alone(section.only === stage ? null : stage));
      element.append(button);
    });
  }

  #outcomes() {
    const { section, element } = this;
    const counts = [0, 0, 0, 0];
    for (const outcome of section.run.outcome) counts[outcome] += 1;
    OUTCOMES.forEach((name, outcome) => {
      if (!outcome || !counts[outcome]) return;
      const button = el("button", { type: "button", "data-outcome": name },
        el("i", { class: "flag", "data-outcome": name }), `${counts[outcome].toLocaleString("en")} ${name}`, el("small", {}, " next"));
      button.title = "Go to the next one";
      button.addEventListener("click", () => section.next((slice) => section.run.outcome[slice] === outcome));
      element.append(button);
    });
  }

  #marks() {
    const { section, element } = this;
    for (const [kind, { name, many }] of Object.entries(KINDS)) {
      const number = section.run.marks.filter((mark) => kindOf(mark) === kind).length;
      if (!number) continue;
      const canvas = el("canvas", { "aria-hidden": "true" });
      this.signs.push([canvas, kind]);
      const button = el("button", { type: "button", "aria-pressed": "true", "data-mark": kind }, canvas, count(number, name, many));
      button.title = "Show or hide these marks";
      button.addEventListener("click", () => {
        const hide = !section.hidden.delete(kind);
        if (hide) section.hidden.add(kind);
        button.setAttribute("aria-pressed", String(!hide));
        section.invalidate();
      });
      element.append(button);
    }
  }

  /** Say which stage stands alone. */
  update() {
    this.element.querySelectorAll("[data-legend=stage]").forEach((button, stage) => {
      button.setAttribute("aria-pressed", String(this.section.only === stage));
    });
  }

  draw(palette) {
    for (const [canvas, kind] of this.signs) {
      const pen = prepared(canvas, 16, 14);
      pen.clearRect(0, 0, 16, 14);
      sign(pen, kind, 8, 7, palette.marks[kind], palette.paper);
    }
  }
}
