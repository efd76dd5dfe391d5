// native/tensor.ts - the Tensor class.
import { invalidArg } from '../errors';
import { readBytes, readShape, type Vocabulary } from './arguments';
import { check, type RawTensor } from './raw';
import { type Device, DTYPE_BYTES, type DType, type Tensor } from './types';

// Set by the class's static block, so that the constructor and the native handle stay out of everybody else's reach.
let construct: (device: Device, vocabulary: Vocabulary, raw: RawTensor, dtype: DType, shape: number[]) => Tensor;
let rawOf: (value: unknown) => RawTensor | undefined;

export class NativeTensor implements Tensor {
  readonly device: Device;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly #raw: RawTensor;
  readonly #vocabulary: Vocabulary;

  private constructor(device: Device, vocabulary: Vocabulary, raw: RawTensor, dtype: DType, shape: number[]) {
    this.device = device;
    this.dtype = dtype;
    this.shape = Object.freeze(shape);
    this.byteLength = shape.reduce((product, dimension) => product * dimension, DTYPE_BYTES[dtype]);
    this.#raw = raw;
    this.#vocabulary = vocabulary;
  }

  static {
    construct = (device, vocabulary, raw, dtype, shape) => new NativeTensor(device, vocabulary, raw, dtype, shape);
    rawOf = (value) => (typeof value === 'object' && value !== null && #raw in value ? value.#raw : undefined);
  }

  get disposed(): boolean {
    return rawTensor('disposed', this).disposed();
  }

  view(dtype: DType, shape: readonly number[], byteOffset = 0): Tensor {
    const raw = rawTensor('view', this);
    const code = this.#vocabulary.dtype('view: dtype', dtype);
    const dims = readShape('view: shape', shape);
    const offset = readBytes('view: byteOffset', byteOffset);
    return construct(this.device, this.#vocabulary, check(raw.view(code, offset, ...dims)), dtype, dims);
  }

  dispose(): void {
    rawTensor('dispose', this).dispose();
  }
}

/** A tensor over native memory. */
export function makeTensor(
  device: Device,
  vocabulary: Vocabulary,
  raw: RawTensor,
  dtype: DType,
  shape: number[],
): Tensor {
  return construct(device, vocabulary, raw, dtype, shape);
}

/** The native handle of a tensor of this package. @throws ERR_INVALID_ARG for anything else, proxies included */
export function rawTensor(what: string, value: unknown): RawTensor {
  const raw = rawOf(value);
  if (raw === undefined) throw invalidArg(what, 'a tensor', value);
  return raw;
}
