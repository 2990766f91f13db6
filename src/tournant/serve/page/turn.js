// One question and what came of it, on the page: answer, sources, state, error.

import { AnswerText } from "./answer.js";
import { count, el, setText } from "./dom.js";
import { drawSources, sourceId } from "./sources.js";

let made = 0;

export class Turn {
  #sources = [];
  #state = el("p", { class: "state" });
  #answer = el("div", { class: "answer" });
  #notes = el("div", { class: "notes" });
  #sourcesBox = el("section", { class: "cited", hidden: true });
  #text;
  #announce;

  /** `announce(text)` says something to those who listen instead of looking. */
  constructor(question, announce) {
    made += 1;
    this.id = `turn-${made}`;
    this.question = question;
    this.#announce = announce;
    this.#text = new AnswerText(this.#answer, announce);
    const title = el("h2", { id: `${this.id}-question`, class: "asked" }, question);
    this.#sourcesBox.setAttribute("aria-label", "Sources");
    this.element = el(
      "article",
      { class: "turn", id: this.id, "aria-labelledby": title.id, "data-state": "waiting" },
      title,
      this.#answer,
      this.#state,
      this.#notes,
      this.#sourcesBox,
    );
  }

  get text() {
    return this.#text.text;
  }

  /** The element that holds the answer's text. */
  get answer() {
    return this.#answer;
  }

  set state(text) {
    setText(this.#state, text);
  }

  append(text) {
    if (!text) return;
    if (this.element.dataset.state === "waiting") {
      this.element.dataset.state = "streaming";
      this.state = "";
    }
    this.#text.append(text);
  }

  setSources(sources, title = "Sources") {
    const same = JSON.stringify(sources) === JSON.stringify(this.#sources);
    if (same) return;
    this.#sources = sources;
    drawSources(this.#sourcesBox, sources, this.id, title);
    this.#text.setSources(new Map(sources.map(({ number }) => [number, sourceId(this.id, number)])));
  }

  /** The answer is whole, or as whole as it will get. `how` is done, stopped or failed; `said` is for those who listen. */
  end(how, line = "", said = this.#farewell(how)) {
    this.#text.finish();
    this.element.dataset.state = how;
    this.state = line;
    if (said) this.#announce(said);
  }

  #farewell(how) {
    if (how === "done") return this.#sources.length ? `End of the answer, ${count(this.#sources.length, "source")}.` : "End of the answer.";
    return how === "stopped" ? "Stopped." : "";
  }

  /** Show what went wrong, with what can be done about it as `[label, action]` pairs. */
  fail(title, message, actions = []) {
    const buttons = actions.map(([label, action]) => {
      const button = el("button", { type: "button" }, label);
      button.addEventListener("click", action);
      return button;
    });
    this.#notes.append(
      el(
        "div",
        { class: "error", role: "alert" },
        el("p", { class: "error-title" }, title),
        el("p", {}, message),
        buttons.length ? el("p", { class: "error-actions" }, ...buttons) : null,
      ),
    );
  }

  note(text) {
    this.#notes.append(el("p", { class: "note" }, text));
  }

  /** A button that copies the answer, where the browser allows it. */
  offerCopy() {
    if (!navigator.clipboard || !this.text) return;
    const button = el("button", { type: "button", class: "quiet copy" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(this.text);
        setText(button, "Copied");
      } catch {
        setText(button, "Not allowed");
      }
    });
    this.#state.append(button);
  }
}
