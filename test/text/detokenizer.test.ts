import { Detokenizer, Tokenizer } from '../../lib/text';
import { wellFormed } from '../../lib/text/well-formed';
import { CORPUS } from './corpus';
import { codeOf, randomText, seeded, V3_DIR } from './fixtures';

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(V3_DIR);
});

/** What each push returned, and what end returned. */
function stream(ids: readonly number[], skipSpecial?: boolean): string[] {
  const detokenizer = new Detokenizer(tokenizer, skipSpecial === undefined ? {} : { skipSpecial });
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.end()];
}

test('pieces joined equal the whole, for encoded texts', () => {
  const random = seeded(2);
  const texts = [...CORPUS, ...Array.from({ length: 300 }, () => randomText(random, 40))];
  for (const text of texts) {
    const ids = tokenizer.encode(text, { special: false });
    const pieces = stream(ids);
    expect(pieces.join('')).toBe(wellFormed(text));
    // Valid text never shows a replacement character on the way, so no character was cut.
    if (!text.includes('\ufffd')) for (const piece of pieces) expect(piece).not.toContain('\ufffd');
  }
});

test('pieces joined equal the whole, for 3000 random id sequences and all splits of broken UTF-8', () => {
  const random = seeded(3);
  // One-byte tokens are where broken UTF-8 comes from; ids beyond the vocabulary have no text.
  const bytes = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).filter(
    (id) => tokenizer.idToBytes(id).length === 1,
  );
  expect(bytes.length).toBeGreaterThan(240);
  for (let round = 0; round < 3000; round++) {
    const ids = Array.from({ length: 1 + Math.floor(random() * 24) }, () => {
      const kind = random();
      if (kind < 0.6) return bytes[Math.floor(random() * bytes.length)] as number;
      if (kind < 0.7) return [0, 1, 2, 128_803, 129_000, 2_000_000][Math.floor(random() * 6)] as number;
      return Math.floor(random() * tokenizer.vocabSize);
    });
    for (const skipSpecial of [true, false]) {
      expect(stream(ids, skipSpecial).join('')).toBe(tokenizer.decode(ids, { skipSpecial }));
    }
  }
});

test('every prefix of valid and broken sequences ends as the whole does', () => {
  const sequences = [
    'f09f9880',
    'e4bda0e5a5bd',
    'f09f98',
    'c3a9c3',
    'eda080',
    'f4908080',
    'c080',
    'efbbbf41',
    'fe41ff',
    'e28041',
    'f0f09f9880',
  ];
  const byteId = new Map<number, number>();
  for (let id = tokenizer.vocabSize - 1; id >= 0; id--) {
    const bytes = tokenizer.idToBytes(id);
    if (bytes.length === 1) byteId.set(bytes[0] as number, id);
  }
  for (const hex of sequences) {
    const raw = Buffer.from(hex, 'hex');
    const known = [...raw].every((byte) => byteId.has(byte));
    if (!known) continue;
    for (let length = 0; length <= raw.length; length++) {
      const ids = [...raw.subarray(0, length)].map((byte) => byteId.get(byte) as number);
      const expected = raw.subarray(0, length).toString('utf8');
      expect(stream(ids).join('')).toBe(expected);
      expect(tokenizer.decode(ids)).toBe(expected);
    }
  }
});

test('a special token between the halves of a character does not part them', () => {
  const ids = tokenizer.encode('𠀀', { special: false });
  expect(ids.length).toBeGreaterThan(1);
  const [first, ...rest] = ids as [number, ...number[]];
  expect(stream([first, 1, ...rest]).join('')).toBe('𠀀');
  expect(stream([first, 1, ...rest], false).join('')).toContain('<｜end▁of▁sentence｜>');
});

test('a new sequence can begin after end, and wrong ids are refused', async () => {
  const detokenizer = new Detokenizer(tokenizer);
  const [first] = tokenizer.encode('😀', { special: false }) as [number];
  detokenizer.push(first);
  detokenizer.end();
  expect(detokenizer.push(tokenizer.encode('a')[0] as number) + detokenizer.end()).toBe('a');
  for (const id of [-1, 1.5, Number.NaN, '1' as unknown as number])
    expect(await codeOf(() => detokenizer.push(id))).toBe('ERR_INVALID_ARG');
});

test('a token has a text by itself exactly when its bytes are whole characters', () => {
  const wrong: number[] = [];
  let parts = 0;
  for (let id = -1; id <= tokenizer.vocabSize; id++) {
    const bytes = Buffer.from(tokenizer.idToBytes(id));
    const whole = bytes.equals(Buffer.from(bytes.toString())) ? bytes.toString() : null;
    if (whole === null) parts++;
    // the second time it comes from the table
    if (tokenizer.idToText(id) !== whole || tokenizer.idToText(id) !== whole) wrong.push(id);
  }
  expect(wrong).toEqual([]);
  expect(parts).toBeGreaterThan(128);
});
