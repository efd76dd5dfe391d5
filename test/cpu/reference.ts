// cpu/reference.ts - a laboratory for single operations: tensors from plain numbers, guarded and poisoned memory, one
// operation at a time, and comparison with float64 references.
import {
  type Device,
  DTYPE_BYTES,
  type DType,
  openDevice,
  type Stream,
  type Tensor,
  type Verbs,
} from '../../lib/native';
import { decode, encode, rounded } from './reference-formats';

export { decode, encode, rounded } from './reference-formats';
export * from './reference-math';

/** Element types of activations. */
export const ACTS = ['f32', 'bf16'] as const;
export type Act = (typeof ACTS)[number];

const GUARD_BYTES = 256;
const GUARD = 0xa5;

/** Repeatable random numbers (xorshift over 32 bits; quality is of no concern here). */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = (seed * 2654435761 + 88675123) | 0 || 1;
    for (let i = 0; i < 8; i++) this.next();
  }

  /** Uniform in [0, 1). */
  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return (this.state >>> 0) / 2 ** 32;
  }

  /** An integer in [0, n). */
  below(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** Standard normal. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next());
  }

  /** n normal values as a tensor of `dtype` would hold them. */
  values(dtype: DType, n: number, scale = 1, mean = 0): Float64Array {
    return Float64Array.from({ length: n }, () => rounded(dtype, mean + scale * this.normal()));
  }
}

/** A device with one stream, for one operation at a time. */
export class Laboratory {
  readonly device: Device;
  readonly stream: Stream;
  private readonly guarded = new WeakMap<Tensor, Tensor>();
  private workspace: Tensor | undefined;

  constructor(threads = 2) {
    this.device = openDevice('cpu', { threads });
    this.stream = this.device.stream();
  }

  /** A tensor that holds `values`, between guards that get() checks. */
  async put(dtype: DType, shape: readonly number[], values: ArrayLike<number>): Promise<Tensor> {
    const n = shape.reduce((product, dimension) => product * dimension, 1);
    if (values.length !== n) throw new Error(`${values.length} values for shape [${shape}]`);
    return this.place(dtype, shape, encode(dtype, values));
  }

  /** A tensor of NaN (or wild integers), for outputs and memory that must not be read. */
  async poison(dtype: DType, shape: readonly number[]): Promise<Tensor> {
    const bytes = shape.reduce((product, dimension) => product * dimension, DTYPE_BYTES[dtype]);
    return this.place(dtype, shape, new Uint8Array(bytes).fill(dtype[0] === 'f' || dtype === 'bf16' ? 0xff : 0x7f));
  }

  private async place(dtype: DType, shape: readonly number[], bytes: Uint8Array): Promise<Tensor> {
    const base = await this.device.allocate('u8', [bytes.length + 2 * GUARD_BYTES]);
    const content = new Uint8Array(bytes.length + 2 * GUARD_BYTES).fill(GUARD);
    content.set(bytes, GUARD_BYTES);
    this.stream.write(base, content);
    const tensor = base.view(dtype, shape, GUARD_BYTES);
    this.guarded.set(tensor, base);
    return tensor;
  }

  /** The tensor's bytes, after a look at the guards around it. */
  async bytes(tensor: Tensor): Promise<ArrayBuffer> {
    const base = this.guarded.get(tensor);
    if (base === undefined) return this.stream.read(tensor);
    const all = new Uint8Array(await this.stream.read(base));
    for (let i = 0; i < GUARD_BYTES; i++) {
      if (all[i] !== GUARD || all[all.length - 1 - i] !== GUARD) throw new Error('memory around a tensor was written');
    }
    return all.slice(GUARD_BYTES, all.length - GUARD_BYTES).buffer as ArrayBuffer;
  }

  /** The tensor's values. */
  async get(tensor: Tensor): Promise<Float64Array> {
    return decode(tensor.dtype, await this.bytes(tensor));
  }

  /** Runs one operation in a poisoned workspace of exactly the planned size, between guards. */
  async run<V extends keyof Verbs>(verb: V, args: Parameters<Verbs[V]>[0]): Promise<void> {
    const bytes = this.device.workspaceBytes(verb, args as never);
    if (bytes > 0) {
      if (this.workspace === undefined || this.workspace.byteLength !== bytes) {
        if (this.workspace !== undefined) this.release(this.workspace);
        this.workspace = await this.poison('u8', [bytes]);
      } else {
        this.stream.write(this.workspace, new Uint8Array(bytes).fill(0xff));
      }
      this.stream.useWorkspace(this.workspace);
    }
    (this.stream[verb] as (args: Parameters<Verbs[V]>[0]) => void)(args);
    await this.stream.record().done;
    if (bytes > 0 && this.workspace !== undefined) await this.bytes(this.workspace);
  }

  private release(tensor: Tensor): void {
    this.guarded.get(tensor)?.dispose();
    tensor.dispose();
  }

  async dispose(): Promise<void> {
    await this.device.dispose();
  }
}

/** Fails unless each value is within its own bound of what was expected, and NaN stands exactly where expected. */
export function expectWithin(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  bound: (i: number, expected: number) => number,
): void {
  if (actual.length !== expected.length) throw new Error(`${actual.length} values; expected ${expected.length}`);
  let worst = -1;
  let worstRatio = 1;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i] as number;
    const e = expected[i] as number;
    if (Object.is(a, e) || a === e) continue;
    const difference = Math.abs(a - e);
    const ratio = Number.isNaN(difference) ? Infinity : difference / bound(i, e);
    if (ratio > worstRatio || Number.isNaN(ratio)) {
      worst = i;
      worstRatio = ratio;
    }
  }
  if (worst >= 0) {
    throw new Error(
      `value ${worst} of ${expected.length} is ${actual[worst]}; expected ${expected[worst]} within ` +
        `${bound(worst, expected[worst] as number)} (${worstRatio.toPrecision(3)} times the bound)`,
    );
  }
}

/** Fails unless all values are the same (any NaN for NaN, either zero for zero); quick on large arrays. */
export function expectExact(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  expectWithin(actual, expected, () => 0);
}

/** The largest relative error of one rounding. */
export const EPSILON: Readonly<Record<Act, number>> = { f32: 2 ** -24, bf16: 2 ** -8 };

/** expectWithin for results that are rounded once after float32 arithmetic with small relative error. */
export function expectRounded(actual: ArrayLike<number>, expected: ArrayLike<number>, act: Act, slack = 1e-6): void {
  expectWithin(actual, expected, (_, e) => (EPSILON[act] + slack) * Math.abs(e));
}

/** Fails unless the promise rejects with ERR_INVALID_ARG and a message that names all of `parts`. */
export async function expectInvalid(promise: Promise<unknown>, ...parts: string[]): Promise<void> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e as { code?: string; message: string },
  );
  if (error === undefined) throw new Error(`expected ERR_INVALID_ARG about ${parts.join(', ')}; it succeeded`);
  expect(error).toMatchObject({ code: 'ERR_INVALID_ARG' });
  for (const part of parts) expect(error.message).toContain(part);
}
