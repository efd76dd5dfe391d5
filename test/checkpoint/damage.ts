// damage.ts - random damage to files, from a seed: the same inputs in every run.

/** xorshift32: the same inputs in every run. */
export function random(seed: number): (below: number) => number {
  let x = seed;
  return (below) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % below;
  };
}

const WORDS = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  '\\',
  '-',
  '0',
  '1',
  '9007199254740993',
  '18446744073709551616',
  '1e3',
  '.5',
  'null',
  'true',
  '"a"',
  '"dtype"',
  '"shape"',
  '"data_offsets"',
  '"__metadata__"',
  '"__proto__"',
  '"F32"',
  '"F4"',
  '\\u0061',
  '\\ud800',
  '\n',
  '\0',
  '\u00e9',
  ' ',
];

/** One to four edits: bytes flipped, cut out, doubled, or words of the format put in. */
export function mutate(input: Buffer, below: (n: number) => number): Buffer {
  let bytes = Buffer.from(input);
  for (let edits = 1 + below(4); edits > 0; edits--) {
    const at = below(bytes.length + 1);
    const length = below(12);
    const kind = below(6);
    if (kind === 0 && bytes.length > 0) bytes[at % bytes.length] = below(256);
    else if (kind === 1) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
    else if (kind === 2) bytes = Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)]);
    else if (kind === 3) bytes = bytes.subarray(0, below(8) === 0 ? at : bytes.length);
    else {
      const word = Buffer.from(WORDS[below(WORDS.length)] as string);
      bytes = Buffer.concat([bytes.subarray(0, at), word, bytes.subarray(kind === 4 ? at : at + 1)]);
    }
  }
  return bytes;
}

/** A number changed to another one, so that structure stays and values are wrong. */
export function renumber(text: string, below: (n: number) => number): string {
  const numbers = [...text.matchAll(/\d+/g)];
  const hit = numbers[below(numbers.length)] as RegExpMatchArray;
  const value = [
    `${Number(hit[0]) + 1}`,
    `${Math.max(0, Number(hit[0]) - 1)}`,
    '0',
    '4294967296',
    '9007199254740991',
    '-1',
  ][below(6)];
  return text.slice(0, hit.index) + value + text.slice((hit.index as number) + hit[0].length);
}
