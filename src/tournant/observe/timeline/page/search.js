// Find an input by its key, and follow it.

import { announce, byId, el, setText } from "./dom.js";
import { keyOf } from "./data.js";
import { count, ENDINGS } from "./words.js";

const SHOWN = 12;

export function listenToSearch(app) {
  const field = byId("find");
  const list = byId("found");
  let [matches, chosen] = [[], -1];

  const find = (words) => {
    const wanted = words.trim().toLowerCase();
    const [exact, found] = [[], []];
    let number = 0;
    if (!wanted) return { found, number };
    for (const section of app.sections) {
      section.keys ??= section.run.inputs.keys.map((_, input) => keyOf(section.run, input).toLowerCase());
      section.keys.forEach((key, input) => {
        const at = key.indexOf(wanted);
        if (at < 0) return;
        number += 1;
        const kind = key === wanted ? exact : found;
        if (kind.length < SHOWN) kind.push({ section, input });
      });
    }
    // A key that is what was typed comes first.
    return { found: [...exact, ...found].slice(0, SHOWN), number };
  };
  const close = () => {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
    chosen = -1;
  };
  const choose = (index) => {
    chosen = index;
    [...list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === index)));
    if (index < 0) field.removeAttribute("aria-activedescendant");
    else {
      field.setAttribute("aria-activedescendant", `found-${index}`);
      list.children[index].scrollIntoView({ block: "nearest" });
    }
  };
  const take = ({ section, input }) => {
    close();
    field.value = keyOf(section.run, input);
    section.follow(input);
    const { time, steps } = section.followed;
    section.view.frame(time.began, time.ended, 0.08);
    section.cursor = steps[0]?.slice ?? null;
    section.host.closest(".run").scrollIntoView({ block: "nearest" });
    section.field.focus({ preventScroll: true });
    if (section.cursor !== null) section.focus(section.cursor);
    announce(`Following ${field.value}.`);
  };

  field.addEventListener("input", () => {
    const { found, number } = find(field.value);
    matches = found;
    list.replaceChildren(...found.map(({ section, input }, index) => {
      const known = section.run.inputs.keys[input] !== null;
      const about = [known ? ENDINGS[section.run.inputs.outcome[input]] : "", app.alone ? "" : section.run.title].filter(Boolean).join(", ");
      const item = el("li", { role: "option", id: `found-${index}`, "aria-selected": "false" }, el("span", {}, keyOf(section.run, input)), el("small", {}, about));
      // Before the field loses the focus and the list closes.
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        take({ section, input });
      });
      return item;
    }));
    if (number > found.length) list.append(el("li", { role: "presentation", class: "rest" }, `and ${(number - found.length).toLocaleString("en")} more`));
    const nothing = field.value.trim() && !number;
    if (nothing) list.append(el("li", { role: "presentation", class: "rest" }, "No input has this in its key."));
    setText(byId("find-state"), field.value.trim() ? count(number, "input") : "");
    list.hidden = !number && !nothing;
    field.setAttribute("aria-expanded", String(!list.hidden));
    choose(number ? 0 : -1);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (!matches.length || list.hidden) return;
      choose((chosen + (event.key === "ArrowDown" ? 1 : -1) + matches.length) % matches.length);
    } else if (event.key === "Enter") {
      if (matches[chosen] && !list.hidden) take(matches[chosen]);
    } else if (event.key === "Escape") {
      if (list.hidden && !field.value) return;
      field.value = "";
      close();
    } else return;
    event.preventDefault();
  });
  field.addEventListener("blur", close);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, dialog")) return;
    event.preventDefault();
    field.focus();
    field.select();
  });
}
