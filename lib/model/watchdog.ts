// model/watchdog.ts - notices that a device hangs. A kernel that never ends cannot be stopped, and nothing behind it ends
// either; so the promises that are watched reject, and the device is given up.

import { MlaError } from '../errors';

/** Of a GPU, where a step takes milliseconds. On the CPU one can take minutes, and does not hang. */
export const GPU_STEP_TIMEOUT_MS = 120_000;

/** Watches promises of what a device does, one after the other. */
export class Watchdog {
  readonly #rejects = new Set<(error: unknown) => void>();
  #timer: NodeJS.Timeout | null = null;
  /** when the last one ended, or the first of those that are watched now began (performance.now()) */
  #quietSince = 0;

  /**
   * @param limitMs how long nothing may end while something is watched; 0: for ever
   * @param onHang is told before the promises reject
   */
  constructor(
    private readonly limitMs: number,
    private readonly onHang: () => void,
  ) {}

  /**
   * What these promises bring, as Promise.all gives it; but it rejects with ERR_DEVICE_LOST when the device hangs. One
   * takes as many turns as several, so what ends in an order is heard of in that order.
   */
  watch<T>(...works: readonly Promise<T>[]): Promise<T[]> {
    return new Promise<T[]>((resolve, reject) => {
      if (this.limitMs > 0) this.#begin(reject);
      const values: T[] = [];
      let left = works.length;
      const fail = (error: unknown) => {
        this.#end(reject);
        reject(error);
      };
      works.forEach((work, i) => {
        work.then((value) => {
          values[i] = value;
          left -= 1;
          if (left > 0) return;
          this.#end(reject);
          resolve(values);
        }, fail);
      });
    });
  }

  #begin(reject: (error: unknown) => void): void {
    this.#rejects.add(reject);
    if (this.#rejects.size > 1) return;
    this.#quietSince = performance.now();
    this.#arm();
  }

  #end(reject: (error: unknown) => void): void {
    if (!this.#rejects.delete(reject)) return;
    this.#quietSince = performance.now();
    if (this.#rejects.size === 0) this.#stop();
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
        if (this.#rejects.size === 0) return;
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
    const rejects = [...this.#rejects];
    this.#rejects.clear();
    this.onHang();
    for (const reject of rejects) reject(error);
  }

  #stop(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
