// Server-sent events read from any stream of text: EventSource can neither POST nor send a key.

/** Cuts text, in pieces of any length, into events `{event, data}`. */
export class EventParser {
  #rest = "";
  #event = "";
  #data = [];
  #started = false;

  /** Add text; returns the events that it completed. */
  feed(text) {
    if (!this.#started && text) {
      this.#started = true;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    const found = [];
    const all = this.#rest + text;
    let start = 0;
    for (;;) {
      const end = nextLineEnd(all, start);
      if (end === null) break;
      this.#line(all.slice(start, end.at), found);
      start = end.after;
    }
    this.#rest = all.slice(start);
    return found;
  }

  #line(line, found) {
    if (line === "") {
      if (this.#data.length) found.push({ event: this.#event || "message", data: this.#data.join("\n") });
      this.#event = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment, sent to keep the connection open
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
  }
}

function nextLineEnd(text, from) {
  for (let at = from; at < text.length; at += 1) {
    const code = text.charCodeAt(at);
    if (code === 10) return { at, after: at + 1 };
    if (code === 13) {
      if (at + 1 === text.length) return null; // perhaps half of a CR LF: wait for the rest
      return { at, after: text.charCodeAt(at + 1) === 10 ? at + 2 : at + 1 };
    }
  }
  return null;
}

/** The events of a `fetch` response, as they arrive. Leaving the loop cancels the request. */
export async function* events(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.feed(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
