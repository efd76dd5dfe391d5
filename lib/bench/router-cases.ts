// bench/router-cases.ts - the router: norm, logits, choice and grouping, bf16, as V2-Lite and V3 route.
import { type KernelCase, setsFor } from './kernel-case';
import { dot, relativeError } from './workbench';

interface Router {
  name: string;
  d: number;
  experts: number;
  topK: number;
  /** V3: sigmoid scores, a bias, the best 4 of 8 groups by their two best, weights normed */
  grouped: boolean;
}

const ROUTERS: readonly Router[] = [
  { name: 'lite', d: 2048, experts: 64, topK: 6, grouped: false },
  { name: 'v3', d: 7168, experts: 256, topK: 8, grouped: true },
];
const TOKENS = [1, 8, 32, 64, 4096];
const EPS = 1e-6;
const GROUPS = 8;
const KEPT_GROUPS = 4;
const SCALE = 2.5;

const descending = (a: number, b: number) => b - a;

/** The chosen experts' weights, best first, from logits. */
function weightsOf({ topK, grouped }: Router, logits: readonly number[], bias: ArrayLike<number>): number[] {
  if (!grouped) {
    const scores = logits.map((x) => Math.exp(x));
    const sum = scores.reduce((a, b) => a + b, 0);
    return scores
      .sort(descending)
      .slice(0, topK)
      .map((x) => x / sum);
  }
  const scores = logits.map((x) => 1 / (1 + Math.exp(-x)));
  const choice = scores.map((x, e) => x + (bias[e] as number));
  const size = scores.length / GROUPS;
  const group = (g: number) => [...choice.slice(g * size, (g + 1) * size)].sort(descending);
  const kept = Array.from({ length: GROUPS }, (_, g) => g)
    .map((g) => ({ g, score: (group(g)[0] as number) + (group(g)[1] as number) }))
    .sort((a, b) => b.score - a.score)
    .slice(0, KEPT_GROUPS)
    .map(({ g }) => g);
  const chosen = choice
    .map((score, e) => ({ score, e }))
    .filter(({ e }) => kept.includes(Math.floor(e / size)))
    .sort((a, b) => b.score - a.score)
    .slice(0, topK)
    .map(({ e }) => scores[e] as number);
  const sum = chosen.reduce((a, b) => a + b, 0);
  return chosen.map((x) => (x / sum) * SCALE);
}

function routerCase(router: Router, T: number): KernelCase {
  const { name, d, experts, topK, grouped } = router;
  const bytes = 2 * (experts * d + 2 * T * d) + 16 * T * topK;
  return {
    id: `moeRoute ${name} tokens=${T}`,
    cost: () => ({ bytes, flops: 2 * T * experts * d }),
    async prepare(bench, coldBytes) {
      const sets = setsFor(bytes, coldBytes);
      const x = await bench.random('bf16', [sets, T, d]);
      const norm = await bench.random('f32', [d]);
      const gate = await bench.random('bf16', [sets, experts, d], d ** -0.5);
      const bias = await bench.random('f32', [experts], 0.05);
      const positions = await bench.put(Int32Array.from({ length: T }, (_, t) => t));
      const normed = await bench.zeros('bf16', [sets, T, d]);
      const weights = await bench.zeros('f32', [sets, T, topK]);
      const lists = {
        ids: await bench.zeros('i32', [T, topK]),
        offsets: await bench.zeros('i32', [experts + 1]),
        order: await bench.zeros('i32', [T * topK]),
        slots: await bench.zeros('i32', [T, topK]),
      };
      const args = Array.from({ length: sets }, (_, i) => ({
        ...lists,
        x: bench.part(x, i, [T, d]),
        norm,
        gate: bench.part(gate, i, [experts, d]),
        bias: grouped ? bias : undefined,
        positions,
        normed: bench.part(normed, i, [T, d]),
        weights: bench.part(weights, i, [T, topK]),
        eps: EPS,
        scale: grouped ? SCALE : 1,
        top_k: topK,
        shared: 0,
        n_group: grouped ? GROUPS : 1,
        topk_group: grouped ? KEPT_GROUPS : 1,
        expert_begin: 0,
        expert_end: experts,
        sigmoid: grouped,
        group_top2: grouped,
        norm_topk: grouped,
      }));
      await bench.workspaceFor('moeRoute', args[0] as (typeof args)[number]);
      return {
        sets,
        bound: 4e-3,
        issue: (set) => bench.stream.moeRoute(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).normed, (args[set] as (typeof args)[number]).weights],
        async check() {
          const scale = await bench.read(norm, 0, d);
          const biases = await bench.read(bias, 0, experts);
          let worst = 0;
          for (const set of new Set([0, sets - 1])) {
            const gates = await bench.read(gate, set * experts * d, experts * d);
            for (const row of new Set([0, T - 1])) {
              const input = await bench.read(x, (set * T + row) * d, d);
              const output = await bench.read(normed, (set * T + row) * d, d);
              const factor = 1 / Math.sqrt(dot(input, 0, input, 0, d) / d + EPS);
              const expected = Array.from(input, (v, i) => v * factor * (scale[i] as number));
              const logits = Array.from({ length: experts }, (_, e) => dot(output, 0, gates, e * d, d));
              const got = await bench.read(weights, (set * T + row) * topK, topK);
              worst = Math.max(
                worst,
                relativeError(output, expected),
                relativeError(got, weightsOf(router, logits, biases)),
              );
            }
          }
          return worst;
        },
      };
    },
  };
}

/** All of them. */
export const ROUTER_CASES: readonly KernelCase[] = ROUTERS.flatMap((router) =>
  TOKENS.map((T) => routerCase(router, T)),
);
