// bench/gemm-cases.ts - the dense projections of V2-Lite and V3: bf16, y = x * w^T.
import { type KernelCase, setsFor } from './kernel-case';
import { Dice, dot, relativeError } from './workbench';

/** Output and input width. */
const PROJECTIONS: readonly (readonly [name: string, n: number, k: number])[] = [
  ['lite q_proj', 3072, 2048],
  ['lite kv_a', 576, 2048],
  ['lite o_proj', 2048, 2048],
  ['lite lm_head', 102400, 2048],
  ['v3 qkv_a', 2112, 7168],
  ['v3 q_b', 24576, 1536],
  ['v3 o_proj', 7168, 16384],
  ['v3 lm_head', 129280, 7168],
];
const ROWS = [1, 8, 64, 512, 4096];
const SAMPLED_COLUMNS = 24;

function gemmCase(n: number, k: number, m: number): KernelCase {
  const bytes = 2 * (m * k + n * k + m * n);
  return {
    id: `gemm n=${n} k=${k} m=${m}`,
    cost: () => ({ bytes, flops: 2 * m * n * k }),
    async prepare(bench, coldBytes) {
      const sets = setsFor(bytes, coldBytes);
      const x = await bench.random('bf16', [sets, m, k]);
      const w = await bench.random('bf16', [sets, n, k], k ** -0.5);
      const y = await bench.zeros('bf16', [sets, m, n]);
      const args = Array.from({ length: sets }, (_, i) => ({
        x: bench.part(x, i, [m, k]),
        w: bench.part(w, i, [n, k]),
        y: bench.part(y, i, [m, n]),
      }));
      await bench.workspaceFor('gemm', args[0] as (typeof args)[number]);
      return {
        sets,
        bound: 4e-3,
        issue: (set) => bench.stream.gemm(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).y],
        async check() {
          const dice = new Dice(n + k + m);
          const actual: number[] = [];
          const expected: number[] = [];
          for (const set of new Set([0, sets - 1])) {
            for (const row of new Set([0, m - 1])) {
              const input = await bench.read(x, (set * m + row) * k, k);
              const output = await bench.read(y, (set * m + row) * n, n);
              for (const column of [0, n - 1, ...dice.some(SAMPLED_COLUMNS, n)]) {
                const weights = await bench.read(w, (set * n + column) * k, k);
                actual.push(output[column] as number);
                expected.push(dot(input, 0, weights, 0, k));
              }
            }
          }
          return relativeError(actual, expected);
        },
      };
    },
  };
}

/** All of them. */
export const GEMM_CASES: readonly KernelCase[] = PROJECTIONS.flatMap(([, n, k]) => ROWS.map((m) => gemmCase(n, k, m)));
