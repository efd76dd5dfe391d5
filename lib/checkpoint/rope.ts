// rope.ts - rotary tables and the softmax scale, in float64 until the last step.
// YaRN (per pair i of qk_rope_head_dim = r, base theta): e_i = theta^(-2i/r); n_i = e_i / factor;
//   corr(b) = r ln(original / (2 pi b)) / (2 ln theta); lo = max(floor corr(beta_fast), 0); hi = min(ceil corr(beta_slow), r - 1);
//   t_i = clamp((i - lo) / (hi - lo), 0, 1); inv_i = n_i t_i + e_i (1 - t_i).
// It applies at every length, not only beyond the original one. Tested against published numbers in test/checkpoint/rope.test.ts.
import { invalidArg } from '../errors';
import type { ModelConfig } from './config';
import { yarnMagnitude } from './rope-config';

/** The parts of a config that rotary positions depend on. */
export type RopeDims = Pick<ModelConfig, 'rope' | 'qk_rope_head_dim'>;

const MOST_POSITIONS = 1 << 24;

/** The pairs between which YaRN blends: below `lo` frequencies stay, above `hi` they are divided by the factor. */
export function yarnRange(config: RopeDims): { lo: number; hi: number } | null {
  const { theta, yarn } = config.rope;
  if (yarn === null) return null;
  const r = config.qk_rope_head_dim;
  const corr = (rotations: number): number =>
    (r * Math.log(yarn.original_max_position_embeddings / (2 * Math.PI * rotations))) / (2 * Math.log(theta));
  return { lo: Math.max(Math.floor(corr(yarn.beta_fast)), 0), hi: Math.min(Math.ceil(corr(yarn.beta_slow)), r - 1) };
}

/** Angle per position of each pair: [qk_rope_head_dim / 2]. */
export function inverseFrequencies(config: RopeDims): Float64Array {
  const r = config.qk_rope_head_dim;
  const { theta, yarn } = config.rope;
  const range = yarnRange(config);
  const inverse = new Float64Array(r / 2);
  for (let i = 0; i < inverse.length; i++) {
    const plain = theta ** ((-2 * i) / r);
    if (yarn === null || range === null) {
      inverse[i] = plain;
      continue;
    }
    const width = range.hi === range.lo ? 0.001 : range.hi - range.lo;
    const t = Math.min(Math.max((i - range.lo) / width, 0), 1);
    inverse[i] = (plain / yarn.factor) * t + plain * (1 - t);
  }
  return inverse;
}

/** What cos and sin are multiplied by: m(factor, mscale) / m(factor, mscale_all_dim); 1 in every released model. */
export function rotaryMagnitude(config: RopeDims): number {
  const { yarn } = config.rope;
  return yarn === null ? 1 : yarnMagnitude(yarn.factor, yarn.mscale) / yarnMagnitude(yarn.factor, yarn.mscale_all_dim);
}

/**
 * Cosine and sine for positions 0 .. positions - 1: [positions, qk_rope_head_dim / 2, 2]. Pair i rotates the stored
 * elements 2i and 2i + 1.
 * @throws ERR_INVALID_ARG when positions is not an integer from 0 to 2^24
 */
export function ropeTable(config: RopeDims, positions: number): Float32Array {
  if (!Number.isInteger(positions) || positions < 0 || positions > MOST_POSITIONS) {
    throw invalidArg('positions', `an integer from 0 to ${MOST_POSITIONS}`, positions);
  }
  const inverse = inverseFrequencies(config);
  const magnitude = rotaryMagnitude(config);
  const pairs = inverse.length;
  const table = new Float32Array(positions * pairs * 2);
  let at = 0;
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < pairs; i++) {
      const angle = position * (inverse[i] as number);
      table[at++] = Math.cos(angle) * magnitude;
      table[at++] = Math.sin(angle) * magnitude;
    }
  }
  return table;
}

/**
 * What q.k is multiplied by before the softmax: (qk_nope_head_dim + qk_rope_head_dim)^-0.5, times m(factor,
 * mscale_all_dim)^2 under YaRN with mscale_all_dim != 0. Never kv_lora_rank + qk_rope_head_dim, in the absorbed form either.
 */
export function softmaxScale(config: RopeDims & Pick<ModelConfig, 'qk_nope_head_dim'>): number {
  const scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5;
  const { yarn } = config.rope;
  if (yarn === null || yarn.mscale_all_dim === 0) return scale;
  return scale * yarnMagnitude(yarn.factor, yarn.mscale_all_dim) ** 2;
}
