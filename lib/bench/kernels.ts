// bench/kernels.ts - measures operations one by one: first right, then fast.
import { invalidArg, MlaError } from '../errors';
import { openModelDevice } from '../model';
import type { DeviceInfo } from '../native';
import { Anchors, type Ceilings } from './anchors';
import { ATTENTION_CASES } from './attention-cases';
import { Controls, type EmptyLaunch } from './controls';
import { GEMM_CASES } from './gemm-cases';
import type { KernelCase, PreparedCase } from './kernel-case';
import { MHA_CASES } from './mha-cases';
import { MOE_CASES } from './moe-cases';
import { ROUTER_CASES } from './router-cases';
import { median, timeGraph } from './timing';
import { floatsOf, relativeError, Workbench } from './workbench';

/** Every case, in the order in which they run. */
export const KERNEL_CASES: readonly KernelCase[] = [
  ...ATTENTION_CASES,
  ...MHA_CASES,
  ...ROUTER_CASES,
  ...MOE_CASES,
  ...GEMM_CASES,
];

/** Operations of one graph, unless its sets are more, or so many take longer than LONG_GRAPH_MS at the floor. */
const MIN_OPERATIONS = 50;
const LONG_GRAPH_MS = 20;
/** Samples of one operation alone. */
const ALONE_SAMPLES = 5;

export interface KernelBenchOptions {
  /** 'cpu', 'cuda:N' or 'cuda:N:portable' */
  device: string;
  /** the kernels of models with that option; what it costs is the difference. Default false */
  deterministic?: boolean | undefined;
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
  /** microseconds of one alone in a graph */
  singleUs: number;
  /** microseconds of a plain read of as many bytes, in a chain */
  readUs: number;
  bytesPerSecond: number;
  flopsPerSecond: number;
  /** microseconds that no kernel can beat: bytes and operations at the ceilings, the larger of the two */
  floorUs: number;
  /** relative error on sampled rows against float64, and the largest allowed */
  error: number;
  bound: number;
  /** relative difference of everything it wrote from what the portable kernels write; null where those ran */
  portableError: number | null;
  /** the fastest public figure; comparable if it was measured on the same kind of GPU */
  public: { us: number; by: string; comparable: boolean } | null;
  /** what went wrong instead; the figures are NaN then */
  failure: string | null;
}

/** What the figures belong to. */
export interface KernelBenchHeader {
  device: DeviceInfo;
  deterministic: boolean;
  ceilings: Ceilings;
  /** where the ceilings come from */
  ceilingSource: string;
  /** the GPU of the public figures */
  publicGpu: string;
  empty: EmptyLaunch;
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
  const { deterministic = false, filter, samples = 20, coldBytes = 2 ** 30, signal } = options;
  // Names can be given without spaces, "gemm.n=576", where a shell or a script would split them.
  const dotted = (text: string) => text.replaceAll(' ', '.');
  const cases = KERNEL_CASES.filter(({ id }) => filter?.some((part) => dotted(id).includes(dotted(part))) ?? true);
  if (cases.length === 0) throw invalidArg('filter', 'a part of the name of a case', filter);
  const anchors = new Anchors();
  const device = openModelDevice(options.device, 0, deterministic);
  const portable =
    device.info().path === 'sm_90a' ? openModelDevice(`${options.device}:portable`, 0, deterministic) : undefined;
  try {
    const info = device.info();
    const bench = new Workbench(device);
    const controls = await Controls.create(device, coldBytes);
    const known = anchors.ceilings(info.name);
    const ceilings = known ?? {
      bytesPerSecond: await controls.readSpeed(),
      bf16FlopsPerSecond: Infinity,
      fp8FlopsPerSecond: Infinity,
    };
    begin({
      device: info,
      deterministic,
      ceilings,
      ceilingSource: known === undefined ? 'a plain read just measured; operations not counted' : 'bench/anchors.json',
      publicGpu: anchors.gpu,
      empty: await controls.emptyLaunch(),
    });
    const reference = portable && new Workbench(portable);
    for (const kernel of cases) {
      signal?.throwIfAborted();
      report(await measure(bench, kernel, { samples, coldBytes, ceilings, anchors, info, controls, reference }));
    }
  } finally {
    await portable?.dispose();
    await device.dispose();
  }
}

interface Settings {
  samples: number;
  coldBytes: number;
  ceilings: Ceilings;
  anchors: Anchors;
  info: DeviceInfo;
  controls: Controls;
  /** where the portable kernels run, if others are measured */
  reference: Workbench | undefined;
}

/** What set 0 writes, all of it. */
async function outputsOf(bench: Workbench, prepared: PreparedCase): Promise<Float32Array[]> {
  prepared.issue(0);
  const outputs: Float32Array[] = [];
  for (const tensor of prepared.outputs(0)) outputs.push(floatsOf(tensor.dtype, await bench.stream.read(tensor)));
  return outputs;
}

/** The largest relative difference between what these kernels and the portable ones write. */
async function portableDifference(
  bench: Workbench,
  prepared: PreparedCase,
  kernel: KernelCase,
  coldBytes: number,
  reference: Workbench,
): Promise<number> {
  const actual = await outputsOf(bench, prepared);
  try {
    reference.restart(bench);
    const expected = await outputsOf(reference, await kernel.prepare(reference, coldBytes));
    return Math.max(...expected.map((values, i) => relativeError(actual[i] as Float32Array, values)));
  } finally {
    await reference.release();
  }
}

async function measure(bench: Workbench, kernel: KernelCase, settings: Settings): Promise<KernelResult> {
  const { bytes, flops, fp8 = false } = kernel.cost();
  const { ceilings, anchors, info } = settings;
  const flopsPerSecond = fp8 ? ceilings.fp8FlopsPerSecond : ceilings.bf16FlopsPerSecond;
  const floorUs = Math.max(bytes / ceilings.bytesPerSecond, flops / flopsPerSecond) * 1e6;
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
      const portableError =
        settings.reference === undefined
          ? null
          : await portableDifference(bench, prepared, kernel, settings.coldBytes, settings.reference);
      const worst = portableError === null || portableError <= error ? error : portableError;
      const failure = worst <= bound ? null : `relative error ${worst.toExponential(2)}, at most ${bound} allowed`;
      const samples = failure === null ? await timeGraph(bench.stream, graph, settings.samples) : [];
      const us = median(samples);
      return {
        ...base,
        us,
        samples,
        operations,
        sets,
        singleUs: failure === null ? await single(bench, prepared) : Number.NaN,
        readUs: await settings.controls.readUs(bytes),
        bytesPerSecond: (bytes / us) * 1e6,
        flopsPerSecond: (flops / us) * 1e6,
        error,
        bound,
        portableError,
        failure,
      };
    } finally {
      graph.dispose();
    }
  } catch (error) {
    if (!(error instanceof MlaError) || error.code === 'ERR_DEVICE_LOST') throw error;
    const failure = `${error.message} (${error.code})`;
    return { ...base, ...NOTHING, failure };
  } finally {
    await bench.release();
  }
}

/** The figures of a case that failed. */
const NOTHING = {
  us: Number.NaN,
  samples: [],
  operations: 0,
  sets: 0,
  singleUs: Number.NaN,
  readUs: Number.NaN,
  bytesPerSecond: Number.NaN,
  flopsPerSecond: Number.NaN,
  error: Number.NaN,
  bound: Number.NaN,
  portableError: null,
};

/** Microseconds of one operation alone in a graph. */
async function single(bench: Workbench, prepared: PreparedCase): Promise<number> {
  const graph = bench.stream.capture(() => prepared.issue(0));
  try {
    return median(await timeGraph(bench.stream, graph, ALONE_SAMPLES));
  } finally {
    graph.dispose();
  }
}
