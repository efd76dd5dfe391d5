// model/plan.ts - everything about a model on a device that is known before anything is allocated. Loading and
// `mla inspect` call the same function, so what is predicted is what is taken.

import { type ModelLayout, type ResolvedConfig, softmaxScale } from '../checkpoint';
import { invalidArg, MlaError } from '../errors';
import type { DeviceInfo, Planner, TensorSpec } from '../native';
import { activationSpecs, inputSpecs, type Limits, rowSpecs } from './buffers';
import { type Dims, dimsOf, type Precision, precisionOf } from './dims';
import { limitsOf, type MemoryPlan, planMemory } from './memory-plan';
import { eachSpec } from './specs';
import type { LatentModelOptions } from './types';
import { planWeights, type WeightPlan, type Weights } from './weights';
import { measureWorkspace } from './workspace';

/** A model before it has memory. */
export interface ModelPlan {
  base: { config: ResolvedConfig; dims: Dims; limits: Limits; scale: number; latentEps: number };
  precision: Precision;
  weightPlans: Weights<WeightPlan>;
  /** every buffer but the weights, the cache and the workspace */
  specs: {
    rows: ReturnType<typeof rowSpecs>;
    inputs: ReturnType<typeof inputSpecs>;
    activations: ReturnType<typeof activationSpecs>;
    cosSin: TensorSpec;
  };
  memory: MemoryPlan;
}

/**
 * Plans a model for a device, which need not exist: `planner` knows what its kernels need, `info` what it is. `like` is
 * an earlier plan of the same model in the same types, whose weights need not be planned again.
 * @throws ERR_INVALID_ARG, ERR_UNSUPPORTED
 */
export function planModel(
  planner: Planner,
  info: DeviceInfo,
  { config, layout }: { config: ResolvedConfig; layout: ModelLayout },
  options: LatentModelOptions,
  like?: ModelPlan,
): ModelPlan {
  const dims = dimsOf(config);
  const precision = precisionOf(options, info);
  const limits = limitsOf(options, config, info.kind);
  const latentEps = options.latentNormEps ?? config.rms_norm_eps;
  if (!(latentEps > 0 && latentEps < 1)) throw invalidArg('latentNormEps', 'a number between 0 and 1', latentEps);

  const weightPlans = like?.weightPlans ?? planWeights(config, layout, dims, precision);
  if (precision.fp8Activations) checkFp8Weights(weightPlans);
  const planInts = planner.decodePlanInts(limits.maxSequences + 1, dims.H);
  const specs = {
    rows: rowSpecs(dims, limits),
    inputs: inputSpecs(limits),
    activations: activationSpecs(dims, precision, limits, planInts),
    cosSin: { dtype: 'f32', shape: [limits.context, dims.r / 2, 2] } as TensorSpec,
  };
  const base = { config, dims, limits, scale: softmaxScale(config), latentEps };
  const workspace = measureWorkspace(planner, { ...base, ...specs, weights: weightPlans, precision });
  const memory = planMemory(dims, precision, limits, weightPlans, specs, workspace);
  return { base, precision, weightPlans, specs, memory };
}

/** @throws ERR_INVALID_ARG where activations would meet no weights in fp8 */
function checkFp8Weights(plans: Weights<WeightPlan>): void {
  let found = false;
  eachSpec(plans, ({ dtype }) => {
    found ||= dtype === 'f8e4m3';
  });
  if (!found) {
    throw new MlaError(
      'ERR_INVALID_ARG',
      "activationDtype: 'fp8' is for weights in fp8, and no matrix of this model has them; dtype: 'fp8' makes them at load.",
    );
  }
}
