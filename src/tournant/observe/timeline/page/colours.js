// The colours of the picture, from the page's style, mixed once for a theme rather than once for a slice.

const STAGES = 8; // colours in the style; further stages take them again, hatched

function parsed(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** `share` of `over` laid on `under`. */
function mixed(over, under, share) {
  const [front, back] = [parsed(over), parsed(under)];
  return `#${front.map((value, index) => Math.round(value * share + back[index] * (1 - share)).toString(16).padStart(2, "0")).join("")}`;
}

function luminance(hex) {
  const [red, green, blue] = parsed(hex).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** The ink that reads better on a colour. */
function inkOn(hex) {
  const light = luminance(hex);
  return (light + 0.05) / (luminance("#171614") + 0.05) > 1.05 / (light + 0.05) ? "#171614" : "#ffffff";
}

function hatched(colour, stripe) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const pen = tile.getContext("2d");
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = stripe;
  pen.lineWidth = 2;
  pen.beginPath();
  for (const at of [-8, 0, 8]) {
    pen.moveTo(at - 1, 9);
    pen.lineTo(at + 9, -1);
  }
  pen.stroke();
  return pen.createPattern(tile, "repeat");
}

/**
 * Everything that the drawing paints with. `stages[s]` has `fill`, `dim` (while something else is followed), `ink` and
 * `dimInk` for its text, and `css`, a plain colour; `stages[-1]` is what belongs to no stage.
 */
export function colours(stages) {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  const palette = Object.fromEntries(
    ["paper", "raised", "sunk", "ink", "soft", "rule", "edge", "accent", "bad", "warn"].map((name) => [name, named(name)]),
  );
  const one = (css, again) => {
    const dim = mixed(css, palette.paper, 0.2);
    return {
      css,
      again,
      fill: again ? hatched(css, mixed(palette.paper, css, 0.5)) : css,
      dim,
      ink: inkOn(css),
      dimInk: mixed(palette.soft, dim, 0.6),
    };
  };
  palette.stages = stages.map((_, index) => one(named(`stage-${(index % STAGES) + 1}`), index >= STAGES));
  palette.stages[-1] = one(named("stage-none"), false);
  palette.faint = mixed(palette.rule, palette.paper, 0.55);
  palette.marks = {
    blocked: palette.bad,
    guard: palette.bad,
    worker: palette.warn,
    retry: palette.warn,
    limit: named("limit"),
    gc: named("gc"),
    note: palette.soft,
  };
  palette.sans = named("canvas-font");
  return palette;
}
