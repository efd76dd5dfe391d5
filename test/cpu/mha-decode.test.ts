// cpu/mha-decode.test.ts - mhaDecode against float64, over poisoned caches.
import type { Tensor } from '../../lib/native';
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
} from './reference';
import { type PagedCache, pagedCache } from './reference-cache';

const lab = new Laboratory(2);
const single = new Laboratory(1);
afterAll(async () => {
  await lab.dispose();
  await single.dispose();
});

interface Case {
  heads: number;
  /** n + r */
  head: number;
  v: number;
  lengths: readonly number[];
}

const SCALE = 0.2;
const LENGTHS = [130, 0, 1, 63, 64, 65, 300];

async function decode(where: Laboratory, act: Act, k: Case, cache: PagedCache, q: Float64Array): Promise<Float64Array> {
  const { heads, head, v, lengths } = k;
  const B = lengths.length;
  const pages = cache.cache.shape[0] as number;
  const rows: Tensor = cache.cache.view(act, [pages, 64, heads, head + v]);
  const out = await where.poison(act, [B, heads * v]);
  await where.run('mhaDecode', {
    q: await where.put(act, [B, heads, head], q),
    cache: rows,
    block_table: cache.table,
    lengths: await where.put('i32', [B], lengths),
    out,
    scale: SCALE,
  });
  rows.dispose();
  return where.get(out);
}

/** The same by formula, and the sums of magnitudes that rounding errors are relative to. */
function reference(k: Case, cache: PagedCache, q: Float64Array) {
  const { heads, head, v, lengths } = k;
  const width = heads * (head + v);
  const out = new Float64Array(lengths.length * heads * v);
  const size = new Float64Array(out.length);
  lengths.forEach((length, b) => {
    const rows = cache.rows[b] as Float64Array;
    for (let h = 0; h < heads; h++) {
      const at = b * heads + h;
      const first = h * (head + v);
      const result = attend(
        length,
        v,
        SCALE,
        (j) => dot(q, at * head, rows, j * width + first, head),
        (j, channel) => rows[j * width + first + head + channel] as number,
      );
      out.set(result.out, at * v);
      size.set(result.size, at * v);
    }
  });
  return { out, size };
}

const CASES: Case[] = [
  { heads: 1, head: 24, v: 16, lengths: LENGTHS },
  { heads: 3, head: 33, v: 7, lengths: LENGTHS },
  { heads: 16, head: 192, v: 128, lengths: [140, 65] },
];

describe.each(ACTS)('mhaDecode with %s', (act) => {
  it.each(CASES)('agrees with the formula: $heads heads of $head and $v', async (k) => {
    const random = new Random(k.heads);
    const cache = await pagedCache(lab, random, act, k.heads * (k.head + k.v), k.lengths);
    const q = random.values(act, k.lengths.length * k.heads * k.head);
    const expected = reference(k, cache, q);
    const p = act === 'bf16' ? EPSILON.bf16 : 0;
    expectWithin(
      await decode(lab, act, k, cache, q),
      expected.out,
      (i, e) => (p + 4e-6) * (expected.size[i] as number) + EPSILON[act] * Math.abs(e),
    );
  });

  it('gives a row the same bits alone and in a batch, on one thread and on two', async () => {
    const k: Case = { heads: 2, head: 24, v: 16, lengths: [300, 65, 0, 7] };
    const make = () => new Random(9);
    const run = async (where: Laboratory) => {
      const random = make();
      const cache = await pagedCache(where, random, act, k.heads * (k.head + k.v), k.lengths);
      return decode(where, act, k, cache, random.values(act, k.lengths.length * k.heads * k.head));
    };
    const together = await run(lab);
    expectExact(await run(single), together);
    const random = make();
    const cache = await pagedCache(lab, random, act, k.heads * (k.head + k.v), k.lengths);
    const q = random.values(act, k.lengths.length * k.heads * k.head);
    const width = k.heads * k.head;
    for (let b = 0; b < k.lengths.length; b++) {
      const table = await lab.put(
        'i32',
        [1, cache.tablePages],
        cache.entries.slice(b * cache.tablePages, (b + 1) * cache.tablePages),
      );
      const one = { ...k, lengths: [k.lengths[b] as number] };
      const alone = await decode(lab, act, one, { ...cache, table }, q.slice(b * width, (b + 1) * width));
      expectExact(alone, together.slice(b * k.heads * k.v, (b + 1) * k.heads * k.v));
    }
  });
});

test('refuses lengths beyond the table, and pages that the cache does not have', async () => {
  const k: Case = { heads: 1, head: 8, v: 8, lengths: [70] };
  const random = new Random(1);
  const cache = await pagedCache(lab, random, 'f32', 16, k.lengths);
  const q = random.values('f32', 8);
  const most = cache.tablePages * 64;
  await expectInvalid(
    decode(lab, 'f32', { ...k, lengths: [most + 1] }, cache, q),
    'mhaDecode',
    'lengths',
    `${most + 1}`,
  );
  await expectInvalid(decode(lab, 'f32', { ...k, lengths: [-1] }, cache, q), 'mhaDecode', 'lengths', '-1');
  await expectInvalid(decode(lab, 'f32', { ...k, lengths: [most] }, cache, q), 'mhaDecode', 'block_table');
});
