// Requests that answer a question: a streamed chat, or a search where no model is there to answer.

import { ServerError, call, inside } from "./api.js";
import { events } from "./sse.js";
import { readSources } from "./sources.js";

/**
 * Stream an answer. Yields `{sources}`, `{text}`, `{finish}` and `{usage}` as they come. Throws `ServerError` for a refusal,
 * an error event, a stream that ends before its end; aborting `signal` closes the connection at once.
 */
export async function* streamChat({ messages, model, passages, signal }) {
  const json = { messages, stream: true, stream_options: { include_usage: true } };
  if (model) json.model = model;
  if (passages) json.retrieve = { k: passages };
  const response = await call("v1/chat/completions", { method: "POST", json, signal });
  if (!(response.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
    yield* whole(await response.json()); // an upstream that doesn't stream
    return;
  }
  try {
    for await (const { event, data } of events(response)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (event === "error" || chunk.error) throw inside(chunk);
      if (chunk.sources) yield { sources: readSources(chunk.sources) };
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: String(choice.delta.content) };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw brokenOff();
  }
  throw brokenOff();
}

function* whole(body) {
  if (body?.error) throw inside(body);
  const choice = body?.choices?.[0];
  if (body?.sources) yield { sources: readSources(body.sources) };
  if (choice?.message?.content) yield { text: String(choice.message.content) };
  if (choice?.finish_reason) yield { finish: choice.finish_reason };
  if (body?.usage) yield { usage: body.usage };
}

function parsed(data) {
  let value = null;
  try {
    value = JSON.parse(data);
  } catch {
    value = null;
  }
  if (value && typeof value === "object") return value;
  throw new ServerError("The server sent something that is no piece of an answer.", { code: "bad_event" });
}

function brokenOff() {
  return new ServerError("The connection closed before the answer was complete. What is above is all that came.", {
    code: "truncated",
  });
}

/** Search the index; returns the passages, best first. */
export async function search(query, k, signal) {
  const response = await call("v1/search", { method: "POST", json: { query, k }, signal });
  const body = await response.json();
  return readSources(body?.hits);
}
