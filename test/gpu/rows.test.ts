// gpu/rows.test.ts - norms, gathers, latent compression, copies and conversions on the GPU against the CPU backend.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import type { DType } from '../../lib/native';
import { fp8Row, fp8RowBytes } from '../cpu/reference-cache';
import { keyOf, normalOf } from '../cpu/reference-philox';
import type { Tolerance } from './closeness';
import {
  closeDevices,
  compareVerb,
  type Inputs,
  openTested,
  type Planned,
  type PlannedArgs,
  RECORDING,
  runTested,
  valuesOf,
} from './harness';

after(closeDevices);

const FLOATS = ['f32', 'bf16'] as const;
type Float = (typeof FLOATS)[number];
/** The same values, any NaN for NaN. */
const SAME: Tolerance = { ulps: 0, element: 0, norm: 0, absolute: 0 };

for (const table of FLOATS)
  for (const act of FLOATS)
    test(`gatherRows, ${table} to ${act}`, async () => {
      for (const d of [1, 37, 2048, 5000]) {
        const ids = [8, 0, -1, 3, 3, -2147483648, 7];
        await compareVerb(
          'gatherRows',
          (make) => ({
            table: make.normal(table, [9, d]),
            ids: make.values('i32', [7], ids),
            out: make.output(act, [7, d]),
          }),
          { exact: ['out'] },
        );
      }
    });

const NORM_SHAPES = [
  [1, 1],
  [3, 7],
  [5, 100],
  [9, 2048],
  [3, 7168],
  [2, 20008],
] as const;
for (const act of FLOATS)
  for (const weight of FLOATS)
    test(`rmsNorm and addRmsNorm, ${act} rows, ${weight} weight`, async () => {
      for (const [rows, d] of NORM_SHAPES) {
        await compareVerb(
          'rmsNorm',
          (make) => ({
            x: make.normal(act, [rows, d], 3),
            weight: make.normal(weight, [d]),
            out: make.output(act, [rows, d]),
            eps: 1e-6,
          }),
          { rows: ['x', 'out'] },
        );
        await compareVerb(
          'addRmsNorm',
          (make) => ({
            x: make.normal(act, [rows, d], 3, 0, 'inout'),
            delta: make.normal(act, [rows, d]),
            weight: make.normal(weight, [d]),
            out: make.output(act, [rows, d]),
            eps: 1e-5,
          }),
          { rows: ['x', 'delta', 'out'], exact: ['x'] },
        );
      }
    });

/** Arguments of latentCompress; every fifth row is padding, every seventh writes no cache. */
function latentArgs(
  make: Inputs,
  { act, weight, norm, cache, rows, d, nq, c, r, qNorm, fp8 }: LatentCase,
): PlannedArgs<'latentCompress'> {
  const L = c + r;
  const blocks = (n: number) => Math.ceil(n / 128);
  const pages = Math.ceil(rows / 64) + 1;
  const positions = Array.from({ length: rows }, (_, t) => (t % 5 === 4 ? -1 : (t * 7) % 90));
  const slots = Array.from({ length: rows }, (_, t) => (t % 7 === 6 ? -1 : pages * 64 - 1 - t));
  return {
    x: make.normal(act, [rows, d]),
    norm: make.normal(norm, [d]),
    weight: make.normal(weight, [nq + L, d], weight === 'f8e4m3' ? 60 : 0.05),
    weight_scale: weight === 'f8e4m3' ? make.normal('f32', [blocks(nq + L), blocks(d)], 0.0002, 0.001) : undefined,
    q_norm: qNorm ? make.normal(norm, [nq]) : undefined,
    latent_norm: make.normal(norm, [c]),
    positions: make.values('i32', [rows], positions),
    slots: make.values('i32', [rows], slots),
    cos_sin: make.cosSin(90, r),
    q: make.output(act, [rows, nq]),
    cache: make.inout(make.output(cache, [pages, 64, L])),
    eps: 1e-6,
    latent_eps: 1e-5,
    fp8_activations: fp8 ?? false,
  };
}

interface LatentCase {
  act: Float;
  weight: Float | 'f8e4m3';
  norm: Float;
  cache: Float;
  rows: number;
  d: number;
  nq: number;
  c: number;
  r: number;
  qNorm: boolean;
  /** the normed rows enter as fp8 activations */
  fp8?: boolean;
}

const LITE = { d: 512, nq: 384, c: 512, r: 64, qNorm: false };
const V3 = { d: 768, nq: 1536, c: 512, r: 64, qNorm: true };
const ODD = { d: 77, nq: 21, c: 13, r: 6, qNorm: true };
const LATENT: readonly LatentCase[] = [
  { ...LITE, act: 'bf16', weight: 'bf16', norm: 'bf16', cache: 'bf16', rows: 1 },
  { ...LITE, act: 'bf16', weight: 'bf16', norm: 'bf16', cache: 'bf16', rows: 70 },
  { ...LITE, d: 2048, nq: 3072, act: 'bf16', weight: 'bf16', norm: 'f32', cache: 'f32', rows: 2 },
  { ...LITE, d: 1928, c: 256, act: 'bf16', weight: 'bf16', norm: 'bf16', cache: 'bf16', rows: 8 },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 2 },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', norm: 'f32', cache: 'f32', rows: 1 },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 5 },
  { ...LITE, d: 2048, act: 'bf16', weight: 'bf16', norm: 'f32', cache: 'f32', rows: 5 },
  { ...LITE, c: 520, r: 8, act: 'bf16', weight: 'f8e4m3', norm: 'f32', cache: 'f32', rows: 7 },
  { ...V3, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 19 },
  { ...V3, act: 'f32', weight: 'f32', norm: 'f32', cache: 'f32', rows: 9 },
  { ...LITE, act: 'f32', weight: 'bf16', norm: 'bf16', cache: 'bf16', rows: 9 },
  { ...ODD, act: 'bf16', weight: 'bf16', norm: 'f32', cache: 'f32', rows: 8 },
  { ...ODD, act: 'f32', weight: 'f32', norm: 'bf16', cache: 'bf16', rows: 8 },
  { ...LITE, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 1, fp8: true },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', norm: 'f32', cache: 'bf16', rows: 2, fp8: true },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 7, fp8: true },
  { ...V3, act: 'bf16', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 70, fp8: true },
  { ...ODD, act: 'f32', weight: 'f8e4m3', norm: 'bf16', cache: 'bf16', rows: 9, fp8: true },
];
/**
 * Another order of sums in the norm brings one operand in a hundred thousand to the neighbouring e4m3, 1/16 to 1/8 away:
 * up to three times the root mean square of its row, times 1/8, over the root of 512 or more terms. Rows that are not
 * rounded at all are 0.04 off in the norm.
 */
const ROUNDED_OTHERWISE = { q: { element: 2e-2, norm: 1e-2 }, cache: { element: 2e-2, norm: 1e-2 } };
for (const shape of LATENT)
  test(`latentCompress, ${JSON.stringify(shape)}`, () =>
    compareVerb('latentCompress', (make) => latentArgs(make, shape), {
      label: JSON.stringify(shape),
      rows: ['x', 'positions', 'slots', 'q'],
      product: true,
      ...(shape.fp8 && { tolerance: ROUNDED_OTHERWISE }),
    }));

/** The norm of the latent scales channels by these, 128 each: zeros, the smallest and the largest come with them. */
const EXTREMES = [1, 0, 2 ** -126, 2 ** 126];
for (const shape of [
  { ...LITE, act: 'bf16', weight: 'bf16', rows: 70 },
  { ...LITE, act: 'bf16', weight: 'bf16', rows: 2 },
  { ...LITE, d: 2048, act: 'bf16', weight: 'bf16', rows: 5 },
  { ...LITE, d: 1936, act: 'bf16', weight: 'f8e4m3', rows: 2 },
  { ...LITE, act: 'bf16', weight: 'f8e4m3', rows: 8 },
  { ...V3, act: 'bf16', weight: 'f8e4m3', rows: 3 },
  { ...LITE, act: 'f32', weight: 'bf16', rows: 9, c: 256 },
  { ...ODD, act: 'f32', weight: 'f32', rows: 8, c: 150, r: 10 },
] as const)
  test(`latentCompress into an fp8 cache, ${JSON.stringify(shape)}: the rows of an f32 cache, as fp8`, async () => {
    const { c, r } = shape;
    const argsOf = (make: Inputs, extreme: boolean) => {
      const args = latentArgs(make, { ...shape, norm: 'f32', cache: 'f32' });
      const weights = Array.from(valuesOf('f32', (args.latent_norm as Planned).bytes), (x, i) =>
        extreme ? x * (EXTREMES[(i >> 7) % 4] as number) : x,
      );
      return { ...args, latent_norm: make.values('f32', [c], weights) };
    };
    for (const extreme of [false, true]) {
      let pages = 0;
      const plain = await runTested('latentCompress', (make) => argsOf(make, extreme));
      const fp8 = await runTested('latentCompress', (make) => {
        const args = argsOf(make, extreme);
        pages = (args.cache as Planned).shape[0] as number;
        return { ...args, cache: make.inout(make.output('f8e4m3', [pages, 64, fp8RowBytes(c, r)])) };
      });
      assert.deepEqual(fp8.q, plain.q);
      const values = valuesOf('f32', plain.cache as Uint8Array);
      let written = 0;
      for (let slot = 0; slot < pages * 64; slot++) {
        const row = Array.from({ length: c + r }, (_, i) => values[slot * (c + r) + i] as number);
        const untouched = row.every(Number.isNaN);
        if (!untouched) written++;
        const expected = untouched ? new Uint8Array(fp8RowBytes(c, r)).fill(0xff) : fp8Row(row, c).bytes;
        const actual = fp8.cache?.subarray(slot * expected.length, (slot + 1) * expected.length);
        assert.equal(Buffer.compare(actual as Uint8Array, expected), 0, `slot ${slot}, extreme ${extreme}`);
      }
      assert.ok(written > 0);
    }
  });

test('latentCompress of more rows than one pass takes', () =>
  compareVerb('latentCompress', (make) =>
    latentArgs(make, {
      ...LITE,
      d: 64,
      nq: 32,
      c: 32,
      r: 8,
      act: 'bf16',
      weight: 'bf16',
      norm: 'bf16',
      cache: 'bf16',
      rows: 4099,
    }),
  ));

test('copyPages: in order, over all layers', async () => {
  const pairs = [
    [1, 4],
    [4, 5],
    [-1, 2],
    [3, -1],
    [0, 0],
    [5, 1],
  ].flat();
  for (const [dtype, width] of [
    ['bf16', 576],
    ['f32', 24],
    ['bf16', 5],
    ['f8e4m3', 656],
  ] as const)
    await compareVerb('copyPages', (make) => ({
      pairs: make.values('i32', [pairs.length / 2, 2], pairs),
      cache: make.normal(dtype, [3, 6, 64, width], 1, 0, 'inout'),
    }));
  await compareVerb('copyPages', (make) => ({
    pairs: make.values('i32', [pairs.length / 2, 2], pairs),
    cache: make.normal('bf16', [3, 6, 64, 24], 1, 0, 'inout').shifted(2),
  }));
});

test('copy: blocks with strides, of every alignment', async () => {
  for (const unit of [1, 2, 4, 16])
    for (const [blocks, length] of [
      [1, 40],
      [7, 3],
      [300, 5],
      [3, 4000],
    ] as const)
      for (const gap of [0, 1, 9])
        await compareVerb('copy', (make) => ({
          src: make.integers('u8', [(blocks * (length + 2 * gap) + 3) * unit], 0, 256),
          dst: make.inout(make.output('u8', [(blocks * (length + gap) + 1) * unit])),
          blocks,
          block_bytes: length * unit,
          src_offset: 3 * unit,
          src_stride: (length + gap) * unit,
          dst_offset: unit,
          dst_stride: (length + gap) * unit,
        }));
});

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
  3.3895314e38,
  3.4e38,
  Infinity,
  -Infinity,
  Number.NaN,
];
const CASTABLE: readonly DType[] = ['f32', 'bf16', 'f16'];
test('cast between all types', async () => {
  for (const from of CASTABLE)
    for (const to of CASTABLE)
      for (const n of [0, 1, 15, 4096, 70001])
        await compareVerb('cast', (make) => ({ x: make.normal(from, [n], 10), out: make.output(to, [n]) }), {
          exact: ['out'],
          label: `${from} to ${to}, ${n}`,
        });
});
test('cast at the borders of the formats', async () => {
  for (const from of CASTABLE)
    for (const to of CASTABLE)
      await compareVerb(
        'cast',
        (make) => ({ x: make.values(from, [EDGES.length], EDGES), out: make.output(to, [EDGES.length]) }),
        { tolerance: { out: SAME } },
      );
});

for (const dtype of FLOATS)
  test(`quantize and dequantize, ${dtype}`, async () => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 130],
      [130, 5],
      [257, 300],
      [128, 512],
    ] as const) {
      const blocks = [Math.ceil(rows / 128), Math.ceil(columns / 128)];
      for (const pow2 of [false, true])
        await compareVerb(
          'quantize',
          (make) => ({
            x: make.normal(dtype, [rows, columns], 3),
            q: make.output('f8e4m3', [rows, columns]),
            scale: make.output('f32', blocks),
            pow2,
          }),
          { exact: ['scale'] },
        );
      for (const exponents of [false, true])
        await compareVerb(
          'dequantize',
          (make) => ({
            q: make.normal('f8e4m3', [rows, columns], 100),
            scale: exponents
              ? make.values(
                  'f8e8m0',
                  blocks,
                  Array.from({ length: (blocks[0] as number) * (blocks[1] as number) }, (_, i) => 2 ** (i - 3)),
                )
              : make.normal('f32', blocks, 0.1, 1),
            out: make.output(dtype, [rows, columns]),
          }),
          { exact: ['out'] },
        );
    }
  });
test('quantize: infinities saturate, NaN stays, zeros have scale 1, tiny blocks a normal scale', async () => {
  const rows = [
    [Infinity, -Infinity, Number.NaN, 448, -1, 0],
    [0, 0, 0, 0, -0, 0],
    [2 ** -149, 2 ** -140, 0, 0, 0, 0],
  ];
  for (const row of rows)
    await compareVerb(
      'quantize',
      (make) => ({
        x: make.values('f32', [1, 6], row),
        q: make.output('f8e4m3', [1, 6]),
        scale: make.output('f32', [1, 1]),
        pow2: false,
      }),
      { exact: ['scale'] },
    );
});

for (const dtype of FLOATS)
  test(`fillRandom gives the CPU's bits, ${dtype}`, async () => {
    for (const n of [1, 7, 100003])
      await compareVerb(
        'fillRandom',
        (make) => ({ out: make.output(dtype, [n]), seed: 2 ** 40 + 12345, mean: 0.25, stddev: 2 }),
        { exact: ['out'], label: `${dtype} [${n}]` },
      );
  });

test('checksum', async () => {
  for (const [words, parts] of [
    [1, 1],
    [5, 7],
    [4099, 3],
    [1 << 20, 264],
    [1234567, 5],
  ] as const)
    await compareVerb('checksum', (make) => ({
      x: make.integers('i32', [words], -2147483648, 2147483647),
      sums: make.output('i64', [parts]),
    }));
});

test('positions past 2^32 bytes and 2^31 elements', { skip: RECORDING }, async () => {
  const width = 2048;
  const rows = 2 ** 20 + 5;
  const seed = 77;
  const device = openTested();
  try {
    const stream = device.stream();
    const read = async (tensor: Awaited<ReturnType<typeof device.allocate>>) =>
      Array.from(valuesOf(tensor.dtype, new Uint8Array(await stream.read(tensor))));
    const expected = Array.from({ length: width }, (_, i) => normalOf(keyOf(BigInt(seed)), (rows - 1) * width + i));
    const check = (what: string, actual: number[]) => {
      const worst = actual.reduce((most, x, i) => Math.max(most, Math.abs(x - (expected[i] as number))), 0);
      assert(worst < 4 * 2 ** -8, `${what}: off by ${worst}`);
    };
    const big = await device.allocate('bf16', [rows, width]);
    const other = await device.allocate('bf16', [rows, width]);
    const last = await device.allocate('bf16', [1, width]);
    const ids = await device.allocate('i32', [1]);
    stream.write(ids, new Uint8Array(Int32Array.of(rows - 1).buffer));

    stream.fillRandom({ out: big, seed, mean: 0, stddev: 1 });
    stream.gatherRows({ table: big, ids, out: last });
    check('fillRandom and gatherRows', await read(last));
    stream.cast({ x: big, out: other });
    stream.gatherRows({ table: other, ids, out: last });
    check('cast', await read(last));
    stream.fillRandom({ out: other, seed: 1, mean: 0, stddev: 1 });
    stream.copy({
      src: big,
      dst: other,
      blocks: rows,
      block_bytes: 2 * width,
      src_stride: 2 * width,
      dst_stride: 2 * width,
    });
    stream.gatherRows({ table: other, ids, out: last });
    check('copy', await read(last));
  } finally {
    await device.dispose();
  }
});
