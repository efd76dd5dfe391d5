// gpu/closeness.ts - how near two results of the same operation must be, and where they are furthest apart.
import type { DType } from '../../lib/native';
import { decode } from '../cpu/reference';

/**
 * Bounds for one output. Element i of a row may differ by `ulps` units in the last place of its type (two devices may
 * round the same sum to neighbours), plus `element` times the row's root mean square (what the order of float32 sums,
 * and intermediate values rounded the other way, may change). The whole row's error may be `norm` times the row's norm,
 * besides what its largest element may change by `ulps`: in a narrow row that element can be most of the norm, and a
 * last place of bf16 is up to 1/128 of it.
 */
export interface Tolerance {
  ulps: number;
  element: number;
  norm: number;
  /** added to the bound of each element, for outputs whose rows are a single number (lse, logprobs) */
  absolute: number;
}

/** What is used where a case says nothing. */
export const DEFAULT_TOLERANCE: Readonly<Record<'f32' | 'bf16' | 'f16', Tolerance>> = {
  f32: { ulps: 0, element: 5e-5, norm: 2e-5, absolute: 1e-6 },
  bf16: { ulps: 1, element: 4e-3, norm: 2e-3, absolute: 0 },
  f16: { ulps: 1, element: 1e-3, norm: 5e-4, absolute: 0 },
};

const MANTISSA_BITS: Readonly<Record<string, number>> = { f32: 23, bf16: 7, f16: 10 };

/** How near two outputs are. */
export interface Closeness {
  /** largest error of an element as a multiple of its bound; above 1 it is too large */
  worst: number;
  /** largest |difference| of a row / |expected row| */
  norm: number;
  /** text of what is wrong; undefined when all is well */
  complaint: string | undefined;
}

/** The values of a tensor; quick for the types that large outputs have. */
export function valuesOf(dtype: DType, bytes: Uint8Array): ArrayLike<number> {
  const copy = bytes.slice().buffer;
  if (dtype === 'f32') return new Float32Array(copy);
  if (dtype !== 'bf16') return decode(dtype, copy);
  const words = new Uint16Array(copy);
  const wide = new Uint32Array(words.length);
  for (let i = 0; i < words.length; i++) wide[i] = (words[i] as number) << 16;
  return new Float32Array(wide.buffer);
}

/** "[2, 17] of [8, 3072]". */
function place(index: number, shape: readonly number[]): string {
  const at: number[] = [];
  let rest = index;
  for (let d = shape.length - 1; d >= 0; d--) {
    const size = shape[d] as number;
    at.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return `[${at.join(', ')}] of [${shape.join(', ')}]`;
}

/** Integers, and floats where `exact`: every byte must be equal. */
export function compareExact(
  dtype: DType,
  shape: readonly number[],
  actual: Uint8Array,
  expected: Uint8Array,
): Closeness {
  if (Buffer.compare(actual, expected) === 0) return { worst: 0, norm: 0, complaint: undefined };
  const [a, e] = [valuesOf(dtype, actual), valuesOf(dtype, expected)];
  const width = actual.length / a.length;
  let wrong = 0;
  let first = -1;
  for (let i = 0; i < a.length; i++) {
    const differs = Buffer.compare(
      actual.subarray(i * width, (i + 1) * width),
      expected.subarray(i * width, (i + 1) * width),
    );
    if (differs === 0) continue;
    wrong++;
    if (first < 0) first = i;
  }
  return {
    worst: Number.POSITIVE_INFINITY,
    norm: Number.NaN,
    complaint: `${wrong} of ${a.length} elements differ, the first at ${place(first, shape)}: ${a[first]}, expected ${e[first]}`,
  };
}

/**
 * Compares rows of `width` elements (default: the last dimension). NaN must stand exactly where it is expected, and
 * infinities too, with their sign.
 */
export function compareClose(
  dtype: 'f32' | 'bf16' | 'f16',
  shape: readonly number[],
  actual: Uint8Array,
  expected: Uint8Array,
  tolerance: Tolerance,
  width = Math.max(1, shape.at(-1) ?? 1),
): Closeness {
  const [a, e] = [valuesOf(dtype, actual), valuesOf(dtype, expected)];
  const epsilon = tolerance.ulps * 2 ** -(MANTISSA_BITS[dtype] as number);
  let worst = 0;
  let worstAt = -1;
  let wrong = 0;
  let norm = 0;
  let normRow = -1;
  let odd = -1;
  let oddCount = 0;
  for (let row = 0; row * width < e.length; row++) {
    const begin = row * width;
    const end = Math.min(begin + width, e.length);
    let square = 0;
    let largest = 0;
    let finite = 0;
    for (let i = begin; i < end; i++) {
      const x = e[i] as number;
      if (!Number.isFinite(x)) continue;
      square += x * x;
      largest = Math.max(largest, Math.abs(x));
      finite++;
    }
    const rms = finite === 0 ? 0 : Math.sqrt(square / finite);
    let errorSquare = 0;
    for (let i = begin; i < end; i++) {
      const x = e[i] as number;
      const y = a[i] as number;
      if (!Number.isFinite(x) || !Number.isFinite(y)) {
        if (Object.is(x, y)) continue;
        oddCount++;
        if (odd < 0) odd = i;
        continue;
      }
      const error = Math.abs(y - x);
      errorSquare += error * error;
      if (error === 0) continue;
      const ratio = error / (epsilon * Math.abs(x) + tolerance.element * rms + tolerance.absolute);
      if (ratio > 1) wrong++;
      if (ratio > worst) {
        worst = ratio;
        worstAt = i;
      }
    }
    const floor = tolerance.absolute * Math.sqrt(end - begin);
    const error = Math.max(0, Math.sqrt(Math.max(0, errorSquare - (epsilon * largest) ** 2)) - floor);
    const relative = error === 0 ? 0 : error / Math.sqrt(square);
    if (relative > norm) {
      norm = relative;
      normRow = row;
    }
  }
  const problems: string[] = [];
  if (odd >= 0)
    problems.push(
      `${oddCount} elements where NaN or infinity stands on one side only, the first at ${place(odd, shape)}: ${a[odd]}, expected ${e[odd]}`,
    );
  if (worst > 1)
    problems.push(
      `${wrong} of ${e.length} elements too far off, the worst at ${place(worstAt, shape)}: ${a[worstAt]}, expected ${e[worstAt]} (${worst.toPrecision(3)} times its bound)`,
    );
  if (norm > tolerance.norm)
    problems.push(
      `row ${normRow} of ${Math.ceil(e.length / width)} is off by ${norm.toExponential(2)} of its norm, bound ${tolerance.norm}`,
    );
  return { worst, norm, complaint: problems.length === 0 ? undefined : problems.join('; ') };
}
