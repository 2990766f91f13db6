// Files into the index: dropped anywhere or chosen, each with its progress.

import { authorization, failure, inside, unreachable } from "./api.js";
import { byId, count, el, setText, size } from "./dom.js";
import { EventParser } from "./sse.js";

export class Documents {
  #queue = [];
  #sending = false;
  #enabled = false;

  constructor() {
    this.list = byId("file-list");
    this.input = byId("files");
    this.choose = byId("choose");
    this.veil = byId("veil");
    this.choose.addEventListener("click", () => this.input.click());
    this.input.addEventListener("change", () => {
      this.add([...this.input.files]);
      this.input.value = "";
    });
    byId("clear-files").addEventListener("click", () => this.#clear());
    this.#wireDrop();
  }

  set enabled(enabled) {
    this.#enabled = enabled;
    byId("drop").hidden = !enabled;
  }

  /** Upload files, after those that are under way. */
  add(files) {
    if (!this.#enabled || !files.length) return;
    this.list.hidden = false;
    this.#queue.push(files.map((file) => new Row(file, this.list)));
    this.#next();
  }

  async #next() {
    if (this.#sending || !this.#queue.length) return;
    this.#sending = true;
    byId("clear-files").hidden = true;
    const rows = this.#queue.shift();
    const status = (text) => setText(byId("upload-state"), text);
    try {
      await new Upload(rows, status).sent;
    } catch (error) {
      for (const row of rows) row.fail(error.message);
    }
    const added = rows.filter((row) => row.state === "done").length;
    const failed = rows.filter((row) => row.state === "failed").length;
    status(failed ? `${added} added, ${failed} failed` : `${count(added, "file")} added`);
    this.#sending = false;
    byId("clear-files").hidden = this.#queue.length > 0;
    this.#next();
  }

  #clear() {
    this.list.replaceChildren();
    this.list.hidden = true;
    setText(byId("upload-state"), "");
    byId("clear-files").hidden = true;
    this.choose.focus();
  }

  #wireDrop() {
    let depth = 0;
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const show = (open) => {
      this.veil.hidden = !open;
      if (!open) depth = 0;
    };
    document.addEventListener("dragenter", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      depth += 1;
      show(this.#enabled);
    });
    document.addEventListener("dragleave", (event) => {
      if (!carriesFiles(event)) return;
      depth -= 1;
      if (depth <= 0) show(false);
    });
    document.addEventListener("dragover", (event) => {
      if (carriesFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault(); // where nothing takes files, the browser must not leave the page for one
      show(false);
      this.add([...event.dataTransfer.files]);
    });
  }
}

/** One file in the list. */
class Row {
  constructor(file, list) {
    this.file = file;
    this.state = "waiting";
    this.what = el("span", { class: "what" }, "Waiting");
    this.bar = el("progress", { max: "1", value: "0", "aria-label": `Progress of ${file.name}` });
    this.element = el(
      "li",
      { "data-state": "waiting" },
      el("span", { class: "file-name", title: file.name }, el("bdi", {}, file.name)),
      el("span", { class: "file-size" }, size(file.size)),
      this.bar,
      this.what,
    );
    list.append(this.element);
  }

  get ended() {
    return this.state === "done" || this.state === "failed";
  }

  /** `share` is from 0 to 1, or null where nobody can say how far it is. */
  show(state, text, share) {
    if (this.ended) return;
    this.state = state;
    this.element.dataset.state = state;
    setText(this.what, text);
    if (share === null) this.bar.removeAttribute("value");
    else this.bar.value = share;
    this.bar.hidden = this.ended;
  }

  /** `why` may be long: what stands after its first clause is there on demand. */
  fail(why) {
    if (this.ended) return;
    this.show("failed", `Failed: ${why}`, 1);
    const cut = why.indexOf("; ");
    if (why.length < 120 || cut < 0) return;
    this.what.replaceChildren(
      el("details", {}, el("summary", {}, `Failed: ${why.slice(0, cut)}`), why.slice(cut + 2)),
    );
  }
}

/** The files of one request on their way. `sent` is settled when the server has said what became of each. */
class Upload {
  #rows;
  #status;
  #byName = new Map();
  #told = 0;
  #over = false;

  /** `status` shows a line about all of them. */
  constructor(rows, status) {
    this.#rows = rows;
    this.#status = status;
    this.sent = new Promise((resolve, reject) => this.#send(resolve, reject));
  }

  /** `fetch` can't tell how much of a body has been sent; this older way can, and reads the reply as it comes all the same. */
  #send(resolve, reject) {
    const form = new FormData();
    for (const row of this.#rows) form.append("files", row.file, row.file.name);
    const request = new XMLHttpRequest();
    const parser = new EventParser();
    let read = 0;
    request.open("POST", "v1/documents");
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", ({ loaded, total }) => this.#sending(total ? loaded / total : 1));
    const take = () => {
      const text = request.responseText;
      for (const { event, data } of parser.feed(text.slice(read))) this.#take(event, JSON.parse(data));
      read = text.length;
    };
    request.addEventListener("progress", () => {
      if (request.status === 200) this.#guarded(take, reject);
    });
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("load", () => {
      if (request.status !== 200) {
        reject(failure(request.status, request.responseText, request.getResponseHeader("Retry-After")));
        return;
      }
      this.#guarded(take, reject);
      if (this.#over) resolve();
      else reject(new Error("The server did not say what became of this file; it may have been added."));
    });
    this.#status(`Sending ${count(this.#rows.length, "file")}`);
    for (const row of this.#rows) row.show("sending", "Sending", 0);
    request.send(form);
  }

  #guarded(take, reject) {
    try {
      take();
    } catch (error) {
      reject(error);
    }
  }

  #sending(share) {
    for (const row of this.#rows) {
      if (row.state === "sending") row.show("sending", `Sending, ${Math.floor(share * 100)} %`, share);
    }
  }

  #take(event, what) {
    switch (event) {
      case "received":
        this.#byName.set(what.name, this.#judged());
        this.#byName.get(what.name)?.show("received", "Received", 1);
        break;
      case "failed":
        (this.#told < this.#rows.length ? this.#judged() : this.#byName.get(what.name))?.fail(what.reason);
        break;
      case "queued":
        if (what.ahead) this.#all("queued", `Waiting for ${count(what.ahead, "earlier upload")}`);
        break;
      case "reading":
        this.#all("reading", "Reading and indexing");
        this.#status(`Indexing ${count(this.#byName.size, "file")}`);
        break;
      case "progress":
        this.#status(
          `${what.read ?? 0} of ${count(what.files ?? 0, "file")} read · ${what.embedded ?? 0} of ${count(what.cut ?? 0, "passage")} embedded`,
        );
        break;
      case "waiting":
        this.#all("reading", `Waiting: ${what.reason}`);
        break;
      case "done":
        this.#byName.get(what.name)?.show("done", "Added", 1);
        break;
      case "summary":
        this.#over = true;
        break;
      case "error":
        throw inside(what);
      default: // a later server may say more
    }
  }

  /**
   * The file that the server speaks of for the first time: first it says of each, in the order of sending, whether it is taken, and under
   * which name of its own.
   */
  #judged() {
    this.#told += 1;
    return this.#rows[this.#told - 1];
  }

  #all(state, text) {
    for (const row of this.#byName.values()) row?.show(state, text, null);
  }
}
