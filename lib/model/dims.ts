// model/dims.ts - the numbers of a model that buffers and operations are made from, by the letters of docs/glossary.md.

import type { CacheDtype } from '../cache';
import type { ModelConfig } from '../checkpoint';
import type { DeviceInfo, DType } from '../native';
import type { LatentModelOptions } from './types';

/** Dimensions of one model. */
export interface Dims {
  /** hidden size */
  d: number;
  layers: number;
  /** heads */
  H: number;
  /** nope, rope and value head dims */
  n: number;
  r: number;
  v: number;
  /** latent rank */
  c: number;
  /** channels of a cache row, c + r */
  L: number;
  /** rank of the query latent; 0: none */
  qRank: number;
  /** columns of the query part of the down-projection: the query latent, or all heads */
  Nq: number;
  vocab: number;
  /** routed experts, experts per token, always-on experts, expert width */
  E: number;
  k: number;
  S: number;
  mi: number;
  /** pairs per token: k + S */
  K: number;
  /** dense feed-forward width */
  I: number;
}

/** Dimensions from a validated config. */
export function dimsOf(config: ModelConfig): Dims {
  const H = config.num_attention_heads;
  const n = config.qk_nope_head_dim;
  const r = config.qk_rope_head_dim;
  const c = config.kv_lora_rank;
  const qRank = config.q_lora_rank;
  const E = config.n_routed_experts;
  const k = E > 0 ? config.num_experts_per_tok : 0;
  const S = E > 0 ? config.n_shared_experts : 0;
  return {
    d: config.hidden_size,
    layers: config.num_hidden_layers,
    H,
    n,
    r,
    v: config.v_head_dim,
    c,
    L: c + r,
    qRank,
    Nq: qRank > 0 ? qRank : H * (n + r),
    vocab: config.vocab_size,
    E,
    k,
    S,
    mi: E > 0 ? config.moe_intermediate_size : 0,
    K: k + S,
    I: config.intermediate_size,
  };
}

/** Element types of a loaded model; the rounding points belong to the load, never to the batch. */
export interface Precision {
  /** activations between operations */
  act: 'f32' | 'bf16';
  /** whether they enter products with fp8 weights in fp8 */
  fp8Activations: boolean;
  /** latent cache; 'fp8' keeps the rotated part of a row in bf16 */
  cache: CacheDtype;
  /** 'auto' keeps what the checkpoint has; 'fp8' quantises the matrices of the layers at load and keeps the rest */
  weights: 'auto' | 'f32' | 'bf16' | 'fp8';
  /** what fp8 weights become where an operation does not take fp8 (the per-head halves of kv_b): as `act`, to which
   * products round their operands anyway */
  wide: 'f32' | 'bf16';
}

/** Resolves 'auto' for a device. */
export function precisionOf(options: LatentModelOptions, device: DeviceInfo): Precision {
  const exact = device.kind === 'cpu';
  const auto = exact ? 'f32' : 'bf16';
  const act = options.activationDtype ?? 'auto';
  const cache = options.cacheDtype ?? 'auto';
  const weights = options.dtype ?? 'auto';
  const fp8Activations = act === 'fp8';
  const resolved = act === 'auto' ? auto : fp8Activations ? 'bf16' : act;
  return { act: resolved, fp8Activations, cache: cache === 'auto' ? auto : cache, weights, wide: resolved };
}

/**
 * Element type that a group of source tensors gets on the device. Mixed groups become `wide`. `fp8`: the operation that
 * reads it takes fp8, and its scale blocks fit.
 */
export function targetDtype(sources: readonly DType[], precision: Precision, fp8: boolean): DType {
  if (precision.weights === 'fp8') {
    if (fp8) return 'f8e4m3';
  } else if (precision.weights !== 'auto') return precision.weights;
  const first = sources[0] as DType;
  const dtype = sources.every((s) => s === first) ? first : precision.wide;
  return dtype === 'f8e4m3' && !fp8 ? precision.wide : dtype;
}
