// The conversation: the composer, sending, stopping, and what the next question carries of the earlier ones.

import { ServerError } from "./api.js";
import { search, streamChat } from "./chat.js";
import { byId, count, el, setText } from "./dom.js";
import { openSource } from "./sources.js";
import { Turn } from "./turn.js";

const TITLES = { 0: "No connection", 401: "Key needed", 429: "Too many requests", 503: "The server is busy" };

export class Conversation {
  #turns = [];
  #running = null;
  #can = { llm: false, index: false };

  constructor() {
    this.main = byId("main");
    this.list = byId("turns");
    this.form = byId("ask");
    this.question = byId("question");
    this.send = byId("send");
    this.stopButton = byId("stop");
    this.retrieve = byId("retrieve");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.question.addEventListener("input", () => this.#fit());
    this.stopButton.addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#running) this.stop();
    });
    byId("new").addEventListener("click", () => this.clear());
    this.retrieve.addEventListener("change", () => this.#showChoices());
    this.list.addEventListener("click", (event) => {
      const mark = event.target.closest("a.mark");
      if (mark && openSource(mark.hash.slice(1))) event.preventDefault();
    });
  }

  /** Say what the server can do: `{llm, index}`. */
  set can(can) {
    this.#can = can;
    this.#showChoices();
  }

  get busy() {
    return this.#running !== null;
  }

  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#turns = [];
    this.list.replaceChildren();
    byId("announcer").replaceChildren();
    this.main.toggleAttribute("data-empty", true);
    byId("new").hidden = true;
    this.question.focus();
  }

  #showChoices() {
    const { llm, index } = this.#can;
    byId("retrieve-choice").hidden = !(llm && index);
    byId("passages-choice").hidden = !index || (llm && !this.retrieve.checked);
    byId("model-choice").hidden = !llm || byId("model").options.length < 2;
    if (!this.busy) setText(this.send, llm ? "Ask" : "Search");
  }

  #submit() {
    const question = this.question.value.trim();
    if (!question || this.busy || this.form.hidden) return;
    this.question.value = "";
    this.#fit();
    this.ask(question);
  }

  /** Let the field grow with its text, up to the height that the style sheet allows. */
  #fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight}px`;
  }

  async ask(question) {
    const turn = new Turn(question, announce);
    const earlier = this.#turns.at(-1);
    if (earlier?.element.dataset.state === "failed" && earlier.question === question) {
      earlier.element.remove(); // tried again
      this.#turns.pop();
    }
    const history = this.#history();
    this.#turns.push(turn);
    this.main.toggleAttribute("data-empty", false);
    this.list.append(turn.element);
    byId("announcer").replaceChildren();
    const controller = new AbortController();
    this.#begin(controller);
    turn.element.scrollIntoView({ block: "start" });
    const release = keepInSight(turn.answer, this.form);
    try {
      if (this.#can.llm) await this.#answer(turn, history, controller.signal);
      else await this.#search(turn, controller.signal);
    } catch (error) {
      if (error.name === "AbortError") turn.end("stopped", turn.text ? "Stopped" : "Stopped before the first word");
      else this.#failed(turn, error);
    } finally {
      release();
      if (this.#running === controller) this.#end();
    }
  }

  #begin(controller) {
    this.#running = controller;
    const focused = document.activeElement === this.send;
    this.send.hidden = true;
    this.stopButton.hidden = false;
    if (focused) this.stopButton.focus();
    byId("new").hidden = false;
  }

  #end() {
    this.#running = null;
    const focused = document.activeElement === this.stopButton || document.activeElement === document.body;
    this.send.hidden = false;
    this.stopButton.hidden = true;
    if (focused && matchMedia("(pointer: fine)").matches) this.question.focus({ preventScroll: true });
  }

  #history() {
    const messages = [];
    for (const turn of this.#turns) {
      if (!turn.text || turn.element.dataset.state === "failed") continue;
      messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.text });
    }
    return messages;
  }

  async #answer(turn, history, signal) {
    const passages = this.#can.index && this.retrieve.checked ? Number(byId("passages").value) : 0;
    const messages = [...history, { role: "user", content: turn.question }];
    const model = byId("model").value || null;
    turn.state = passages ? "Searching the documents" : "Waiting for the first word";
    announce(passages ? "Searching the documents." : "Waiting for the answer.");
    const began = performance.now();
    let first = null;
    let finish = null;
    let usage = null;
    for await (const piece of streamChat({ messages, model, passages, signal })) {
      if (piece.sources) {
        turn.setSources(piece.sources);
        if (first === null) {
          turn.state = piece.sources.length
            ? `Reading ${count(piece.sources.length, "passage")}`
            : "Nothing in the documents matches; waiting for the first word";
        }
      }
      if (piece.text) {
        first ??= performance.now();
        turn.append(piece.text);
      }
      finish = piece.finish ?? finish;
      usage = piece.usage ?? usage;
    }
    turn.end("done", summary(began, first, usage));
    turn.offerCopy();
    if (first === null) turn.note("The model ended its answer without a word.");
    if (finish === "length") turn.note("The answer stops here because it reached the limit of its length.");
    if (finish === "content_filter") turn.note("The provider's filter cut the answer here.");
  }

  async #search(turn, signal) {
    turn.state = "Searching";
    announce("Searching.");
    const passages = await search(turn.question, Number(byId("passages").value), signal);
    const found = count(passages.length, "passage");
    turn.setSources(passages, found);
    if (passages.length) turn.end("done", "", found);
    else turn.end("done", "Nothing in the documents matches.", "Nothing in the documents matches.");
  }

  #failed(turn, error) {
    turn.end("failed");
    if (!(error instanceof ServerError)) {
      turn.fail("This page failed", `${error.message}. Reload it, and report this if it comes again.`);
      return;
    }
    const actions = [["Try again", () => !this.busy && this.ask(turn.question)]];
    if (this.#turns.length > 1 && error.code === "context_length_exceeded") {
      actions.unshift(["New conversation", () => this.clear()]);
    }
    const wait = error.retryAfter ? ` It asks to wait ${count(error.retryAfter, "second")}.` : "";
    const title = turn.text ? "The answer broke off" : TITLES[error.status] ?? "No answer";
    turn.fail(title, sentence(error.message) + wait, actions);
  }
}

/** Read out to those who listen: whole blocks, politely, never single tokens. */
function announce(text) {
  byId("announcer").append(el("p", {}, text));
}

/** A callback that keeps the growing end of an answer above the composer, for as long as the reader leaves it in sight. */
function keepInSight(answer, composer) {
  let inSight = true;
  const overlap = () => answer.getBoundingClientRect().bottom - composer.getBoundingClientRect().top + 24;
  const look = () => {
    inSight = overlap() <= 24;
  };
  document.addEventListener("scroll", look, { passive: true });
  const grown = new ResizeObserver(() => {
    const hidden = overlap();
    if (inSight && hidden > 0) scrollBy({ top: hidden, behavior: "instant" });
  });
  grown.observe(answer);
  return () => {
    grown.disconnect();
    document.removeEventListener("scroll", look);
  };
}

function summary(began, first, usage) {
  const parts = [];
  if (Number.isInteger(usage?.completion_tokens)) parts.push(count(usage.completion_tokens, "token"));
  if (first !== null) parts.push(`first word after ${duration(first - began)}`);
  parts.push(`${duration(performance.now() - began)} in all`);
  return parts.join(" · ");
}

/** An error's message as a sentence: servers write them without a capital and a full stop. */
function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

const duration = (milliseconds) =>
  milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
