// bench/step-bench.ts - where the time of one decode step goes: its graph with all operations, and without each kind of
// them. The difference is what that kind adds to the chain, overlap with its neighbours included.
import type { LatentModel } from '../model';
import type { DeviceInfo, Tensor } from '../native';
import { Anchors } from './anchors';
import { loadBenchModel, type ModelBenchOptions, openSequences, promptOf } from './model-bench';
import { median, timeGraph } from './timing';
import { type Args, watched } from './watched-stream';

export interface StepBenchOptions extends ModelBenchOptions {
  /** sequences that decode together, one time line each */
  batches: readonly number[];
  /** tokens in the cache of each */
  depth: number;
}

/** What one kind of operation takes in a step. */
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
  device: DeviceInfo;
}

type Call = { name: string; verb: string; bytes: number };

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
        report(await timeLine(model, batch, depth, ceiling, `decode step b=${batch} depth=${depth}`));
      } finally {
        for (const sequence of sequences) sequence.dispose();
      }
    }
  } finally {
    await model.dispose();
  }
}

async function timeLine(model: LatentModel, batch: number, depth: number, ceiling: number, id: string) {
  const calls: Call[] = [];
  const time = async (keep: (call: Call) => boolean) => {
    calls.length = 0;
    const captured = model.captureDecode(batch, (stream) =>
      watched(stream, (verb, args) => {
        const call = describe(model, verb, args, batch, depth);
        calls.push(call);
        // The step must stay where it is, to be repeated.
        return verb !== 'advance' && keep(call);
      }),
    );
    try {
      const samples = await timeGraph(captured.stream, captured.graph, 9);
      return { us: median(samples) * captured.graph.operations, launches: captured.graph.launches };
    } finally {
      captured.dispose();
    }
  };
  await time(() => true); // the GPU's clocks rise meanwhile: what is measured first would seem slower
  const whole = await time(() => true);
  const kinds = new Map<string, { calls: number; bytes: number }>();
  for (const { name, verb, bytes } of calls) {
    if (verb === 'advance') continue;
    const kind = kinds.get(name) ?? { calls: 0, bytes: 0 };
    kinds.set(name, { calls: kind.calls + 1, bytes: kind.bytes + bytes });
  }
  const parts: StepPart[] = [];
  for (const [name, kind] of kinds) {
    const without = await time((call) => call.name !== name);
    parts.push({
      name,
      calls: kind.calls,
      launches: whole.launches - without.launches,
      us: whole.us - without.us,
      floorUs: (kind.bytes / ceiling) * 1e6,
    });
  }
  const layers = model.config.num_hidden_layers;
  return { id, us: whole.us, launches: whole.launches, layers, parts, device: model.deviceInfo };
}

/** Bytes that a call moves at least: its tensors once, but of experts and of the cache what the step looks at. */
function describe(model: LatentModel, verb: string, args: Args, batch: number, depth: number): Call {
  const { n_routed_experts: experts, num_experts_per_tok: perToken } = model.config;
  let bytes = 0;
  for (const [key, value] of Object.entries(args)) {
    if (!isTensor(value)) continue;
    if (key === 'table' || key === 'block_table') continue;
    const rowBytes = value.byteLength / (value.shape[0] || 1);
    if (key === 'cache') {
      const tokens = verb === 'mlaDecode' ? batch * depth : batch;
      bytes += (tokens * rowBytes) / (value.shape[1] as number);
    } else if ((key === 'w' || key === 'w_scale') && value.shape.length >= 3 && experts && perToken) {
      const hit = experts * (1 - (1 - perToken / experts) ** batch) + ((value.shape[0] as number) - experts);
      bytes += rowBytes * hit;
    } else {
      bytes += value.byteLength;
    }
  }
  const w = args.w;
  const name = verb === 'gemm' && isTensor(w) ? `gemm ${w.shape.join('x')}` : verb;
  return { name, verb, bytes };
}
