// gpu/accuracy.test.ts - attention in bf16 against float64 formulas, by the bounds that public kernels of the same
// operation are held to, on inputs of the same size (normal values times 0.1).
//
// Half the cases are peaky: queries 8 times larger, and for each head that is looked at a needle, a key that takes nearly
// all of the weight; needles stand at the first and last token and on both sides of page borders. So neither zeros nor a
// mean of all values can pass, nor a kernel that loses a key (the controls at the end).
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { attend, dot, encode } from '../cpu/reference';
import { fp8Row } from '../cpu/reference-cache';
import { closeDevices, Inputs, runTested, valuesOf } from './harness';

after(closeDevices);

/** An element passes by either of the first two; rows by the angle between them; lse by either of the last two. */
const BOUNDS = { absolute: 8e-4, relative: 2 / 128, angle: 5e-6, lseAbsolute: 1e-6, lseRelative: 8 / 65536 };
const FP8_BOUNDS = { ...BOUNDS, absolute: 1e-3 };

const SIZE = 0.1;
const PEAK = 8;
/** Score of a needle: e^8 is the weight of 3,000 other keys. */
const NEEDLE_SCORE = 8;
const MOST_HEADS = 8;
const PAGE = 64;

/** Rows with their log-sum-exp, and what they should be. */
interface Row {
  out: ArrayLike<number>;
  lse: number;
  expected: { out: Float64Array; lse: number };
}

/** Worst figures of some rows. */
class Accuracy {
  absolute = 0;
  /** smaller of the two errors, each as a multiple of its bound */
  element = 0;
  angle = 0;
  lse = 0;
  rows = 0;

  constructor(private readonly bounds: typeof BOUNDS) {}

  add({ out, lse, expected }: Row): void {
    let [product, ours, theirs] = [0, 0, 0];
    expected.out.forEach((x, i) => {
      const y = out[i] as number;
      const error = Math.abs(y - x);
      this.absolute = larger(this.absolute, error);
      const relative = error === 0 ? 0 : error / Math.abs(x) / this.bounds.relative;
      this.element = larger(this.element, Math.min(error / this.bounds.absolute, relative));
      product += x * y;
      ours += y * y;
      theirs += x * x;
    });
    const angle = ours === 0 && theirs === 0 ? 0 : 1 - product / Math.sqrt(ours * theirs);
    this.angle = larger(this.angle, angle / this.bounds.angle);
    const error = lse === expected.lse ? 0 : Math.abs(lse - expected.lse);
    const relative = error === 0 ? 0 : error / Math.abs(expected.lse) / this.bounds.lseRelative;
    this.lse = larger(this.lse, Math.min(error / this.bounds.lseAbsolute, relative));
    this.rows += 1;
  }

  get right(): boolean {
    return this.element <= 1 && this.angle <= 1 && this.lse <= 1;
  }

  /** Times its bound, except the absolute error. */
  toString(): string {
    const [element, angle, lse] = [this.element, this.angle, this.lse].map((x) => x.toPrecision(2));
    return `${this.rows} rows, worst absolute ${this.absolute.toExponential(1)}; of its bound: element ${element}, angle ${angle}, lse ${lse}`;
  }
}

/** The larger of two, and never less than NaN. */
const larger = (a: number, b: number) => (b <= a ? a : Number.isNaN(b) ? Number.POSITIVE_INFINITY : b);

/** At most `most` of n indices, the first and the last among them. */
function sample(n: number, most: number): number[] {
  if (n <= most) return Array.from({ length: n }, (_, i) => i);
  return Array.from({ length: most }, (_, i) => Math.round((i * (n - 1)) / (most - 1)));
}

/** Where the needle of the i-th query of `n` keys stands. */
function needlePlace(i: number, n: number): number {
  const last = Math.floor((n - 1) / PAGE) * PAGE;
  const places = [0, n - 1, last, last - 1, PAGE - 1, PAGE, Math.floor(n / 2 / PAGE) * PAGE, Math.floor(n / 3)];
  return Math.min(Math.max(places[i % places.length] as number, 0), n - 1);
}

/** What makes the score of `query` and itself times this factor NEEDLE_SCORE. */
const needleFactor = (query: ArrayLike<number>, from: number, width: number, scale: number) =>
  NEEDLE_SCORE / (scale * dot(query, from, query, from, width));

interface Decode {
  cache: 'bf16' | 'fp8';
  heads: number;
  c: number;
  lengths: readonly number[];
  queries: readonly number[];
  peaky: boolean;
}

/** How many keys the i-th of the last `queries` tokens sees. */
const keysOf = (length: number, queries: number, i: number) => length - queries + i + 1;

const ROPE = 64;
const SCALE = 192 ** -0.5;

/** Different rows of a cache, besides its needles. */
const ROWS = 256;

/** The arguments of mlaDecode, and the rows that its cache holds for a reader: [length, c + r] of each sequence. */
function decodeInputs({ cache, heads, c, lengths, queries, peaky }: Decode) {
  const make = new Inputs(heads);
  const width = c + ROPE;
  const q_start = make.starts(queries);
  const T = queries.reduce((sum, n) => sum + n, 0);
  const q = make.normal('bf16', [T, heads, width], peaky ? SIZE * PEAK : SIZE);
  const qValues = valuesOf('bf16', q.bytes);
  const paged = make.pagedCache(cache, lengths, c, ROPE);
  const rowBytes = paged.cache.bytes.length / (paged.cache.shape[0] as number) / PAGE;
  const stored = (row: Float64Array): { bytes: Uint8Array; read: ArrayLike<number> } => {
    if (cache === 'fp8') return fp8Row(row, c);
    const bytes = encode('bf16', row);
    return { bytes, read: valuesOf('bf16', bytes) };
  };
  const some = Array.from({ length: ROWS }, () => stored(make.random.values('f32', width, SIZE)));
  let t = 0;
  const rows = lengths.map((length, b) => {
    const read = new Float64Array(length * width);
    const put = (j: number, row: ReturnType<typeof stored>) => {
      paged.cache.bytes.set(row.bytes, paged.slot(b, j) * rowBytes);
      read.set(row.read, j * width);
    };
    for (let j = 0; j < length; j++) put(j, some[make.random.below(ROWS)] as ReturnType<typeof stored>);
    for (let query = 0; query < (queries[b] as number); query++, t++) {
      const seen = keysOf(length, queries[b] as number, query);
      if (!peaky || seen <= 0) continue;
      sample(heads, MOST_HEADS).forEach((h, i) => {
        const from = (t * heads + h) * width;
        const factor = needleFactor(qValues, from, width, SCALE);
        const needle = Float64Array.from({ length: width }, (_, k) => factor * (qValues[from + k] as number));
        put(needlePlace(i + query, seen), stored(needle));
      });
    }
    return read;
  });
  const args = {
    q,
    q_start,
    cache: paged.cache,
    block_table: paged.blockTable,
    lengths: paged.lengths,
    plan: make.plan(heads, q_start, paged.lengths),
    out: make.output('bf16', [T, heads, c]),
    lse: make.output('f32', [T, heads]),
    scale: SCALE,
  };
  return { args, rows, q: qValues };
}

/** The rows of some heads as the kernel and as the formula give them; `hidden` newest keys are left out of the latter. */
async function decodeRows(d: Decode, hidden = 0): Promise<Row[]> {
  const { heads, c, lengths, queries } = d;
  const width = c + ROPE;
  const { args, rows, q } = decodeInputs(d);
  const written = await runTested('mlaDecode', () => args);
  const again = await runTested('mlaDecode', () => args);
  for (const name of ['out', 'lse']) assert.deepEqual(again[name], written[name], `${name}: other bits`);
  const out = Float64Array.from(valuesOf('bf16', written.out as Uint8Array));
  const lse = valuesOf('f32', written.lse as Uint8Array);
  const found: Row[] = [];
  let t = 0;
  lengths.forEach((length, b) => {
    const keys = rows[b] as Float64Array;
    for (let query = 0; query < (queries[b] as number); query++, t++) {
      const seen = Math.max(0, keysOf(length, queries[b] as number, query) - hidden);
      for (const h of sample(heads, MOST_HEADS)) {
        const at = t * heads + h;
        const expected = attend(
          seen,
          c,
          SCALE,
          (j) => dot(q, at * width, keys, j * width, width),
          (j, i) => keys[j * width + i] as number,
        );
        found.push({ out: out.subarray(at * c, (at + 1) * c), lse: lse[at] as number, expected });
      }
    }
  });
  return found;
}

interface Prefill {
  heads: number;
  dims: readonly [n: number, r: number, v: number];
  queries: number;
  /** the queries are the last of them */
  keys: number;
  peaky: boolean;
}

const SAMPLED_ROWS = 24;

/** The arguments of mlaPrefill for one sequence; needles stand in the part of the keys that heads do not share. */
function prefillInputs({ heads: H, dims: [n, r, v], queries: T, keys: S, peaky }: Prefill) {
  const make = new Inputs(n);
  const scale = (n + r) ** -0.5;
  const q = make.normal('bf16', [T, H, n + r], peaky ? SIZE * PEAK : SIZE);
  const kNope = make.random.values('bf16', S * H * n, SIZE);
  const qValues = valuesOf('bf16', q.bytes);
  sample(T, SAMPLED_ROWS).forEach((t, i) => {
    for (let h = 0; peaky && h < H; h++) {
      const from = (t * H + h) * (n + r);
      const factor = needleFactor(qValues, from, n, scale);
      const place = (needlePlace(i + h, S - T + t + 1) * H + h) * n;
      for (let k = 0; k < n; k++) kNope[place + k] = factor * (qValues[from + k] as number);
    }
  });
  const starts = (end: number) => make.values('i32', [2], [0, end]);
  return {
    q,
    k_nope: make.values('bf16', [S, H, n], kNope),
    k_rope: make.normal('bf16', [S, r], SIZE),
    value: make.normal('bf16', [S, H, v], SIZE),
    q_start: starts(T),
    k_start: starts(S),
    q_pos: make.values('i32', [1], [S - T]),
    k_pos: make.values('i32', [1], [0]),
    out: make.output('bf16', [T, H * v]),
    lse: make.output('f32', [T, H]),
    scale,
  };
}

async function prefillRows(p: Prefill): Promise<Row[]> {
  const {
    heads: H,
    dims: [n, r, v],
    queries: T,
    keys: S,
  } = p;
  const args = prefillInputs(p);
  const written = await runTested('mlaPrefill', () => args);
  const again = await runTested('mlaPrefill', () => args);
  for (const name of ['out', 'lse']) assert.deepEqual(again[name], written[name], `${name}: other bits`);
  const out = Float64Array.from(valuesOf('bf16', written.out as Uint8Array));
  const lse = valuesOf('f32', written.lse as Uint8Array);
  const [q, kNope, kRope, value] = (['q', 'k_nope', 'k_rope', 'value'] as const).map((name) =>
    valuesOf('bf16', args[name].bytes),
  ) as [ArrayLike<number>, ArrayLike<number>, ArrayLike<number>, ArrayLike<number>];
  return sample(T, SAMPLED_ROWS).flatMap((t) =>
    Array.from({ length: H }, (_, h) => {
      const at = t * H + h;
      const expected = attend(
        S - T + t + 1,
        v,
        args.scale,
        (j) => dot(q, at * (n + r), kNope, (j * H + h) * n, n) + dot(q, at * (n + r) + n, kRope, j * r, r),
        (j, i) => value[(j * H + h) * v + i] as number,
      );
      return { out: out.subarray(at * v, (at + 1) * v), lse: lse[at] as number, expected };
    }),
  );
}

function accuracyOf(rows: readonly Row[], bounds = BOUNDS): Accuracy {
  const accuracy = new Accuracy(bounds);
  for (const row of rows) accuracy.add(row);
  return accuracy;
}

function accuracyCase(name: string, rows: () => Promise<Row[]>, bounds = BOUNDS): void {
  test(name, async () => {
    const accuracy = accuracyOf(await rows(), bounds);
    console.log(`${name}: ${accuracy}`);
    assert.ok(accuracy.right, `${accuracy}`);
  });
}

const LENGTHS = [0, 1, 63, 64, 65, 1000, 5003];
const ONE_EACH = { lengths: LENGTHS, queries: LENGTHS.map(() => 1) };
const SEVERAL = { lengths: [70, 2, 130, 65, 3000], queries: [1, 3, 2, 4, 4] };
const WIDTHS = [
  [16, 512],
  [20, 512],
  [64, 512],
  [128, 512],
  [32, 256],
] as const;

for (const peaky of [false, true]) {
  const kind = peaky ? 'peaky' : 'even';
  for (const cache of ['bf16', 'fp8'] as const) {
    const bounds = cache === 'fp8' ? FP8_BOUNDS : BOUNDS;
    for (const [heads, c] of WIDTHS) {
      const name = `mlaDecode, ${cache} cache, ${heads} heads, rank ${c}, ${kind}`;
      accuracyCase(name, () => decodeRows({ cache, heads, c, ...ONE_EACH, peaky }), bounds);
    }
    for (const heads of [16, 128]) {
      const name = `mlaDecode, ${cache} cache, ${heads} heads, several queries, ${kind}`;
      accuracyCase(name, () => decodeRows({ cache, heads, c: 512, ...SEVERAL, peaky }), bounds);
    }
  }
  for (const dims of [
    [128, 64, 128],
    [64, 64, 128],
    [192, 64, 256],
  ] as const) {
    const name = `mlaPrefill, ${dims.join('/')}, ${kind}`;
    accuracyCase(name, () => prefillRows({ heads: 3, dims, queries: 300, keys: 1000, peaky }));
  }
}

test('control: zeros, NaN, a lost key and one percent of noise are not right', async () => {
  for (const peaky of [false, true]) {
    const d: Decode = { cache: 'bf16', heads: 16, c: 512, lengths: [1000], queries: [1], peaky };
    const right = await decodeRows(d);
    const wrong: [string, Row[]][] = [
      ['zeros', right.map((row) => ({ ...row, out: new Float64Array(512) }))],
      ['NaN', right.map((row) => ({ ...row, out: new Float64Array(512).fill(Number.NaN) }))],
      ['a lost key', await decodeRows(d, 1)],
      ['noise', right.map((row) => ({ ...row, out: Float64Array.from(row.out, (x, i) => x * (1 + 0.01 * (i % 2))) }))],
    ];
    for (const [name, rows] of wrong) assert.equal(accuracyOf(rows).right, false, `${name}, ${peaky}`);
  }
});
