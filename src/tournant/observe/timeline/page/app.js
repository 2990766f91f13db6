// Starts the page: reads the data, makes a section for each recording, and draws what has changed once a frame.

import { byId, narrow } from "./dom.js";
import { load } from "./data.js";
import { Section } from "./section.js";
import { listenToSearch } from "./search.js";
import { View } from "./view.js";

const app = {
  sections: [],
  current: null,
  waiting: new Set(),
  printing: false,

  get alone() {
    return this.sections.length === 1;
  },

  /** Draw a section with the next frame. */
  draw(section) {
    if (!this.waiting.size) requestAnimationFrame(() => this.flush());
    this.waiting.add(section);
  },

  flush() {
    const now = [...this.waiting];
    this.waiting.clear();
    for (const section of now) {
      if (section.visible) section.draw();
      else section.missed = true;
    }
  },

  /** Only one input is followed at a time, for there is one panel. */
  release(but) {
    this.current = but;
    for (const section of this.sections) if (section !== but && section.followed) section.unfollow();
  },

  arrange() {
    for (const section of this.sections) section.arrange();
  },
};

function join(linked) {
  const longest = Math.max(...app.sections.map((section) => section.run.span));
  const shared = linked ? new View(longest) : null;
  for (const section of app.sections) section.look(shared ?? new View(section.run.span));
}

function paint(theme) {
  document.documentElement.dataset.theme = theme;
  const other = theme === "dark" ? "light" : "dark";
  const button = byId("theme");
  button.textContent = theme === "dark" ? "☀" : "☾";
  button.title = `Switch to ${other}`;
  button.setAttribute("aria-label", `Switch to ${other}`);
}

function listenToTheme() {
  paint(document.documentElement.dataset.theme);
  let chosen = null;
  try {
    chosen = localStorage.getItem("tournant-theme");
  } catch {
    // No storage: the choice lasts as long as the page.
  }
  byId("theme").addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("tournant-theme", chosen);
    } catch {
      // As above.
    }
    paint(chosen);
    app.arrange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    if (chosen) return;
    paint(event.matches ? "dark" : "light");
    app.arrange();
  });
}

/** On paper: light, as wide as a page, and everything that on screen would have to be scrolled to. */
function listenToPrinting() {
  let theme = null;
  const print = (on) => {
    if (on === (theme !== null)) return;
    const root = document.documentElement;
    if (on) {
      theme = root.dataset.theme;
      root.dataset.theme = "light";
    } else {
      root.dataset.theme = theme;
      theme = null;
    }
    root.classList.toggle("printed", on);
    app.printing = on;
    for (const section of app.sections) {
      section.arrange();
      section.draw();
    }
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
}

function listenToWindow() {
  // A section's own width, so that a panel beside it counts as well.
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const section = app.sections.find((one) => one.field === target);
      if (section && section.plot.width !== target.clientWidth) section.arrange();
    }
  });
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const section = app.sections.find((one) => one.host === target);
      section.visible = isIntersecting;
      if (isIntersecting && section.missed) {
        section.missed = false;
        section.invalidate();
      }
    }
  }, { rootMargin: "300px" });
  for (const section of app.sections) {
    sizes.observe(section.field);
    seen.observe(section.host);
  }
  addEventListener("scroll", () => {
    for (const section of app.sections) if (section.plot.height > innerHeight) section.invalidate();
  }, { passive: true });
}

async function start() {
  const recordings = await load(byId("data").textContent);
  const hosts = [...document.querySelectorAll(".timeline")];
  const views = recordings.map((run) => new View(run.span));
  app.sections = recordings.map((run, number) => new Section(app, run, hosts[number], views[number]));
  app.current = app.sections[0] ?? null;
  byId("link-choice").hidden = app.sections.length < 2;
  byId("search").hidden = !recordings.some((run) => run.inputs.keys.length);
  if (app.sections.length > 1) join(true);
  byId("link").addEventListener("change", (event) => join(event.target.checked));
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  // Where there is little room, the picture comes before the table.
  if (narrow()) for (const report of document.querySelectorAll(".report")) report.open = false;
  listenToTheme();
  app.arrange();
  app.flush();
  listenToWindow();
  listenToPrinting();
  listenToSearch(app);
  document.addEventListener("keydown", (event) => {
    for (const section of app.sections) section.forget();
    if (event.key === "Escape" && !event.defaultPrevented && !event.target.closest("input, dialog") && app.current?.leave()) event.preventDefault();
  });
}

try {
  await start();
} catch (error) {
  byId("failure").textContent = `The timeline can't be shown: ${error.message}`;
  byId("failure").hidden = false;
  throw error;
} finally {
  byId("main").removeAttribute("aria-busy");
}
