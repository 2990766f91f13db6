// Talking to the server: the key, and errors as sentences that say what happened and what to do.

const STORED_KEY = "tournant.key";

/** What went wrong with a request. `retryAfter` is in seconds, or null. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The key lives as long as the tab. Where storage is closed to the page, it lives as long as the page. */
let key = "";
try {
  key = sessionStorage.getItem(STORED_KEY) || "";
} catch {
  key = "";
}

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(STORED_KEY, key);
    else sessionStorage.removeItem(STORED_KEY);
  } catch {
    // Kept in memory only.
  }
  window.dispatchEvent(new CustomEvent("key-changed"));
}

export function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Ask the server; returns the response of a success and throws `ServerError` otherwise. An abort stays an abort. */
export async function call(path, { method = "GET", json, signal } = {}) {
  const headers = authorization();
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: json === undefined ? undefined : JSON.stringify(json),
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) throw failure(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

export function unreachable() {
  return new ServerError(`The server at ${location.host} does not answer. Is it still running?`);
}

/** The error in a reply's body, in OpenAI's shape; a body of any other shape is not shown. */
export function failure(status, text, retryAfter = null) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  const error = inside(body, status);
  error.retryAfter = seconds(retryAfter);
  if (status === 401) {
    error.message = hasKey() ? "The server does not accept this key." : "This server wants an API key.";
    window.dispatchEvent(new CustomEvent("key-needed", { detail: { refused: hasKey() } }));
  }
  return error;
}

/** The error that `{"error": {...}}` describes. */
export function inside(body, status = 0) {
  const error = body && typeof body === "object" ? body.error : null;
  if (typeof error === "string") return new ServerError(error, { status });
  if (error && typeof error.message === "string" && error.message) {
    return new ServerError(error.message, { status, code: error.code ?? error.type ?? null });
  }
  const what = status ? `The server answered with status ${status}` : "The server reported an error";
  return new ServerError(`${what} and did not say why. Its log may.`, { status });
}

function seconds(value) {
  const number = Number(value);
  return value !== null && value !== "" && Number.isFinite(number) && number > 0 ? Math.ceil(number) : null;
}
