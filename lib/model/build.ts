// model/build.ts - from a checkpoint (or a shape) to a machine that can run: plan, allocate, load. Whatever fails on the
// way, all that was taken is given back.

import { createHash } from 'node:crypto';
import { LatentCache } from '../cache';
import {
  type Checkpoint,
  checkRouterBiases,
  fingerprintOf,
  type ModelLayout,
  type ResolvedConfig,
  resolveLayout,
  ropeTable,
} from '../checkpoint';
import type { Device, Stream, Tensor, TensorSpec } from '../native';
import type { Limits, Rows } from './buffers';
import type { Machine } from './forward';
import { loadWeights, type WeightTarget } from './load-weights';
import { checkFits, type MemoryPlan } from './memory-plan';
import { planModel } from './plan';
import { clearSampling } from './sampling';
import { allocateTree, eachSpec } from './specs';
import type { LatentModelOptions } from './types';
import type { WeightPlan, Weights } from './weights';

/** A loaded model, before anybody uses it. */
export interface Built {
  machine: Machine;
  memory: MemoryPlan;
  /** tells whose rows of the cache mean the same */
  fingerprint: string;
  /** Ends every handle. */
  dispose(): void;
}

/** What a model is made of, and how its weights come to the device. */
export interface WeightOrigin {
  config: ResolvedConfig;
  layout: ModelLayout;
  /** Fills the planned weights; resolves when the device has them. */
  fill(
    device: Device,
    stream: Stream,
    plans: Weights<WeightPlan>,
    weights: Weights<Tensor>,
    options: LatentModelOptions,
  ): Promise<void>;
  /** Tells these weights from others of the same shape. */
  fingerprint(): Promise<string>;
}

/** Weights out of a checkpoint's files. Rejects with ERR_CHECKPOINT, ERR_UNSUPPORTED_MODEL. */
export async function originOf(checkpoint: Checkpoint): Promise<WeightOrigin> {
  const layout = resolveLayout(checkpoint);
  await checkRouterBiases(layout);
  return {
    config: checkpoint.config,
    layout,
    fill: (device, stream, plans, weights, { onProgress, signal }) => {
      const progress = (loadedBytes: number, totalBytes: number) =>
        onProgress?.({ phase: 'weights', loadedBytes, totalBytes });
      return loadWeights(device, stream, checkpoint, pairs(plans, weights), progress, signal);
    },
    fingerprint: () => fingerprintOf(checkpoint),
  };
}

/** Plans, allocates and loads. @throws typed errors; nothing stays allocated then */
export async function buildMachine(device: Device, origin: WeightOrigin, options: LatentModelOptions): Promise<Built> {
  const info = device.info();
  const planned = planModel(device, info, origin, options);
  const { base, specs, weightPlans, precision, memory } = planned;
  const { config, dims, limits } = base;
  checkFits(memory, info);

  const owned: { dispose(): void }[] = [];
  const dispose = (): void => {
    for (const item of owned.splice(0).reverse()) item.dispose();
  };
  try {
    const stream = device.stream();
    owned.push(stream);
    const weights = await allocateTree(device, weightPlans);
    owned.push(weights);
    const buffers = await allocateTree(device, {
      ...specs,
      workspace: { dtype: 'u8', shape: [memory.workspace] } as TensorSpec,
    });
    owned.push(buffers);
    const cache = await LatentCache.create(device, {
      layers: dims.layers,
      pages: limits.pages,
      c: dims.c,
      r: dims.r,
      dtype: precision.cache,
    });
    owned.push(cache);
    const { rows: rowTensors, inputs, activations, cosSin, workspace: scratch } = buffers.tensors;
    stream.useWorkspace(scratch);
    const rows = withResults(rowTensors, limits, owned);
    stream.write(cosSin, ropeTable(config, limits.context));
    clearRows(stream, rows, limits);
    const marks = { biased: new Set<number>(), everBiased: new Set<number>(), masked: new Set<number>() };
    const machine: Machine = {
      ...base,
      marks,
      stream,
      weights: weights.tensors as Weights<Tensor>,
      cache,
      rows,
      inputs,
      activations,
      cosSin,
    };
    clearSampling(machine);
    await origin.fill(device, stream, weightPlans, machine.weights, options);
    // Rows that were not made deterministically are no others' to go on with where that is promised.
    const how = options.deterministic ? ['deterministic'] : [];
    const made = JSON.stringify([await origin.fingerprint(), precision, base.latentEps, ...how]);
    const fingerprint = createHash('sha256').update(made).digest('hex');
    return { machine, memory, fingerprint, dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** Views of the three rows of `results`. */
function withResults(
  rows: Omit<Rows, 'sampled' | 'finished' | 'logprobs'>,
  limits: Limits,
  owned: { dispose(): void }[],
): Rows {
  const B = limits.maxSequences;
  const [sampled, finished] = [0, 1].map((row) => rows.results.view('i32', [B], row * B * 4)) as [Tensor, Tensor];
  const logprobs = rows.results.view('f32', [B], 2 * B * 4);
  owned.push(sampled, finished, logprobs);
  return { ...rows, sampled, finished, logprobs };
}

/** Makes every row padding. */
export function clearRows(stream: Stream, rows: Rows, limits: Limits): void {
  const B = limits.maxSequences;
  const none = new Int32Array(B).fill(-1);
  for (const tensor of [rows.ids, rows.positions, rows.slots, rows.sampled]) stream.write(tensor, none);
  stream.write(rows.lengths, new Int32Array(B));
  stream.write(
    rows.qStart,
    Int32Array.from({ length: B + 1 }, (_, i) => i),
  );
}

/** Plans and tensors of the same tree, leaf by leaf. */
function pairs(plans: Weights<WeightPlan>, tensors: Weights<Tensor>): WeightTarget[] {
  const planned: WeightPlan[] = [];
  const allocated: Tensor[] = [];
  eachSpec(plans, (spec) => planned.push(spec as WeightPlan));
  eachSpec(tensors, (spec) => allocated.push(spec as Tensor));
  return planned.map((plan, i) => ({ plan, tensor: allocated[i] as Tensor }));
}
