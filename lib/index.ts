/**
 * node-mla: runs DeepSeek-family language models from Node.js, on an NVIDIA GPU or on the CPU.
 *
 * `loadModel` gives a {@link Model}; its `generate` and `chat` give a {@link Generation} to iterate over or await,
 * `complete` gives whole results, `score` log-probabilities, and a {@link Sequence} keeps its place in the cache. Every error is an {@link MlaError} with a code.
 *
 * @packageDocumentation
 */
export type {
  ChatOptions,
  Chunk,
  CompleteOptions,
  EngineStats,
  FinishReason,
  GenerateOptions,
  Generation,
  LoadOptions,
  Model,
  ModelInfo,
  PageStats,
  Result,
  Score,
  ScoreOptions,
  Sequence,
  SignalOptions,
  TemplateOptions,
  Timings,
  TopToken,
  Usage,
  UsedSettings,
} from './engine';
export { loadModel } from './engine';
export { ERROR_CODES, type ErrorCode, MlaError } from './errors';
export type { LoadProgress, MemoryPlan } from './model';
export type { DeviceInfo } from './native';
export type { BuiltInTemplate, ChatMessage, Json, Role, ToolCall } from './text';
export { BUILT_IN_TEMPLATES } from './text';
