// bench/mha-cases.ts - attention over a cache of per-head keys and values, bf16: what the latent cache is compared with.
import { attend } from './attention-cases';
import { type KernelCase, setsFor } from './kernel-case';
import { Dice, dot, relativeError, shuffle } from './workbench';

const [HEAD, VALUE] = [192, 128];
const WIDTH = HEAD + VALUE;
const PAGE = 64;

/** heads, sequences, context */
const SHAPES: readonly (readonly [h: number, b: number, l: number])[] = [
  [16, 1, 4096],
  [16, 8, 4096],
  [16, 64, 4096],
  [128, 8, 4096],
];

function mhaCase(h: number, b: number, l: number): KernelCase {
  const bytes = 2 * b * h * (l * WIDTH + HEAD + VALUE);
  const scale = HEAD ** -0.5;
  const pages = Math.ceil(l / PAGE);
  return {
    id: `mhaDecode h=${h} b=${b} l=${l}`,
    cost: () => ({ bytes, flops: 2 * b * h * l * WIDTH }),
    async prepare(bench, coldBytes) {
      const sets = setsFor(bytes, coldBytes);
      // One cache for all sets; the pages of a sequence lie anywhere in it.
      const cache = await bench.random('bf16', [sets * b * pages, PAGE, h, WIDTH]);
      const table = shuffle(
        Int32Array.from({ length: sets * b * pages }, (_, i) => i),
        new Dice(h + l),
      );
      const tables = await bench.put(table, [sets, b, pages]);
      const query = await bench.random('bf16', [sets, b, h, HEAD]);
      const out = await bench.zeros('bf16', [sets, b, h * VALUE]);
      const lengths = await bench.put(new Int32Array(b).fill(l));
      const args = Array.from({ length: sets }, (_, i) => ({
        q: bench.part(query, i, [b, h, HEAD]),
        cache,
        block_table: bench.part(tables, i, [b, pages]),
        lengths,
        out: bench.part(out, i, [b, h * VALUE]),
        scale,
      }));
      await bench.workspaceFor('mhaDecode', args[0] as (typeof args)[number]);
      /** Keys and values of one head, page by page. */
      const readRows = async (set: number, sequence: number, head: number): Promise<Float32Array> => {
        const rows = new Float32Array(pages * PAGE * WIDTH);
        for (let p = 0; p < pages; p++) {
          const page = table[(set * b + sequence) * pages + p] as number;
          const first = (page * PAGE * h + head) * WIDTH;
          rows.set(await bench.gather(cache, first, PAGE, WIDTH, h * WIDTH), p * PAGE * WIDTH);
        }
        return rows;
      };
      return {
        sets,
        bound: 8e-3,
        issue: (set) => bench.stream.mhaDecode(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).out],
        async check() {
          let worst = 0;
          for (const [set, sequence, head] of [
            [0, 0, 0],
            [sets - 1, b - 1, h - 1],
          ] as const) {
            const rows = await readRows(set, sequence, head);
            const row = (set * b + sequence) * h + head;
            const vector = await bench.read(query, row * HEAD, HEAD);
            const expected = attend(
              l,
              VALUE,
              scale,
              (j) => dot(vector, 0, rows, j * WIDTH, HEAD),
              (j, i) => rows[j * WIDTH + HEAD + i] as number,
            );
            const error = relativeError(await bench.read(out, row * VALUE, VALUE), expected);
            if (!(error <= worst)) worst = error;
          }
          return worst;
        },
      };
    },
  };
}

/** All of them. */
export const MHA_CASES: readonly KernelCase[] = SHAPES.map((shape) => mhaCase(...shape));
