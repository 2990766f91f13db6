// Raw deflate (RFC 1951), for browsers that cannot inflate by themselves. Slower than theirs, and only then used.

const LENGTHS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
const LENGTH_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const REACHES = [
  1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289,
  16385, 24577,
];
const REACH_BITS = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13];
const CODE_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/** A Huffman code by its lengths: how many codes of each length, and the symbols in the order of their codes. */
function code(lengths) {
  const counts = new Uint16Array(16);
  for (const length of lengths) counts[length] += 1;
  counts[0] = 0;
  const next = new Uint16Array(17);
  for (let length = 1; length < 16; length += 1) next[length + 1] = next[length] + counts[length];
  const symbols = new Uint16Array(lengths.length);
  lengths.forEach((length, symbol) => {
    if (length) symbols[next[length]++] = symbol;
  });
  return { counts, symbols };
}

function fixed() {
  const lengths = Array.from({ length: 288 }, (_, symbol) => (symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8));
  return [code(lengths), code(new Array(30).fill(5))];
}

/** Return the bytes that `packed` was made of. Throws a RangeError where it is damaged. */
export function inflate(packed) {
  let [out, size, at, hold, held] = [new Uint8Array(packed.length * 6 + 1024), 0, 0, 0, 0];

  const bits = (wanted) => {
    while (held < wanted) {
      if (at >= packed.length) throw new RangeError("The data of this file ends too early.");
      hold |= packed[at++] << held;
      held += 8;
    }
    const value = hold & ((1 << wanted) - 1);
    hold >>>= wanted;
    held -= wanted;
    return value;
  };
  const room = (wanted) => {
    if (size + wanted <= out.length) return;
    const wider = new Uint8Array(Math.max(out.length * 2, size + wanted));
    wider.set(out);
    out = wider;
  };
  const symbol = ({ counts, symbols }) => {
    let [value, first, index] = [0, 0, 0];
    for (let length = 1; length < 16; length += 1) {
      value |= bits(1);
      if (value - first < counts[length]) return symbols[index + value - first];
      index += counts[length];
      first = (first + counts[length]) << 1;
      value <<= 1;
    }
    throw new RangeError("The data of this file is damaged.");
  };
  const dynamic = () => {
    const [literals, reaches, codes] = [bits(5) + 257, bits(5) + 1, bits(4) + 4];
    const short = new Array(19).fill(0);
    for (let index = 0; index < codes; index += 1) short[CODE_ORDER[index]] = bits(3);
    const [plan, lengths] = [code(short), []];
    while (lengths.length < literals + reaches) {
      const next = symbol(plan);
      if (next < 16) lengths.push(next);
      else {
        const value = next === 16 ? lengths[lengths.length - 1] : 0;
        const times = next === 16 ? 3 + bits(2) : next === 17 ? 3 + bits(3) : 11 + bits(7);
        for (let index = 0; index < times; index += 1) lengths.push(value);
      }
    }
    return [code(lengths.slice(0, literals)), code(lengths.slice(literals))];
  };
  const stored = () => {
    // The rest of the byte is unused, and whole bytes that were read ahead are given back.
    at -= held >> 3;
    hold = held = 0;
    const length = packed[at] | (packed[at + 1] << 8);
    at += 4;
    if (at + length > packed.length) throw new RangeError("The data of this file ends too early.");
    room(length);
    out.set(packed.subarray(at, at + length), size);
    size += length;
    at += length;
  };
  const compressed = ([literals, reaches]) => {
    for (;;) {
      const value = symbol(literals);
      if (value === 256) return;
      if (value < 256) {
        room(1);
        out[size++] = value;
        continue;
      }
      const length = LENGTHS[value - 257] + bits(LENGTH_BITS[value - 257]);
      const far = symbol(reaches);
      const reach = REACHES[far] + bits(REACH_BITS[far]);
      if (reach > size) throw new RangeError("The data of this file is damaged.");
      room(length);
      for (let index = 0; index < length; index += 1, size += 1) out[size] = out[size - reach];
    }
  };

  let last = 0;
  while (!last) {
    last = bits(1);
    const kind = bits(2);
    if (kind === 0) stored();
    else if (kind === 1) compressed(fixed());
    else if (kind === 2) compressed(dynamic());
    else throw new RangeError("The data of this file is damaged.");
  }
  return out.subarray(0, size);
}
