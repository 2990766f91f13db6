// The text of an answer, drawn while it grows. Models write a little Markdown: paragraphs, headings, lists, quotes,
// code. It becomes elements with text in them; markup and links in the text stay text. Marks like [1] link to sources.

import { el } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)/;
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*|\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\](?!\()/gs;
const ITEM = /^ {0,3}(?:([-*+\u2022])|(\d{1,9})[.)])[ \t]+(.*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t#]*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;

/** An answer's text in `container`. Finished blocks are left alone; only the last is drawn again, once a frame. */
export class AnswerText {
  #container;
  #sourceIds = new Map();
  #whole = "";
  #tail = "";
  #tailNodes = [];
  #frame = 0;
  #onBlock;

  /** `onBlock(text)` is called with each block once it is complete, for those who listen instead of looking. */
  constructor(container, onBlock = () => {}) {
    this.#container = container;
    this.#onBlock = onBlock;
  }

  get text() {
    return this.#whole;
  }

  /** Say which numbers have a source, as a Map of number to element id; marks of other numbers stay text. */
  setSources(ids) {
    const known = this.#sourceIds.size;
    this.#sourceIds = ids;
    if (!this.#whole || ids.size === known) return;
    // They came after the text: draw all of it again.
    this.#container.replaceChildren();
    this.#tailNodes = [];
    this.#tail = this.#whole;
    this.#advance(() => {});
    this.#drawTail();
  }

  append(text) {
    this.#whole += text;
    this.#tail += text;
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** Draw what is left now; the text is complete. */
  finish() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
    if (this.#tail.trim()) this.#onBlock(this.#tail.trim());
    this.#tail = "";
    this.#tailNodes = [];
  }

  #draw() {
    this.#frame = 0;
    this.#advance(this.#onBlock);
    this.#drawTail();
  }

  /** Move complete blocks out of the tail. */
  #advance(onBlock) {
    for (;;) {
      const end = blockEnd(this.#tail);
      if (end === null) return;
      const block = this.#tail.slice(0, end);
      this.#tail = this.#tail.slice(end);
      for (const node of this.#tailNodes) node.remove();
      this.#tailNodes = [];
      if (block.trim()) {
        this.#container.append(...this.#blocks(block));
        onBlock(block.trim());
      }
    }
  }

  #drawTail() {
    const nodes = this.#tail.trim() ? this.#blocks(this.#tail) : [];
    for (const node of this.#tailNodes) node.remove();
    this.#container.append(...nodes);
    this.#tailNodes = nodes;
  }

  /** The elements for a piece of text without blank lines in it, or for one fenced block. */
  #blocks(text) {
    const lines = text.replace(/\r\n?/g, "\n").replace(/^\n+|\s+$/g, "").split("\n");
    const fence = FENCE.exec(lines[0]);
    if (fence) {
      const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
      const code = lines.slice(1, closed ? -1 : undefined).join("\n");
      return [el("pre", { tabindex: "0" }, el("code", {}, code))];
    }
    const found = [];
    let paragraph = [];
    const flush = () => {
      if (paragraph.length) found.push(el("p", {}, ...this.#inline(paragraph.join("\n"))));
      paragraph = [];
    };
    for (const line of lines) {
      const heading = HEADING.exec(line);
      const item = ITEM.exec(line);
      const quote = QUOTE.exec(line);
      const last = found.at(-1);
      if (heading) {
        flush();
        found.push(el(heading[1].length < 3 ? "h3" : "h4", {}, ...this.#inline(heading[2])));
      } else if (item) {
        flush();
        const tag = item[2] ? "ol" : "ul";
        let list = found.at(-1);
        if (list?.localName !== tag) {
          list = el(tag, item[2] && item[2] !== "1" ? { start: item[2] } : {});
          found.push(list);
        }
        list.append(el("li", {}, ...this.#inline(item[3])));
      } else if (quote) {
        flush();
        if (found.at(-1)?.localName === "blockquote") found.at(-1).append("\n", ...this.#inline(quote[1]));
        else found.push(el("blockquote", {}, ...this.#inline(quote[1])));
      } else if (!paragraph.length && (last?.localName === "ul" || last?.localName === "ol")) {
        last.lastElementChild.append("\n", ...this.#inline(line.trim())); // an item's second line
      } else {
        paragraph.push(line);
      }
    }
    flush();
    return found;
  }

  #inline(text) {
    const nodes = [];
    let from = 0;
    for (const match of text.matchAll(INLINE)) {
      if (match[4] !== undefined && !this.#cites(match[4])) continue;
      nodes.push(text.slice(from, match.index));
      from = match.index + match[0].length;
      if (match[2] !== undefined) nodes.push(el("code", {}, match[2]));
      else if (match[3] !== undefined) nodes.push(el("strong", {}, ...this.#inline(match[3])));
      else nodes.push(this.#marks(match[4]));
    }
    nodes.push(text.slice(from));
    return nodes.filter((node) => node !== "");
  }

  #cites(numbers) {
    return numbers.split(",").some((number) => this.#sourceIds.has(Number(number)));
  }

  #marks(numbers) {
    const group = el("span", { class: "marks" });
    for (const number of numbers.split(",").map(Number)) {
      const id = this.#sourceIds.get(number);
      const label = `Source ${number}`;
      group.append(id ? el("a", { class: "mark", href: `#${id}`, "aria-label": label }, `${number}`) : `[${number}]`);
    }
    return group;
  }
}

/** Where the first block of the text ends: after its blank line, or after its closing fence. null: not yet. */
function blockEnd(text) {
  const blank = /^\s*\n/.exec(text);
  if (blank) return blank[0].length;
  const fence = FENCE.exec(text);
  const lines = /([^\n]*)\n/g;
  let first = true;
  for (let match = lines.exec(text); match; match = lines.exec(text)) {
    const line = match[1];
    if (fence ? !first && closes(line, fence[1]) : line.trim() === "" || opensFence(text, lines.lastIndex)) {
      return lines.lastIndex;
    }
    first = false;
  }
  return null;
}

/** Does a fence open at this place, its line complete? Then what stands before it is a block of its own. */
function opensFence(text, at) {
  return text.indexOf("\n", at) >= 0 && FENCE.test(text.slice(at, text.indexOf("\n", at)));
}

function closes(line, fence) {
  const mark = line.trim();
  return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
}
