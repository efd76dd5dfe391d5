// cpu/reference-router.test.ts - moeRoute: the routing of published models, its classic mistakes, and the grouping.
import type { Tensor } from '../../lib/native';
import {
  ACTS,
  type Act,
  dot,
  expectExact,
  expectRounded,
  expectWithin,
  type GroupSettings,
  grouping,
  Laboratory,
  Random,
  type RouteSettings,
  rmsNorm,
  rounded,
  route,
} from './reference';

const lab = new Laboratory(2);
const single = new Laboratory(1);
afterAll(async () => {
  await lab.dispose();
  await single.dispose();
});

type Routing = RouteSettings & GroupSettings;

interface Rows {
  x: Float64Array;
  norm: Float64Array;
  gate: Float64Array;
  bias?: Float64Array | undefined;
  positions: readonly number[];
}

const EPS = 1e-6;

async function run(where: Laboratory, act: Act, gateType: Act, s: Routing, rows: Rows) {
  const t = rows.positions.length;
  const d = rows.norm.length;
  const columns = s.top_k + s.shared;
  const { experts, ...settings } = s;
  const out = {
    normed: await where.poison(act, [t, d]),
    ids: await where.poison('i32', [t, columns]),
    weights: await where.poison('f32', [t, columns]),
    offsets: await where.poison('i32', [s.expert_end - s.expert_begin + s.shared + 1]),
    order: await where.poison('i32', [t * columns]),
    slots: await where.poison('i32', [t, columns]),
  };
  await where.run('moeRoute', {
    ...settings,
    ...out,
    x: await where.put(act, [t, d], rows.x),
    norm: await where.put(gateType, [d], rows.norm),
    gate: await where.put(gateType, [experts, d], rows.gate),
    bias: rows.bias === undefined ? undefined : await where.put('f32', [experts], rows.bias),
    positions: await where.put('i32', [t], rows.positions),
    eps: EPS,
  });
  const got = {} as Record<keyof typeof out, Float64Array>;
  for (const name of Object.keys(out) as (keyof typeof out)[]) got[name] = await where.get(out[name] as Tensor);
  return got;
}

/** One row whose router logits are exactly these: the gate is diagonal, and the norm's factor is taken out of x. */
function oneHot(logits: readonly number[]): { x: Float64Array; norm: Float64Array; gate: Float64Array } {
  const n = logits.length;
  const mean = logits.reduce((sum, x) => sum + x * x, 0) / n;
  const gate = new Float64Array(n * n);
  const factor = Math.sqrt(mean + EPS);
  for (let e = 0; e < n; e++) gate[e * n + e] = factor;
  return { x: Float64Array.from(logits, Math.fround), norm: new Float64Array(n).fill(1), gate: gate.map(Math.fround) };
}

/** What the grouping must be, from the ids alone. */
function expectGrouping(s: Routing, got: Record<'ids' | 'offsets' | 'order' | 'slots', Float64Array>): void {
  const { offsets, order, slots } = grouping(got.ids, s);
  expect(Array.from(got.offsets)).toEqual(offsets);
  expectExact(got.order, order);
  expectExact(got.slots, slots);
}

const LOGITS = [3, -3, 0.5, 0.5, 0.2, 0.6, -1, 1];
const BIAS = [-0.3, 0, 0, 0, 0.25, 0, 0, 0];
const PLAIN = { experts: 8, shared: 0, expert_begin: 0, expert_end: 8, top_k: 3, n_group: 1, topk_group: 1 };
const V3 = { ...PLAIN, n_group: 4, topk_group: 2, sigmoid: true, group_top2: true, norm_topk: true, scale: 2.5 };
const V2 = { ...PLAIN, n_group: 4, topk_group: 2, sigmoid: false, group_top2: false, norm_topk: false, scale: 16 };
const LITE = { ...PLAIN, sigmoid: false, group_top2: false, norm_topk: false, scale: 1 };

describe('moeRoute on one set of logits', () => {
  // Experts and weights worked out by hand from the published formulas.
  const cases: [string, Routing, boolean, number[], number[]][] = [
    [
      'DeepSeek-V3: groups by their two best, bias for the choice only',
      V3,
      true,
      [4, 5, 2],
      [0.756118, 0.887891, 0.855991],
    ],
    ['DeepSeek-V2: groups by their best', V2, false, [0, 7, 6], [10.870838, 1.471208, 0.199106]],
    ['DeepSeek-V2-Lite: no groups', LITE, false, [0, 7, 5], [0.679427, 0.09195, 0.061636]],
  ];

  it.each(cases)('%s', async (_, s, biased, ids, weights) => {
    const bias = biased ? Float64Array.from(BIAS, Math.fround) : undefined;
    const got = await run(lab, 'f32', 'f32', s, { ...oneHot(LOGITS), bias, positions: [0] });
    expect(Array.from(got.ids)).toEqual(ids);
    expectWithin(got.weights, weights, () => 1e-6);
    expectGrouping(s, got);
    // The float64 reference of this folder must know the same answer.
    const reference = route(LOGITS, biased ? BIAS : undefined, s);
    expect(reference.ids).toEqual(ids);
    expectWithin(reference.weights, weights, () => 1e-6);
  });

  it('tells the right answer from the usual wrong ones', async () => {
    // Each of these settings makes one known mistake; its answer must differ from the right one.
    const bias = Float64Array.from(BIAS, Math.fround);
    const rows = { ...oneHot(LOGITS), bias, positions: [0] };
    const byBest = await run(lab, 'f32', 'f32', { ...V3, group_top2: false }, rows);
    expect(Array.from(byBest.ids).map((id) => Math.floor(id / 2))).toEqual([2, 3, 2]);
    const noGroups = await run(lab, 'f32', 'f32', { ...V3, n_group: 1, topk_group: 1 }, rows);
    expect(Array.from(noGroups.ids)).toEqual([4, 7, 0]);
    const right = await run(lab, 'f32', 'f32', V3, rows);
    [0.966941, 0.780551, 0.752508].forEach((wrong, j) => {
      expect(Math.abs((right.weights[j] as number) - wrong)).toBeGreaterThan(0.05);
    });
  });

  it('masks groups with -infinity, not with zero', async () => {
    // All choices are negative: a zero in place of a masked group would win.
    const bias = new Float64Array(8).fill(-5);
    const got = await run(lab, 'f32', 'f32', V3, { ...oneHot(LOGITS), bias, positions: [0] });
    const expected = route(LOGITS, Array.from(bias), V3);
    expect(Array.from(got.ids)).toEqual(expected.ids);
    expect(new Set(expected.ids.map((id) => Math.floor(id / 2))).size).toBe(2);
  });

  it('gives ties to the lowest index, for experts and for groups', async () => {
    const x = new Float64Array(8);
    for (const s of [LITE, V2, V3]) {
      const rows = { x, norm: x.map(() => 1), gate: new Float64Array(64).fill(1), positions: [0] };
      const got = await run(lab, 'f32', 'f32', s, rows);
      expect(Array.from(got.ids)).toEqual([0, 1, 2]);
    }
  });
});

const KINDS: [string, Routing][] = [
  ['softmax', { ...LITE, experts: 64, expert_end: 64, top_k: 6, shared: 2 }],
  ['groups by their best', { ...V2, experts: 24, expert_end: 24, n_group: 8, topk_group: 3, top_k: 6, shared: 1 }],
  ['sigmoid, groups by their two best', { ...V3, experts: 20, expert_end: 20, n_group: 5, topk_group: 3, top_k: 4 }],
  [
    'experts 5 to 11 of 17',
    { ...LITE, experts: 17, expert_begin: 5, expert_end: 11, top_k: 5, shared: 1, sigmoid: true },
  ],
  ['no expert here', { ...LITE, experts: 9, expert_begin: 4, expert_end: 4, top_k: 2, norm_topk: true }],
];

describe.each(ACTS)('moeRoute with %s rows', (act) => {
  describe.each(KINDS)('%s', (_, s) => {
    it.each(ACTS)('agrees with the formula, gate %s', async (gateType) => {
      for (const [t, d] of [
        [1, 32],
        [70, 45],
      ] as const) {
        const random = new Random(t + s.experts);
        const rows: Rows = {
          x: random.values(act, t * d),
          norm: random.values(gateType, d, 0.2, 1),
          gate: random.values(gateType, s.experts * d, d ** -0.5),
          bias: s.sigmoid ? random.values('f32', s.experts, 0.1) : undefined,
          positions: Array.from({ length: t }, (_, i) => (i % 7 === 3 ? -1 : i)),
        };
        rows.positions.forEach((position, i) => {
          if (position < 0) rows.x.fill(Number.NaN, i * d, (i + 1) * d);
        });
        const got = await run(lab, act, gateType, s, rows);
        const columns = s.top_k + s.shared;
        const normed = rmsNorm(rows.x, rows.norm, EPS).map((x) => (Number.isNaN(x) ? 0 : rounded(act, x)));
        expectRounded(got.normed, normed, act, act === 'f32' ? 1e-6 : 2 ** -8);
        rows.positions.forEach((position, i) => {
          const ids = Array.from(got.ids.subarray(i * columns, (i + 1) * columns));
          const weights = got.weights.subarray(i * columns, (i + 1) * columns);
          if (position < 0) {
            expect(ids).toEqual(new Array(columns).fill(-1));
            expectExact(weights, new Array(columns).fill(0));
            return;
          }
          // From the normed row as it was stored: what the router must work with.
          const logits = Array.from({ length: s.experts }, (_, e) => dot(got.normed, i * d, rows.gate, e * d, d));
          const expected = route(logits, rows.bias && Array.from(rows.bias), s);
          const always = Array.from({ length: s.shared }, (_, j) => s.experts + j);
          expect(ids).toEqual([...expected.ids, ...always]);
          expectWithin(weights, [...expected.weights, ...always.map(() => 1)], (_, e) => 4e-6 * e);
        });
        expectGrouping(s, got);
      }
    });
  });

  it('routes a row alike in every batch and on any number of threads', async () => {
    const s: Routing = { ...V3, experts: 40, expert_end: 40, n_group: 4, top_k: 5, shared: 1 };
    const [t, d] = [75, 130];
    const random = new Random(3);
    const rows: Rows = {
      x: random.values(act, t * d),
      norm: random.values(act, d, 0.2, 1),
      gate: random.values(act, s.experts * d, 0.1),
      bias: random.values('f32', s.experts, 0.1),
      positions: Array.from({ length: t }, (_, i) => i),
    };
    const together = await run(lab, act, act, s, rows);
    const oneThread = await run(single, act, act, s, rows);
    for (const name of ['normed', 'ids', 'weights', 'order'] as const) expectExact(oneThread[name], together[name]);
    for (const i of [0, 33, 74]) {
      const alone = await run(lab, act, act, s, { ...rows, x: rows.x.slice(i * d, (i + 1) * d), positions: [0] });
      expectExact(alone.ids, together.ids.subarray(i * 6, i * 6 + 6));
      expectExact(alone.weights, together.weights.subarray(i * 6, i * 6 + 6));
    }
  });
});

describe('moeRoute', () => {
  it('takes no rows, and rows of NaN without harm', async () => {
    const s: Routing = { ...V3, shared: 1 };
    const weights = { norm: new Float64Array(8).fill(1), gate: new Float64Array(64).fill(1) };
    const none = await run(lab, 'f32', 'f32', s, { ...weights, x: new Float64Array(0), positions: [] });
    expect(Array.from(none.offsets)).toEqual(new Array(10).fill(0));
    const x = new Float64Array(8).fill(Number.NaN);
    const got = await run(lab, 'f32', 'f32', s, { ...weights, x, positions: [0] });
    expect(new Set(got.ids).size).toBe(4);
    expectGrouping(s, got);
  });
});
