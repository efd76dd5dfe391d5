// bench/moe-cases.ts - the grouped products of the experts, weights bf16 or fp8, and for fp8 weights rows in bf16 or as fp8
// activations, with uniformly random routing: V2-Lite (64 experts, 6 per token; alone and with the two that are always
// on, as its layers have them) and one of eight ranks of V3 (32 local experts, one row per token on average).
import type { Tensor } from '../native';
import { ExpertWeights, type WeightType } from './expert-weights';
import type { KernelCase, PreparedCase } from './kernel-case';
import { Dice, dot, relativeError, type Workbench } from './workbench';

interface Experts {
  name: string;
  /** experts and choices per token, the `shared` always-on ones included: they are the last */
  E: number;
  K: number;
  shared: number;
  d: number;
  I: number;
}

const SHAPES: readonly Experts[] = [
  { name: 'lite', E: 64, K: 6, shared: 0, d: 2048, I: 1408 },
  { name: 'v3/8', E: 32, K: 1, shared: 0, d: 7168, I: 2048 },
];
const TOKENS = [1, 8, 64, 128, 512, 4096, 16384];
const FP8_TOKENS = [8, 64, 128, 512, 4096, 16384];
const LAYER: Experts = { name: 'lite layer', E: 66, K: 8, shared: 2, d: 2048, I: 1408 };
const LAYER_TOKENS = [1, 8, 32, 64, 128];
/** Routings that calls take turns with, so that a few tokens do not find their experts in a cache. */
const ROUTINGS = 16;
const SAMPLED_COLUMNS = 16;

/** Which rows go to which expert, as moeRoute gives it. */
interface Routing {
  offsets: Int32Array;
  order: Int32Array;
  slots: Int32Array;
  weights: Float32Array;
  /** expert of each pair */
  expert: Int32Array;
  hit: number;
}

function route({ E, K, shared }: Experts, T: number, dice: Dice): Routing {
  const pairs: number[][] = Array.from({ length: E }, () => []);
  const expert = new Int32Array(T * K);
  for (let t = 0; t < T; t++) {
    const chosen = dice.some(K - shared, E - shared);
    for (let e = E - shared; e < E; e++) chosen.push(e);
    for (const [j, e] of chosen.entries()) {
      pairs[e]?.push(t * K + j);
      expert[t * K + j] = e;
    }
  }
  const offsets = new Int32Array(E + 1);
  const order = new Int32Array(T * K);
  const slots = new Int32Array(T * K);
  pairs.forEach((list, e) => {
    const start = offsets[e] as number;
    list.forEach((pair, i) => {
      order[start + i] = pair;
      slots[pair] = start + i;
    });
    offsets[e + 1] = start + list.length;
  });
  const weights = Float32Array.from({ length: T * K }, () => (1 + dice.below(8)) / 8);
  return { offsets, order, slots, weights, expert, hit: pairs.filter((list) => list.length > 0).length };
}

/** Routings on the host and on the device. */
async function putRoutings(bench: Workbench, shape: Experts, T: number) {
  const routings = Array.from({ length: ROUTINGS }, (_, i) => route(shape, T, new Dice(1000 * T + i)));
  const placed: { offsets: Tensor; order: Tensor; slots: Tensor; weights: Tensor }[] = [];
  for (const { offsets, order, slots, weights } of routings) {
    placed.push({
      offsets: await bench.put(offsets),
      order: await bench.put(order),
      slots: await bench.put(slots, [T, shape.K]),
      weights: await bench.put(weights, [T, shape.K]),
    });
  }
  return { routings, placed };
}

/** Experts that T tokens hit, in the mean over the routings. */
function meanHit(shape: Experts, T: number): number {
  const hits = Array.from({ length: ROUTINGS }, (_, i) => route(shape, T, new Dice(1000 * T + i)).hit);
  return hits.reduce((a, b) => a + b, 0) / ROUTINGS;
}

const silu = (x: number) => x / (1 + Math.exp(-x));

/** Bytes of a weight; scales do not count. */
const WEIGHT_BYTES: Readonly<Record<WeightType, number>> = { bf16: 2, fp8: 1 };
/** How names of cases end. */
const SUFFIX: Readonly<Record<WeightType, string>> = { bf16: '', fp8: ' fp8' };
/** The same where rows enter as fp8 activations. */
const BOTH_FP8 = ' fp8 x fp8';

/** Normal rows; `fp8`: as e4m3 with powers of two, which fp8 activations leave as they are, so that checks see through. */
async function randomRows(bench: Workbench, rows: number, columns: number, fp8: boolean): Promise<Tensor> {
  const x = await bench.random('bf16', [rows, columns]);
  if (!fp8) return x;
  const q = await bench.zeros('f8e4m3', [rows, columns]);
  const scale = await bench.zeros('f32', [Math.ceil(rows / 128), Math.ceil(columns / 128)]);
  bench.stream.quantize({ x, q, scale, pow2: true });
  bench.stream.dequantize({ q, scale, out: x });
  return x;
}

function gateUpCase(shape: Experts, T: number, type: WeightType = 'bf16', fp8Rows = false): KernelCase {
  const { name, E, K, shared, d, I } = shape;
  const P = T * K;
  return {
    id: `moeGateUp ${name} tokens=${T}${fp8Rows ? BOTH_FP8 : SUFFIX[type]}`,
    cost: () => ({
      bytes: WEIGHT_BYTES[type] * meanHit(shape, T) * 2 * I * d + 2 * (T * d + P * I),
      flops: 2 * P * 2 * I * d,
      fp8: fp8Rows,
    }),
    async prepare(bench, coldBytes) {
      const copies = Math.ceil(coldBytes / (E * 2 * I * d * WEIGHT_BYTES[type]));
      const experts = await ExpertWeights.random(bench, type, copies * E, 2 * I, d);
      const x = await randomRows(bench, T, d, fp8Rows);
      const h = await bench.zeros('bf16', [ROUTINGS, P, I]);
      const { routings, placed } = await putRoutings(bench, shape, T);
      const args = placed.map(({ offsets, order }, i) => ({
        x,
        ...experts.take(i % copies, E, 2),
        offsets,
        order,
        shared,
        h: bench.part(h, i, [P, I]),
        fp8_activations: fp8Rows,
      }));
      await bench.workspaceFor('moeGateUp', args[0] as (typeof args)[number]);
      return {
        sets: ROUTINGS,
        bound: 6e-3,
        issue: (set) => bench.stream.moeGateUp(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).h],
        async check() {
          const actual: number[] = [];
          const expected: number[] = [];
          for (const set of [0, ROUTINGS - 1]) {
            const { order, expert } = routings[set] as Routing;
            for (const row of new Set([0, P - 1])) {
              const pair = order[row] as number;
              const e = (set % copies) * E + (expert[pair] as number);
              const input = await bench.read(x, Math.floor(pair / K) * d, d);
              const output = await bench.read(h, (set * P + row) * I, I);
              for (const channel of [0, I - 1, ...new Dice(row + T).some(SAMPLED_COLUMNS, I)]) {
                const gateRow = Math.floor(channel / 8) * 16 + (channel % 8);
                const line = Math.floor(channel / 128);
                const gate = dot(input, 0, await experts.row(e, gateRow, line), 0, d);
                const up = dot(input, 0, await experts.row(e, gateRow + 8, line + I / 128), 0, d);
                actual.push(output[channel] as number);
                expected.push(silu(gate) * up);
              }
            }
          }
          return relativeError(actual, expected);
        },
      } satisfies PreparedCase;
    },
  };
}

function downCase(shape: Experts, T: number, type: WeightType = 'bf16', fp8Rows = false): KernelCase {
  const { name, E, K, d, I } = shape;
  const P = T * K;
  return {
    id: `moeDown ${name} tokens=${T}${fp8Rows ? BOTH_FP8 : SUFFIX[type]}`,
    cost: () => ({
      bytes: WEIGHT_BYTES[type] * meanHit(shape, T) * d * I + 2 * (P * I + T * d),
      flops: 2 * P * d * I,
      fp8: fp8Rows,
    }),
    async prepare(bench, coldBytes) {
      const copies = Math.ceil(coldBytes / (E * d * I * WEIGHT_BYTES[type]));
      const experts = await ExpertWeights.random(bench, type, copies * E, d, I);
      const h = await randomRows(bench, P, I, fp8Rows);
      const out = await bench.zeros('bf16', [ROUTINGS, T, d]);
      const { routings, placed } = await putRoutings(bench, shape, T);
      const args = placed.map((routing, i) => ({
        h,
        ...experts.take(i % copies, E, 1),
        ...routing,
        out: bench.part(out, i, [T, d]),
        fp8_activations: fp8Rows,
      }));
      await bench.workspaceFor('moeDown', args[0] as (typeof args)[number]);
      return {
        sets: ROUTINGS,
        bound: 6e-3,
        issue: (set) => bench.stream.moeDown(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).out],
        async check() {
          const actual: number[] = [];
          const expected: number[] = [];
          for (const set of [0, ROUTINGS - 1]) {
            const { slots, weights, expert } = routings[set] as Routing;
            for (const t of new Set([0, T - 1])) {
              const output = await bench.read(out, (set * T + t) * d, d);
              for (const column of [0, d - 1, ...new Dice(t + T).some(SAMPLED_COLUMNS, d)]) {
                let sum = 0;
                for (let j = 0; j < K; j++) {
                  const pair = t * K + j;
                  const e = (set % copies) * E + (expert[pair] as number);
                  const row = await bench.read(h, (slots[pair] as number) * I, I);
                  const weightRow = await experts.row(e, column, Math.floor(column / 128));
                  sum += (weights[pair] as number) * dot(row, 0, weightRow, 0, I);
                }
                actual.push(output[column] as number);
                expected.push(sum);
              }
            }
          }
          return relativeError(actual, expected);
        },
      } satisfies PreparedCase;
    },
  };
}

/** All of them. */
export const MOE_CASES: readonly KernelCase[] = [
  ...SHAPES.flatMap((shape) => TOKENS.flatMap((T) => [gateUpCase(shape, T), downCase(shape, T)])),
  ...SHAPES.flatMap((shape) => FP8_TOKENS.flatMap((T) => [gateUpCase(shape, T, 'fp8'), downCase(shape, T, 'fp8')])),
  ...SHAPES.flatMap((shape) =>
    FP8_TOKENS.flatMap((T) => [gateUpCase(shape, T, 'fp8', true), downCase(shape, T, 'fp8', true)]),
  ),
  ...LAYER_TOKENS.flatMap((T) => [gateUpCase(LAYER, T), downCase(LAYER, T)]),
];
