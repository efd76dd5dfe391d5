// model/workspace.ts - how much scratch memory the passes of a model need: the passes themselves are run over shapes
// instead of tensors, and every operation they issue is asked. So plan and execution cannot drift apart.

import { latentCacheSpec, pagesFor } from '../cache';
import type { DType, Planner, Stream, Tensor, TensorSpec, Verbs } from '../native';
import type { Activations, activationSpecs, Inputs, inputSpecs, Rows, rowSpecs } from './buffers';
import type { Precision } from './dims';
import { decodePass, headPass, type Machine, prefillPass, scorePass } from './forward';
import { ALL_FEATURES, samplePass } from './sampling';
import { mapSpecs } from './specs';
import { Views } from './views';
import type { WeightPlan, Weights } from './weights';

/** A model before it has memory. */
export interface Blueprint extends Pick<Machine, 'config' | 'dims' | 'limits' | 'scale' | 'latentEps'> {
  rows: ReturnType<typeof rowSpecs>;
  inputs: ReturnType<typeof inputSpecs>;
  activations: ReturnType<typeof activationSpecs>;
  cosSin: TensorSpec;
  weights: Weights<WeightPlan>;
  precision: Precision;
}

/** A tensor that is only a shape. */
class Shape implements TensorSpec {
  constructor(
    readonly dtype: DType,
    readonly shape: readonly number[],
  ) {}
  view(dtype: DType, shape: readonly number[]): Shape {
    return new Shape(dtype, shape);
  }
  dispose(): void {}
}

/** Bytes of workspace that every pass of this model can do with. */
export function measureWorkspace(planner: Planner, blueprint: Blueprint): number {
  let most = 0;
  const ask = (verb: keyof Verbs) => (args: never) => {
    most = Math.max(most, planner.workspaceBytes(verb, args));
  };
  const stream = new Proxy({} as Stream, {
    get: (_, name) => (name === 'write' ? () => {} : ask(name as keyof Verbs)),
  });
  const shapes = <T>(tree: object): T => mapSpecs(tree, (s) => new Shape(s.dtype, s.shape)) as T;
  const { dims, limits, precision } = blueprint;
  const B = limits.maxSequences;
  const vector = (dtype: DType) => new Shape(dtype, [B]) as unknown as Tensor;
  const slab = latentCacheSpec({ layers: 1, pages: limits.pages, c: dims.c, r: dims.r, dtype: precision.cache });
  const layer = new Shape(slab.dtype, slab.shape.slice(1));
  const machine: Machine = {
    ...blueprint,
    stream,
    weights: shapes(blueprint.weights),
    rows: { ...shapes<Rows>(blueprint.rows), sampled: vector('i32'), finished: vector('i32'), logprobs: vector('f32') },
    inputs: shapes<Inputs>(blueprint.inputs),
    activations: shapes<Activations>(blueprint.activations),
    cosSin: shapes(blueprint.cosSin),
    marks: { biased: new Set(), everBiased: new Set(), masked: new Set() },
    cache: { layers: new Array(dims.layers).fill(layer) } as unknown as Machine['cache'],
  };
  const pages = new Array(pagesFor(limits.context)).fill(0);
  const item = (rows: number) => ({ tokens: new Int32Array(rows), start: limits.context - rows, pages });
  // Where the context is shorter than a pass, several sequences fill it together.
  const full = (rows: number) => {
    const items = [];
    for (let left = rows; left > 0 && items.length < B; left -= limits.context)
      items.push(item(Math.min(left, limits.context)));
    return items;
  };
  const views = new Views();
  const hidden = prefillPass(machine, views, full(limits.prefillRows), 'expanded');
  scorePass(machine, views, hidden, limits.maxTop);
  prefillPass(machine, views, full(limits.absorbedRows), 'absorbed');
  const sequences = Math.min(B, limits.prefillRows);
  const several = prefillPass(machine, views, new Array(sequences).fill(item(1)), 'absorbed');
  headPass(machine, views, several, sequences);
  const normed = views.of(machine.activations.normed, [1, dims.d]);
  samplePass(machine, views, { first: 0, count: 1, normed, features: ALL_FEATURES });
  for (let bucket = 1; bucket < 2 * B; bucket *= 2) decodePass(machine, views, Math.min(bucket, B), ALL_FEATURES);
  return most;
}
