// native/support.ts - what the tests of devices, tensors and streams share.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type Device, type DType, openDevice, type Stream, type Tensor } from '../../lib/native';

/** A CPU device with one stream, and a large tensor to keep it busy with. */
export class Bench {
  private constructor(
    readonly device: Device,
    readonly stream: Stream,
    private readonly ballast: Tensor,
  ) {}

  static async open(): Promise<Bench> {
    const device = openDevice('cpu', { threads: 1 });
    const stream = device.stream();
    return new Bench(device, stream, await device.allocate('f32', [1 << 22]));
  }

  /** Bytes held besides the ballast. */
  get held(): number {
    return this.device.allocatedBytes() - (this.ballast.disposed ? 0 : this.ballast.byteLength);
  }

  tensor(...shape: number[]): Promise<Tensor> {
    return this.device.allocate('f32', shape);
  }

  /** Four commands of tens of milliseconds, long enough for a thread that has to wait for its turn. */
  busy(stream: Stream = this.stream): void {
    for (let i = 0; i < 4; i++) stream.fillRandom({ out: this.ballast, seed: i, mean: 0, stddev: 1 });
  }

  async floats(tensor: Tensor, stream: Stream = this.stream): Promise<number[]> {
    return [...new Float32Array(await stream.read(tensor))];
  }

  /** Waits until the stream is idle; a failure of the stream is dropped. */
  async settle(stream: Stream = this.stream): Promise<void> {
    await stream.record().done.catch(() => {});
  }

  dispose(): Promise<void> {
    return this.device.dispose();
  }
}

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Collects garbage until `done` says so; finalizers of native objects run between turns. False if it never does. */
export async function collectUntil(done: () => boolean): Promise<boolean> {
  for (let i = 0; i < 100; i++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
    if (done()) return true;
  }
  return false;
}

/** The code of the error that `body` throws or rejects with; undefined if it succeeds. Fails on any other error. */
export async function codeOf(body: () => unknown): Promise<string | undefined> {
  try {
    await body();
    return undefined;
  } catch (error) {
    expect(error).toMatchObject({ name: 'MlaError', message: expect.stringMatching(/./) });
    return (error as { code: string }).code;
  }
}

export const ALL_DTYPES: readonly DType[] = ['f32', 'bf16', 'f16', 'f8e4m3', 'f8e8m0', 'i64', 'i32', 'u32', 'u8'];
