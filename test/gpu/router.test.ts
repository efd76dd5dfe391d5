// gpu/router.test.ts - moeRoute on the GPU: against the CPU backend, and a row's choice alone against among others.
//
// Router logits are float32 sums in another order than the CPU's, so a near tie could be decided the other way; the
// inputs here are made from fixed seeds that have none. Ids, offsets, order and slots must be equal.
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { compareClose } from './closeness';
import {
  closeDevices,
  compareVerb,
  DEFAULT_TOLERANCE,
  type Inputs,
  type Planned,
  type PlannedArgs,
  runTested,
  TESTED_DEVICE,
  valuesOf,
} from './harness';

after(closeDevices);

interface Router {
  act: 'f32' | 'bf16';
  gate: 'f32' | 'bf16';
  d: number;
  experts: number;
  top_k: number;
  shared: number;
  n_group?: number;
  topk_group?: number;
  group_top2?: boolean;
  sigmoid?: boolean;
  bias?: boolean;
  norm_topk?: boolean;
  scale?: number;
  local?: readonly [number, number];
}

const V2_LITE: Router = { act: 'bf16', gate: 'bf16', d: 512, experts: 64, top_k: 6, shared: 2 };
const V2: Router = { ...V2_LITE, experts: 160, n_group: 8, topk_group: 3, scale: 16 };
const V3: Router = {
  ...V2_LITE,
  gate: 'f32',
  experts: 256,
  top_k: 8,
  shared: 1,
  n_group: 8,
  topk_group: 4,
  group_top2: true,
  sigmoid: true,
  bias: true,
  norm_topk: true,
  scale: 2.5,
};
/** Rows that no vector load divides. */
const ODD: Router = { ...V2_LITE, act: 'f32', gate: 'bf16', d: 61, experts: 7, top_k: 7, shared: 0, local: [2, 2] };
const ROUTERS: Readonly<Record<string, Router>> = {
  'V2-Lite': V2_LITE,
  'V2-Lite, float32 router': { ...V2_LITE, gate: 'f32' },
  'V2-Lite, rows of 4096': { ...V2_LITE, d: 4096 },
  'V2-Lite, 100 columns': { ...V2_LITE, top_k: 40, shared: 60 },
  'Mistral Small 4': { ...V2_LITE, d: 4096, experts: 128, top_k: 4, shared: 1, norm_topk: true },
  V2,
  V3,
  'V3 with a bf16 gate': { ...V3, gate: 'bf16' },
  'V3, whole rows': { ...V3, gate: 'bf16', d: 7168 },
  'V3, one of eight devices': { ...V3, local: [32, 64] },
  'V3 in float32': { ...V3, act: 'f32' },
  'the largest': { ...V2_LITE, act: 'f32', gate: 'f32', d: 64, experts: 1024, top_k: 64, shared: 64, sigmoid: true },
  'one expert a group': { ...V2_LITE, act: 'f32', experts: 40, n_group: 40, topk_group: 9, norm_topk: true },
  'odd sizes': ODD,
  'odd sizes, bf16': { ...ODD, act: 'bf16' },
  'odd sizes, bf16, float32 router': { ...ODD, act: 'bf16', gate: 'f32', experts: 40 },
  'odd sizes, float32': { ...ODD, gate: 'f32', experts: 40 },
};

/**
 * Hopper has three orders of sums for V2-Lite's router: of 1 and 2 rows (of up to 2048 channels), of 3 to 256 and of
 * more; or one, with a deterministic device.
 */
const ONE_ORDER = !/^cuda:\d+$/.test(TESTED_DEVICE);

/** Rows [begin, end) of a batch of `rows`; every ninth row is padding. */
function routeArgs(make: Inputs, r: Router, rows: number, begin = 0, end = rows): PlannedArgs<'moeRoute'> {
  const columns = r.top_k + r.shared;
  const [expert_begin, expert_end] = r.local ?? [0, r.experts];
  const n = end - begin;
  const positions = Array.from({ length: rows }, (_, t) => (t % 9 === 8 ? -1 : t));
  return {
    x: make.normal(r.act, [rows, r.d], 2).rows(begin, end),
    norm: make.normal('bf16', [r.d], 0.3, 1),
    gate: make.normal(r.gate, [r.experts, r.d], 0.05),
    bias: r.bias ? make.normal('f32', [r.experts], 0.05) : undefined,
    positions: make.values('i32', [rows], positions).rows(begin, end),
    normed: make.output(r.act, [n, r.d]),
    ids: make.output('i32', [n, columns]),
    weights: make.output('f32', [n, columns]),
    offsets: make.output('i32', [expert_end - expert_begin + r.shared + 1]),
    order: make.output('i32', [n * columns]),
    slots: make.output('i32', [n, columns]),
    eps: 1e-6,
    scale: r.scale ?? 1,
    top_k: r.top_k,
    shared: r.shared,
    n_group: r.n_group ?? 1,
    topk_group: r.topk_group ?? 1,
    expert_begin,
    expert_end,
    sigmoid: r.sigmoid ?? false,
    group_top2: r.group_top2 ?? false,
    norm_topk: r.norm_topk ?? false,
  };
}

/** How far each row's logits are moved, at most, by elements of the normed row that round to another neighbour. */
function movesOf(args: PlannedArgs<'moeRoute'>, actual: Uint8Array, expected: Uint8Array): number[] {
  const { dtype, shape } = args.normed as Planned;
  const [rows, d] = shape as [number, number];
  const gate = args.gate as Planned;
  const [ours, theirs, weight] = [valuesOf(dtype, actual), valuesOf(dtype, expected), valuesOf(gate.dtype, gate.bytes)];
  return Array.from({ length: rows }, (_, row) => {
    const moves = new Float64Array(gate.shape[0] as number);
    for (let k = 0; k < d; k++) {
      const by = (ours[row * d + k] as number) - (theirs[row * d + k] as number);
      if (by !== 0) for (let e = 0; e < moves.length; e++) moves[e]! += by * (weight[e * d + k] as number);
    }
    return Math.max(...moves.map(Math.abs));
  });
}

/**
 * Weights, besides the usual: a row's square sum in another order is another float32, by which few elements of the
 * normed row round to another bf16. Logits that move by m at most move a weight by a factor of exp(2 m) at most, be it
 * a softmax, a sigmoid, or a sigmoid's share.
 */
function compareWeights(label: string, args: PlannedArgs<'moeRoute'>, ...sides: Record<string, Uint8Array>[]): void {
  const [actual, expected] = sides as [Record<string, Uint8Array>, Record<string, Uint8Array>];
  const [rows, columns] = (args.weights as Planned).shape as [number, number];
  const moves = movesOf(args, actual.normed as Uint8Array, expected.normed as Uint8Array);
  const usual = DEFAULT_TOLERANCE.f32;
  let worst = 0;
  for (let row = 0; row < rows; row++) {
    const [ours, theirs] = [actual, expected].map((side) =>
      (side.weights as Uint8Array).subarray(row * columns * 4, (row + 1) * columns * 4),
    ) as [Uint8Array, Uint8Array];
    const more = Math.expm1(2 * (moves[row] as number));
    const tolerance = {
      ...usual,
      element: usual.element + more * Math.sqrt(columns), // of the row's root mean square
      norm: usual.norm + more,
    };
    const result = compareClose('f32', [1, columns], ours, theirs, tolerance);
    assert(result.complaint === undefined, `${label}, row ${row}, logits moved by ${moves[row]}: ${result.complaint}`);
    worst = Math.max(worst, result.worst, result.norm / tolerance.norm);
  }
  const moved = moves.filter((by) => by > 0).length;
  console.log(`moeRoute ${label}: weights worst ${worst.toFixed(2)} of their bound, logits of ${moved} rows moved`);
}

test('moeRoute, V2-Lite: many rows, the first as in a batch of few', async () => {
  const rows = ONE_ORDER ? 1100 : 256;
  const whole = await runTested('moeRoute', (make) => routeArgs(make, V2_LITE, rows));
  const few = await runTested('moeRoute', (make) => routeArgs(make, V2_LITE, rows, 0, 100));
  for (const output of ['normed', 'ids', 'weights']) {
    const part = few[output] as Uint8Array;
    assert(Buffer.compare(part, (whole[output] as Uint8Array).subarray(0, part.length)) === 0, output);
  }
});

for (const [name, router] of Object.entries(ROUTERS)) {
  test(`moeRoute, ${name}`, async () => {
    for (const rows of [0, 1, 2, 3, 5, 16, 17, 64, 65, 129, 257]) {
      const label = `${name}, ${rows} rows`;
      let args: PlannedArgs<'moeRoute'>;
      await compareVerb('moeRoute', (make) => (args = routeArgs(make, router, rows)), {
        label,
        ignore: ['weights'],
        judge: (actual, expected) => compareWeights(label, args, actual, expected),
      });
    }
  });

  test(`moeRoute, ${name}: a row has the same bits in every batch`, async () => {
    const rows = 140;
    const least = router === V2_LITE && !ONE_ORDER ? 3 : 1;
    const whole = await runTested('moeRoute', (make) => routeArgs(make, router, rows));
    for (const [begin, end] of [
      [0, least],
      [77, 77 + least],
      [3, 12],
      [20, 60],
      [10, 140],
    ] as const) {
      const part = await runTested('moeRoute', (make) => routeArgs(make, router, rows, begin, end));
      for (const output of ['normed', 'ids', 'weights']) {
        const all = whole[output] as Uint8Array;
        const rowBytes = all.length / rows;
        const expected = all.subarray(begin * rowBytes, end * rowBytes);
        assert(Buffer.compare(part[output] as Uint8Array, expected) === 0, `${output} of rows ${begin} to ${end - 1}`);
      }
    }
  });
}

test('moeRoute with NaN in a row: distinct experts, and the others undisturbed', async () => {
  const written = await runTested('moeRoute', (make) => {
    const args = routeArgs(make, ROUTERS.V3 as Router, 3);
    const x = args.x as { bytes: Uint8Array };
    x.bytes.fill(0xff, 512 * 2, 2 * 512 * 2);
    return args;
  });
  const ids = new Int32Array((written.ids as Uint8Array).slice().buffer);
  for (let t = 0; t < 3; t++) {
    const row = Array.from(ids.subarray(9 * t, 9 * t + 9));
    assert.equal(new Set(row).size, 9);
    assert(row.every((id) => id >= 0 && id <= 256));
  }
});
