// bench/step-bench.ts - where the time of one decode step goes: its graph with all operations, and without each kind of
// them, or without a layer. The difference is what they add to the chain, overlap with their neighbours included. Experts
// get the same rows in all of these graphs (pinned-routes.ts), and each is timed in turn with the whole. Such steps take
// the separate kernels, also where one kernel does a whole step (docs/kernels/resident.md).
import type { LatentModel } from '../model';
import type { DeviceInfo, Tensor } from '../native';
import { Anchors } from './anchors';
import { loadBenchModel, type ModelBenchOptions, openSequences, promptOf } from './model-bench';
import { PinnedRoutes } from './pinned-routes';
import { median, timeGraph, timeInTurn } from './timing';
import { type Args, watched } from './watched-stream';

export interface StepBenchOptions extends ModelBenchOptions {
  /** sequences that decode together, one time line each */
  batches: readonly number[];
  /** tokens in the cache of each */
  depth: number;
}

/** What one kind of operation takes in a step, or one layer. */
export interface StepPart {
  /** the verb; products with the shape of their weights */
  name: string;
  calls: number;
  /** of the step's launches, those that all these calls are */
  launches: number;
  /** microseconds by which a step is longer with it than without it */
  us: number;
  /** microseconds that its bytes take at the memory's ceiling; NaN where that is unknown */
  floorUs: number;
}

/** The time line of one step. */
export interface StepResult {
  id: string;
  /** microseconds of the whole step, without `advance`, which would move it */
  us: number;
  /** kernels of the captured graph */
  launches: number;
  /** layers of the model */
  layers: number;
  parts: StepPart[];
  /** the first dense layer and the first with experts, as far as the model has them */
  perLayer: StepPart[];
  /** of the routed experts, in the mean over the layers; null for a model without them */
  expertsHit: number | null;
  device: DeviceInfo;
}

/** `layer` is null before the first layer and behind the last. */
type Call = { name: string; verb: string; bytes: number; layer: number | null };

const isTensor = (value: unknown): value is Tensor =>
  typeof value === 'object' && value !== null && 'shape' in value && 'dtype' in value;

/** Measures, for each batch. Rejects with what loading or a step rejects with. */
export async function benchStep(options: StepBenchOptions, report: (result: StepResult) => void): Promise<void> {
  const { batches, depth, signal } = options;
  const context = depth + 16;
  const model = await loadBenchModel(options, {
    maxSequences: Math.max(...batches),
    context,
    prefillChunk: Math.min(4096, Math.max(depth, 1)),
  });
  try {
    const anchors = new Anchors();
    const ceiling = anchors.ceilings(model.deviceInfo.name)?.bytesPerSecond ?? Number.NaN;
    for (const batch of batches) {
      signal?.throwIfAborted();
      const sequences = openSequences(model, batch);
      try {
        await model.step(sequences.map((sequence, i) => ({ sequence, tokens: promptOf(depth, model.vocab, i) })));
        await model.step(sequences.map((sequence) => ({ sequence })));
        const routes = await PinnedRoutes.of(model, batch);
        try {
          report(await timeLine(model, routes, batch, depth, ceiling, `decode step b=${batch} depth=${depth}`));
        } finally {
          await routes.release();
        }
      } finally {
        for (const sequence of sequences) sequence.dispose();
      }
    }
  } finally {
    await model.dispose();
  }
}

const SAMPLES = 15;

async function timeLine(
  model: LatentModel,
  routes: PinnedRoutes,
  batch: number,
  depth: number,
  ceiling: number,
  id: string,
): Promise<StepResult> {
  const hit = await routes.expertsHit();
  const moe = model.config.moe_layers;
  const layers = model.config.num_hidden_layers;
  /** The step with the calls that `keep` wants, and what it was asked about. */
  const capture = (keep: (call: Call) => boolean) => {
    const calls: Call[] = [];
    let layer = -1;
    let inLayer = false;
    const captured = model.captureDecode(batch, (stream) =>
      watched(stream, (verb, args) => {
        if (verb === 'latentCompress') layer += 1;
        if (verb === 'latentCompress') inLayer = true;
        const call = { ...describe(model, verb, args, batch, depth, hit), layer: inLayer ? layer : null };
        if (verb === 'moeDown') inLayer = false;
        // The step must stay where it is, to be repeated.
        if (verb === 'advance') return false;
        calls.push(call);
        if (!keep(call)) return false;
        const pinned = routes.pin(moe.indexOf(layer), verb, args);
        if (pinned === args) return true;
        (stream[verb as 'moeDown'] as (args: Args) => void)(pinned);
        return false;
      }),
    );
    return { ...captured, calls };
  };
  const whole = capture(() => true);
  const { stream, calls } = whole;
  try {
    await timeGraph(stream, whole.graph, SAMPLES); // the GPU's clocks rise meanwhile
    const { launches } = whole.graph; // known once it has run
    const all: number[] = [];
    const partOf = async (name: string, isPart: (call: Call) => boolean): Promise<StepPart> => {
      const without = capture((call) => !isPart(call));
      try {
        const taken = await timeInTurn(stream, whole.graph, without.graph, SAMPLES);
        all.push(taken.whole);
        const own = calls.filter(isPart);
        const bytes = own.reduce((sum, call) => sum + call.bytes, 0);
        return {
          name,
          calls: own.length,
          launches: launches - without.graph.launches,
          us: taken.difference,
          floorUs: (bytes / ceiling) * 1e6,
        };
      } finally {
        without.dispose();
      }
    };
    const parts: StepPart[] = [];
    for (const name of new Set(calls.map((call) => call.name)))
      parts.push(await partOf(name, (call) => call.name === name));
    const perLayer: StepPart[] = [];
    const dense = Array.from({ length: layers - 1 }, (_, l) => l).find((l) => !moe.includes(l));
    for (const [name, l] of [
      ['dense layer', dense],
      ['MoE layer', moe[0]],
    ] as const)
      if (l !== undefined) perLayer.push(await partOf(name, (call) => call.layer === l));
    return { id, us: median(all), launches, layers, parts, perLayer, expertsHit: hit, device: model.deviceInfo };
  } finally {
    whole.dispose();
  }
}

/** Bytes that a call moves at least: its tensors once, but of experts and of the cache what the step looks at. */
function describe(
  model: LatentModel,
  verb: string,
  args: Args,
  batch: number,
  depth: number,
  hit: number | null,
): Omit<Call, 'layer'> {
  const { n_routed_experts: experts } = model.config;
  let bytes = 0;
  for (const [key, value] of Object.entries(args)) {
    if (!isTensor(value)) continue;
    // What lies behind a plan is room for a kernel's own use.
    if (key === 'table' || key === 'block_table' || key === 'plan') continue;
    const rowBytes = value.byteLength / (value.shape[0] || 1);
    if (key === 'cache') {
      const tokens = verb === 'mlaDecode' ? batch * depth : batch;
      bytes += (tokens * rowBytes) / (value.shape[1] as number);
    } else if ((key === 'w' || key === 'w_scale') && value.shape.length >= 3 && hit !== null) {
      bytes += rowBytes * (hit + (value.shape[0] as number) - experts);
    } else {
      bytes += value.byteLength;
    }
  }
  const w = args.w;
  const name = verb === 'gemm' && isTensor(w) ? `gemm ${w.shape.join('x')}` : verb;
  return { name, verb, bytes };
}
