// bench/attention-cases.ts - attention over the latent cache (decode) and over expanded keys (prefill), bf16; decode over
// an fp8 cache too.
import { cacheRowBytes } from '../cache';
import { Fp8Pages } from './fp8-pages';
import { type KernelCase, setsFor } from './kernel-case';
import { Dice, dot, relativeError, shuffle, type Workbench } from './workbench';

const [NOPE, ROPE, VALUE, LATENT] = [128, 64, 128, 512];
const PAGE = 64;

/** heads, sequences, context, new tokens a sequence */
type DecodeShape = readonly [h: number, b: number, l: number, q: number];

const DECODE: readonly DecodeShape[] = [16, 64, 128].flatMap((h) =>
  (
    [
      [1, 1024, 1],
      [1, 4096, 1],
      [1, 32768, 1],
      [1, 131072, 1],
      [4, 4096, 1],
      [8, 1024, 1],
      [8, 4096, 1],
      [8, 8192, 1],
      [8, 32768, 1],
      [16, 4096, 1],
      [32, 1024, 1],
      [32, 4096, 1],
      [32, 32768, 1],
      [64, 4096, 1],
      [128, 1024, 1],
      [128, 4096, 1],
      [128, 4096, 2],
      [128, 8192, 1],
    ] as const
  ).map(([b, l, q]): DecodeShape => [h, b, l, q]),
);

/** The same over an fp8 cache. */
const DECODE_FP8: readonly DecodeShape[] = [
  [16, 1, 4096, 1],
  [16, 8, 8192, 1],
  [16, 32, 4096, 1],
  [16, 128, 4096, 1],
  [128, 32, 4096, 1],
];

/** heads, length */
const PREFILL: readonly (readonly [h: number, l: number])[] = [
  [16, 4096],
  [16, 16384],
  [128, 4096],
  [128, 16384],
];

/** softmax of `scale * score(j)` over n keys, times value(j), in float64. */
export function attend(
  n: number,
  channels: number,
  scale: number,
  score: (j: number) => number,
  value: (j: number, i: number) => number,
): Float64Array {
  const s = Float64Array.from({ length: n }, (_, j) => scale * score(j));
  const largest = s.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = s.map((x) => Math.exp(x - largest));
  const sum = p.reduce((a, b) => a + b, 0);
  const out = new Float64Array(channels);
  for (let j = 0; j < n; j++) {
    const weight = (p[j] as number) / sum;
    for (let i = 0; i < channels; i++) out[i] = (out[i] as number) + weight * value(j, i);
  }
  return out;
}

function decodeCase(
  [h, b, l, q]: DecodeShape,
  { cacheDtype = 'bf16', c = LATENT }: { cacheDtype?: 'bf16' | 'fp8'; c?: number } = {},
): KernelCase {
  const width = c + ROPE;
  const T = b * q;
  const rowBytes = cacheRowBytes(cacheDtype, { c, r: ROPE });
  const bytes = b * l * rowBytes + 2 * T * h * (width + c) + 4 * T * h;
  const scale = width ** -0.5;
  const pages = Math.ceil(l / PAGE);
  return {
    id: `mlaDecode ${cacheDtype === 'fp8' ? 'fp8 ' : ''}h=${h} b=${b} l=${l} q=${q}${c === LATENT ? '' : ` c=${c}`}`,
    cost: () => ({ bytes, flops: 2 * T * h * l * (width + c) }),
    async prepare(bench, coldBytes) {
      const sets = setsFor(bytes, coldBytes);
      // One cache for all sets; the pages of a sequence lie anywhere in it.
      const fp8 = cacheDtype === 'fp8' ? new Fp8Pages({ c, r: ROPE }, new Dice(l)) : null;
      const cache =
        (await fp8?.fill(bench, sets * b * pages)) ?? (await bench.random('bf16', [sets * b * pages, PAGE, width]));
      const table = shuffle(
        Int32Array.from({ length: sets * b * pages }, (_, i) => i),
        new Dice(h + l),
      );
      const tables = await bench.put(table, [sets, b, pages]);
      const query = await bench.random('bf16', [sets, T, h, width]);
      const out = await bench.zeros('bf16', [sets, T, h, c]);
      const lse = await bench.zeros('f32', [sets, T, h]);
      const q_start = await bench.put(Int32Array.from({ length: b + 1 }, (_, i) => i * q));
      const lengths = await bench.put(new Int32Array(b).fill(l));
      const plan = await bench.zeros('i32', [bench.device.decodePlanInts(b, h)]);
      bench.stream.decodePlan({ q_start, lengths, plan, heads: h });
      const args = Array.from({ length: sets }, (_, i) => ({
        q: bench.part(query, i, [T, h, width]),
        q_start,
        cache,
        block_table: bench.part(tables, i, [b, pages]),
        lengths,
        plan,
        out: bench.part(out, i, [T, h, c]),
        lse: bench.part(lse, i, [T, h]),
        scale,
      }));
      await bench.workspaceFor('mlaDecode', args[0] as (typeof args)[number]);
      const readRows = async (set: number, sequence: number): Promise<Float32Array> => {
        const rows = new Float32Array(pages * PAGE * width);
        for (let p = 0; p < pages; p++) {
          const page = table[(set * b + sequence) * pages + p] as number;
          const read = fp8?.rows(page) ?? (await bench.read(cache, page * PAGE * width, PAGE * width));
          rows.set(read, p * PAGE * width);
        }
        return rows;
      };
      return {
        sets,
        bound: 8e-3,
        issue: (set) => bench.stream.mlaDecode(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).out, (args[set] as (typeof args)[number]).lse],
        async check() {
          let worst = 0;
          for (const [set, sequence, head] of [
            [0, 0, 0],
            [sets - 1, b - 1, h - 1],
          ] as const) {
            const rows = await readRows(set, sequence);
            const row = ((set * b + sequence) * q + q - 1) * h + head;
            const vector = await bench.read(query, row * width, width);
            const expected = attend(
              l,
              c,
              scale,
              (j) => dot(vector, 0, rows, j * width, width),
              (j, i) => rows[j * width + i] as number,
            );
            const error = relativeError(await bench.read(out, row * c, c), expected);
            if (!(error <= worst)) worst = error;
          }
          return worst;
        },
      };
    },
  };
}

function prefillCase(h: number, l: number): KernelCase {
  const bytes = 2 * (l * h * (NOPE + ROPE + NOPE + VALUE + VALUE) + l * ROPE) + 4 * l * h;
  const scale = (NOPE + ROPE) ** -0.5;
  return {
    id: `mlaPrefill h=${h} l=${l}`,
    // the causal half
    cost: () => ({ bytes, flops: l * l * h * (NOPE + ROPE + VALUE) }),
    async prepare(bench, coldBytes) {
      const sets = setsFor(bytes, coldBytes);
      const tensors = {
        q: await bench.random('bf16', [sets * l, h, NOPE + ROPE]),
        k_nope: await bench.random('bf16', [sets * l, h, NOPE]),
        k_rope: await bench.random('bf16', [sets * l, ROPE]),
        value: await bench.random('bf16', [sets * l, h, VALUE]),
        out: await bench.zeros('bf16', [sets * l, h * VALUE]),
        lse: await bench.zeros('f32', [sets * l, h]),
      };
      const starts = await bench.put(Int32Array.of(0, l));
      const zero = await bench.put(Int32Array.of(0));
      const args = Array.from({ length: sets }, (_, i) => ({
        q: bench.part(tensors.q, i, [l, h, NOPE + ROPE]),
        k_nope: bench.part(tensors.k_nope, i, [l, h, NOPE]),
        k_rope: bench.part(tensors.k_rope, i, [l, ROPE]),
        value: bench.part(tensors.value, i, [l, h, VALUE]),
        q_start: starts,
        k_start: starts,
        q_pos: zero,
        k_pos: zero,
        out: bench.part(tensors.out, i, [l, h * VALUE]),
        lse: bench.part(tensors.lse, i, [l, h]),
        scale,
      }));
      await bench.workspaceFor('mlaPrefill', args[0] as (typeof args)[number]);
      return {
        sets,
        bound: 8e-3,
        issue: (set) => bench.stream.mlaPrefill(args[set] as (typeof args)[number]),
        outputs: (set) => [(args[set] as (typeof args)[number]).out, (args[set] as (typeof args)[number]).lse],
        check: () => checkPrefill(bench, tensors, { sets, h, l, scale }),
      };
    },
  };
}

async function checkPrefill(
  bench: Workbench,
  t: Record<'q' | 'k_nope' | 'k_rope' | 'value' | 'out', Awaited<ReturnType<Workbench['zeros']>>>,
  { sets, h, l, scale }: { sets: number; h: number; l: number; scale: number },
): Promise<number> {
  let worst = 0;
  for (const [set, row, head] of [
    [0, l - 1, 0],
    [sets - 1, l >> 1, h - 1],
    [sets - 1, 0, h >> 1],
  ] as const) {
    const keys = row + 1;
    const first = set * l;
    const width = NOPE + ROPE;
    const query = await bench.read(t.q, ((first + row) * h + head) * width, width);
    const nope = await bench.gather(t.k_nope, (first * h + head) * NOPE, keys, NOPE, h * NOPE);
    const rope = await bench.read(t.k_rope, first * ROPE, keys * ROPE);
    const value = await bench.gather(t.value, (first * h + head) * VALUE, keys, VALUE, h * VALUE);
    const expected = attend(
      keys,
      VALUE,
      scale,
      (j) => dot(query, 0, nope, j * NOPE, NOPE) + dot(query, NOPE, rope, j * ROPE, ROPE),
      (j, i) => value[j * VALUE + i] as number,
    );
    const actual = await bench.read(t.out, ((first + row) * h + head) * VALUE, VALUE);
    const error = relativeError(actual, expected);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

/** All of them. */
export const ATTENTION_CASES: readonly KernelCase[] = [
  ...DECODE.map((shape) => decodeCase(shape)),
  // The heads of GLM-4.7-Flash, and the latent rank of Mistral-Small-4.
  decodeCase([20, 32, 4096, 1]),
  decodeCase([32, 128, 4096, 1], { c: 256 }),
  ...DECODE_FP8.map((shape) => decodeCase(shape, { cacheDtype: 'fp8' })),
  ...PREFILL.map((shape) => prefillCase(...shape)),
];
