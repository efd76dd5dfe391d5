// bench/workbench.ts - a device with one stream: random tensors made on it, single values read back, all memory given back
// after each case.
import type { Device, DType, Stream, Tensor, Verbs } from '../native';

/** Repeatable random numbers for routings and samples; the bulk of the data comes from the device. */
export class Dice {
  #state: number;

  constructor(seed: number) {
    this.#state = (seed * 2654435761 + 1013904223) >>> 0 || 1;
  }

  /** An integer in [0, n). */
  below(n: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return Math.floor(((this.#state >>> 0) / 2 ** 32) * n);
  }

  /** `count` different integers in [0, n), ascending. */
  some(count: number, n: number): number[] {
    const chosen = new Set<number>();
    while (chosen.size < Math.min(count, n)) chosen.add(this.below(n));
    return [...chosen].sort((a, b) => a - b);
  }
}

/** Shuffles in place. */
export function shuffle(values: Int32Array, dice: Dice): Int32Array {
  for (let i = values.length - 1; i > 0; i--) {
    const j = dice.below(i + 1);
    [values[i], values[j]] = [values[j] as number, values[i] as number];
  }
  return values;
}

/** Values of a bf16 or f32 tensor. */
export function floatsOf(dtype: DType, bytes: ArrayBuffer): Float32Array {
  if (dtype === 'f32') return new Float32Array(bytes);
  const words = new Uint16Array(bytes);
  const wide = new Uint32Array(words.length);
  for (let i = 0; i < words.length; i++) wide[i] = (words[i] as number) << 16;
  return new Float32Array(wide.buffer);
}

/** sum of a[aStart + i] * b[bStart + i] in float64. */
export function dot(a: ArrayLike<number>, aStart: number, b: ArrayLike<number>, bStart: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += (a[aStart + i] as number) * (b[bStart + i] as number);
  return sum;
}

/** ||actual - expected|| / ||expected||; NaN when something is NaN. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += ((actual[i] as number) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  return Math.sqrt(difference / norm);
}

const DTYPE_BYTES: Partial<Record<DType, number>> = { bf16: 2, f32: 4, i32: 4, u8: 1, f8e4m3: 1 };

/** Makes and keeps what one case needs. */
export class Workbench {
  #owned: Tensor[] = [];
  #seed = 1;
  #firstSeed = 1;

  constructor(
    readonly device: Device,
    readonly stream: Stream = device.stream(),
  ) {}

  /** Makes the next random tensors those that `other` has made since its last release. */
  restart(other: Workbench): void {
    this.#seed = other.#firstSeed;
  }

  /** Zeros. */
  async zeros(dtype: DType, shape: readonly number[]): Promise<Tensor> {
    const tensor = await this.device.allocate(dtype, shape);
    this.#owned.push(tensor);
    return tensor;
  }

  /** Normal values. */
  async random(dtype: 'bf16' | 'f32', shape: readonly number[], stddev = 1): Promise<Tensor> {
    const tensor = await this.zeros(dtype, shape);
    this.stream.fillRandom({ out: tensor, seed: this.#seed++, mean: 0, stddev });
    return tensor;
  }

  /** These 32-bit values. */
  async put(values: Int32Array | Float32Array, shape: readonly number[] = [values.length]): Promise<Tensor> {
    const tensor = await this.zeros(values instanceof Int32Array ? 'i32' : 'f32', shape);
    this.stream.write(tensor, values);
    return tensor;
  }

  /** Part i of a tensor that holds several of this shape, one behind the other; as another type if one is given. */
  part(whole: Tensor, i: number, shape: readonly number[], dtype: DType = whole.dtype): Tensor {
    const bytes = shape.reduce((product, n) => product * n, DTYPE_BYTES[dtype] as number);
    const view = whole.view(dtype, shape, i * bytes);
    this.#owned.push(view);
    return view;
  }

  /** `count` elements from element `first` on. */
  async read(tensor: Tensor, first: number, count: number): Promise<Float32Array> {
    const view = tensor.view(tensor.dtype, [count], first * (DTYPE_BYTES[tensor.dtype] as number));
    try {
      return floatsOf(tensor.dtype, await this.stream.read(view));
    } finally {
      view.dispose();
    }
  }

  /** Blocks of `width` elements, each `stride` behind the one before, packed and read. */
  async gather(tensor: Tensor, first: number, blocks: number, width: number, stride: number): Promise<Float32Array> {
    const size = DTYPE_BYTES[tensor.dtype] as number;
    const packed = await this.device.allocate(tensor.dtype, [blocks, width]);
    try {
      this.stream.copy({
        src: tensor,
        dst: packed,
        blocks,
        block_bytes: width * size,
        src_offset: first * size,
        src_stride: stride * size,
        dst_stride: width * size,
      });
      return floatsOf(tensor.dtype, await this.stream.read(packed));
    } finally {
      packed.dispose();
    }
  }

  /** Scratch memory for operations like this one. */
  async workspaceFor<V extends keyof Verbs>(verb: V, args: Parameters<Verbs[V]>[0]): Promise<void> {
    const bytes = this.device.workspaceBytes(verb, args as never);
    if (bytes > 0) this.stream.useWorkspace(await this.zeros('u8', [bytes]));
  }

  /** Gives back everything made since the last release. */
  async release(): Promise<void> {
    await this.stream.record().done.catch(() => {});
    for (const tensor of this.#owned.splice(0)) tensor.dispose();
    this.#firstSeed = this.#seed;
  }
}
