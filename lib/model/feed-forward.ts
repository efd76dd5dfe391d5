// model/feed-forward.ts - the second half of a layer: a dense SwiGLU network, or DeepSeekMoE (arXiv 2401.06066) with the
// routing of DeepSeek-V2 or -V3.

import type { ResolvedConfig } from '../checkpoint';
import type { Stream, Tensor } from '../native';
import type { Activations } from './buffers';
import type { Dims } from './dims';
import type { Views } from './views';
import type { FeedForwardWeights } from './weights';

/** What the feed-forward blocks of a pass share. */
export interface FeedForwardContext {
  stream: Stream;
  dims: Dims;
  config: ResolvedConfig;
  /** [T, d], in and out */
  hidden: Tensor;
  positions: Tensor;
}

/** Views of the buffers, for the rows of one pass. */
export interface FeedForwardBuffers {
  /** [T, d] */
  normed: Tensor;
  /** [T, I] */
  dense: Tensor;
  moe: undefined | { ids: Tensor; weights: Tensor; offsets: Tensor; order: Tensor; slots: Tensor; hidden: Tensor };
}

/** Views for a pass of T rows. */
export function feedForwardBuffers(views: Views, activations: Activations, dims: Dims, T: number): FeedForwardBuffers {
  const { d, I, K, mi, E, S } = dims;
  const { dense, moe } = activations.feedForward;
  return {
    normed: views.of(activations.normed, [T, d]),
    dense: views.of(dense, [T, I]),
    moe: moe && {
      ids: views.of(moe.ids, [T, K]),
      weights: views.of(moe.weights, [T, K]),
      offsets: views.of(moe.offsets, [E + S + 1]),
      order: views.of(moe.order, [T * K]),
      slots: views.of(moe.slots, [T, K]),
      hidden: views.of(moe.hidden, [T * K, mi]),
    },
  };
}

/** hidden += FeedForward(norm(hidden)). */
export function feedForwardBlock(
  context: FeedForwardContext,
  weights: FeedForwardWeights<Tensor>,
  buffers: FeedForwardBuffers,
): void {
  const { stream, config, dims, hidden } = context;
  const eps = config.rms_norm_eps;
  if (weights.kind === 'dense') {
    stream.rmsNorm({ x: hidden, weight: weights.norm, out: buffers.normed, eps });
    stream.swiglu({
      x: buffers.normed,
      w: weights.gateUp.w,
      w_scale: weights.gateUp.scale,
      out: buffers.dense,
      fp8_activations: weights.gateUp.fp8Activations,
    });
    stream.gemm({
      x: buffers.dense,
      w: weights.down.w,
      w_scale: weights.down.scale,
      residual: hidden,
      y: hidden,
      fp8_activations: weights.down.fp8Activations,
    });
    return;
  }
  const moe = buffers.moe as NonNullable<FeedForwardBuffers['moe']>;
  stream.moeRoute({
    x: hidden,
    norm: weights.norm,
    gate: weights.gate,
    bias: weights.bias,
    positions: context.positions,
    normed: buffers.normed,
    ids: moe.ids,
    weights: moe.weights,
    offsets: moe.offsets,
    order: moe.order,
    slots: moe.slots,
    eps,
    scale: config.routed_scaling_factor,
    top_k: dims.k,
    shared: dims.S,
    n_group: config.topk_method === 'greedy' ? 1 : config.n_group,
    topk_group: config.topk_method === 'greedy' ? 1 : config.topk_group,
    expert_begin: 0,
    expert_end: dims.E,
    sigmoid: config.scoring_func === 'sigmoid',
    group_top2: config.topk_method === 'noaux_tc',
    norm_topk: config.norm_topk_prob,
  });
  stream.moeGateUp({
    x: buffers.normed,
    w: weights.gateUp.w,
    w_scale: weights.gateUp.scale,
    offsets: moe.offsets,
    order: moe.order,
    h: moe.hidden,
    shared: dims.S,
    fp8_activations: weights.gateUp.fp8Activations,
  });
  stream.moeDown({
    h: moe.hidden,
    w: weights.down.w,
    w_scale: weights.down.scale,
    offsets: moe.offsets,
    order: moe.order,
    slots: moe.slots,
    weights: moe.weights,
    residual: hidden,
    out: hidden,
    fp8_activations: weights.down.fp8Activations,
  });
}
