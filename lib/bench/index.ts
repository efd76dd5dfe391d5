// bench - measures operations and models, and sets the figures beside public ones.
export {
  benchCache,
  type CacheBenchOptions,
  type CacheCapacity,
  type CacheForm,
  type CacheResult,
} from './cache-bench';
export { type Circumstances, circumstances, type GpuState, gpuState } from './circumstances';
export { type Comparison, type ComparisonReport, compare } from './compare';
export {
  benchKernels,
  KERNEL_CASES,
  type KernelBenchHeader,
  type KernelBenchOptions,
  type KernelResult,
} from './kernels';
export {
  benchDecode,
  benchPrefill,
  type DecodeBenchOptions,
  type ModelBenchOptions,
  type ModelResult,
  type PrefillBenchOptions,
} from './model-bench';
export { benchPeers, type PeerResult } from './peers';
export { type RecordSet, readRecords, type Series, type Sweep } from './records';
export { type Chart, chartsOf, figureOf } from './report';
export {
  benchServe,
  type Load,
  type Percentiles,
  type PrefixResult,
  percentiles,
  poisson,
  type ServeBenchOptions,
  type ServeResult,
} from './serve';
export { benchStartup, type StartupBenchOptions, type StartupResult } from './startup';
export { benchStep, type StepBenchOptions, type StepPart, type StepResult } from './step-bench';
