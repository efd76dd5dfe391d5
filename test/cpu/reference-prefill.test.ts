// cpu/reference-prefill.test.ts - mlaPrefill and mergeAttention against float64, and the absorbed form of attention
// against the expanded one.
import {
  ACTS,
  type Act,
  attend,
  cosSin,
  dot,
  EPSILON,
  expectExact,
  expectInvalid,
  expectRounded,
  expectWithin,
  Laboratory,
  matmul,
  Random,
  rope,
  rounded,
} from './reference';
import { pagedCache, starts } from './reference-cache';

const lab = new Laboratory(2);
const single = new Laboratory(1);
afterAll(async () => {
  await lab.dispose();
  await single.dispose();
});

interface Shape {
  heads: number;
  n: number;
  r: number;
  v: number;
}

interface Ragged {
  queries: readonly number[];
  keys: readonly number[];
  q_pos: readonly number[];
  k_pos: readonly number[];
}

interface Inputs {
  q: Float64Array;
  k_nope: Float64Array;
  k_rope: Float64Array;
  value: Float64Array;
}

const total = (counts: readonly number[]) => counts.reduce((a, b) => a + b, 0);

/** Random inputs with one row before and two rows after those of the sequences; keys and values there are NaN. */
function makeInputs(random: Random, act: Act, s: Shape, g: Ragged): Inputs {
  const rows = 1 + total(g.queries) + 2;
  const keys = 1 + total(g.keys) + 2;
  const poisoned = (width: number) => {
    const x = random.values(act, keys * width);
    return x.fill(Number.NaN, 0, width).fill(Number.NaN, (keys - 2) * width);
  };
  return {
    q: random.values(act, rows * s.heads * (s.n + s.r)),
    k_nope: poisoned(s.heads * s.n),
    k_rope: poisoned(s.r),
    value: poisoned(s.heads * s.v),
  };
}

async function prefill(
  where: Laboratory,
  act: Act,
  s: Shape,
  g: Ragged,
  x: Inputs,
  out: Act,
  scale: number,
  first = 1,
) {
  const rows = x.q.length / (s.heads * (s.n + s.r));
  const keys = x.k_rope.length / s.r;
  const args = {
    q: await where.put(act, [rows, s.heads, s.n + s.r], x.q),
    k_nope: await where.put(act, [keys, s.heads, s.n], x.k_nope),
    k_rope: await where.put(act, [keys, s.r], x.k_rope),
    value: await where.put(act, [keys, s.heads, s.v], x.value),
    q_start: await where.put('i32', [g.queries.length + 1], starts(g.queries, first)),
    k_start: await where.put('i32', [g.keys.length + 1], starts(g.keys, first)),
    q_pos: await where.put('i32', [g.q_pos.length], g.q_pos),
    k_pos: await where.put('i32', [g.k_pos.length], g.k_pos),
    out: await where.poison(out, [rows, s.heads * s.v]),
    lse: await where.poison('f32', [rows, s.heads]),
    scale,
  };
  await where.run('mlaPrefill', args);
  return { out: await where.get(args.out), lse: await where.get(args.lse), tensors: args };
}

function prefillReference(s: Shape, g: Ragged, x: Inputs, scale: number, first = 1) {
  const rows = x.q.length / (s.heads * (s.n + s.r));
  const out = new Float64Array(rows * s.heads * s.v);
  const size = new Float64Array(out.length);
  const lse = new Float64Array(rows * s.heads).fill(-Infinity);
  let row = first;
  let key0 = first;
  g.queries.forEach((queries, b) => {
    const keys = g.keys[b] as number;
    for (let i = 0; i < queries; i++, row++) {
      const visible = Math.min(keys, (g.q_pos[b] as number) + i - (g.k_pos[b] as number) + 1);
      for (let h = 0; h < s.heads; h++) {
        const at = row * s.heads + h;
        const query = at * (s.n + s.r);
        const from = key0;
        const result = attend(
          visible,
          s.v,
          scale,
          (j) =>
            dot(x.q, query, x.k_nope, ((from + j) * s.heads + h) * s.n, s.n) +
            dot(x.q, query + s.n, x.k_rope, (from + j) * s.r, s.r),
          (j, channel) => x.value[((from + j) * s.heads + h) * s.v + channel] as number,
        );
        out.set(result.out, at * s.v);
        size.set(result.size, at * s.v);
        lse[at] = result.lse;
      }
    }
    key0 += keys;
  });
  return { out, lse, size };
}

const SHAPES: Shape[] = [
  { heads: 1, n: 16, r: 16, v: 16 },
  { heads: 2, n: 20, r: 6, v: 13 },
  { heads: 3, n: 33, r: 2, v: 24 },
  { heads: 2, n: 128, r: 64, v: 128 },
];
/** Lengths around the tile of 64, context before the queries, a chunk of keys that ends before or after them. */
const RAGGED: Ragged[] = [
  {
    queries: [1, 0, 63, 64, 65, 5, 130, 3],
    keys: [1, 7, 63, 64, 65, 130, 130, 0],
    q_pos: [0, 0, 0, 0, 0, 125, 0, 4],
    k_pos: [0, 0, 0, 0, 0, 0, 0, 0],
  },
  {
    queries: [70, 70, 10, 4],
    keys: [64, 100, 80, 9],
    q_pos: [300, 10, 5, 0],
    k_pos: [128, 40, 0, 2],
  },
];

describe.each(ACTS)('mlaPrefill with %s activations', (act) => {
  it.each(SHAPES)('agrees with the formula: %j', async (s) => {
    const scale = (s.n + s.r) ** -0.5;
    for (const [index, g] of RAGGED.entries()) {
      const x = makeInputs(new Random(index + s.v), act, s, g);
      const expected = prefillReference(s, g, x, scale);
      for (const out of new Set<Act>([act, 'f32'])) {
        const actual = await prefill(lab, act, s, g, x, out, scale);
        const p = act === 'bf16' ? EPSILON.bf16 : 0;
        expectWithin(
          actual.out,
          expected.out,
          (i, e) => (p + 4e-6) * (expected.size[i] as number) + EPSILON[out] * Math.abs(e),
        );
        expectWithin(actual.lse, expected.lse, (_, e) => 2e-6 * (1 + Math.abs(e)));
      }
    }
  });

  it('gives a sequence the same bits alone and on any number of threads', async () => {
    const s: Shape = { heads: 2, n: 24, r: 8, v: 40 };
    const g: Ragged = { queries: [70, 3, 129], keys: [90, 3, 129], q_pos: [20, 0, 0], k_pos: [0, 0, 0] };
    const x = makeInputs(new Random(9), act, s, g);
    const together = await prefill(lab, act, s, g, x, act, 0.2);
    const oneThread = await prefill(single, act, s, g, x, act, 0.2);
    expectExact(oneThread.out, together.out);
    expectExact(oneThread.lse, together.lse);

    const [q0, k0] = [1 + 73, 1 + 93];
    const cut = (a: Float64Array, from: number, rows: number, width: number) =>
      a.slice(from * width, (from + rows) * width);
    const own: Inputs = {
      q: cut(x.q, q0, 129, s.heads * (s.n + s.r)),
      k_nope: cut(x.k_nope, k0, 129, s.heads * s.n),
      k_rope: cut(x.k_rope, k0, 129, s.r),
      value: cut(x.value, k0, 129, s.heads * s.v),
    };
    const alone = await prefill(lab, act, s, { queries: [129], keys: [129], q_pos: [0], k_pos: [0] }, own, act, 0.2, 0);
    expectExact(alone.out, cut(together.out, q0, 129, s.heads * s.v));
    expectExact(alone.lse, cut(together.lse, q0, 129, s.heads));
  });

  it('lets no key or value of a later token through, not even NaN', async () => {
    const s: Shape = { heads: 1, n: 8, r: 4, v: 12 };
    const g: Ragged = { queries: [100], keys: [100], q_pos: [0], k_pos: [0] };
    const x = makeInputs(new Random(4), act, s, g);
    const clean = await prefill(lab, act, s, g, x, act, 0.3);
    const bad = 80; // the 81st token
    x.value.fill(Number.NaN, (1 + bad) * s.v, (2 + bad) * s.v);
    x.k_nope.fill(Infinity, (1 + bad) * s.n, (2 + bad) * s.n);
    const dirty = await prefill(lab, act, s, g, x, act, 0.3);
    expectExact(dirty.out.subarray(0, (1 + bad) * s.v), clean.out.subarray(0, (1 + bad) * s.v));
    expectExact(dirty.lse.subarray(0, 1 + bad), clean.lse.subarray(0, 1 + bad));
    expect(Array.from(dirty.out.subarray((1 + bad) * s.v, 101 * s.v)).every(Number.isNaN)).toBe(true);
  });
});

describe('mlaPrefill', () => {
  it('rounds probabilities to the activations before they weigh values', async () => {
    const s: Shape = { heads: 1, n: 1, r: 2, v: 2 };
    const g: Ragged = { queries: [1], keys: [2], q_pos: [1], k_pos: [0] };
    const score = -1.25;
    const x: Inputs = {
      q: Float64Array.from([1, 0, 0]),
      k_nope: Float64Array.from([0, score]),
      k_rope: new Float64Array(4),
      value: Float64Array.from([0, 1, 1, 0]),
    };
    const sum = 1 + Math.exp(score);
    for (const act of ACTS) {
      const { out } = await prefill(lab, act, s, g, x, 'f32', 1, 0);
      expectRounded(out, [rounded(act, Math.exp(score)) / sum, 1 / sum], 'f32');
    }
  });

  it('names starts that do not ascend or leave the rows', async () => {
    const s: Shape = { heads: 1, n: 2, r: 2, v: 2 };
    const g: Ragged = { queries: [1, 1], keys: [1, 1], q_pos: [0, 0], k_pos: [0, 0] };
    const x = makeInputs(new Random(1), 'f32', s, g);
    const { tensors } = await prefill(lab, 'f32', s, g, x, 'f32', 1);
    const bad = (values: number[]) => lab.put('i32', [3], values);
    const run = (change: object) => lab.run('mlaPrefill', { ...tensors, ...change });
    await expectInvalid(run({ q_start: await bad([0, 2, 1]) }), 'mlaPrefill', 'q_start[2] is 1');
    await expectInvalid(run({ q_start: await bad([0, 2, 6]) }), 'mlaPrefill', 'q_start[2] is 6');
    await expectInvalid(run({ k_start: await bad([-1, 2, 3]) }), 'mlaPrefill', 'k_start[0] is -1');
    await expectInvalid(run({ k_start: await bad([0, 2, 6]) }), 'mlaPrefill', 'k_start[2] is 6');
  });
});

describe('mergeAttention', () => {
  it.each(ACTS)('makes one attention of two over disjoint keys (%s)', async (act) => {
    const s: Shape = { heads: 2, n: 16, r: 8, v: 21 };
    const scale = 0.25;
    const queries = [70, 5];
    const whole: Ragged = { queries, keys: [170, 40], q_pos: [100, 35], k_pos: [0, 0] };
    const x = makeInputs(new Random(2), act, s, whole);
    // The first 90 and 40 keys, and the rest: the second sequence has nothing in the second chunk.
    const cut = (a: Float64Array, width: number, from: number, rows: number) =>
      a.slice(from * width, (from + rows) * width);
    const chunk = (parts: readonly (readonly [number, number])[]): Inputs => {
      const join = (a: Float64Array, width: number) =>
        Float64Array.from(parts.flatMap(([from, rows]) => Array.from(cut(a, width, from, rows))));
      return {
        q: x.q,
        k_nope: join(x.k_nope, s.heads * s.n),
        k_rope: join(x.k_rope, s.r),
        value: join(x.value, s.heads * s.v),
      };
    };
    const one = chunk([
      [0, 1 + 90],
      [171, 40],
      [0, 2],
    ]);
    const two = chunk([
      [0, 1],
      [91, 80],
      [0, 2],
    ]);
    const a = await prefill(lab, act, s, { ...whole, keys: [90, 40] }, one, 'f32', scale);
    const b = await prefill(lab, act, s, { ...whole, keys: [80, 0], k_pos: [90, 40] }, two, act, scale);
    const expected = prefillReference(s, whole, x, scale);
    const rows = 78;
    for (const out of [
      await lab.poison(act, [rows, s.heads * s.v]),
      a.tensors.out, // in place
    ]) {
      const lse = out === a.tensors.out ? a.tensors.lse : await lab.poison('f32', [rows, s.heads]);
      await lab.run('mergeAttention', {
        a: a.tensors.out,
        lse_a: a.tensors.lse,
        b: b.tensors.out,
        lse_b: b.tensors.lse,
        out,
        lse,
      });
      // bf16: each probability, the second part and the result are rounded.
      const p = act === 'bf16' ? 2 * EPSILON.bf16 : 0;
      expectWithin(
        await lab.get(out),
        expected.out,
        (i, e) => (p + 4e-6) * (expected.size[i] as number) + EPSILON[out.dtype as Act] * Math.abs(e),
      );
      expectWithin(await lab.get(lse), expected.lse, (_, e) => 2e-6 * (1 + Math.abs(e)));
    }
  });

  it('does not read a side without keys', async () => {
    const [rows, v] = [3, 5];
    const x = new Random(1).values('f32', rows * v);
    const nothing = new Float64Array(rows * v).fill(Number.NaN);
    const sides = [
      [x, [0.5, 1, -2]],
      [nothing, [-Infinity, -Infinity, -Infinity]],
    ] as const;
    for (const [a, b] of [
      [sides[0], sides[1]],
      [sides[1], sides[0]],
      [sides[1], sides[1]],
    ] as const) {
      const args = {
        a: await lab.put('f32', [rows, v], a[0]),
        lse_a: await lab.put('f32', [rows, 1], a[1]),
        b: await lab.put('f32', [rows, v], b[0]),
        lse_b: await lab.put('f32', [rows, 1], b[1]),
        out: await lab.poison('f32', [rows, v]),
        lse: await lab.poison('f32', [rows, 1]),
      };
      await lab.run('mergeAttention', args);
      const empty = a === sides[1] && b === sides[1];
      expectExact(await lab.get(args.out), empty ? new Float64Array(rows * v) : x);
      expectExact(await lab.get(args.lse), empty ? sides[1][1] : sides[0][1]);
    }
  });
});

describe('the absorbed and the expanded form', () => {
  it.each(ACTS)('are the same attention (%s)', async (act) => {
    const [heads, n, r, v, c] = [3, 24, 8, 20, 40];
    const lengths = [130, 1, 64, 65];
    const queries = [5, 1, 64, 3];
    const positions = lengths.flatMap((length, b) =>
      Array.from({ length: queries[b] as number }, (_, i) => length - (queries[b] as number) + i),
    );
    const random = new Random(11);
    const scale = (n + r) ** -0.5;
    const rows = positions.length;
    const keys = total(lengths);
    const cache = await pagedCache(lab, random, act, c + r, lengths);
    const q = random.values(act, rows * heads * (n + r));
    const wUk = random.values(act, heads * n * c, c ** -0.5);
    const wUv = random.values(act, heads * v * c, c ** -0.5);
    const table = cosSin(200, r);
    const q_start = await lab.put('i32', [5], starts(queries));
    const position = await lab.put('i32', [rows], positions);
    const cos_sin = await lab.put('f32', [200, r / 2, 2], table);

    const absorbed = await lab.poison(act, [rows, heads, c + r]);
    const query = await lab.put(act, [rows, heads, n + r], q);
    const w_uk = await lab.put(act, [heads, n, c], wUk);
    const w_uv = await lab.put(act, [heads, v, c], wUv);
    await lab.run('queryAbsorb', { q: query, w_uk, positions: position, cos_sin, out: absorbed });
    const u = await lab.poison(act, [rows, heads, c]);
    const lse = await lab.poison('f32', [rows, heads]);
    const plan = await lab.poison('i32', [lab.device.decodePlanInts(4, heads)]);
    const lengthTensor = await lab.put('i32', [4], lengths);
    await lab.run('decodePlan', { q_start, lengths: lengthTensor, plan, heads });
    await lab.run('mlaDecode', {
      q: absorbed,
      q_start,
      cache: cache.cache,
      block_table: cache.table,
      lengths: lengthTensor,
      plan,
      out: u,
      lse,
      scale,
    });
    const first = await lab.poison(act, [rows, heads * v]);
    await lab.run('valueExpand', { u, w_uv, out: first });

    const k_start = await lab.put('i32', [5], starts(lengths));
    const zeros = await lab.put('i32', [4], [0, 0, 0, 0]);
    const latent = await lab.poison(act, [keys, c]);
    const k_rope = await lab.poison(act, [keys, r]);
    await lab.run('loadLatent', {
      cache: cache.cache,
      block_table: cache.table,
      k_start,
      k_pos: zeros,
      latent,
      rope: k_rope,
    });
    const k_nope = await lab.poison(act, [keys, heads * n]);
    const value = await lab.poison(act, [keys, heads * v]);
    await lab.run('gemm', { x: latent, w: w_uk.view(act, [heads * n, c]), y: k_nope });
    await lab.run('gemm', { x: latent, w: w_uv.view(act, [heads * v, c]), y: value });
    await lab.run('rope', { q: query, positions: position, cos_sin });
    const second = await lab.poison(act, [rows, heads * v]);
    const lse2 = await lab.poison('f32', [rows, heads]);
    await lab.run('mlaPrefill', {
      q: query,
      k_nope: k_nope.view(act, [keys, heads, n]),
      k_rope,
      value: value.view(act, [keys, heads, v]),
      q_start,
      k_start,
      q_pos: await lab.put(
        'i32',
        [4],
        lengths.map((length, b) => length - (queries[b] as number)),
      ),
      k_pos: zeros,
      out: second,
      lse: lse2,
      scale,
    });

    const rotated = rope(q, heads, n + r, r, positions, table);
    const latents = Float64Array.from(cache.rows.flatMap((row) => Array.from(row).filter((_, i) => i % (c + r) < c)));
    const g: Ragged = {
      queries,
      keys: lengths,
      q_pos: lengths.map((length, b) => length - (queries[b] as number)),
      k_pos: [0, 0, 0, 0],
    };
    const expected = prefillReference(
      { heads, n, r, v },
      g,
      {
        q: rotated,
        k_nope: matmul(latents, wUk, keys, heads * n, c),
        k_rope: Float64Array.from(cache.rows.flatMap((row) => Array.from(row).filter((_, i) => i % (c + r) >= c))),
        value: matmul(latents, wUv, keys, heads * v, c),
      },
      scale,
      0,
    );
    for (const out of [await lab.get(first), await lab.get(second)]) {
      if (act === 'f32') {
        expectWithin(out, expected.out, (i) => 1e-5 * (expected.size[i] as number));
        continue;
      }
      // Each form rounds four intermediate results of its own to bf16, sums of which may cancel: their errors are small
      // against the whole, not against each element.
      const error = out.reduce((sum, x, i) => sum + (x - (expected.out[i] as number)) ** 2, 0);
      const size = expected.out.reduce((sum, x) => sum + x * x, 0);
      expect(Math.sqrt(error / size)).toBeLessThan(2 * EPSILON.bf16);
    }
    const lseBound = (_: number, e: number) => (act === 'bf16' ? 4 * EPSILON.bf16 : 1e-6) * (1 + Math.abs(e));
    expectWithin(await lab.get(lse), expected.lse, lseBound);
    expectWithin(await lab.get(lse2), expected.lse, lseBound);
  });
});
