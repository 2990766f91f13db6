// Which parts this server has: the page shows those and says why the others are missing.

import { call } from "./api.js";

/** Ask whether the server wants a key; anyone may. */
export async function wantsKey() {
  const description = await (await call("openapi.json")).json();
  return Array.isArray(description.security) && description.security.length > 0;
}

/**
 * Ask what this server serves. Returns `{llm, index, models, embedder, trouble}`: whether somebody answers, whether there is an index, the
 * names of the models, the embedding model's name or null, and the error that kept any of it from being found out, or null.
 */
export async function findParts() {
  let serves;
  try {
    ({ serves } = await (await call("v1/stats")).json());
  } catch (error) {
    return { ...NOBODY_KNOWS, trouble: error };
  }
  if (!serves.llm) return { ...serves, models: [], trouble: null };
  try {
    const listed = (await (await call("v1/models")).json()).data.map(({ id }) => id);
    if (serves.embedder !== null) listed.pop(); // the server lists its own last
    const models = listed.filter((id) => id !== "rag"); // the same models, with retrieval: the page asks for that itself
    return { ...serves, models, trouble: null };
  } catch (error) {
    return { ...serves, models: [], trouble: error };
  }
}

/** As long as the server tells nothing, as without a key: as if somebody answered; whether there is an index is not known. */
export const NOBODY_KNOWS = { llm: true, index: null, models: [], embedder: null, trouble: null };
