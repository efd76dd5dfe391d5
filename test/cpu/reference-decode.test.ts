// cpu/reference-decode.test.ts - mlaDecode, decodePlan and loadLatent against float64, over poisoned caches.
import {
  ACTS,
  type Act,
  attend,
  dot,
  EPSILON,
  expectExact,
  expectInvalid,
  expectWithin,
  Laboratory,
  Random,
  rounded,
} from './reference';
import { type PagedCache, pagedCache, pagedFp8Cache, starts, WILD } from './reference-cache';

const lab = new Laboratory(2);
const single = new Laboratory(1);
afterAll(async () => {
  await lab.dispose();
  await single.dispose();
});

interface Case {
  heads: number;
  c: number;
  r: number;
  lengths: readonly number[];
  /** new tokens of each sequence */
  queries: readonly number[];
}

const SCALE = 0.2;

/** Runs decodePlan and mlaDecode over a cache; `first` rows before and two rows after the sequences belong to none. */
async function decode(where: Laboratory, act: Act, k: Case, cache: PagedCache, q: Float64Array, first = 0) {
  const rows = first + k.queries.reduce((a, b) => a + b, 0) + 2;
  const args = {
    q: await where.put(act, [rows, k.heads, k.c + k.r], q),
    q_start: await where.put('i32', [k.lengths.length + 1], starts(k.queries, first)),
    cache: cache.cache,
    block_table: cache.table,
    lengths: await where.put('i32', [k.lengths.length], k.lengths),
    plan: await where.poison('i32', [where.device.decodePlanInts(k.lengths.length, k.heads)]),
    out: await where.poison(act, [rows, k.heads, k.c]),
    lse: await where.poison('f32', [rows, k.heads]),
    scale: SCALE,
  };
  await where.run('decodePlan', { q_start: args.q_start, lengths: args.lengths, plan: args.plan, heads: k.heads });
  await where.run('mlaDecode', args);
  return { out: await where.get(args.out), lse: await where.get(args.lse) };
}

/** The same by formula, with a bound for each output. */
function decodeReference(act: Act, k: Case, cache: PagedCache, q: Float64Array, first: number) {
  const width = k.c + k.r;
  const rows = q.length / (k.heads * width);
  const out = new Float64Array(rows * k.heads * k.c);
  const size = new Float64Array(out.length);
  const lse = new Float64Array(rows * k.heads).fill(-Infinity);
  let row = first;
  k.lengths.forEach((length, b) => {
    const keys = (cache.rows[b] as Float64Array).map((x) => rounded(act, x));
    for (let i = 0; i < (k.queries[b] as number); i++, row++) {
      const visible = length - ((k.queries[b] as number) - 1 - i);
      for (let h = 0; h < k.heads; h++) {
        const at = row * k.heads + h;
        const result = attend(
          visible,
          k.c,
          SCALE,
          (j) => dot(q, at * width, keys, j * width, width),
          (j, channel) => keys[j * width + channel] as number,
        );
        out.set(result.out, at * k.c);
        size.set(result.size, at * k.c);
        lse[at] = result.lse;
      }
    }
  });
  return { out, lse, size };
}

const LENGTHS = [130, 0, 1, 63, 64, 65, 128, 129, 300];
const CASES: Case[] = [
  { heads: 1, c: 16, r: 16, lengths: LENGTHS, queries: LENGTHS.map(() => 1) },
  { heads: 2, c: 33, r: 6, lengths: LENGTHS, queries: [2, 1, 3, 1, 7, 1, 0, 5, 4] },
  { heads: 3, c: 40, r: 8, lengths: LENGTHS, queries: [1, 2, 2, 0, 5, 3, 1, 1, 9] },
  { heads: 7, c: 64, r: 32, lengths: [257, 64], queries: [3, 1] },
  { heads: 20, c: 512, r: 64, lengths: [140], queries: [1] },
];

describe.each(ACTS)('mlaDecode with %s activations', (act) => {
  it.each([...ACTS, 'fp8'] as const)('agrees with the formula over a %s cache', async (cacheType) => {
    for (const [index, k] of CASES.entries()) {
      const random = new Random(index);
      const width = k.c + k.r;
      const cache =
        cacheType === 'fp8'
          ? await pagedFp8Cache(lab, random, [k.c, k.r], k.lengths)
          : await pagedCache(lab, random, cacheType, width, k.lengths);
      const first = index % 2;
      const rows = first + k.queries.reduce((a, b) => a + b, 0) + 2;
      const q = random.values(act, rows * k.heads * width);
      const actual = await decode(lab, act, k, cache, q, first);
      const expected = decodeReference(act, k, cache, q, first);
      // bf16 rounds each probability and the result; float32 errors come from scores of a few units.
      const p = act === 'bf16' ? EPSILON.bf16 : 0;
      expectWithin(
        actual.out,
        expected.out,
        (i, e) => (p + 4e-6) * (expected.size[i] as number) + EPSILON[act] * Math.abs(e),
      );
      expectWithin(actual.lse, expected.lse, (_, e) => 2e-6 * (1 + Math.abs(e)));
    }
  });

  it('gives a row the same bits alone, in a batch, and on any number of threads', async () => {
    // 60 rows with 6 splits each do not fit the workspace at once.
    const k: Case = { heads: 3, c: 24, r: 8, lengths: [700, 33, 0, 257], queries: [60, 5, 1, 1] };
    const random = new Random(5);
    const width = k.c + k.r;
    const rows = 67 + 2;
    const q = random.values(act, rows * k.heads * width);
    const seed = () => new Random(6);
    const together = await decode(lab, act, k, await pagedCache(lab, seed(), act, width, k.lengths), q);
    const oneThread = await decode(single, act, k, await pagedCache(single, seed(), act, width, k.lengths), q);
    expectExact(oneThread.out, together.out);
    expectExact(oneThread.lse, together.lse);

    const cache = await pagedCache(lab, seed(), act, width, k.lengths);
    const start = starts(k.queries);
    for (const [b, i] of [
      [0, 0],
      [0, 31],
      [0, 59],
      [1, 2],
      [3, 0],
    ] as const) {
      const row = (start[b] as number) + i;
      const length = (k.lengths[b] as number) - ((k.queries[b] as number) - 1 - i);
      const entries = cache.entries.slice(b * cache.tablePages, (b + 1) * cache.tablePages);
      const table = await lab.put('i32', [1, cache.tablePages], entries);
      const own = new Float64Array(3 * k.heads * width);
      own.set(q.subarray(row * k.heads * width, (row + 1) * k.heads * width));
      const alone = await decode(lab, act, { ...k, lengths: [length], queries: [1] }, { ...cache, table }, own);
      const at = row * k.heads;
      expectExact(alone.out.subarray(0, k.heads * k.c), together.out.subarray(at * k.c, (at + k.heads) * k.c));
      expectExact(alone.lse.subarray(0, k.heads), together.lse.subarray(at, at + k.heads));
    }
  });
});

describe('mlaDecode', () => {
  it('weighs scores far apart without overflow', async () => {
    const k: Case = { heads: 1, c: 4, r: 0, lengths: [200], queries: [1] };
    const cache = await pagedCache(lab, new Random(1), 'f32', 4, [200]);
    const rows = cache.rows[0] as Float64Array;
    // q.row is the first channel times 1e6: only the row with the largest one counts.
    const q = Float64Array.from([1e6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    const best = Array.from({ length: 200 }, (_, j) => j).reduce((a, b) =>
      (rows[b * 4] as number) > (rows[a * 4] as number) ? b : a,
    );
    const args = {
      q: await lab.put('f32', [3, 1, 4], q),
      q_start: await lab.put('i32', [2], [0, 1]),
      cache: cache.cache,
      block_table: cache.table,
      lengths: await lab.put('i32', [1], k.lengths),
      plan: await lab.poison('i32', [lab.device.decodePlanInts(1, 1)]),
      out: await lab.poison('f32', [3, 1, 3]),
      lse: await lab.poison('f32', [3, 1]),
      scale: 1,
    };
    await lab.run('mlaDecode', args);
    expectExact((await lab.get(args.out)).subarray(0, 3), rows.subarray(best * 4, best * 4 + 3));
    expect((await lab.get(args.lse))[0]).toBe(Math.fround(1e6 * (rows[best * 4] as number)));
  });

  it('rounds probabilities to the activations before they weigh values', async () => {
    // Two keys of nearly equal weight and opposite values: what is left of the values is mostly the rounding.
    const score = -0.01;
    const sum = 1 + Math.exp(score);
    for (const act of ACTS) {
      const args = {
        q: await lab.put(act, [1, 1, 2], [0, 1]),
        q_start: await lab.put('i32', [2], [0, 1]),
        cache: await lab.put('f32', [1, 64, 2], [-1, rounded(act, score), 1, 0, ...new Array(124).fill(Number.NaN)]),
        block_table: await lab.put('i32', [1, 1], [0]),
        lengths: await lab.put('i32', [1], [2]),
        plan: await lab.poison('i32', [lab.device.decodePlanInts(1, 1)]),
        out: await lab.poison(act, [1, 1, 1]),
        lse: await lab.poison('f32', [1, 1]),
        scale: 1,
      };
      await lab.run('mlaDecode', args);
      const p = rounded(act, Math.exp(rounded(act, score)));
      expectWithin(await lab.get(args.out), [(1 - p) / sum], (_, e) => 2 * EPSILON[act] * e + 1e-7);
    }
  });

  it('does nothing for no rows and no sequences', async () => {
    const cache = await pagedCache(lab, new Random(1), 'f32', 8, [5]);
    const args = {
      q: await lab.put('f32', [0, 2, 8], []),
      q_start: await lab.put('i32', [1], [0]),
      cache: cache.cache,
      block_table: await lab.put('i32', [0, 1], []),
      lengths: await lab.put('i32', [0], []),
      plan: await lab.poison('i32', [lab.device.decodePlanInts(1, 2)]),
      out: await lab.poison('f32', [0, 2, 6]),
      lse: await lab.poison('f32', [0, 2]),
      scale: 1,
    };
    await lab.run('mlaDecode', args);
  });

  it('names device data that is out of range and writes nothing', async () => {
    const cache = await pagedCache(lab, new Random(1), 'f32', 8, [70, 70]);
    const good = {
      q: await lab.put('f32', [2, 1, 8], new Random(2).values('f32', 16)),
      q_start: await lab.put('i32', [3], [0, 1, 2]),
      cache: cache.cache,
      block_table: cache.table,
      lengths: await lab.put('i32', [2], [70, 70]),
      plan: await lab.poison('i32', [lab.device.decodePlanInts(2, 1)]),
      out: await lab.poison('f32', [2, 1, 6]),
      lse: await lab.poison('f32', [2, 1]),
      scale: 1,
    };
    const table = async (at: number, entry: number) => {
      const entries = cache.entries.slice();
      entries[at] = entry;
      return lab.put('i32', [2, cache.tablePages], entries);
    };
    const bad = [
      [{ q_start: await lab.put('i32', [3], [0, 2, 1]) }, 'q_start[2] is 1'],
      [{ q_start: await lab.put('i32', [3], [0, 1, 3]) }, 'q_start[2] is 3'],
      [{ q_start: await lab.put('i32', [3], [-1, 1, 2]) }, 'q_start[0] is -1'],
      [{ lengths: await lab.put('i32', [2], [70, cache.tablePages * 64 + 1]) }, 'lengths[1] is'],
      [{ lengths: await lab.put('i32', [2], [-1, 70]) }, 'lengths[0] is -1'],
      [{ lengths: await lab.put('i32', [2], [129, 70]) }, `is ${WILD}`],
      [{ block_table: await table(1, cache.cache.shape[0] as number) }, 'block_table[1] is'],
      [{ block_table: await table(cache.tablePages, -1) }, `block_table[${cache.tablePages}] is -1`],
    ] as const;
    for (const [change, message] of bad) {
      await expectInvalid(lab.run('mlaDecode', { ...good, ...change }), 'mlaDecode', message);
    }
    expect(Array.from(await lab.get(good.out))).toEqual(new Array(12).fill(Number.NaN));
    await lab.run('mlaDecode', good);
    const plan = { q_start: good.q_start, lengths: await lab.put('i32', [2], [3, -3]), plan: good.plan, heads: 1 };
    await expectInvalid(lab.run('decodePlan', plan), 'decodePlan', 'lengths[1] is -3');
  });
});

describe('loadLatent', () => {
  it.each([...ACTS, 'fp8', 'wide fp8'].flatMap((cache) => ACTS.map((act) => [cache, act] as const)))(
    'packs rows of a %s cache as %s',
    async (cacheType, act) => {
      const [c, r] = cacheType === 'wide fp8' ? [256, 64] : [19, 6];
      const lengths = [130, 0, 1, 64, 200];
      const cache = cacheType.endsWith('fp8')
        ? await pagedFp8Cache(lab, new Random(3), [c, r], lengths)
        : await pagedCache(lab, new Random(3), cacheType as Act, c + r, lengths);
      const positions = [0, 77, 0, 63, 60];
      const counts = [130, 0, 1, 1, 70];
      const start = starts(counts, 2);
      const rows = (start[5] as number) + 3;
      const args = {
        cache: cache.cache,
        block_table: cache.table,
        k_start: await lab.put('i32', [6], start),
        k_pos: await lab.put('i32', [5], positions),
        latent: await lab.poison(act, [rows, c]),
        rope: await lab.poison(act, [rows, r]),
      };
      await lab.run('loadLatent', args);
      const latent = new Float64Array(rows * c);
      const rope = new Float64Array(rows * r);
      counts.forEach((n, b) => {
        const source = (cache.rows[b] as Float64Array).map((x) => rounded(act, x));
        for (let j = 0; j < n; j++) {
          const from = ((positions[b] as number) + j) * (c + r);
          latent.set(source.subarray(from, from + c), ((start[b] as number) + j) * c);
          rope.set(source.subarray(from + c, from + c + r), ((start[b] as number) + j) * r);
        }
      });
      expectExact(await lab.get(args.latent), latent);
      expectExact(await lab.get(args.rope), rope);
    },
  );

  it('names ranges and pages that do not exist', async () => {
    const cache = await pagedCache(lab, new Random(3), 'f32', 6, [70]);
    const args = {
      cache: cache.cache,
      block_table: cache.table,
      k_start: await lab.put('i32', [2], [0, 10]),
      k_pos: await lab.put('i32', [1], [0]),
      latent: await lab.poison('f32', [10, 4]),
      rope: await lab.poison('f32', [10, 2]),
    };
    const k_pos = (x: number) => lab.put('i32', [1], [x]);
    await expectInvalid(lab.run('loadLatent', { ...args, k_pos: await k_pos(-1) }), 'k_pos[0] is -1');
    await expectInvalid(lab.run('loadLatent', { ...args, k_pos: await k_pos(cache.tablePages * 64 - 9) }), 'k_pos[0]');
    await expectInvalid(lab.run('loadLatent', { ...args, k_pos: await k_pos(125) }), `block_table[2] is ${WILD}`);
    const k_start = await lab.put('i32', [2], [0, 11]);
    await expectInvalid(lab.run('loadLatent', { ...args, k_start }), 'k_start[1] is 11');
  });
});
