// model/watchdog.ts - notices that a device hangs. A kernel that never ends cannot be stopped, and nothing behind it ends
// either; so the promises that are watched reject, and the device is given up.

import { MlaError } from '../errors';

/** Of a GPU, where a step takes milliseconds. On the CPU one can take minutes, and does not hang. */
export const GPU_STEP_TIMEOUT_MS = 120_000;

/** Watches promises of what a device does, one after the other. */
export class Watchdog {
  /** of what is watched now; seldom more than two */
  readonly #fails: ((error: unknown) => void)[] = [];
  #timer: NodeJS.Timeout | null = null;
  /** when the last one ended, or the first of those that are watched now began (performance.now()) */
  #quietSince = 0;

  /**
   * @param limitMs how long nothing may end while something is watched; 0: for ever
   * @param onHang is told before those who watch
   */
  constructor(
    private readonly limitMs: number,
    private readonly onHang: () => void,
  ) {}

  /** What these promises bring, as Promise.all gives it; but it rejects with ERR_DEVICE_LOST when the device hangs. */
  watch<T>(...works: readonly Promise<T>[]): Promise<T[]> {
    return new Promise<T[]>((resolve, reject) => this.tell(works, resolve, reject));
  }

  /**
   * Tells `done` what these promises bring, or `failed` why one of them does not, or that the device hangs: one of the
   * two, once. Neither may throw. One promise takes as many turns as several, so what ends in an order is heard of in
   * that order.
   */
  tell<T>(works: readonly Promise<T>[], done: (values: T[]) => void, failed: (error: unknown) => void): void {
    const values: T[] = [];
    let left = works.length; // 0 when all is told
    const fail = (error: unknown) => {
      if (left === 0) return;
      left = 0;
      this.#end(fail);
      failed(error);
    };
    if (this.limitMs > 0) this.#begin(fail);
    for (let i = 0; i < works.length; i++) {
      (works[i] as Promise<T>).then((value) => {
        if (left === 0) return;
        values[i] = value;
        left -= 1;
        if (left > 0) return;
        this.#end(fail);
        done(values);
      }, fail);
    }
  }

  #begin(fail: (error: unknown) => void): void {
    this.#fails.push(fail);
    if (this.#fails.length > 1) return;
    this.#quietSince = performance.now();
    this.#arm();
  }

  #end(fail: (error: unknown) => void): void {
    const at = this.#fails.indexOf(fail);
    if (at < 0) return;
    this.#fails.splice(at, 1);
    this.#quietSince = performance.now();
    if (this.#fails.length === 0) this.#stop();
  }

  /** The timer is not moved at each end, but set again where it finds that something has ended since. */
  #arm(): void {
    this.#stop();
    const quietMs = performance.now() - this.#quietSince;
    this.#timer = setTimeout(() => this.#look(), Math.ceil(this.limitMs - quietMs));
  }

  /** The event loop may have been held up, or the process asleep: what has ended meanwhile is heard of first. */
  #look(): void {
    setImmediate(() => {
      setImmediate(() => {
        if (this.#fails.length === 0) return;
        if (performance.now() - this.#quietSince < this.limitMs) this.#arm();
        else this.#giveUp();
      });
    });
  }

  #giveUp(): void {
    const error = new MlaError(
      'ERR_DEVICE_LOST',
      `No step has ended within ${this.limitMs} ms (stepTimeout), so the device hangs. Nothing more can be done with it in this process; start another one.`,
    );
    this.#stop();
    const fails = this.#fails.splice(0);
    this.onHang();
    for (const fail of fails) fail(error);
  }

  #stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
