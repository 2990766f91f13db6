// The keyboard: on the picture and its minimap, and within the slices once one is in focus.

/** Do what a key says; true where it said something. */
function act(section, event) {
  const { view, cursor } = section;
  const far = event.shiftKey;
  switch (event.key) {
    case "+":
    case "=":
      view.zoom(0.6, section.middle(), true);
      return true;
    case "-":
    case "_":
      view.zoom(1 / 0.6, section.middle(), true);
      return true;
    case "0":
    case "Home":
      view.home();
      return true;
    case "End":
      view.glide(view.length - view.span, view.length);
      return true;
    case "ArrowLeft":
    case "ArrowRight": {
      const way = event.key === "ArrowLeft" ? -1 : 1;
      if (cursor === null || far) view.pan(way * (far ? 0.6 : 0.12), true);
      else section.along(way);
      return true;
    }
    case "ArrowUp":
    case "ArrowDown":
      if (cursor === null) return false; // the page scrolls
      section.across(event.key === "ArrowUp" ? -1 : 1);
      return true;
    case "Enter":
    case " ":
      if (cursor === null) section.enter(null);
      else section.select(cursor, true);
      return true;
    case "z":
    case "Z":
      if (cursor !== null) view.frame(section.run.begin[cursor], section.run.end[cursor]);
      return cursor !== null;
    case "f":
    case "F":
      section.next((slice) => section.run.outcome[slice] === 1);
      return true;
    case "m":
    case "M":
      section.nextMark();
      return true;
    case "Escape":
      return section.leave();
    default:
      return false;
  }
}

export function listenToKeys(section) {
  for (const element of [section.field, section.minimap.element]) {
    element.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (act(section, event)) event.preventDefault();
    });
  }
  section.names.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && section.leave()) event.preventDefault();
  });
}
