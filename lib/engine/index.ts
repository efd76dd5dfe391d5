// engine/index.ts - loading, generating, scoring: what the package offers and the commands use.
export type { PageStats } from '../cache';
export type { TopToken } from '../model';
export type {
  ChatOptions,
  Generation,
  Model,
  ModelInfo,
  Sequence,
  SignalOptions,
  TemplateOptions,
} from './api';
export { DEFAULT_PREFILL_CHUNK, Engine, type EngineRequest, type Ticket } from './engine';
export { BUNDLED_MODEL, type LoadOptions, loadModel, modelOf } from './load';
export { LocalModel, type ModelParts, type ModelText } from './model';
export type { CompleteOptions, GenerateOptions, ScoreOptions, UsedSettings } from './options';
export type {
  Chunk,
  EngineStats,
  FinishReason,
  Result,
  Score,
  Timings,
  Usage,
} from './result';
export type { EngineModel, GenerationDefaults, StepModel, TextStream } from './step-model';
