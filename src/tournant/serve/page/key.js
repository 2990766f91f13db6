// The API key's field: there when the server wants a key.

import { hasKey, setKey } from "./api.js";
import { byId, setText } from "./dom.js";

const NOTE = "Kept in this tab until you close it, and sent to this server only.";

/** Open the field: the server wants a key, or refused the one it got. */
export function askForKey(refused = false) {
  window.dispatchEvent(new CustomEvent("key-needed", { detail: { refused } }));
}

export function wireKey() {
  const form = byId("key-form");
  const field = byId("key");
  const opener = byId("key-open");
  const forget = byId("key-forget");
  const show = (open) => {
    form.hidden = !open;
    opener.setAttribute("aria-expanded", `${open}`);
    forget.hidden = !hasKey();
  };
  opener.addEventListener("click", () => {
    show(form.hidden);
    if (!form.hidden) field.focus();
  });
  window.addEventListener("key-needed", ({ detail }) => {
    opener.hidden = false;
    const wasOpen = !form.hidden;
    setText(byId("key-note"), detail.refused ? `The server does not accept this key. ${NOTE}` : NOTE);
    field.toggleAttribute("aria-invalid", detail.refused);
    show(true);
    if (!wasOpen) field.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    show(false);
    field.removeAttribute("aria-invalid");
    setText(byId("key-note"), NOTE);
    setKey(field.value);
    field.value = "";
    byId("question").focus();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !hasKey()) return;
    event.stopPropagation();
    show(false);
    opener.focus();
  });
  forget.addEventListener("click", () => {
    setKey("");
    show(true);
    field.focus();
  });
}
