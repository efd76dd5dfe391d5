// cpu/matrix-support.ts - what the tests of matrix products share: operands as the contract rounds them, weights of
// every type, and running one operation in every way that must give the same bits.
import type { DType, Tensor } from '../../lib/native';
import { type Act, EPSILON, encode, expectWithin, Laboratory, type Random, rounded } from './reference';
import { fp8Rows } from './reference-cache';

export type WeightType = 'f32' | 'bf16' | 'f8e4m3';

export const WEIGHTS = ['f32', 'bf16', 'f8e4m3'] as const;

/** How rows enter the product: as they are, or as fp8 activations. */
export type Entering = 'as they are' | 'in fp8';

/** Every activation and weight type, and way in which rows enter their product. */
export const KINDS: readonly (readonly [Act, WeightType, Entering])[] = (['f32', 'bf16'] as const).flatMap((act) => [
  ...WEIGHTS.map((weight) => [act, weight, 'as they are'] as const),
  [act, 'f8e4m3', 'in fp8'] as const,
]);

/** What rows of `width` values multiply with. */
export const entered = (rows: Float64Array, width: number, entering: Entering): Float64Array =>
  entering === 'in fp8' ? fp8Rows(rows, width) : rows;

const SCALE_BLOCK = 128;
const blocks = (n: number) => Math.ceil(n / SCALE_BLOCK);

/** A weight matrix, or a stack of them: what is stored, and what a product multiplies with. */
export interface Weights {
  dtype: WeightType;
  shape: number[];
  stored: Float64Array;
  scaleShape: number[];
  scale: Float64Array | undefined;
  /** float64 operands, same shape */
  operand: Float64Array;
}

/** n values drawn from a thousand: rounding each number in software is what these tests would spend their time on. */
function manyValues(random: Random, dtype: DType, n: number, scale: number): Float64Array {
  const some = random.values(dtype, Math.min(n, 1000), scale);
  return new Float64Array(n).map((_, i) => (i < some.length ? some[i] : some[random.below(some.length)]) as number);
}

/**
 * Random weights of shape [..., n, k]. `gateUp`: rows of each matrix are gate and up in turns of 8, with the scales of
 * all gate rows first.
 */
export function makeWeights(random: Random, dtype: WeightType, act: Act, shape: number[], gateUp = false): Weights {
  const [n, k] = shape.slice(-2) as [number, number];
  const matrices = shape.slice(0, -2).reduce((product, d) => product * d, 1);
  const channels = gateUp ? n / 2 : n;
  const stored = manyValues(random, dtype, matrices * n * k, dtype === 'f8e4m3' ? 60 : 0.2);
  const parts = gateUp ? [2] : [];
  const scaleShape = [...shape.slice(0, -2), ...parts, blocks(channels), blocks(k)];
  const perMatrix = (gateUp ? 2 : 1) * blocks(channels) * blocks(k);
  // Not powers of two, so that value and scale do not commute with rounding.
  const scale =
    dtype === 'f8e4m3'
      ? Float64Array.from({ length: matrices * perMatrix }, () => rounded('f32', 0.002 + 0.004 * random.next()))
      : undefined;
  const known = new Map<number, number>();
  const operand = stored.map((value, i) => {
    if (scale === undefined) {
      if (!known.has(value)) known.set(value, rounded(act, value));
      return known.get(value) as number;
    }
    const matrix = Math.floor(i / (n * k));
    const row = Math.floor(i / k) % n;
    const channel = gateUp ? Math.floor(row / 16) * 8 + (row % 8) : row;
    const part = gateUp && row % 16 >= 8 ? 1 : 0;
    const block = (part * blocks(channels) + Math.floor(channel / SCALE_BLOCK)) * blocks(k);
    return value * (scale[matrix * perMatrix + block + Math.floor((i % k) / SCALE_BLOCK)] as number);
  });
  return { dtype, shape, stored, scaleShape, scale, operand };
}

/** Devices with one, two and three threads, and tensors that are placed once on each. */
export class Laboratories {
  readonly all: Laboratory[] = [new Laboratory(1), new Laboratory(2), new Laboratory(3)];
  private readonly encoded = new Map<Float64Array, Uint8Array>();
  private readonly kept = new Map<Laboratory, Map<Float64Array, Tensor>>(this.all.map((lab) => [lab, new Map()]));

  get one(): Laboratory {
    return this.all[0] as Laboratory;
  }

  /** The tensor of these values on this device; the same array gives the same tensor. */
  async keep(lab: Laboratory, dtype: DType, shape: readonly number[], values: Float64Array): Promise<Tensor> {
    const known = this.kept.get(lab)?.get(values);
    if (known !== undefined) return known;
    const bytes = this.encoded.get(values) ?? encode(dtype, values);
    this.encoded.set(values, bytes);
    const tensor = (await lab.put('u8', [bytes.length], bytes)).view(dtype, shape);
    this.kept.get(lab)?.set(values, tensor);
    return tensor;
  }

  /** Weight and scale arguments of an operation. */
  async weights(lab: Laboratory, w: Weights): Promise<[Tensor, Tensor | undefined]> {
    const tensor = await this.keep(lab, w.dtype, w.shape, w.stored);
    return [tensor, w.scale && (await this.keep(lab, 'f32', w.scaleShape, w.scale))];
  }

  /**
   * Calls `body` for all rows on each device, then for parts of them down to single rows, and compares the bytes that
   * it returns, which must lie row by row. The parts are a sample that holds the first and the last row, or `every`.
   */
  async everyWay(
    rows: number,
    body: (lab: Laboratory, begin: number, end: number) => Promise<ArrayBuffer>,
    every = false,
  ) {
    const first = new Uint8Array(await body(this.one, 0, rows));
    const rowBytes = first.length / rows;
    for (const lab of this.all.slice(1)) {
      expectSameBytes(new Uint8Array(await body(lab, 0, rows)), first, 'all rows on another device');
    }
    for (const step of [1, 5, 19]) {
      const lab = this.all[step % this.all.length] as Laboratory;
      const parts = Math.ceil(rows / step);
      for (let part = 0; part < parts; part++) {
        if (!every && part > 1 && part < parts - 1 && part !== parts >> 1) continue;
        const [begin, end] = [part * step, Math.min(rows, (part + 1) * step)];
        const actual = new Uint8Array(await body(lab, begin, end));
        expectSameBytes(actual, first.subarray(begin * rowBytes, end * rowBytes), `rows ${begin} to ${end - 1} alone`);
      }
    }
  }

  async dispose(): Promise<void> {
    for (const lab of this.all) await lab.dispose();
  }
}

function expectSameBytes(actual: Uint8Array, expected: Uint8Array, way: string): void {
  if (Buffer.compare(actual, expected) !== 0) throw new Error(`${way}: other bits than all rows on one thread`);
}

/** Rows [begin, end) of an array of rows of `width`. */
export const rowsOf = (values: Float64Array, width: number, begin: number, end: number) =>
  values.subarray(begin * width, end * width);

/**
 * Fails unless each value is within one rounding to `dtype` of the expected one, plus `tolerance` of its row's root
 * mean square for the float32 sums before that, plus its own `slack`.
 */
export function expectRows(
  actual: ArrayLike<number>,
  expected: Float64Array,
  width: number,
  dtype: Act,
  tolerance = 1e-5,
  slack?: Float64Array,
): void {
  const scale = new Float64Array(expected.length / width).map((_, row) =>
    Math.sqrt(rowsOf(expected, width, row, row + 1).reduce((sum, x) => sum + x * x, 0) / width),
  );
  expectWithin(
    actual,
    expected,
    (i, e) => tolerance * (scale[Math.floor(i / width)] as number) + EPSILON[dtype] * Math.abs(e) + (slack?.[i] ?? 0),
  );
}

/** Row of an interleaved gate/up matrix that holds channel i of gate (part 0) or of up (part 1). */
export const interleaved = (i: number, part: 0 | 1) => Math.floor(i / 8) * 16 + part * 8 + (i % 8);

export const silu = (x: number) => x / (1 + Math.exp(-x));
