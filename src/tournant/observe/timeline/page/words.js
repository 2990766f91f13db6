// Numbers and things as people read them.

export const OUTCOMES = ["ok", "failed", "retried", "cancelled"];
export const ENDINGS = ["done", "failed", "filtered", "skipped", "interrupted"];

/** A duration with three significant digits: `12.3 s`, `4.07 ms`, `850 µs`, `5 min 12 s`. */
export function duration(seconds) {
  if (!(seconds > 0)) return "0 s";
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  if (seconds >= 120) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  const [value, unit] = seconds >= 0.9995 ? [seconds, "s"] : seconds >= 0.0009995 ? [seconds * 1e3, "ms"] : [seconds * 1e6, "µs"];
  return `${digits(value)} ${unit}`;
}

/** Three significant digits, without the zeros that say nothing. */
export function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return String(Number(value.toFixed(size >= 10 ? 1 : 2)));
}

/** A moment of the run, exact to a hundredth of `span`, the time that is in view. */
export function moment(seconds, span) {
  const places = Math.min(7, Math.max(0, Math.ceil(-Math.log10(Math.max(span, 1e-7) / 200))));
  return seconds >= 60 ? clock(seconds, places) : `${seconds.toFixed(places)} s`;
}

/** `2:05`, `1:02:05`. */
export function clock(seconds, places = 0) {
  const scale = 10 ** places;
  const all = Math.round(seconds * scale) / scale;
  const [hours, minutes] = [Math.floor(all / 3600), Math.floor((all % 3600) / 60)];
  const rest = (all % 60).toFixed(places).padStart(places ? places + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** `3 items`, `1 item`, `1,204 items`. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A name as it can be seen: one of nothing but blanks and invisible signs is none. */
export function visible(name) {
  return /[^\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u.test(name) ? name : "(no name)";
}

export const percent = (share) => `${Math.round(share * 100)} %`;
