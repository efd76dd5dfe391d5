// checkpoint/index.ts - model folders as downloaded: config.json, safetensors headers, and which tensor is which weight.
// Reads and checks; never loads a weight (lib/model does). Depends on lib/errors alone.
export {
  Checkpoint,
  type CheckpointFile,
  openCheckpoint,
  type TensorInfo,
} from './checkpoint';
export {
  type Fp8Quantization,
  type GenerationSettings,
  MODEL_TYPES,
  type ModelConfig,
  type ModelType,
  parseConfig,
  readConfig,
} from './config';
export { fingerprintOf } from './fingerprint';
export { type JsonObject, type JsonOptions, type JsonValue, parseJson } from './json';
export {
  type AttentionLayout,
  checkRouterBiases,
  type ExpertsLayout,
  type FeedForwardLayout,
  type GatedLayout,
  type LayerLayout,
  type LayoutInput,
  type ModelLayout,
  type MtpLayout,
  resolveLayout,
  type WeightSource,
} from './layout';
export { type ParameterCounts, parameterCounts } from './parameter-counts';
export { describeCheckpoint, type RemoteFiles } from './remote';
export { inverseFrequencies, type RopeDims, ropeTable, rotaryMagnitude, softmaxScale, yarnRange } from './rope';
export type { RopeConfig, YarnConfig } from './rope-config';
export { type ResolvedConfig, resolveRouting, type ScoringFunc, type TopkMethod } from './routing';
export {
  DTYPE_BYTES,
  readSafetensorsHeader,
  type SafetensorsDtype,
  type SafetensorsEntry,
  type SafetensorsHeader,
} from './safetensors';
