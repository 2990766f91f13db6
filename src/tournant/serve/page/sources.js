// The passages an answer is drawn from: numbered, one line each, the whole text on demand.

import { el } from "./dom.js";

/** The server's list as `{number, path, title, text, place, score}`; entries without text and name are left out. */
export function readSources(list) {
  if (!Array.isArray(list)) return [];
  return list
    .map((source, index) => ({
      number: Number.isInteger(source?.id) ? source.id : index + 1,
      path: String(source?.source ?? ""),
      title: String(source?.title ?? ""),
      text: String(source?.text ?? ""),
      place: Number.isInteger(source?.start) && Number.isInteger(source?.end) ? [source.start, source.end] : null,
      score: typeof source?.score === "number" && Number.isFinite(source.score) ? source.score : null,
    }))
    .filter((source) => source.text || source.path);
}

export const sourceId = (prefix, number) => `${prefix}-source-${number}`;

/** Draw sources in `container`, with ids that start with `prefix`. */
export function drawSources(container, sources, prefix, title) {
  const list = el("ol", { class: "sources" });
  for (const source of sources) list.append(drawSource(source, sourceId(prefix, source.number)));
  container.replaceChildren(el("h3", {}, title), list);
  container.hidden = sources.length === 0;
}

function drawSource({ number, path, title, text, place, score }, id) {
  const name = path.slice(path.lastIndexOf("/") + 1) || path;
  const passage = text.trim();
  const facts = [];
  if (place) facts.push(`characters ${place[0].toLocaleString("en")} to ${place[1].toLocaleString("en")}`);
  if (score !== null) facts.push(`score ${score.toPrecision(2)}`);
  const summary = el(
    "summary",
    {},
    el("span", { class: "number" }, `${number}`),
    el("span", { class: "name" }, el("bdi", {}, name || "Untitled")),
    el("span", { class: "gist" }, gist(passage)),
  );
  const from = el(
    "p",
    { class: "from" },
    title && title !== name ? el("bdi", { class: "title" }, title) : null,
    el("bdi", { class: "path" }, path),
    facts.length ? el("span", {}, facts.join(" · ")) : null,
  );
  return el("li", { id }, el("details", {}, summary, el("blockquote", {}, unwrapped(passage)), from));
}

/** The beginning of a passage on one line, without the signs that Markdown makes its tables and headings of. */
function gist(passage) {
  return passage
    .slice(0, 400)
    .replace(/[|#*`]+|-{3,}/g, " ")
    .replace(/\s+/g, " ")
    .trim();
}

/** A passage without the line ends that only kept its lines short; those of lists, tables and code stay. */
function unwrapped(passage) {
  const lines = passage.split("\n");
  let text = lines[0];
  for (let at = 1; at < lines.length; at += 1) {
    const before = lines[at - 1];
    const full = before.length >= 60 && !/^\s*\||^\s{4}|[{};:]$/.test(before);
    text += (full && /^[^\s|#>*\-+]/.test(lines[at]) ? " " : "\n") + lines[at];
  }
  return text;
}

/** Open the source that a mark in an answer points to, and put the focus there. */
export function openSource(id) {
  const details = document.getElementById(id)?.querySelector("details");
  if (!details) return false;
  details.open = true;
  details.querySelector("summary").focus({ preventScroll: true });
  details.scrollIntoView({ block: "nearest" });
  return true;
}
