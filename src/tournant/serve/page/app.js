// The page's beginning: what the server has is shown, what it lacks is explained.

import { hasKey } from "./api.js";
import { Conversation } from "./ask.js";
import { Documents } from "./documents.js";
import { byId, el, setText } from "./dom.js";
import { askForKey, wireKey } from "./key.js";
import { Live } from "./live.js";
import { findParts, NOBODY_KNOWS, wantsKey } from "./parts.js";

const WORDS = {
  both: ["Ask the documents", "The answer comes with the passages it is drawn from.", "Ask a question"],
  llm: ["Ask a question", "The answer comes word by word, as the model writes it.", "Ask a question"],
  index: ["Search the documents", "What fits your words and their meaning, best first.", "Search for"],
};

const conversation = new Conversation();
const documents = new Documents();
const live = new Live();
wireKey();

async function arrange() {
  let keyed;
  try {
    keyed = await wantsKey();
  } catch (error) {
    setText(byId("headline"), "The server does not answer");
    setText(byId("lede"), error.message);
    return;
  }
  const keyless = keyed && !hasKey();
  if (keyless) askForKey();
  else live.start();
  const { llm, index, models, embedder, trouble } = keyless ? NOBODY_KNOWS : await findParts();
  if (keyed || trouble?.status === 401) byId("key-open").hidden = false;
  const [headline, lede, placeholder] = WORDS[llm && index ? "both" : llm ? "llm" : "index"];
  if (llm || index) {
    setText(byId("headline"), headline);
    setText(byId("lede"), lede);
    setText(byId("question-label"), llm ? "Your question" : "What to search for");
    byId("question").placeholder = placeholder;
  } else {
    setText(byId("headline"), "Nothing to ask here");
    setText(byId("lede"), embedder ? `This server embeds texts with ${embedder}, for programs.` : "");
  }
  byId("ask").hidden = !(llm || index);
  say("no-llm", ...(llm ? [] : ["There is no language model: start the server with ", option("--llm"), " to get answers."]));
  if (trouble && trouble.status !== 401) say("no-llm", `The model can't be asked now: ${trouble.message}`);
  say("no-index", ...(index !== false ? [] : ["There is no index: start the server with ", option("--index"), " to add documents and to get answers with sources."]));
  byId("model").replaceChildren(...models.map((name) => el("option", { value: name }, name)));
  setText(byId("serving"), serving(models, embedder));
  byId("jump-documents").hidden = !index;
  documents.enabled = index === true;
  conversation.can = { llm, index: index === true };
  if ((llm || index) && byId("key-form").hidden && matchMedia("(pointer: fine)").matches) byId("question").focus();
}

/** Fill a paragraph, or hide it where there is nothing to say. */
function say(id, ...parts) {
  byId(id).replaceChildren(...parts);
  byId(id).hidden = !parts.length;
}

const option = (name) => el("code", {}, name);

function serving(models, embedder) {
  const parts = models.length > 1 ? [`${models.length} models`] : [...models];
  if (embedder) parts.push(`${embedder} embeddings`);
  return parts.join(" · ");
}

window.addEventListener("key-changed", arrange);
await arrange();
byId("main").removeAttribute("aria-busy");
