// What happened at one moment, or held everything up: signs in a row of their own, and bands across what they concern.

export const KINDS = {
  blocked: { name: "blocked loop", many: "blocked loop" },
  guard: { name: "guard", many: "guards" },
  worker: { name: "worker", many: "workers" },
  retry: { name: "retry", many: "retries" },
  limit: { name: "limit", many: "limits" },
  gc: { name: "garbage collection", many: "garbage collections" },
  note: { name: "note", many: "notes" },
};

export const kindOf = (mark) => (mark.kind in KINDS ? mark.kind : "note");

/** Draw a kind's sign, 11 pixels wide: each has a shape of its own, for those who don't tell its colour. */
export function sign(pen, kind, x, y, colour, paper) {
  pen.fillStyle = colour;
  pen.strokeStyle = colour;
  pen.lineWidth = 1.75;
  pen.beginPath();
  if (kind === "blocked") {
    pen.moveTo(x, y - 6);
    pen.lineTo(x + 6.5, y + 5);
    pen.lineTo(x - 6.5, y + 5);
    pen.closePath();
    pen.fill();
    pen.fillStyle = paper;
    pen.fillRect(x - 0.75, y - 2, 1.5, 4);
    pen.fillRect(x - 0.75, y + 2.75, 1.5, 1.5);
  } else if (kind === "guard") {
    pen.moveTo(x - 5, y - 5.5);
    pen.lineTo(x + 5, y - 5.5);
    pen.lineTo(x + 5, y);
    pen.quadraticCurveTo(x + 4, y + 4, x, y + 6);
    pen.quadraticCurveTo(x - 4, y + 4, x - 5, y);
    pen.closePath();
    pen.fill();
  } else if (kind === "worker") {
    pen.fillRect(x - 4.5, y - 4.5, 9, 9);
    pen.fillStyle = paper;
    pen.fillRect(x - 1.75, y - 1.75, 3.5, 3.5);
  } else if (kind === "retry") {
    pen.arc(x, y, 4, -2.2, 2.6);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x - 6, y - 4.5);
    pen.lineTo(x - 0.5, y - 5.5);
    pen.lineTo(x - 3, y - 0.5);
    pen.closePath();
    pen.fill();
  } else if (kind === "limit") {
    pen.moveTo(x - 5, y - 3.5);
    pen.lineTo(x + 5, y - 3.5);
    pen.moveTo(x - 5, y + 3.5);
    pen.lineTo(x + 5, y + 3.5);
    pen.stroke();
  } else if (kind === "gc") {
    pen.arc(x, y, 3.5, 0, 7);
    pen.stroke();
  } else {
    pen.moveTo(x, y - 5);
    pen.lineTo(x + 5, y);
    pen.lineTo(x, y + 5);
    pen.lineTo(x - 5, y);
    pen.closePath();
    pen.fill();
  }
}

const NEAR = 12; // pixels: closer signs are one
const ORDER = Object.keys(KINDS); // the more serious first

/** The marks in view as signs: those that would lie on one another are one, the most serious in front. */
export function signs(brush, marks, hidden) {
  const found = [];
  for (const mark of marks) {
    if (hidden.has(kindOf(mark))) continue;
    const x = brush.x(mark.at);
    const right = brush.x(mark.at + mark.lasted);
    if (right < -8 || x > brush.width + 8) continue;
    const here = Math.max(x, 0);
    const last = found[found.length - 1];
    if (last && here - last.x < NEAR) {
      last.marks.push(mark);
      if (ORDER.indexOf(kindOf(mark)) < ORDER.indexOf(last.kind)) last.kind = kindOf(mark);
    } else found.push({ x: here, kind: kindOf(mark), marks: [mark] });
  }
  return found;
}

/** Draw the row of signs, with the text of those that have room for it. */
export function drawSigns(brush, found, y, height) {
  const { pen, palette, width } = brush;
  const middle = y + height / 2;
  found.forEach(({ x, kind, marks }, index) => {
    sign(pen, kind, x, middle, palette.marks[kind], palette.paper);
    const room = (found[index + 1]?.x ?? width + 40) - x - 22;
    const letters = Math.floor(room / brush.letter);
    let words = marks.length > 1 ? `${marks.length} marks` : marks[0].text;
    // There are many collections, and half a sentence on each tells nothing.
    if (kind === "gc" && letters < words.length) words = "";
    if (letters < 6) words = marks.length > 1 && letters >= 2 ? String(marks.length) : "";
    else if (words.length > letters) words = `${words.slice(0, letters - 1)}…`;
    if (!words) return;
    pen.fillStyle = palette.soft;
    pen.fillText(words, x + 10, middle + 0.5);
  });
}

/** Shade what a mark held up for as long as it did: its lane, or all of them. */
export function drawSpells(brush, marks, hidden, laneBands, height) {
  const { pen, palette, width } = brush;
  for (const mark of marks) {
    const kind = kindOf(mark);
    if (hidden.has(kind)) continue;
    const left = brush.x(mark.at);
    const right = brush.x(mark.at + mark.lasted);
    if (right < 0 || left > width) continue;
    const wide = Math.max(right - left, 1);
    // Hundreds of collections as lines over everything would hide what they explain.
    if (wide < 1.5 && kind === "gc") continue;
    pen.fillStyle = palette.marks[kind];
    const place = mark.lane < 0 ? { y: 0, height } : laneBands.get(mark.lane);
    if (!place) continue;
    pen.globalAlpha = wide > 1.5 ? 0.16 : 0.45;
    pen.fillRect(left, place.y, wide, place.height);
    pen.globalAlpha = 1;
    if (wide > 3) {
      pen.fillRect(left, place.y, 1, place.height);
      pen.fillRect(right - 1, place.y, 1, place.height);
    }
  }
}
