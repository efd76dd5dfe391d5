// native/device.ts - the Device class.
import { invalidArg } from '../errors';
import { readBytes, readPlannedOperation, readShape, type Vocabulary } from './arguments';
import { check, type RawDevice } from './raw';
import { makeStream } from './stream';
import { makeTensor } from './tensor';
import type { Device, DeviceInfo, DType, SpecsOf, Stream, Tensor, Verbs } from './types';

let rawOf: (value: unknown) => RawDevice | undefined;

/** The native handle of a device. @throws ERR_INVALID_ARG */
export function rawDevice(what: string, value: unknown): RawDevice {
  const raw = rawOf(value);
  if (raw === undefined) throw invalidArg(what, 'a device', value);
  return raw;
}

export class NativeDevice implements Device {
  readonly #raw: RawDevice;
  readonly #vocabulary: Vocabulary;
  #ending: Promise<void> | undefined;

  constructor(raw: RawDevice, vocabulary: Vocabulary) {
    this.#raw = raw;
    this.#vocabulary = vocabulary;
  }

  static {
    rawOf = (value) => (typeof value === 'object' && value !== null && #raw in value ? value.#raw : undefined);
  }

  get disposed(): boolean {
    return rawDevice('Device.disposed: this', this).disposed();
  }

  info(): DeviceInfo {
    return check(rawDevice('Device.info: this', this).info()) as DeviceInfo;
  }

  async allocate(dtype: DType, shape: readonly number[]): Promise<Tensor> {
    const raw = rawDevice('Device.allocate: this', this);
    const code = this.#vocabulary.dtype('allocate: dtype', dtype);
    const dims = readShape('allocate: shape', shape);
    return makeTensor(this, this.#vocabulary, check(await check(raw.allocate(code, ...dims))), dtype, dims);
  }

  stream(): Stream {
    return makeStream(this, check(rawDevice('Device.stream: this', this).stream()));
  }

  workspaceBytes<V extends keyof Verbs>(verb: V, args: SpecsOf<Parameters<Verbs[V]>[0]>): number {
    const raw = rawDevice('Device.workspaceBytes: this', this);
    const values = readPlannedOperation(this.#vocabulary, verb, args);
    return check(raw.workspaceBytes.apply(raw, values as [number]));
  }

  decodePlanInts(maxSequences: number, heads: number): number {
    return check(rawDevice('Device.decodePlanInts: this', this).decodePlanInts(maxSequences, heads));
  }

  allocatedBytes(): number {
    return rawDevice('Device.allocatedBytes: this', this).allocatedBytes();
  }

  abandon(ms: number): void {
    check(rawDevice('Device.abandon: this', this).abandon(readBytes('abandon: ms', ms)));
  }

  async dispose(): Promise<void> {
    const raw = rawDevice('Device.dispose: this', this);
    this.#ending ??= (async () => {
      check(await raw.dispose());
    })();
    return this.#ending;
  }
}
