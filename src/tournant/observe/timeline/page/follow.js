// One input's way through the run.

/** For each input its slices: those of input `i` are `slices[offsets[i]]` up to `slices[offsets[i + 1]]`. */
export function byInput(run) {
  const offsets = new Uint32Array(run.inputs.keys.length + 1);
  for (const input of run.inputOf) offsets[input + 1] += 1;
  for (let input = 1; input < offsets.length; input += 1) offsets[input] += offsets[input - 1];
  const next = offsets.slice();
  const slices = new Uint32Array(run.inputOf.length);
  for (let slice = 0; slice < run.count; slice += 1) {
    for (let at = run.offsets[slice]; at < run.offsets[slice + 1]; at += 1) slices[next[run.inputOf[at]]++] = slice;
  }
  return { offsets, slices };
}

/**
 * The steps of an input in the order in which it went through them. `from` is the index of the step that it came from, -1 for a
 * first one: the last to end, before it began, of the nearest earlier stage that the input went through; a retry comes from the
 * attempt before it. `gap` is the time since then, and `began` when it was the input's turn: a stage of the engine, such as a
 * batch, may have been gathering others long before, so for this one it begins when the input came.
 */
export function steps(run, index, input) {
  const slices = Array.from(index.slices.subarray(index.offsets[input], index.offsets[input + 1]));
  const gathers = (slice) => run.stages[run.stage[slice]]?.on === "engine";
  const turn = (slice) => (gathers(slice) ? run.end[slice] : run.begin[slice]);
  // An input can be in a slice twice, with two of its items.
  const found = [...new Set(slices)].sort((one, other) => turn(one) - turn(other) || one - other)
    .map((slice) => ({ slice, from: -1, gap: 0, began: run.begin[slice] }));
  const born = run.inputs.keys[input] === null ? run.begin[found[0]?.slice] : run.inputs.began[input];
  const stages = new Map();
  found.forEach((step, number) => {
    const { slice } = step;
    const stage = run.stage[slice];
    const earlier = [...stages.keys()].filter((other) => other < stage).sort((one, other) => other - one);
    const tries = (stages.get(stage) ?? []).filter((other) => run.outcome[found[other].slice] === 2);
    for (const candidates of [tries, ...earlier.map((other) => stages.get(other))]) {
      const ended = candidates.filter((other) => run.end[found[other].slice] <= turn(slice) + 1e-6);
      if (ended.length) {
        step.from = ended.reduce((one, other) => (run.end[found[other].slice] > run.end[found[one].slice] ? other : one));
        break;
      }
    }
    const since = step.from < 0 ? born : run.end[found[step.from].slice];
    if (gathers(slice)) step.began = Math.min(Math.max(run.begin[slice], since), run.end[slice]);
    step.gap = Math.max(0, step.began - since);
    if (!stages.has(stage)) stages.set(stage, []);
    stages.get(stage).push(number);
  });
  return found;
}

/** What an input's time went into: seconds in which one of its calls ran, and in which none did; to lie in a batch is to wait. */
export function spent(run, found, input) {
  const known = run.inputs.keys[input] !== null;
  const began = known ? run.inputs.began[input] : Math.min(...found.map((step) => step.began));
  const last = Math.max(began, ...found.map(({ slice }) => run.end[slice]));
  const ended = known ? Math.max(run.inputs.ended[input], began) : last;
  let [busy, until] = [0, began];
  for (const step of found) {
    const end = run.end[step.slice];
    if (end <= until || run.stages[run.stage[step.slice]]?.on === "engine") continue;
    busy += end - Math.max(until, step.began);
    until = end;
  }
  return { began, ended, life: ended - began, busy, idle: Math.max(0, ended - began - busy) };
}
