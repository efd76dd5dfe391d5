// model - the model class: weights, cache, forward pass.
export { type Capacity, capacityOf } from './capacity';
export { LatentModel, type ModelStats } from './latent-model';
export type { MemoryPlan } from './memory-plan';
export { type NamedShape, namedShape, SHAPE_NAMES } from './named-shapes';
export { openModelDevice } from './open-device';
export { type ModelPlan, planModel } from './plan';
export type { ScoreOptions } from './score';
export type {
  LatentModelOptions,
  LoadProgress,
  SamplingSettings,
  ScoreResult,
  SequenceHandle,
  StepEntry,
  StepResult,
  TopToken,
} from './types';
