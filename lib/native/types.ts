// native/types.ts - the one typed description of the native surface, as the rest of the package sees it. raw.ts has
// what csrc/addon exports underneath.
import type { MlaError } from '../errors';

/** Element types of tensors. */
export type DType = 'f32' | 'bf16' | 'f16' | 'f8e4m3' | 'f8e8m0' | 'i64' | 'i32' | 'u32' | 'u8';

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<DType, number>> = {
  f32: 4,
  bf16: 2,
  f16: 2,
  f8e4m3: 1,
  f8e8m0: 1,
  i64: 8,
  i32: 4,
  u32: 4,
  u8: 1,
};

/** What a device says of itself. */
export interface DeviceInfo {
  /** 'cpu' or 'cuda' */
  kind: 'cpu' | 'cuda';
  /** processor or GPU, as it names itself */
  name: string;
  /** which kernels run: 'generic' | 'x86-64-v2' | 'avx2' | 'avx512' on the CPU, 'sm_90a' | 'portable' on CUDA */
  path: string;
  /** bytes */
  memoryTotal: number;
  /** bytes */
  memoryFree: number;
  /** CPU threads; 0 on CUDA */
  threads: number;
  /** 0 on the CPU */
  multiprocessors: number;
}

/** Only the shape and element type of a tensor: what planning works with before memory exists. */
export interface TensorSpec {
  dtype: DType;
  /** up to 4 dimensions, row-major, always contiguous */
  shape: readonly number[];
}

/** Device memory with an element type and a shape; owns its storage together with all its views. */
export interface Tensor extends TensorSpec {
  readonly device: Device;
  readonly byteLength: number;
  readonly disposed: boolean;
  /**
   * Another tensor over part of the same memory, from `byteOffset` on.
   * @throws ERR_INVALID_ARG if it does not fit or is not aligned to its element size, ERR_DISPOSED
   */
  view(dtype: DType, shape: readonly number[], byteOffset?: number): Tensor;
  /** Ends this handle; the memory returns when the last view, queued operation and graph is done with it. Idempotent. */
  dispose(): void;
}

/** A point in a stream. */
export interface Event {
  /**
   * Resolves when everything before the event has finished; rejects with the first failure since the previous event
   * or read of the stream. Never an unhandled rejection.
   */
  readonly done: Promise<void>;
}

/** Operations recorded once, replayed by one call. Keeps every tensor it touches. */
export interface Graph {
  readonly disposed: boolean;
  /** How many operations were recorded. */
  readonly operations: number;
  /** What a replay starts one by one: kernels and copies on a GPU. 0 until the device has compiled the graph. */
  readonly launches: number;
  /** Enqueues the whole sequence on the stream it was captured on. */
  replay(): void;
  dispose(): void;
}

/** An argument of an operation: a tensor, or only its shape where sizes are planned. */
type Arg = Tensor;

/** Reads one tensor, always into the same memory. It holds the tensor's memory until it is disposed. */
export interface Reader {
  /** what the last read found, from the end of its promise to the next read */
  readonly bytes: SharedArrayBuffer;
  readonly disposed: boolean;
  /** As `Stream.read`, into `bytes`. Rejects with ERR_STATE while another read is under way. */
  read(): Promise<SharedArrayBuffer>;
  dispose(): void;
}

/**
 * Ordered asynchronous work. Every method checks its arguments, enqueues and returns at once; what fails later is
 * reported by the next event. After a failure the stream skips operations until that event, then it is usable again.
 */
export interface Stream extends Verbs {
  readonly device: Device;
  readonly disposed: boolean;
  /** The scratch memory of the operations that follow (u8). Each operation needs `device.workspaceBytes` of it. */
  useWorkspace(tensor: Tensor): void;
  /** Copies host bytes into the tensor from `byteOffset` on; `data` may be changed as soon as the call returns. */
  write(tensor: Tensor, data: ArrayBufferView, byteOffset?: number): void;
  /** The tensor's bytes at this point of the stream. Rejects like an event's `done`, and clears the failure as that does. */
  read(tensor: Tensor): Promise<ArrayBuffer>;
  /** For a tensor that is read time and again. The caller disposes of it. */
  reader(tensor: Tensor): Reader;
  /** Fills the tensor with bytes [offset, offset + byteLength) of an open file. A shorter file is ERR_FILE. */
  readFile(tensor: Tensor, fd: number, offset: number): void;
  record(): Event;
  /** What follows on this stream runs after the event. */
  wait(event: Event): void;
  /**
   * Records the operations that the synchronous function `fn` issues on this stream, without running them.
   * A throw in `fn`, or an operation that fails its checks, discards the graph, leaves the stream usable and is
   * rethrown. @throws ERR_STATE on nested capture, or for read, readFile, write, record, wait and replay inside `fn`,
   * or if the workspace changes after the first operation: a graph has one
   */
  capture(fn: () => void): Graph;
  dispose(): void;
}

/** Sizes that are known before memory exists. */
export interface Planner {
  /** Scratch bytes a verb needs for arguments of these shapes. */
  workspaceBytes<V extends keyof Verbs>(verb: V, args: SpecsOf<Parameters<Verbs[V]>[0]>): number;
  /** Elements of the plan tensor of decodePlan. */
  decodePlanInts(maxSequences: number, heads: number): number;
}

/** One processor or GPU. */
export interface Device extends Planner {
  readonly disposed: boolean;
  info(): DeviceInfo;
  /**
   * Zero-filled memory. Rejects with ERR_OUT_OF_MEMORY or ERR_OUT_OF_DEVICE_MEMORY; nothing leaks.
   * A shape with a zero dimension is allowed and occupies nothing.
   */
  allocate(dtype: DType, shape: readonly number[]): Promise<Tensor>;
  stream(): Stream;
  /** Bytes of device memory held by live tensors, views, queued operations and graphs of this device. */
  allocatedBytes(): number;
  /** Ends the device: queued work is dropped, promises reject with ERR_DISPOSED. Idempotent. */
  dispose(): Promise<void>;
  /**
   * Gives up a device that hangs: nothing has ended for `ms`. All that is under way rejects with ERR_DEVICE_LOST, and so
   * does all that follows, on this GPU in the whole process. Memory and threads stay as they are until the process ends.
   * @throws ERR_INVALID_ARG, ERR_DISPOSED, ERR_DEVICE_LOST
   */
  abandon(ms: number): void;
}

/** Turns tensors into specs in an argument object. */
export type SpecsOf<P> = { [K in keyof P]: P[K] extends Tensor | undefined ? TensorSpec | undefined : P[K] };

/**
 * The operations. Shapes, formulas and rounding are those of csrc/ops/ops.h, struct by struct; an optional argument is
 * left out or undefined.
 */
export interface Verbs {
  gatherRows(a: { table: Arg; ids: Arg; out: Arg }): void;
  rmsNorm(a: { x: Arg; weight: Arg; out: Arg; eps: number }): void;
  addRmsNorm(a: { x: Arg; delta: Arg; weight: Arg; out: Arg; eps: number }): void;
  latentCompress(a: {
    x: Arg;
    norm: Arg;
    weight: Arg;
    weight_scale?: Arg | undefined;
    q_norm?: Arg | undefined;
    latent_norm: Arg;
    positions: Arg;
    slots: Arg;
    cos_sin: Arg;
    q: Arg;
    cache: Arg;
    eps: number;
    latent_eps: number;
    fp8_activations?: boolean | undefined;
  }): void;
  rope(a: { q: Arg; positions: Arg; cos_sin: Arg }): void;
  queryAbsorb(a: { q: Arg; w_uk: Arg; positions: Arg; cos_sin: Arg; out: Arg }): void;
  decodePlan(a: { q_start: Arg; lengths: Arg; plan: Arg; heads: number }): void;
  mlaDecode(a: {
    q: Arg;
    q_start: Arg;
    cache: Arg;
    block_table: Arg;
    lengths: Arg;
    plan: Arg;
    out: Arg;
    lse: Arg;
    scale: number;
  }): void;
  mhaDecode(a: { q: Arg; cache: Arg; block_table: Arg; lengths: Arg; out: Arg; scale: number }): void;
  valueExpand(a: { u: Arg; w_uv: Arg; out: Arg }): void;
  loadLatent(a: { cache: Arg; block_table: Arg; k_start: Arg; k_pos: Arg; latent: Arg; rope: Arg }): void;
  mlaPrefill(a: {
    q: Arg;
    k_nope: Arg;
    k_rope: Arg;
    value: Arg;
    q_start: Arg;
    k_start: Arg;
    q_pos: Arg;
    k_pos: Arg;
    out: Arg;
    lse: Arg;
    scale: number;
  }): void;
  mergeAttention(a: { a: Arg; lse_a: Arg; b: Arg; lse_b: Arg; out: Arg; lse: Arg }): void;
  gemm(a: {
    x: Arg;
    w: Arg;
    w_scale?: Arg | undefined;
    residual?: Arg | undefined;
    y: Arg;
    fp8_activations?: boolean | undefined;
  }): void;
  swiglu(a: { x: Arg; w: Arg; w_scale?: Arg | undefined; out: Arg; fp8_activations?: boolean | undefined }): void;
  moeRoute(a: {
    x: Arg;
    norm: Arg;
    gate: Arg;
    bias?: Arg | undefined;
    positions: Arg;
    normed: Arg;
    ids: Arg;
    weights: Arg;
    offsets: Arg;
    order: Arg;
    slots: Arg;
    eps: number;
    scale: number;
    top_k: number;
    shared: number;
    n_group: number;
    topk_group: number;
    expert_begin: number;
    expert_end: number;
    sigmoid: boolean;
    group_top2: boolean;
    norm_topk: boolean;
  }): void;
  moeGateUp(a: {
    x: Arg;
    w: Arg;
    w_scale?: Arg | undefined;
    offsets: Arg;
    order: Arg;
    h: Arg;
    /** always-on experts among those of w, the last ones; a hint */
    shared?: number | undefined;
    fp8_activations?: boolean | undefined;
  }): void;
  moeDown(a: {
    h: Arg;
    w: Arg;
    w_scale?: Arg | undefined;
    offsets: Arg;
    order: Arg;
    slots: Arg;
    weights: Arg;
    residual?: Arg | undefined;
    out: Arg;
    fp8_activations?: boolean | undefined;
  }): void;
  sample(a: {
    logits: Arg;
    settings: Arg;
    seeds: Arg;
    positions: Arg;
    counts?: Arg | undefined;
    bias?: Arg | undefined;
    mask?: Arg | undefined;
    ids: Arg;
    logprobs?: Arg | undefined;
    vocab: number;
  }): void;
  logProbs(a: {
    x: Arg;
    head: Arg;
    targets: Arg;
    logprobs: Arg;
    top_ids?: Arg | undefined;
    top_logprobs?: Arg | undefined;
  }): void;
  advance(a: {
    sampled: Arg;
    block_table: Arg;
    stop_ids: Arg;
    limits: Arg;
    ids: Arg;
    positions: Arg;
    lengths: Arg;
    slots: Arg;
    finished: Arg;
    counts?: Arg | undefined;
  }): void;
  copyPages(a: { pairs: Arg; cache: Arg }): void;
  copy(a: {
    src: Arg;
    dst: Arg;
    blocks: number;
    block_bytes: number;
    src_offset?: number | undefined;
    src_stride?: number | undefined;
    dst_offset?: number | undefined;
    dst_stride?: number | undefined;
  }): void;
  cast(a: { x: Arg; out: Arg }): void;
  quantize(a: { x: Arg; q: Arg; scale: Arg; pow2: boolean }): void;
  dequantize(a: { q: Arg; scale: Arg; out: Arg }): void;
  fillRandom(a: { out: Arg; seed: number; mean: number; stddev: number }): void;
  checksum(a: { x: Arg; sums: Arg }): void;
}

/** How a device is opened; see openDevice. */
export interface DeviceOptions {
  /** CPU: threads, 0 for one per physical core */
  threads?: number;
  /** CUDA: which GPU */
  index?: number;
  /** CUDA: only the kernels that run on every GPU */
  portable?: boolean;
  /** CUDA: only kernels that give a row the same bits whatever rows stand beside it; the CPU has no others */
  deterministic?: boolean;
  /** CUDA: each kernel starts when the one before has ended, without programmatic dependent launch */
  serial?: boolean;
}

/** A GPU as far as kernels and sizes depend on it. */
export interface GpuFacts {
  name: string;
  /** compute capability */
  major: number;
  minor: number;
  multiprocessors: number;
  /** shared memory that one block may have */
  sharedBytesPerBlock: number;
  /** bytes */
  memoryTotal: number;
}

/** What the NVIDIA driver says of this machine. CUDA versions as CUDA writes them: 13020 is 13.2, 0 is none. */
export interface GpuSurvey {
  /** the CUDA version this binary was built with; 0 in a build without CUDA kernels */
  runtimeCuda: number;
  /** the newest CUDA version the driver supports; 0 without a driver */
  driverCuda: number;
  gpus: GpuFacts[];
  /** why no GPU can be used; null when one can */
  failure: MlaError | null;
}

/** What is in the binary. */
export interface BuildInfo {
  /** whether CUDA kernels are */
  cuda: boolean;
  /** the version of the addon */
  version: string;
  /** for which architectures, in CMake's names: 80-real is machine code for sm_80, 120-virtual is PTX */
  archs: readonly string[];
  /** the file it was loaded from */
  file: string;
}

/** What require()ing the addon gives. */
export interface NativeAddon {
  /** See openDevice. Throws typed errors. */
  openDevice(kind: 'cpu' | 'cuda', options?: DeviceOptions): Device;
  build(): BuildInfo;
  /** Asks the driver; opens no GPU. */
  gpus(): GpuSurvey;
  /** Sizes on a GPU that need not be there. Its functions throw ERR_UNSUPPORTED in a build without CUDA kernels. */
  planner(gpu: GpuFacts): Planner;
  /** Test hook: the k-th memory allocation from now on (0 = the next) fails once; -1 switches it off. */
  failAllocation(k: number): void;
  /** Test hook: allocations since the last call of failAllocation. */
  allocationCount(): number;
  /**
   * Test hook: the kernels that this process has launched on GPUs, by their mangled names. With `forget` (default false)
   * the next call tells only of those launched since.
   */
  launchedKernels(forget?: boolean): readonly string[];
  /**
   * Test hook: the k-th operation, write, readFile, replay, wait or compilation of a graph on this device from now on
   * (0 = the next) fails with ERR_BACKEND instead of running; -1 switches it off. With `lost` it fails with
   * ERR_DEVICE_LOST, and the device is lost.
   */
  failCommand(device: Device, k: number, lost: boolean): void;
}
