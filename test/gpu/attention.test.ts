// gpu/attention.test.ts - attention on a GPU against the CPU backend: the split decode over the paged cache, causal
// prefill in chunks, gathering of cached rows, merging by log-sum-exp, RoPE.
//
// Unused cache is NaN and tables behind a sequence's pages are wild (inputs.ts), packed keys past the last sequence are
// NaN as well, so that reading what must not be read shows.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { compareClose } from './closeness';
import {
  closeDevices,
  compareTogether,
  compareVerb,
  Inputs,
  Planned,
  runTested,
  TESTED_DEVICE,
  type Tolerance,
  valuesOf,
} from './harness';

after(closeDevices);

type Float = 'f32' | 'bf16';
type Cache = Float | 'fp8';

/**
 * With bf16 activations both sides round the probabilities to 8 bits, each relative to the largest score that it has seen
 * so far, which depends on how keys are grouped. So each probability may differ by 2^-8 of itself, and with it the row,
 * by 2^-8 of its norm if all errors pull one way, 1.6e-3 if they are independent. Rounding the output to bf16 sets
 * some of these values apart by a whole unit: 3e-3 in the norm for wide rows, 4.2e-3 in the worst row of 40 values
 * (float64 formulas with the two ways of grouping). Elements scatter by six times the mean at most.
 */
const ROUNDED_P: Partial<Tolerance> = { norm: 6e-3, element: 1e-2 };
const tolerance = (act: Float): Record<string, Partial<Tolerance>> => (act === 'bf16' ? { out: ROUNDED_P } : {});

const LENGTHS = [0, 1, 63, 64, 65, 130, 1000];

interface Decode {
  act?: Float;
  cache?: Cache;
  heads: number;
  c?: number;
  r?: number;
  lengths: readonly number[];
  /** query rows per sequence; default one each */
  queries?: readonly number[];
  /** query rows before the first and behind the last sequence */
  before?: number;
  behind?: number;
  /** of the queries; large ones make single keys outweigh all others */
  queryScale?: number;
}

function decodeArgs(make: Inputs, d: Decode) {
  const { act = 'bf16', cache = 'bf16', heads, c = 512, r = 64, lengths, before = 0, behind = 0 } = d;
  const { queryScale = 1 } = d;
  const queries = d.queries ?? lengths.map(() => 1);
  const starts = [before];
  for (const n of queries) starts.push((starts.at(-1) as number) + n);
  const T = (starts.at(-1) as number) + behind;
  const paged = make.pagedCache(cache, lengths, c, r);
  const q_start = make.values('i32', [starts.length], starts);
  return {
    q: make.normal(act, [T, heads, c + r], queryScale),
    q_start,
    cache: paged.cache,
    block_table: paged.blockTable,
    lengths: paged.lengths,
    plan: make.plan(heads, q_start, paged.lengths),
    out: make.output(act, [T, heads, c]),
    lse: make.output('f32', [T, heads]),
    scale: 1 / Math.sqrt(192),
  };
}

function decodeCase(name: string, d: Decode): void {
  test(`mlaDecode, ${name}`, () =>
    compareVerb('mlaDecode', (make) => decodeArgs(make, d), { label: name, tolerance: tolerance(d.act ?? 'bf16') }));
}

for (const heads of [1, 3, 5, 16, 20, 64, 128]) decodeCase(`${heads} heads`, { heads, lengths: LENGTHS });
for (const heads of [3, 20]) decodeCase(`rank 256, ${heads} heads`, { heads, c: 256, lengths: LENGTHS });

// Sequences without query rows, with more query rows than tokens, rows of no sequence before and behind.
const RAGGED = { queries: [0, 1, 3, 9, 2, 1, 4, 6], lengths: [70, 0, 2, 130, 65, 1000, 64, 7], before: 2, behind: 3 };
for (const heads of [3, 16, 20, 40, 64, 128]) decodeCase(`${heads} heads, ragged queries`, { heads, ...RAGGED });
decodeCase('rank 256, 5 heads, ragged queries', { heads: 5, c: 256, ...RAGGED });

for (const heads of [16, 40]) {
  decodeCase(`f32 cache, ${heads} heads`, { heads, cache: 'f32', ...RAGGED });
  decodeCase(`f32 cache, rank 256, ${heads} heads`, { heads, cache: 'f32', c: 256, ...RAGGED });
}
for (const cache of ['f32', 'bf16'] as const) {
  decodeCase(`f32 activations, ${cache} cache`, { act: 'f32', cache, heads: 4, ...RAGGED });
  decodeCase(`f32 activations, ${cache} cache, 20 heads`, { act: 'f32', cache, heads: 20, c: 256, ...RAGGED });
  decodeCase(`odd dimensions, ${cache} cache`, { cache, heads: 3, c: 192, r: 32, ...RAGGED });
}
for (const heads of [1, 16, 40, 128]) {
  decodeCase(`fp8 cache, ${heads} heads`, { heads, cache: 'fp8', ...RAGGED });
  decodeCase(`fp8 cache, rank 256, ${heads} heads`, { heads, cache: 'fp8', c: 256, ...RAGGED });
}
for (const c of [512, 256])
  decodeCase(`fp8 cache, rank ${c}, 40 heads, a token each`, { heads: 40, cache: 'fp8', c, lengths: [1, 64, 65, 700] });
decodeCase('fp8 cache, a long sequence', { heads: 16, cache: 'fp8', lengths: [5003, 64, 1, 0, 65], queryScale: 4 });
decodeCase('fp8 cache, 40 sequences', {
  heads: 16,
  cache: 'fp8',
  lengths: Array.from({ length: 40 }, (_, i) => (i * 389) % 1500),
});
// Every width of row tile over an fp8 cache; blocks with one page, with several, and with pieces of two sequences.
for (const heads of [8, 20, 24, 32]) {
  const lengths = [1, 64, 65, 700, 129, 5000];
  decodeCase(`fp8 cache, peaky, ${heads} heads`, { heads, cache: 'fp8', lengths, queryScale: 8 });
  decodeCase(`fp8 cache, rank 256, peaky, ${heads} heads`, { heads, cache: 'fp8', c: 256, lengths, queryScale: 8 });
}
for (const c of [512, 256]) {
  decodeCase(`fp8 cache, rank ${c}, 40 sequences of 700 keys, 2 tokens each`, {
    heads: 8,
    cache: 'fp8',
    c,
    lengths: Array.from({ length: 40 }, () => 700),
    queries: Array.from({ length: 40 }, () => 2),
  });
  decodeCase(`fp8 cache, rank ${c}, a long one and 128 short ones`, {
    heads: 4,
    cache: 'fp8',
    c,
    lengths: [30000, ...Array.from({ length: 128 }, (_, i) => (i * 37) % 300)],
    queryScale: 4,
  });
}
decodeCase('f32 activations, fp8 cache', { act: 'f32', cache: 'fp8', heads: 4, ...RAGGED });
decodeCase('odd dimensions, fp8 cache', { cache: 'fp8', heads: 3, c: 200, r: 32, ...RAGGED });
decodeCase('fp8 dimensions that no vector divides', { act: 'f32', cache: 'fp8', heads: 3, c: 30, r: 6, ...RAGGED });
decodeCase('bf16 dimensions that no vector divides', { heads: 3, c: 30, r: 6, ...RAGGED });
decodeCase('dimensions that no vector divides', { act: 'f32', cache: 'f32', heads: 3, c: 30, r: 6, ...RAGGED });

// Where the plan makes many splits of one sequence, few of many, and none.
decodeCase('one long sequence', { heads: 16, lengths: [20001] });
decodeCase('one long sequence, 128 heads', { heads: 128, lengths: [5003] });
decodeCase('a long one among short ones', { heads: 16, lengths: [3, 9000, 40, 77, 500], queries: [1, 2, 1, 3, 1] });
decodeCase('40 sequences', { heads: 16, lengths: Array.from({ length: 40 }, (_, i) => (i * 389) % 1500) });
decodeCase('200 sequences', { heads: 16, c: 256, lengths: Array.from({ length: 200 }, (_, i) => 100 + (i % 7)) });
decodeCase('1500 sequences', { heads: 2, c: 256, lengths: Array.from({ length: 1500 }, (_, i) => i % 90) });

// Every width of row tile, with one token a sequence and with several; few keys decide most of these rows.
const PEAKY = { queryScale: 8, lengths: [1, 64, 65, 700, 129, 5000] };
for (const heads of [8, 24, 32, 40, 48, 96]) decodeCase(`peaky, ${heads} heads`, { heads, ...PEAKY });
for (const tokens of [2, 3, 4, 8]) {
  const queries = PEAKY.lengths.map(() => tokens);
  for (const heads of [8, 16, 20]) {
    decodeCase(`peaky, ${heads} heads, ${tokens} tokens each`, { heads, ...PEAKY, queries });
    decodeCase(`peaky, rank 256, ${heads} heads, ${tokens} tokens each`, { heads, c: 256, ...PEAKY, queries });
  }
}
// Blocks that take several pages each, of one sequence and of several.
for (const heads of [8, 24, 32, 40])
  decodeCase(`long, ${heads} heads`, { heads, queryScale: 8, lengths: [9001, 65, 8200] });
for (const tokens of [1, 2, 3]) {
  const lengths = Array.from({ length: 40 }, () => 700);
  decodeCase(`40 sequences of 700 keys, ${tokens} tokens each`, {
    heads: 16,
    lengths,
    queries: lengths.map(() => tokens),
  });
}
// Sequences of one page beside one of many.
for (const count of [1, 8, 17, 33, 65, 129]) {
  const lengths = [30000, ...Array.from({ length: count - 1 }, (_, i) => (i * 37) % 300)];
  decodeCase(`a long one and ${count - 1} short ones`, { heads: 4, lengths, queryScale: 4 });
}

/** Per-head keys and values: the cache's rows hold all heads. */
function mhaArgs(make: Inputs, { act = 'bf16' as Float, heads = 16, head = 192, v = 128, lengths = LENGTHS }) {
  const paged = make.pagedCache(act, lengths, heads * head, heads * v);
  const [pages] = paged.cache.shape as [number];
  return {
    q: make.normal(act, [lengths.length, heads, head]),
    cache: new Planned('in', act, [pages, 64, heads, head + v], paged.cache.bytes),
    block_table: paged.blockTable,
    lengths: paged.lengths,
    out: make.output(act, [lengths.length, heads * v]),
    scale: head ** -0.5,
  };
}

const MHA: [string, Parameters<typeof mhaArgs>[1]][] = [
  ['16 heads', {}],
  ['3 heads, f32', { heads: 3, act: 'f32' }],
  ['20 heads of 256', { heads: 20, head: 256, v: 256 }],
  ['odd widths', { heads: 5, head: 72, v: 40 }],
  ['odd widths, f32', { heads: 9, head: 200, v: 136, act: 'f32' }],
  ['one long sequence', { lengths: [9001] }],
  ['40 sequences', { heads: 4, lengths: Array.from({ length: 40 }, (_, i) => (i * 389) % 1500) }],
];
for (const [label, shape] of MHA)
  test(`mhaDecode, ${label}`, () =>
    compareVerb('mhaDecode', (make) => mhaArgs(make, shape), { label, tolerance: tolerance(shape.act ?? 'bf16') }));

test('mlaDecode under starts, lengths and a table that make no sense writes nothing outside of its outputs', async () => {
  const wildValues = [-1, 2 ** 31 - 1, -(2 ** 31), 7, 2147480000];
  for (let seed = 1; seed <= 13; seed++) {
    const cache = seed > 9 ? 'fp8' : 'bf16';
    const [heads, c] =
      seed <= 5 ? [3 + 8 * seed, 256] : seed <= 9 ? [seed % 2 === 0 ? 64 : 128, 512] : [12, seed % 2 === 0 ? 256 : 512];
    const run = runTested(
      'mlaDecode',
      (make) => {
        const args = decodeArgs(make, { heads, cache, c, lengths: [130, 70, 300], queries: [1, 2, 1] });
        const wild = (planned: Planned) => {
          const values = Array.from(valuesOf('i32', planned.bytes));
          const spoilt = values.map((x) =>
            make.random.below(2) === 0 ? x : (wildValues[make.random.below(5)] as number),
          );
          return make.values('i32', planned.shape, spoilt);
        };
        const q_start = wild(args.q_start);
        const lengths = wild(args.lengths);
        const plan = make.plan(heads, q_start, lengths);
        return { ...args, q_start, lengths, plan, block_table: wild(args.block_table) };
      },
      seed,
    );
    // The CPU looks at all of it first and refuses; a GPU cannot.
    if (TESTED_DEVICE === 'cpu') await assert.rejects(run, { code: 'ERR_INVALID_ARG' });
    else await run;
  }
});

/** One row of one and of many pieces, of the second sequence, of none, without keys; several rows. */
const EXPANDED: readonly Decode[] = [
  { heads: 16, lengths: [4097] },
  { heads: 16, lengths: [40] },
  { heads: 16, lengths: [9000], cache: 'fp8' },
  { heads: 1, lengths: [12000] },
  { heads: 20, lengths: [0] },
  { heads: 5, lengths: [700, 300], queries: [0, 1] },
  { heads: 5, lengths: [300], queries: [0], behind: 1, cache: 'fp8' },
  { heads: 16, lengths: [130], queries: [2] },
  { heads: 16, lengths: [64, 9000], cache: 'fp8' },
  { heads: 5, lengths: [300], before: 1 },
];

test('mlaDecode and valueExpand together', async () => {
  for (const [i, d] of EXPANDED.entries()) {
    const make = new Inputs(i + 1);
    const decode = decodeArgs(make, d);
    const [tokens = 0, heads = 0, c = 0] = decode.out.shape;
    const w_uv = make.normal('bf16', [heads, 128, c], 0.04);
    const label = `${heads} heads, ${d.cache ?? 'bf16'} cache, lengths ${d.lengths}, ${tokens} rows`;
    const launches = await compareTogether(label, [
      { verb: 'mlaDecode', args: decode },
      { verb: 'valueExpand', args: { u: decode.out, w_uv, out: make.output('bf16', [tokens, heads * 128]) } },
    ]);
    console.log(`${label}: ${launches} launches`);
    // On Hopper's own path the merge of one row expands.
    if (/^cuda:\d+$/.test(TESTED_DEVICE)) assert.equal(launches, tokens === 1 ? 2 : 3, label);
  }
});

/** Two steps of a decode, each of which writes the last key of every sequence: the second must not see the first's. */
test('mlaDecode sees the keys that latentCompress has just written', async () => {
  const [heads, n, c, r, d] = [16, 128, 512, 64, 512];
  for (const [cache, lengths] of [
    ['bf16', [4097]],
    ['bf16', [64, 9000, 1]],
    ['fp8', [300, 2]],
  ] as const) {
    const make = new Inputs(lengths[0]);
    const decode = decodeArgs(make, { heads, cache, lengths });
    const table = valuesOf('i32', decode.block_table.bytes);
    const columns = table.length / lengths.length;
    const slots = lengths.map((length, b) => {
      const page = table[b * columns + Math.floor((length - 1) / 64)] as number;
      return page * 64 + ((length - 1) % 64);
    });
    const T = lengths.length;
    const shared = {
      positions: make.values(
        'i32',
        [T],
        lengths.map((length) => length - 1),
      ),
      cos_sin: make.cosSin(9000, r),
    };
    const compress = {
      ...shared,
      norm: make.normal('bf16', [d]),
      weight: make.normal('bf16', [heads * (n + r) + c + r, d], 0.05),
      latent_norm: make.normal('bf16', [c]),
      slots: make.values('i32', [T], slots),
      q: make.output('bf16', [T, heads * (n + r)]),
      cache: make.inout(decode.cache),
      eps: 1e-6,
      latent_eps: 1e-6,
      fp8_activations: false,
    };
    const w_uk = make.normal('bf16', [heads, n, c], 0.05);
    const absorbed = make.output('bf16', [T, heads, c + r]);
    const steps = [1, 2].flatMap(() => [
      { verb: 'latentCompress' as const, args: { ...compress, x: make.normal('bf16', [T, d]) } },
      {
        verb: 'queryAbsorb' as const,
        args: { ...shared, q: make.normal('bf16', [T, heads, n + r]), w_uk, out: absorbed },
      },
      { verb: 'mlaDecode' as const, args: { ...decode, q: absorbed, cache: compress.cache } },
    ]);
    await compareTogether(`${cache} cache, lengths ${lengths}`, steps);
  }
});

interface Prefill {
  act?: Float;
  out?: Float;
  heads: number;
  dims: readonly [n: number, r: number, v: number];
  queries: readonly number[];
  keys: readonly number[];
  q_pos?: readonly number[];
  k_pos?: readonly number[];
  before?: number;
  behind?: number;
}

/** Random rows, NaN where nobody looks: keys of sequences without queries, and behind the last sequence. */
function packed(make: Inputs, dtype: Float, shape: readonly number[], p: Pick<Prefill, 'queries' | 'keys'>): Planned {
  const bytes = make.normal(dtype, shape).bytes.slice();
  const rowBytes = bytes.length / (shape[0] as number);
  let row = 0;
  p.keys.forEach((rows, b) => {
    if (p.queries[b] === 0) bytes.fill(0xff, row * rowBytes, (row + rows) * rowBytes);
    row += rows;
  });
  return new Planned('in', dtype, shape, bytes.fill(0xff, row * rowBytes));
}

function prefillArgs(make: Inputs, p: Prefill) {
  const { act = 'bf16', heads: H, queries, keys, before = 0, behind = 0 } = p;
  const [n, r, v] = p.dims;
  const starts = [before];
  for (const rows of queries) starts.push((starts.at(-1) as number) + rows);
  const T = (starts.at(-1) as number) + behind;
  const live = keys.reduce((sum, rows) => sum + rows, 0);
  const S = live + 5;
  const B = queries.length;
  const zeros = queries.map(() => 0);
  return {
    q: make.normal(act, [T, H, n + r]),
    k_nope: packed(make, act, [S, H, n], p),
    k_rope: packed(make, act, [S, r], p),
    value: packed(make, act, [S, H, v], p),
    q_start: make.values('i32', [B + 1], starts),
    k_start: make.starts(keys),
    q_pos: make.values('i32', [B], p.q_pos ?? zeros),
    k_pos: make.values('i32', [B], p.k_pos ?? zeros),
    out: make.output(p.out ?? act, [T, H * v]),
    lse: make.output('f32', [T, H]),
    scale: 1 / Math.sqrt(n + r),
  };
}

function prefillCase(name: string, p: Prefill): void {
  test(`mlaPrefill, ${name}`, () =>
    compareVerb('mlaPrefill', (make) => prefillArgs(make, p), {
      label: name,
      tolerance: tolerance(p.act ?? 'bf16'),
      width: { out: p.dims[2] },
    }));
}

const PREFILL_DIMS = [
  [128, 64, 128],
  [192, 64, 256],
  [64, 64, 128],
] as const;
const WHOLE = { queries: LENGTHS.slice(0, 6), keys: LENGTHS.slice(0, 6) };
// A chunk wholly in the past, one that ends among the queries, one wholly in the future, one that begins among them.
const CHUNKS = {
  queries: [5, 140, 0, 10, 3, 70],
  keys: [40, 200, 3, 100, 5, 100],
  q_pos: [100, 100, 0, 0, 10, 30],
  k_pos: [50, 0, 0, 50, 20, 60],
  before: 130,
  behind: 2,
};

/** Sequences of 0 to 199 rows. */
const mixed = (count: number) => {
  const rows = Array.from({ length: count }, (_, i) => (i * 67) % 200);
  return { queries: rows, keys: rows };
};

for (const dims of PREFILL_DIMS) {
  const name = dims.join('/');
  prefillCase(`${name}, whole sequences`, { heads: 3, dims, ...WHOLE });
  prefillCase(`${name}, chunks, f32 output`, { heads: 2, dims, out: 'f32', ...CHUNKS });
}
for (const heads of [1, 16, 20]) {
  prefillCase(`${heads} heads`, { heads, dims: [128, 64, 128], queries: [300, 17], keys: [300, 17] });
}
// Keys that end inside of a tile, with rows behind them that are not numbers.
prefillCase('a sequence without queries between two', {
  heads: 3,
  dims: [128, 64, 128],
  queries: [10, 0, 200],
  keys: [10, 77, 200],
});
prefillCase('70 sequences', { heads: 2, dims: [128, 64, 128], ...mixed(70) });
// More tiles than the blocks of the persistent kernel list at once.
prefillCase('128 heads, 100 sequences', {
  heads: 128,
  dims: [128, 64, 128],
  queries: Array(100).fill(1),
  keys: Array(100).fill(9),
  q_pos: Array(100).fill(8),
});
prefillCase('a long sequence', { heads: 2, dims: [128, 64, 128], queries: [1500], keys: [1500] });
prefillCase('a long context', { heads: 1, dims: [192, 64, 256], queries: [100], keys: [5000], q_pos: [4900] });
prefillCase('f32', { act: 'f32', heads: 3, dims: [128, 64, 128], ...WHOLE });
prefillCase('f32, chunks', { act: 'f32', heads: 2, dims: [192, 64, 256], ...CHUNKS });
prefillCase('odd dimensions', { heads: 3, dims: [24, 6, 40], out: 'f32', ...CHUNKS });
prefillCase('f32, odd dimensions', { act: 'f32', heads: 3, dims: [24, 6, 40], ...CHUNKS });

/** A long context in chunks that are merged must be what it is in one piece. */
for (const act of ['bf16', 'f32'] as const) {
  test(`mlaPrefill in four chunks and mergeAttention, ${act}`, async () => {
    const [H, n, r, v] = [4, 128, 64, 128];
    const [T, S] = [90, 400];
    const whole: Prefill = { act, out: 'f32', heads: H, dims: [n, r, v], queries: [T], keys: [S], q_pos: [S - T] };
    const expected = await runTested('mlaPrefill', (make) => prefillArgs(make, whole));
    let merged: Record<string, Uint8Array> | undefined;
    const bounds = [0, 1, 130, 330, S];
    for (let i = 0; i + 1 < bounds.length; i++) {
      const [begin, end] = [bounds[i] as number, bounds[i + 1] as number];
      const part = await runTested('mlaPrefill', (make) => {
        const args = prefillArgs(make, whole);
        return {
          ...args,
          k_nope: args.k_nope.rows(begin, end),
          k_rope: args.k_rope.rows(begin, end),
          value: args.value.rows(begin, end),
          k_start: make.starts([end - begin]),
          k_pos: make.values('i32', [1], [begin]),
        };
      });
      if (merged === undefined) {
        merged = part;
        continue;
      }
      const before: Record<string, Uint8Array> = merged;
      // In place; what is one memory goes by the name of its first argument.
      const both = await runTested('mergeAttention', () => {
        const out = new Planned('inout', 'f32', [T, H * v], before.out as Uint8Array);
        const lse = new Planned('inout', 'f32', [T, H], before.lse as Uint8Array);
        const b = new Planned('in', 'f32', [T, H * v], part.out as Uint8Array);
        const lse_b = new Planned('in', 'f32', [T, H], part.lse as Uint8Array);
        return { a: out, lse_a: lse, b, lse_b, out, lse };
      });
      merged = { out: both.a as Uint8Array, lse: both.lse_a as Uint8Array };
    }
    const bound: Tolerance = { ulps: 0, element: 5e-5, norm: 2e-5, absolute: 1e-6 };
    const outBound = act === 'bf16' ? { ...bound, ...ROUNDED_P } : bound;
    const out = compareClose('f32', [T * H, v], merged?.out as Uint8Array, expected.out as Uint8Array, outBound);
    const lse = compareClose('f32', [T, H], merged?.lse as Uint8Array, expected.lse as Uint8Array, bound);
    assert.equal(out.complaint ?? lse.complaint, undefined);
  });
}

for (const [cache, act] of [
  ['bf16', 'bf16'],
  ['f32', 'bf16'],
  ['fp8', 'bf16'],
  ['bf16', 'f32'],
  ['f32', 'f32'],
  ['fp8', 'f32'],
] as const) {
  for (const [c, r] of [
    [512, 64],
    [256, 64],
    [30, 7],
  ] as const) {
    test(`loadLatent, ${cache} to ${act}, ${c} + ${r}`, () =>
      compareVerb(
        'loadLatent',
        (make) => {
          const lengths = [130, 0, 1, 64, 1000, ...Array.from({ length: 40 }, (_, i) => i)];
          const from = lengths.map((length, i) => (length * (i % 3)) >> 2);
          const rows = lengths.map((length, i) =>
            i % 5 === 4 ? (length - (from[i] as number)) >> 1 : length - (from[i] as number),
          );
          const starts = [3];
          for (const n of rows) starts.push((starts.at(-1) as number) + n);
          const S = (starts.at(-1) as number) + 6;
          const paged = make.pagedCache(cache, lengths, c, r);
          return {
            cache: paged.cache,
            block_table: paged.blockTable,
            k_start: make.values('i32', [starts.length], starts),
            k_pos: make.values('i32', [from.length], from),
            latent: make.output(act, [S, c]),
            rope: make.output(act, [S, r]),
          };
        },
        { exact: ['latent', 'rope'], label: `${cache} to ${act}, ${c} + ${r}` },
      ));
  }
}

for (const a of ['f32', 'bf16'] as const) {
  for (const b of ['f32', 'bf16'] as const) {
    for (const out of ['f32', 'bf16'] as const) {
      for (const v of [128, 7]) {
        for (const inPlace of a === out ? [false, true] : [false]) {
          const name = `${a} and ${b} to ${out}, v ${v}${inPlace ? ', in place' : ''}`;
          test(`mergeAttention, ${name}`, () =>
            compareVerb(
              'mergeAttention',
              (make) => {
                const [T, H] = [11, 5];
                // Of every four pairs one has both sides, two have one, and one has none; what has no keys is NaN.
                const side = (dtype: Float, without: (pair: number) => boolean) => {
                  const values = make.normal(dtype, [T, H * v]);
                  const rowBytes = values.bytes.length / (T * H);
                  const lse = Float64Array.from({ length: T * H }, () => 4 * make.random.normal());
                  for (let pair = 0; pair < T * H; pair++) {
                    if (!without(pair)) continue;
                    values.bytes.fill(0xff, pair * rowBytes, (pair + 1) * rowBytes);
                    lse[pair] = Number.NEGATIVE_INFINITY;
                  }
                  return { values, lse: make.values('f32', [T, H], lse) };
                };
                const left = side(a, (pair) => pair % 2 === 1);
                const right = side(b, (pair) => pair % 4 >= 2);
                const [first, firstLse] = inPlace
                  ? [make.inout(left.values), make.inout(left.lse)]
                  : [left.values, left.lse];
                return {
                  a: first,
                  lse_a: firstLse,
                  b: right.values,
                  lse_b: right.lse,
                  out: inPlace ? first : make.output(out, [T, H * v]),
                  lse: inPlace ? firstLse : make.output('f32', [T, H]),
                };
              },
              { label: name, width: { out: v } },
            ));
        }
      }
    }
  }
}

for (const act of ['f32', 'bf16'] as const) {
  for (const [n, r] of [
    [128, 64],
    [192, 64],
    [10, 6],
  ] as const) {
    test(`rope, ${act}, ${n} + ${r}`, () =>
      compareVerb(
        'rope',
        (make) => {
          const positions = Array.from({ length: 37 }, (_, i) => (i % 5 === 3 ? -1 : (i * 17) % 50));
          return {
            q: make.inout(make.normal(act, [37, 3, n + r])),
            positions: make.values('i32', [37], positions),
            cos_sin: make.cosSin(50, r),
          };
        },
        { rows: ['q', 'positions'], label: `${act}, ${n} + ${r}` },
      ));
  }
}
