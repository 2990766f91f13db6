// Which parts this server has: the page shows those and says why the others are missing.

import { call } from "./api.js";

/** Ask what this server serves; anyone may. Returns `{keyed, index}`: whether it wants a key, and whether there is an index. */
export async function describe() {
  const description = await (await call("openapi.json")).json();
  return {
    keyed: Array.isArray(description.security) && description.security.length > 0,
    index: "/v1/search" in (description.paths ?? {}),
  };
}

/**
 * Ask who answers. Returns `{llm, models, embedder, trouble}`: whether somebody does, the names of the models, the embedding model's name
 * or null, and the error that kept the models from being listed, or null.
 */
export async function findModels() {
  let listed;
  let stats;
  try {
    stats = await (await call("v1/stats")).json();
    listed = (await (await call("v1/models")).json()).data.map(({ id }) => id);
  } catch (error) {
    // Whoever can't list models is an upstream: there is one, it just doesn't answer now, or wants a key.
    return { llm: true, models: [], embedder: null, trouble: error };
  }
  const embedder = stats.embedding ? listed.pop() : null; // the server lists its own last
  const models = listed.filter((id) => id !== "rag"); // the same models, with retrieval: the page asks for that itself
  return { llm: models.length > 0, models, embedder, trouble: null };
}
