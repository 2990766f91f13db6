// Where slices lie: rows without overlap for each lane, and how many ran at once.

/** The first index in `values`, which ascend, whose value is above `limit`. */
export function above(values, limit) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > limit) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The slices of each lane, in the order in which they began. */
export function byLane(run) {
  const sizes = new Uint32Array(run.lanes.length);
  for (const lane of run.lane) sizes[lane] += 1;
  const lanes = Array.from(sizes, (size) => new Uint32Array(size));
  sizes.fill(0);
  run.lane.forEach((lane, slice) => {
    lanes[lane][sizes[lane]++] = slice;
  });
  return lanes;
}

/**
 * Put slices into as few rows as they need, at most `most`: each goes into the first row that is free when it begins.
 * Returns the rows, each with its slices, their beginnings and their ends, both ascending; `row` says for each of
 * `slices` where it lies, 255 where no row was free.
 */
export function pack(run, slices, most) {
  const free = [];
  const row = new Uint8Array(slices.length);
  const sizes = [];
  slices.forEach((slice, index) => {
    const begin = run.begin[slice];
    let found = 0;
    while (found < free.length && free[found] > begin) found += 1;
    if (found >= most) {
      row[index] = 255;
      return;
    }
    free[found] = run.end[slice];
    sizes[found] = (sizes[found] ?? 0) + 1;
    row[index] = found;
  });
  const rows = sizes.map((size) => ({
    slices: new Uint32Array(size),
    begin: new Float64Array(size),
    end: new Float64Array(size),
  }));
  sizes.fill(0);
  row.forEach((number, index) => {
    if (number === 255) return;
    const at = sizes[number]++;
    const slice = slices[index];
    rows[number].slices[at] = slice;
    rows[number].begin[at] = run.begin[slice];
    rows[number].end[at] = run.end[slice];
  });
  return { rows, row };
}

/** How many of `slices` ran at each moment, as the steps of a chart, and the most that ever did. */
export function atOnce(run, slices) {
  const begins = Float64Array.from(slices, (slice) => run.begin[slice]);
  const ends = Float64Array.from(slices, (slice) => run.end[slice]).sort();
  const at = new Float64Array(slices.length * 2);
  const value = new Float64Array(slices.length * 2);
  let [size, running, most, ended] = [0, 0, 0, 0];
  for (let begun = 0; begun < begins.length || ended < ends.length; ) {
    // What ends when another begins makes room for it.
    const ends_first = begun >= begins.length || ends[ended] <= begins[begun];
    const when = ends_first ? ends[ended++] : begins[begun++];
    running += ends_first ? -1 : 1;
    if (running > most) most = running;
    if (size && at[size - 1] === when) size -= 1;
    at[size] = when;
    value[size++] = running;
  }
  return { at: at.subarray(0, size), value: value.subarray(0, size), most };
}

/** Seconds in which at least one of `slices`, which are in order, ran. */
export function covered(run, slices) {
  let [total, until] = [0, 0];
  for (const slice of slices) {
    const end = run.end[slice];
    if (end > until) {
      total += end - Math.max(until, run.begin[slice]);
      until = end;
    }
  }
  return total;
}
