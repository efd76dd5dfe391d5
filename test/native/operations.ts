// native/operations.ts - one valid call of every operation, small enough to think about: the specs of its tensors and
// its values. The tests of checks and misuse change one thing at a time.
import type { DType, Verbs } from '../../lib/native';

/** [dtype, ...shape] for a tensor, or a value. */
export type Argument = [DType, ...number[]] | number | boolean;
export type Call = Record<string, Argument>;

// T = 3 rows, B = 2 sequences, H = 2 heads, n/r/v = 8/4/8, c = 16, d = 32, E = 4 experts, k = 2, I = 16, V = 40.
export const CALLS: Record<keyof Verbs, Call> = {
  gatherRows: { table: ['bf16', 40, 32], ids: ['i32', 3], out: ['f32', 3, 32] },
  rmsNorm: { x: ['f32', 3, 32], weight: ['bf16', 32], out: ['f32', 3, 32], eps: 1e-6 },
  addRmsNorm: { x: ['f32', 3, 32], delta: ['f32', 3, 32], weight: ['f32', 32], out: ['f32', 3, 32], eps: 1e-6 },
  latentCompress: {
    x: ['f32', 3, 32],
    norm: ['f32', 32],
    weight: ['f8e4m3', 44, 32],
    weight_scale: ['f32', 1, 1],
    q_norm: ['f32', 24],
    latent_norm: ['f32', 16],
    positions: ['i32', 3],
    slots: ['i32', 3],
    cos_sin: ['f32', 64, 2, 2],
    q: ['f32', 3, 24],
    cache: ['f32', 2, 64, 20],
    eps: 1e-6,
    latent_eps: 1e-6,
  },
  rope: { q: ['f32', 3, 2, 12], positions: ['i32', 3], cos_sin: ['f32', 64, 2, 2] },
  queryAbsorb: {
    q: ['f32', 3, 2, 12],
    w_uk: ['f32', 2, 8, 16],
    positions: ['i32', 3],
    cos_sin: ['f32', 64, 2, 2],
    out: ['f32', 3, 2, 20],
  },
  decodePlan: { q_start: ['i32', 3], lengths: ['i32', 2], plan: ['i32', 4096], heads: 2 },
  mlaDecode: {
    q: ['f32', 3, 2, 20],
    q_start: ['i32', 3],
    cache: ['f32', 2, 64, 20],
    block_table: ['i32', 2, 2],
    lengths: ['i32', 2],
    plan: ['i32', 4096],
    out: ['f32', 3, 2, 16],
    lse: ['f32', 3, 2],
    scale: 0.25,
  },
  valueExpand: { u: ['f32', 3, 2, 16], w_uv: ['f32', 2, 8, 16], out: ['f32', 3, 16] },
  loadLatent: {
    cache: ['f32', 2, 64, 20],
    block_table: ['i32', 2, 2],
    k_start: ['i32', 3],
    k_pos: ['i32', 2],
    latent: ['f32', 5, 16],
    rope: ['f32', 5, 4],
  },
  mlaPrefill: {
    q: ['f32', 3, 2, 12],
    k_nope: ['f32', 5, 2, 8],
    k_rope: ['f32', 5, 4],
    value: ['f32', 5, 2, 8],
    q_start: ['i32', 3],
    k_start: ['i32', 3],
    q_pos: ['i32', 2],
    k_pos: ['i32', 2],
    out: ['f32', 3, 16],
    lse: ['f32', 3, 2],
    scale: 0.25,
  },
  mergeAttention: {
    a: ['f32', 3, 16],
    lse_a: ['f32', 3, 2],
    b: ['f32', 3, 16],
    lse_b: ['f32', 3, 2],
    out: ['f32', 3, 16],
    lse: ['f32', 3, 2],
  },
  gemm: {
    x: ['bf16', 3, 32],
    w: ['f8e4m3', 24, 32],
    w_scale: ['f32', 1, 1],
    residual: ['bf16', 3, 24],
    y: ['bf16', 3, 24],
  },
  swiglu: { x: ['f32', 3, 32], w: ['f8e4m3', 32, 32], w_scale: ['f32', 2, 1, 1], out: ['f32', 3, 16] },
  moeRoute: {
    x: ['f32', 3, 32],
    norm: ['f32', 32],
    gate: ['f32', 4, 32],
    bias: ['f32', 4],
    positions: ['i32', 3],
    normed: ['f32', 3, 32],
    ids: ['i32', 3, 3],
    weights: ['f32', 3, 3],
    offsets: ['i32', 6],
    order: ['i32', 9],
    slots: ['i32', 3, 3],
    eps: 1e-6,
    scale: 1,
    top_k: 2,
    shared: 1,
    n_group: 2,
    topk_group: 1,
    expert_begin: 0,
    expert_end: 4,
    sigmoid: true,
    group_top2: true,
    norm_topk: true,
  },
  moeGateUp: {
    x: ['f32', 3, 32],
    w: ['f8e4m3', 5, 32, 32],
    w_scale: ['f32', 5, 2, 1, 1],
    offsets: ['i32', 6],
    order: ['i32', 9],
    h: ['f32', 9, 16],
  },
  moeDown: {
    h: ['f32', 9, 16],
    w: ['f8e4m3', 5, 32, 16],
    w_scale: ['f32', 5, 1, 1],
    offsets: ['i32', 6],
    order: ['i32', 9],
    slots: ['i32', 3, 3],
    weights: ['f32', 3, 3],
    residual: ['f32', 3, 32],
    out: ['f32', 3, 32],
  },
  sample: {
    logits: ['f32', 3, 40],
    settings: ['f32', 3, 8],
    seeds: ['i64', 3],
    positions: ['i32', 3],
    counts: ['i32', 3, 40],
    mask: ['u32', 3, 2],
    ids: ['i32', 3],
    logprobs: ['f32', 3],
    vocab: 40,
  },
  logProbs: {
    x: ['f32', 3, 32],
    head: ['f32', 40, 32],
    targets: ['i32', 3],
    logprobs: ['f32', 3],
    top_ids: ['i32', 3, 5],
    top_logprobs: ['f32', 3, 5],
  },
  advance: {
    sampled: ['i32', 2],
    block_table: ['i32', 2, 2],
    stop_ids: ['i32', 2, 1],
    limits: ['i32', 2],
    ids: ['i32', 2],
    positions: ['i32', 2],
    lengths: ['i32', 2],
    slots: ['i32', 2],
    finished: ['i32', 2],
  },
  copyPages: { pairs: ['i32', 3, 2], cache: ['f32', 2, 2, 64, 20] },
  copy: {
    src: ['f32', 4, 4],
    dst: ['bf16', 8, 8],
    blocks: 4,
    block_bytes: 16,
    src_offset: 0,
    src_stride: 16,
    dst_offset: 0,
    dst_stride: 32,
  },
  cast: { x: ['f32', 4, 4], out: ['bf16', 2, 8] },
  quantize: { x: ['f32', 130, 20], q: ['f8e4m3', 130, 20], scale: ['f32', 2, 1], pow2: true },
  dequantize: { q: ['f8e4m3', 130, 20], scale: ['f32', 2, 1], out: ['bf16', 130, 20] },
  fillRandom: { out: ['f32', 4, 4], seed: 1, mean: 0, stddev: 1 },
  checksum: { x: ['f8e4m3', 4, 4], sums: ['i64', 3] },
};

export const isTensor = (argument: Argument | undefined): argument is [DType, ...number[]] => Array.isArray(argument);

/** The call with specs in place of tensors, for `workspaceBytes`. */
export function specsOf(call: Call): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(call).map(([name, argument]) => {
      if (!isTensor(argument)) return [name, argument];
      const [dtype, ...shape] = argument;
      return [name, { dtype, shape }];
    }),
  );
}
