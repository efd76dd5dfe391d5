// bench/controls.ts - what a measured operation is held against: the launch of next to nothing, and a kernel that does
// nothing but read the same number of bytes.
import type { Device, Tensor } from '../native';
import { median, timeGraph } from './timing';
import { Workbench } from './workbench';

/** Parts of a plain read: two blocks for each multiprocessor of the largest GPU keep all of them busy. */
const READ_PARTS = 264;
const CHAIN = 100;
const SAMPLES = 7;

/** Microseconds of an operation that does next to nothing. */
export interface EmptyLaunch {
  /** each, many in one graph */
  chainUs: number;
  /** alone in a graph */
  singleUs: number;
}

/** Measures controls on a device; owns `coldBytes` of its memory until released. */
export class Controls {
  readonly #known = new Map<number, number>();

  private constructor(
    private readonly bench: Workbench,
    private readonly data: Tensor,
    private readonly sums: Tensor,
    private readonly coldBytes: number,
  ) {}

  /** Rejects with ERR_OUT_OF_DEVICE_MEMORY when `coldBytes` do not fit. */
  static async create(device: Device, coldBytes: number): Promise<Controls> {
    const bench = new Workbench(device);
    const data = await bench.random('bf16', [Math.ceil(coldBytes / 2)]);
    return new Controls(bench, data, await bench.zeros('i64', [READ_PARTS]), coldBytes);
  }

  /** The launch of an operation on one element. */
  async emptyLaunch(): Promise<EmptyLaunch> {
    const x = await this.bench.zeros('f32', [1]);
    const out = await this.bench.zeros('f32', [1]);
    const us = async (operations: number) => {
      const graph = this.bench.stream.capture(() => {
        for (let i = 0; i < operations; i++) this.bench.stream.cast({ x, out });
      });
      try {
        return median(await timeGraph(this.bench.stream, graph, SAMPLES));
      } finally {
        graph.dispose();
      }
    };
    return { chainUs: await us(CHAIN), singleUs: await us(1) };
  }

  /** Microseconds that a plain read of so many bytes takes, from memory that no cache holds, in a chain of such reads. */
  async readUs(bytes: number): Promise<number> {
    const piece = Math.max(256, Math.ceil(bytes / 256) * 256);
    if (piece > this.coldBytes) return ((await this.readUs(this.coldBytes)) * bytes) / this.coldBytes;
    const known = this.#known.get(piece);
    if (known !== undefined) return known;
    const sets = Math.min(1024, Math.floor(this.coldBytes / piece));
    const views: Tensor[] = [];
    for (let i = 0; i < sets; i++) views.push(this.data.view('u8', [piece], i * piece));
    const graph = this.bench.stream.capture(() => {
      for (let i = 0; i < Math.max(sets, 20); i++)
        this.bench.stream.checksum({ x: views[i % sets] as Tensor, sums: this.sums });
    });
    try {
      const us = median(await timeGraph(this.bench.stream, graph, SAMPLES));
      this.#known.set(piece, us);
      return us;
    } finally {
      graph.dispose();
      for (const view of views) view.dispose();
    }
  }

  /** Bytes per second of the longest plain read. */
  async readSpeed(): Promise<number> {
    return (this.coldBytes / (await this.readUs(this.coldBytes))) * 1e6;
  }

  /** Gives the memory back. */
  release(): Promise<void> {
    return this.bench.release();
  }
}
