// cpu/reference-convert.test.ts - cast, quantize, dequantize and fillRandom.
import { encode, expectExact, expectWithin, Laboratory, Random, rounded } from './reference';
import { keyOf, normalOf } from './reference-philox';

const lab = new Laboratory();
afterAll(() => lab.dispose());

const FLOATS = ['f32', 'bf16', 'f16'] as const;
/** Values around the borders of the formats, halves between neighbours among them. */
const EDGES = [
  0,
  -0,
  1,
  -1,
  65504,
  65519.996,
  65520,
  -65536,
  1e30,
  -3e38,
  2 ** -14,
  2 ** -24,
  2 ** -25,
  1.5 * 2 ** -24,
  2 ** -25 * 1.01,
  2 ** -130,
  2 ** -149,
  1 + 2 ** -8,
  1 + 3 * 2 ** -8,
  1 + 2 ** -11,
  1 + 3 * 2 ** -11,
  3.3895314e38,
  3.4e38,
  Infinity,
  -Infinity,
  Number.NaN,
];

describe('cast', () => {
  it.each(FLOATS.flatMap((from) => FLOATS.map((to) => [from, to] as const)))('%s to %s', async (from, to) => {
    for (const n of [0, 1, 15, 16, 333]) {
      const values = new Random(n).values(from, n, 10);
      const edges = EDGES.map((x) => rounded(from, x));
      const all = [...values, ...(n > 0 ? edges : [])];
      const out = await lab.poison(to, [all.length]);
      await lab.run('cast', { x: await lab.put(from, [all.length], all), out });
      // Compared as bytes: the sign of zero counts, and NaN must stay NaN (any of them).
      const actual = await lab.get(out);
      expect(Array.from(actual)).toEqual(all.map((x) => rounded(to, x)));
      const finite = all.map((x) => (Number.isNaN(x) ? 0 : rounded(to, x)));
      expect(
        encode(
          to,
          actual.map((x) => (Number.isNaN(x) ? 0 : x)),
        ),
      ).toEqual(encode(to, finite));
    }
  });

  it('agrees with the format on all 65536 patterns of f16 and bf16', async () => {
    const patterns = Uint8Array.from({ length: 2 * 65536 }, (_, i) =>
      i % 2 === 0 ? (i / 2) % 256 : Math.floor(i / 512),
    );
    for (const dtype of ['f16', 'bf16'] as const) {
      const x = await lab.put('u8', [2 * 65536], patterns);
      const out = await lab.poison('f32', [65536]);
      await lab.run('cast', { x: x.view(dtype, [65536]), out });
      expectExact(await lab.get(out), await lab.get(x.view(dtype, [65536])));
    }
  });
});

/** The scale of a block: max / 448, up to a power of two if asked; 1 for zeros. */
function blockScale(top: number, pow2: boolean): number {
  if (top === 0) return 1;
  const scale = Math.max(Math.fround(top / 448), 2 ** -126);
  return pow2 ? 2 ** Math.ceil(Math.log2(scale)) : scale;
}

describe.each(['f32', 'bf16'] as const)('quantize and dequantize of %s', (dtype) => {
  it.each([false, true])('by blocks of 128 x 128, power-of-two scales: %s', async (pow2) => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 130],
      [130, 5],
      [257, 300],
    ] as const) {
      const random = new Random(rows);
      const x = random.values(dtype, rows * columns, 1e-3);
      x.set(random.values(dtype, Math.min(100, x.length), 50));
      const blocks = Math.ceil(columns / 128);
      const tops = new Float64Array(Math.ceil(rows / 128) * blocks);
      const blockOf = (i: number) => Math.floor(i / columns / 128) * blocks + Math.floor((i % columns) / 128);
      x.forEach((value, i) => {
        tops[blockOf(i)] = Math.max(tops[blockOf(i)] as number, Math.abs(value));
      });
      const scales = tops.map((top) => blockScale(top, pow2));

      const q = await lab.poison('f8e4m3', [rows, columns]);
      const scale = await lab.poison('f32', [Math.ceil(rows / 128), blocks]);
      await lab.run('quantize', { x: await lab.put(dtype, [rows, columns], x), q, scale, pow2 });
      expectExact(await lab.get(scale), scales);
      const codes = x.map((value, i) => rounded('f8e4m3', value / (scales[blockOf(i)] as number)));
      expectExact(await lab.get(q), codes);

      const out = await lab.poison(dtype, [rows, columns]);
      await lab.run('dequantize', { q, scale, out });
      expectExact(
        await lab.get(out),
        codes.map((code, i) => rounded(dtype, code * (scales[blockOf(i)] as number))),
      );
    }
  });

  it('saturates infinity, keeps NaN, and gives zeros the scale 1', async () => {
    const x = [Infinity, -Infinity, Number.NaN, 448, -1, 0];
    const q = await lab.poison('f8e4m3', [1, 6]);
    const scale = await lab.poison('f32', [1, 1]);
    await lab.run('quantize', { x: await lab.put(dtype, [1, 6], x), q, scale, pow2: false });
    expect(Array.from(await lab.get(scale))).toEqual([1]);
    expect(Array.from(await lab.get(q))).toEqual([448, -448, Number.NaN, 448, -1, 0]);
    const zeros = await lab.put(dtype, [1, 6], [0, 0, 0, 0, 0, 0]);
    await lab.run('quantize', { x: zeros, q, scale, pow2: true });
    expect(Array.from(await lab.get(scale))).toEqual([1]);
    expect(Array.from(await lab.get(q))).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('reads f8e8m0 scales as powers of two, on all 256 codes', async () => {
    const codes = Uint8Array.from({ length: 256 }, (_, i) => i);
    const bytes = await lab.put('u8', [1, 256], codes);
    const q = bytes.view('f8e4m3', [1, 256]);
    const scale = await lab.put('f8e8m0', [1, 2], [2 ** -3, 2 ** 5]);
    const out = await lab.poison(dtype, [1, 256]);
    await lab.run('dequantize', { q, scale, out });
    const values = await lab.get(q);
    expect(await lab.get(out)).toEqual(values.map((x, i) => x * (i < 128 ? 2 ** -3 : 2 ** 5)));
  });
});

describe('fillRandom', () => {
  it('gives each element the normal number of its index, whatever the threads', async () => {
    const [seed, mean, stddev, n] = [2 ** 40 + 12345, 0.25, 2, 50001];
    const out = await lab.poison('f32', [n]);
    await lab.run('fillRandom', { out, seed, mean, stddev });
    const actual = await lab.get(out);
    const expected = actual.map((_, i) => mean + stddev * normalOf(keyOf(BigInt(seed)), i));
    expectWithin(actual, expected, (_, e) => 2e-6 * (1 + Math.abs(e)));

    const single = new Laboratory(1);
    const again = await single.poison('f32', [n]);
    await single.run('fillRandom', { out: again, seed, mean, stddev });
    expectExact(await single.get(again), actual);
    await single.dispose();

    const narrow = await lab.poison('bf16', [3, 7]);
    await lab.run('fillRandom', { out: narrow, seed, mean, stddev });
    expect(Array.from(await lab.get(narrow))).toEqual(Array.from(actual.subarray(0, 21), (x) => rounded('bf16', x)));
  });

  it('has the moments and tails of a normal distribution', async () => {
    const n = 400000;
    const out = await lab.poison('f32', [n]);
    await lab.run('fillRandom', { out, seed: 7, mean: 0, stddev: 1 });
    const x = await lab.get(out);
    const moment = (k: number) => x.reduce((sum, value) => sum + value ** k, 0) / n;
    expect(Math.abs(moment(1))).toBeLessThan(4 / Math.sqrt(n));
    expect(Math.abs(moment(2) - 1)).toBeLessThan(4 * Math.sqrt(2 / n));
    expect(Math.abs(moment(3))).toBeLessThan(4 * Math.sqrt(15 / n));
    expect(Math.abs(moment(4) - 3)).toBeLessThan(4 * Math.sqrt(96 / n));
    const beyond = x.reduce((count, value) => count + (Math.abs(value) > 3 ? 1 : 0), 0);
    expect(Math.abs(beyond / n - 0.0026998)).toBeLessThan(4 * Math.sqrt(0.0027 / n));
  });
});
