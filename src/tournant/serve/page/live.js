// What the server is doing now: four figures and their last minute, from its feed of snapshots.

import { call } from "./api.js";
import { byId, count, el, setText, size, svg } from "./dom.js";
import { events } from "./sse.js";

const KEPT = 60;
const WIDTH = 120;
const HEIGHT = 28;

/** `read` takes a snapshot to a number or null; `least` is the least top of the scale. */
const FIGURES = [
  { id: "streams", label: "Streams", read: (s) => s.streams, show: whole, least: () => 4 },
  { id: "queue", label: "Queue", read: (s) => s.queue, show: whole, least: () => 4 },
  { id: "cores", label: "Cores busy", read: (s) => s.cores, show: (v) => v.toFixed(1), least: (s) => s.coresOf, unit: (s) => `of ${s.coresOf}` },
  { id: "lag", label: "Loop lag, p99", read: (s) => s.lag, show: (v) => (v < 9.95 ? v.toFixed(1) : whole(v)), least: () => 10, unit: () => "ms" },
];

export class Live {
  #feed = null;
  #wanted = false;
  #drawn = new Map();

  constructor() {
    for (const figure of FIGURES) this.#drawn.set(figure.id, makeFigure(figure));
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.#wanted && this.start()));
    window.addEventListener("key-changed", () => this.stop()); // whoever arranges the page starts it again
  }

  /** Follow the feed until `stop`; a feed that breaks off is taken up again, more slowly each time. */
  async start() {
    this.#wanted = true;
    if (this.#feed || document.hidden) return;
    const controller = new AbortController();
    this.#feed = controller;
    for (let pause = 1; !controller.signal.aborted; pause = Math.min(pause * 2, 30)) {
      try {
        const response = await call("v1/stats/stream", { signal: controller.signal });
        for await (const { data } of events(response)) {
          pause = 1;
          this.#show(JSON.parse(data));
        }
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 401 || error.status === 404) {
          this.#lost(error.status === 401 ? "Give a key to see the figures." : "This server keeps no figures.");
          if (this.#feed === controller) this.#feed = null;
          this.#wanted = false;
          return;
        }
      }
      if (controller.signal.aborted) return;
      this.#lost(`No figures from the server; asking again in ${pause} s.`);
      await sleep(pause * 1000, controller.signal);
    }
  }

  stop() {
    this.#feed?.abort();
    this.#feed = null;
  }

  #show(raw) {
    const snapshot = readSnapshot(raw);
    byId("live").dataset.state = "live";
    setText(byId("live-state"), "");
    for (const figure of FIGURES) this.#drawn.get(figure.id)(figure.read(snapshot), snapshot);
    setText(byId("live-more"), more(raw));
  }

  #lost(why) {
    byId("live").dataset.state = "lost";
    setText(byId("live-state"), why);
  }
}

/** The server's snapshot as `{streams, queue, cores, coresOf, lag}`, the lag in milliseconds; what it lacks is null. */
function readSnapshot(raw) {
  const shares = Array.isArray(raw?.cores) ? raw.cores.map(Number) : [];
  const lag = number(raw?.loop?.lag_p99);
  const waiting = number(raw?.queue?.waiting);
  return {
    streams: number(raw?.answers?.running),
    queue: waiting === null ? null : waiting + (number(raw?.embedding?.texts) ?? 0),
    cores: shares.length ? shares.reduce((sum, share) => sum + share, 0) : null,
    coresOf: shares.length,
    lag: lag === null ? null : lag * 1000,
  };
}

/** What else is worth a glance, on one line. */
function more(raw) {
  const parts = [];
  if (number(raw?.rates?.events) !== null) parts.push(`${count(Math.round(raw.rates.events), "event")}/s`);
  if (number(raw?.connections) !== null) parts.push(count(raw.connections, "connection"));
  if (number(raw?.memory) !== null) parts.push(size(raw.memory));
  if (raw?.documents?.running) parts.push("ingesting");
  return parts.join(" · ");
}

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

function makeFigure({ id, label, show, least, unit = () => "" }) {
  const value = el("span", { class: "value" }, "–");
  const suffix = el("span", { class: "unit" });
  const area = svg("polygon", { class: "area", points: "" });
  const line = svg("polyline", { class: "line", points: "" });
  const chart = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line);
  const box = el("div", { class: "figure", id: `figure-${id}` }, el("dt", {}, label), el("dd", {}, value, suffix, chart));
  byId("figures").append(box);
  const kept = [];
  return (now, snapshot) => {
    box.hidden = now === null;
    if (now === null) return;
    kept.push(now);
    if (kept.length > KEPT) kept.shift();
    setText(value, show(now));
    setText(suffix, unit(snapshot));
    const points = spark(kept, Math.max(least(snapshot), ...kept));
    line.setAttribute("points", points);
    const from = points.slice(0, points.indexOf(","));
    area.setAttribute("points", `${from},${HEIGHT} ${points} ${WIDTH},${HEIGHT}`);
  };
}

/** The points of a line that ends at the right edge; the top of the scale is `top`. */
function spark(values, top) {
  const step = WIDTH / (KEPT - 1);
  const shown = values.length === 1 ? [values[0], values[0]] : values;
  return shown
    .map((value, index) => {
      const x = WIDTH - (shown.length - 1 - index) * step;
      const y = HEIGHT - 1 - (Math.max(0, value) / top) * (HEIGHT - 3);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    })
    .join(" ");
}

function whole(value) {
  return Math.round(value).toLocaleString("en");
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
