// bench/model-bench.ts - whole models: tokens per second of decoding and of prompt processing.
import { findModelFolder } from '../hub';
import { LatentModel, type LatentModelOptions, type SequenceHandle, type StepResult } from '../model';
import type { DeviceInfo } from '../native';
import { Anchors } from './anchors';
import { expertsHit } from './experts-hit';
import type { Sweep } from './records';
import { median } from './timing';

/** Where and how precisely a measured model runs. */
export type PlacementOptions = Pick<
  LatentModelOptions,
  'device' | 'dtype' | 'cacheDtype' | 'activationDtype' | 'threads' | 'deterministic' | 'signal'
>;

export interface ModelBenchOptions extends PlacementOptions {
  /** A published shape with random weights (see lib/model/named-shapes.ts), or a checkpoint folder. */
  model: { shape: string } | { dir: string };
  /** How often each figure is taken. */
  repetitions?: number | undefined;
}

export interface DecodeBenchOptions extends ModelBenchOptions {
  /** sequences that decode together */
  batches: readonly number[];
  /** tokens in the cache of each when decoding begins; one figure for each pair of a depth and a batch */
  depths: readonly number[];
  /** tokens per sequence that are measured */
  steps: number;
}

export interface PrefillBenchOptions extends ModelBenchOptions {
  /** prompt lengths */
  lengths: readonly number[];
  /** prompts at once; one figure for each pair of a batch and a length */
  batches: readonly number[];
  /** tokens that each sequence has in the cache before; not measured. Default 0 */
  depth?: number | undefined;
  /** which form attention takes over the prompts; default 'auto', by their length */
  attention?: LatentModelOptions['attention'];
}

/** One figure: the median and every repetition, tokens per second over all sequences. */
export interface ModelResult {
  id: string;
  sweep: Sweep;
  tokensPerSecond: number;
  repetitions: number[];
  /** microseconds a step that the main thread was busy, the addon's calls included; null for prompts. The median. */
  hostUs: number | null;
  /** routed experts that a decode step's tokens go to, in the mean over the layers; null for prompts */
  expertsHit: number | null;
  public: { tokensPerSecond: number; by: string }[];
  device: DeviceInfo;
}

/** Steps before the clock starts: graphs are captured, buffers touched. */
const WARM_UP_STEPS = 8;
const PROMPT_SEED = 12345;

/** The name that results and bench/anchors.json share. */
export const nameOf = ({ model }: ModelBenchOptions) => ('shape' in model ? model.shape : model.dir);

/** Every pair of two lists, the second one's values running fastest. */
const pairs = (slow: readonly number[], fast: readonly number[]) =>
  slow.flatMap((a) => fast.map((b) => [a, b] as const));

/** Loads what a bench measures. */
export async function loadBenchModel(options: ModelBenchOptions, more: LatentModelOptions): Promise<LatentModel> {
  const { device, dtype, cacheDtype, activationDtype, threads, deterministic, signal } = options;
  const all = { device, dtype, cacheDtype, activationDtype, threads, deterministic, signal, ...more };
  return 'shape' in options.model
    ? LatentModel.random(options.model.shape, all)
    : LatentModel.load(await findModelFolder(options.model.dir), all);
}

/** Ids that look like nothing in particular, and differ from sequence to sequence. */
export function promptOf(length: number, vocab: number, seed: number): Int32Array {
  let state = (PROMPT_SEED + seed * 7919) >>> 0;
  return Int32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocab);
  });
}

/** Sequences that sample at temperature 1, each with a seed of its own. */
export function openSequences(model: LatentModel, count: number): SequenceHandle[] {
  return Array.from({ length: count }, (_, seed) => {
    const sequence = model.openSequence();
    sequence.setSampling({
      temperature: 1,
      topK: 0,
      topP: 1,
      minP: 0,
      seed,
      stopIds: [],
      maxLength: model.context,
    });
    return sequence;
  });
}

/** Throws when a step gave something that no model gives. */
export function mustBeSound(results: readonly { token: number; logprob: number }[]): void {
  for (const { token, logprob } of results) {
    if (!(token >= 0) || !(logprob <= 0))
      throw new Error(`the model gave token ${token} with log-probability ${logprob}`);
  }
}

/**
 * Decoding: all sequences advance together, each step enqueued before the one before is read, as the engine does.
 * Rejects with what loading or a step rejects with.
 */
export async function benchDecode(options: DecodeBenchOptions, report: (result: ModelResult) => void): Promise<void> {
  const { batches, depths, steps, repetitions = 3, signal } = options;
  const anchors = new Anchors();
  const deepest = Math.max(...depths);
  const model = await loadBenchModel(options, {
    maxSequences: Math.max(...batches),
    context: deepest + WARM_UP_STEPS + steps + 8,
    prefillChunk: Math.min(4096, deepest),
  });
  try {
    for (const [depth, batch] of pairs(depths, batches)) {
      const taken: number[] = [];
      const host: number[] = [];
      let hit: number | null = null;
      for (let repetition = 0; repetition < repetitions; repetition++) {
        const sequences = openSequences(model, batch);
        try {
          signal?.throwIfAborted();
          // All prompts in one step: a sequence that is left out of a step would be parked.
          const prompts = sequences.map((sequence, i) => ({ sequence, tokens: promptOf(depth, model.vocab, i) }));
          mustBeSound(await model.step(prompts));
          const entries = sequences.map((sequence) => ({ sequence }));
          await decodeSteps(model, entries, WARM_UP_STEPS, signal);
          const began = performance.now();
          const loop = performance.eventLoopUtilization();
          await decodeSteps(model, entries, steps, signal);
          taken.push((batch * steps * 1000) / (performance.now() - began));
          host.push((performance.eventLoopUtilization(loop).active * 1000) / steps);
          if (repetition === repetitions - 1) hit = await expertsHit(model, batch);
        } finally {
          for (const sequence of sequences) sequence.dispose();
        }
      }
      const name = nameOf(options);
      const id = `${name} decode b=${batch} depth=${depth}`;
      report({
        id,
        sweep: { bench: 'decode', model: name, batch, tokens: depth },
        tokensPerSecond: median(taken),
        repetitions: taken,
        hostUs: median(host),
        expertsHit: hit,
        public: anchors.model(id),
        device: model.deviceInfo,
      });
    }
  } finally {
    await model.dispose();
  }
}

/** `count` steps, two of them under way at any time; `onStep` is told of each one's end. */
export async function decodeSteps(
  model: LatentModel,
  entries: readonly { sequence: SequenceHandle }[],
  count: number,
  signal: AbortSignal | undefined,
  onStep: () => void = () => {},
): Promise<void> {
  let before: Promise<StepResult[]> | null = null;
  for (let i = 0; i < count; i++) {
    signal?.throwIfAborted();
    const next = model.step(entries);
    next.catch(() => {}); // when the one before fails, nobody looks at this one
    if (before !== null) {
      mustBeSound(await before);
      onStep();
    }
    before = next;
  }
  if (before === null) return;
  mustBeSound(await before);
  onStep();
}

/** Prompt processing: from the call to the first sampled token. */
export async function benchPrefill(options: PrefillBenchOptions, report: (result: ModelResult) => void): Promise<void> {
  const { lengths, batches, depth = 0, attention = 'auto', repetitions = 5, signal } = options;
  const anchors = new Anchors();
  const longest = Math.max(...lengths);
  const most = Math.max(...batches);
  const model = await loadBenchModel(options, {
    maxSequences: most,
    context: depth + longest + 1,
    prefillChunk: Math.min(4096, Math.max(depth, longest * most)),
    attention,
  });
  try {
    for (const [batch, length] of pairs(batches, lengths)) {
      const taken: number[] = [];
      // The first one warms up.
      for (let repetition = 0; repetition <= repetitions; repetition++) {
        signal?.throwIfAborted();
        const sequences = openSequences(model, batch);
        try {
          const entries = sequences.map((sequence, i) => ({
            sequence,
            tokens: promptOf(length, model.vocab, repetition * batch + i),
          }));
          const before = sequences.map((sequence, i) => ({ sequence, tokens: promptOf(depth, model.vocab, -1 - i) }));
          if (depth > 0) mustBeSound(await model.step(before));
          const began = performance.now();
          mustBeSound(await model.step(entries));
          if (repetition > 0) taken.push((batch * length * 1000) / (performance.now() - began));
        } finally {
          for (const sequence of sequences) sequence.dispose();
        }
      }
      const how = `${depth === 0 ? '' : ` depth=${depth}`}${attention === 'auto' ? '' : ` ${attention}`}`;
      const name = nameOf(options);
      const id = `${name} prefill${batch === 1 ? '' : ` b=${batch}`} length=${length}${how}`;
      report({
        id,
        sweep: { bench: 'prefill', model: `${name}${how}`, batch, tokens: length },
        tokensPerSecond: median(taken),
        repetitions: taken,
        hostUs: null,
        expertsHit: null,
        public: anchors.model(id),
        device: model.deviceInfo,
      });
    }
  } finally {
    await model.dispose();
  }
}
