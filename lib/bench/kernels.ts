// bench/kernels.ts - measures operations one by one: first right, then fast.
import { invalidArg, MlaError } from '../errors';
import { openModelDevice } from '../model';
import type { DeviceInfo } from '../native';
import { Anchors, type Ceilings } from './anchors';
import { ATTENTION_CASES } from './attention-cases';
import { GEMM_CASES } from './gemm-cases';
import type { KernelCase } from './kernel-case';
import { MOE_CASES } from './moe-cases';
import { median, timeGraph } from './timing';
import { Workbench } from './workbench';

/** Every case, in the order in which they run. */
export const KERNEL_CASES: readonly KernelCase[] = [...ATTENTION_CASES, ...MOE_CASES, ...GEMM_CASES];

/** Operations of one graph, unless its sets are more, or so many take longer than LONG_GRAPH_MS at the floor. */
const MIN_OPERATIONS = 50;
const LONG_GRAPH_MS = 20;
/** What a device-to-device copy of this size reaches stands in for the memory ceiling of a GPU without a known one. */
const COPY_BYTES = 2 ** 30;

export interface KernelBenchOptions {
  /** 'cpu', 'cuda:N' or 'cuda:N:portable' */
  device: string;
  /** Only cases whose id contains one of these; all without. */
  filter?: readonly string[] | undefined;
  samples?: number | undefined;
  /** bytes that the sets of a case take together */
  coldBytes?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** One measured case. */
export interface KernelResult {
  id: string;
  /** microseconds: the median, and every sample */
  us: number;
  samples: number[];
  operations: number;
  sets: number;
  bytesPerSecond: number;
  flopsPerSecond: number;
  /** microseconds that no kernel can beat: bytes and operations at the ceilings, the larger of the two */
  floorUs: number;
  /** relative error on sampled rows against float64, and the largest allowed */
  error: number;
  bound: number;
  /** the fastest public figure; comparable if it was measured on the same kind of GPU */
  public: { us: number; by: string; comparable: boolean } | null;
  /** what went wrong instead; the figures are NaN then */
  failure: string | null;
}

/** What the figures belong to. */
export interface KernelBenchHeader {
  device: DeviceInfo;
  ceilings: Ceilings;
  /** where the ceilings come from */
  ceilingSource: string;
  /** the GPU of the public figures */
  publicGpu: string;
}

/**
 * Runs the cases; each result is given to `report` as soon as it is there.
 * Rejects with ERR_INVALID_ARG when nothing matches, with what opening the device throws, or with the signal's reason.
 */
export async function benchKernels(
  options: KernelBenchOptions,
  begin: (header: KernelBenchHeader) => void,
  report: (result: KernelResult) => void,
): Promise<void> {
  const { filter, samples = 20, coldBytes = 2 ** 30, signal } = options;
  // Names can be given without spaces, "gemm.n=576", where a shell or a script would split them.
  const dotted = (text: string) => text.replaceAll(' ', '.');
  const cases = KERNEL_CASES.filter(({ id }) => filter?.some((part) => dotted(id).includes(dotted(part))) ?? true);
  if (cases.length === 0) throw invalidArg('filter', 'a part of the name of a case', filter);
  const anchors = new Anchors();
  const device = openModelDevice(options.device, 0);
  try {
    const info = device.info();
    const bench = new Workbench(device);
    const known = anchors.ceilings(info.name);
    const ceilings = known ?? { bytesPerSecond: await copySpeed(bench, coldBytes), bf16FlopsPerSecond: Infinity };
    begin({
      device: info,
      ceilings,
      ceilingSource:
        known === undefined ? 'a device-to-device copy just measured; operations not counted' : 'bench/anchors.json',
      publicGpu: anchors.gpu,
    });
    for (const kernel of cases) {
      signal?.throwIfAborted();
      report(await measure(bench, kernel, { samples, coldBytes, ceilings, anchors, info }));
    }
  } finally {
    await device.dispose();
  }
}

interface Settings {
  samples: number;
  coldBytes: number;
  ceilings: Ceilings;
  anchors: Anchors;
  info: DeviceInfo;
}

async function measure(bench: Workbench, kernel: KernelCase, settings: Settings): Promise<KernelResult> {
  const { bytes, flops } = kernel.cost();
  const { ceilings, anchors, info } = settings;
  const floorUs = Math.max(bytes / ceilings.bytesPerSecond, flops / ceilings.bf16FlopsPerSecond) * 1e6;
  const anchor = anchors.kernel(kernel.id);
  const comparable = info.name === anchors.gpu;
  const beside = anchor === undefined ? null : { us: anchor.us, by: anchor.by, comparable };
  const base = { id: kernel.id, floorUs, public: beside };
  try {
    const prepared = await kernel.prepare(bench, settings.coldBytes);
    const { sets, bound } = prepared;
    // A CPU has no launches to hide, and is slow.
    const most = info.kind === 'cpu' ? 1 : Math.ceil((LONG_GRAPH_MS * 1000) / floorUs);
    const operations = Math.max(sets, Math.min(MIN_OPERATIONS, most));
    const graph = bench.stream.capture(() => {
      for (let i = 0; i < operations; i++) prepared.issue(i % sets);
    });
    try {
      graph.replay();
      await bench.stream.record().done;
      const error = await prepared.check();
      const failure = error <= bound ? null : `relative error ${error.toExponential(2)}, at most ${bound} allowed`;
      const samples = failure === null ? await timeGraph(bench.stream, graph, settings.samples) : [];
      const us = median(samples);
      return {
        ...base,
        us,
        samples,
        operations,
        sets,
        bytesPerSecond: (bytes / us) * 1e6,
        flopsPerSecond: (flops / us) * 1e6,
        error,
        bound,
        failure,
      };
    } finally {
      graph.dispose();
    }
  } catch (error) {
    if (!(error instanceof MlaError) || error.code === 'ERR_DEVICE_LOST') throw error;
    const nothing = { us: Number.NaN, samples: [], operations: 0, sets: 0, error: Number.NaN, bound: Number.NaN };
    const failure = `${error.message} (${error.code})`;
    return { ...base, ...nothing, bytesPerSecond: Number.NaN, flopsPerSecond: Number.NaN, failure };
  } finally {
    await bench.release();
  }
}

/** Bytes per second, read and written, of a large copy. */
async function copySpeed(bench: Workbench, coldBytes: number): Promise<number> {
  const bytes = Math.min(COPY_BYTES, coldBytes);
  try {
    const src = await bench.random('bf16', [bytes / 2]);
    const dst = await bench.zeros('bf16', [bytes / 2]);
    const blocks = Math.max(1, bytes / 2 ** 20);
    const size = bytes / blocks;
    const graph = bench.stream.capture(() =>
      bench.stream.copy({ src, dst, blocks, block_bytes: size, src_stride: size, dst_stride: size }),
    );
    try {
      return (2 * bytes * 1e6) / median(await timeGraph(bench.stream, graph, 10));
    } finally {
      graph.dispose();
    }
  } finally {
    await bench.release();
  }
}
