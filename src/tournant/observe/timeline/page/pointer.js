// Mouse, pen and fingers: drag to move, wheel or two fingers to zoom, click to follow, hover to read.

const STILL = 5; // pixels that a click may wander
const LINE = 16; // pixels that a wheel's line stands for

function wheel(section, event) {
  const { view, field, app } = section;
  const unit = event.deltaMode === 1 ? LINE : event.deltaMode === 2 ? field.clientWidth : 1;
  const [across, down] = [event.deltaX * unit, event.deltaY * unit];
  const sideways = event.shiftKey ? across || down : Math.abs(across) > Math.abs(down) ? across : 0;
  // With several runs the page is long, and its wheel belongs to scrolling until a picture is worked in.
  const mine = event.ctrlKey || event.metaKey || app.sections.length === 1 || field.contains(document.activeElement);
  if (sideways) {
    event.preventDefault();
    view.pan(sideways / section.plot.width);
  } else if (mine && down && !(view.whole && down > 0 && !event.ctrlKey)) {
    event.preventDefault();
    // A pinch on a touchpad comes as a wheel with Ctrl, in smaller steps.
    const speed = event.ctrlKey && Math.abs(down) < 40 ? 0.012 : 0.002;
    view.zoom(Math.exp(Math.max(-240, Math.min(240, down)) * speed), section.plot.time(section.offset(event).x));
  }
}

export function listenToPointer(section) {
  const { field, plot } = section;
  const fingers = new Map();
  let start = null; // where the first finger, or the mouse, went down
  let pinch = null;
  let range = null; // the other end of a stretch that is being chosen

  const settle = () => {
    const [one, other] = [...fingers.values()];
    pinch = other ? { apart: Math.max(Math.abs(one.x - other.x), 12), span: section.view.span, at: plot.time((one.x + other.x) / 2) } : null;
  };

  field.addEventListener("wheel", (event) => wheel(section, event), { passive: false });

  field.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const here = section.offset(event);
    fingers.set(event.pointerId, here);
    if (fingers.size === 1) {
      start = { ...here, clientY: event.clientY, from: section.view.from, moved: false };
      range = event.shiftKey && event.pointerType === "mouse" ? plot.time(here.x) : null;
    } else if (start) start.moved = true;
    settle();
  });

  field.addEventListener("pointermove", (event) => {
    const here = section.offset(event);
    if (!fingers.has(event.pointerId)) {
      if (event.pointerType !== "touch") {
        section.pointer = { clientX: event.clientX, clientY: event.clientY };
        section.read();
      }
      return;
    }
    fingers.set(event.pointerId, here);
    const { view } = section;
    if (pinch && fingers.size === 2) {
      const [one, other] = [...fingers.values()];
      const apart = Math.max(Math.abs(one.x - other.x), 12);
      const span = (pinch.span * pinch.apart) / apart;
      const share = (one.x + other.x) / 2 / plot.width;
      view.set(pinch.at - share * span, pinch.at + (1 - share) * span);
      return;
    }
    if (!start || fingers.size > 1) return;
    if (!start.moved && Math.hypot(here.x - start.x, event.clientY - start.clientY) > STILL) {
      start.moved = true;
      field.setPointerCapture(event.pointerId);
      field.classList.add("dragged");
      section.forget();
    }
    if (!start.moved) return;
    if (range !== null) {
      section.stretch(range, plot.time(here.x));
      return;
    }
    const from = Math.min(Math.max(start.from - ((here.x - start.x) / plot.width) * view.span, 0), view.length - view.span);
    view.set(from, from + view.span);
    // A hand moves the picture, so up and down move it too; touch scrolls by itself.
    if (event.pointerType === "mouse") {
      scrollBy(0, start.clientY - event.clientY);
      start.clientY = event.clientY;
    }
  });

  const release = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    field.classList.remove("dragged");
    section.stretch(null);
    if (fingers.size) {
      const [left] = fingers.values();
      start = { ...left, clientY: event.clientY, from: section.view.from, moved: true };
      settle();
      return;
    }
    const [was, other] = [start, range];
    start = pinch = range = null;
    if (event.type !== "pointerup" || !was) return;
    const here = section.offset(event);
    if (other !== null && was.moved) {
      const time = plot.time(here.x);
      section.view.glide(Math.min(time, other), Math.max(time, other));
    } else if (!was.moved) section.press(plot.at(here.x, here.y), event);
  };
  field.addEventListener("pointerup", release);
  field.addEventListener("pointercancel", release);

  field.addEventListener("dblclick", (event) => {
    const here = section.offset(event);
    const { slice } = plot.at(here.x, here.y);
    if (slice >= 0) section.view.frame(section.run.begin[slice], section.run.end[slice]);
    else section.view.zoom(0.3, plot.time(here.x), true);
  });

  field.addEventListener("pointerleave", () => section.forget());
}
