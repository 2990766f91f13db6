// The recordings as the page works with them: columns of numbers, times in seconds.

import { inflate } from "./inflate.js";
import { visible } from "./words.js";

const ARRAYS = {
  B1: Uint8Array,
  H2: Uint16Array,
  h2: Int16Array,
  I4: Uint32Array,
  i4: Int32Array,
  d8: Float64Array,
};

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let index = 0; index < letters.length; index += 1) bytes[index] = letters.charCodeAt(index);
  return bytes;
}

async function unpacked(bytes) {
  let stream;
  try {
    stream = new DecompressionStream("deflate-raw");
  } catch {
    return inflate(bytes); // an older browser
  }
  const body = new Blob([bytes]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(body).arrayBuffer());
}

/** Differences to values, in place. */
function summed(column) {
  for (let index = 1; index < column.length; index += 1) column[index] += column[index - 1];
  return column;
}

function seconds(column, tick) {
  return Float64Array.from(column, (ticks) => ticks * tick);
}

/** Read the data block of the page. Throws where it is damaged or of another version. */
export async function load(text) {
  const bytes = await unpacked(fromBase64(text));
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  if (header.version !== 1) throw new RangeError(`This file has data of version ${header.version}, and its page reads version 1.`);
  const start = bytes.byteOffset + 4 + size;
  const read = ([kind, offset, length]) => new ARRAYS[kind](bytes.buffer, start + offset, length);
  return header.recordings.map((recording) => decoded(recording, read));
}

function decoded({ slices, inputs, counters, marks, stages, lanes, tick, ...rest }, read) {
  const [ticks, took] = [summed(read(slices.began)), read(slices.took)];
  const begin = seconds(ticks, tick);
  const offsets = new Uint32Array(begin.length + 1);
  read(slices.count).forEach((number, index) => {
    offsets[index + 1] = offsets[index] + number;
  });
  return {
    ...rest,
    stages: stages.map(([name, on]) => ({ name: visible(name), on })),
    lanes: lanes.map(([kind, name, pid, group]) => ({ kind, name: visible(name), pid, group })),
    count: begin.length,
    lane: read(slices.lane),
    stage: read(slices.stage),
    begin,
    // Of whole ticks, so that what ended when the next began does so to the last bit.
    end: begin.map((_, index) => (ticks[index] + took[index]) * tick),
    waited: seconds(read(slices.waited), tick),
    items: read(slices.items),
    outcome: read(slices.outcome),
    labels: slices.labels,
    label: read(slices.label),
    /** The inputs of slice `s` are `inputOf[offsets[s]]` up to `inputOf[offsets[s + 1]]`. */
    offsets,
    inputOf: summed(read(slices.inputs)),
    inputs: {
      keys: inputs.keys,
      number: read(inputs.number),
      began: seconds(read(inputs.began), tick),
      ended: seconds(read(inputs.ended), tick),
      outcome: read(inputs.outcome),
    },
    counters: counters.map(({ at, value, ...what }) => ({
      ...what,
      at: seconds(summed(read(at)), tick),
      value: read(value),
    })),
    marks: marks.map(([kind, at, text, lane, lasted]) => ({ kind, at, text, lane, lasted })),
  };
}

/** What is written on a slice. */
export function nameOf(run, slice) {
  const label = run.label.length ? run.labels[run.label[slice]] : "";
  return label || run.stages[run.stage[slice]]?.name || "work";
}

/** An input's key; one whose beginning was overwritten has only its number. */
export function keyOf(run, input) {
  return run.inputs.keys[input] ?? `input ${run.inputs.number[input]}`;
}
