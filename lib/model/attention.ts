// model/attention.ts - Multi-head Latent Attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in its two forms. Both
// read keys and values from the latent cache alone; in real arithmetic they are the same function.

import type { Stream, Tensor } from '../native';
import type { Activations } from './buffers';
import type { Dims } from './dims';
import type { Views } from './views';
import type { AttentionWeights } from './weights';

/** What the attention of every layer of a pass shares. */
export interface AttentionContext {
  stream: Stream;
  dims: Dims;
  /** of the softmax: (n + r)^-0.5, times YaRN's factor */
  scale: number;
  eps: number;
  latentEps: number;
  /** [positions, r/2, 2] f32 */
  cosSin: Tensor;
  /** rows of the pass */
  T: number;
  /** [T, d], in and out */
  hidden: Tensor;
  positions: Tensor;
  slots: Tensor;
  attend: Attend;
}

/** Turns the unrotated query [T, H, n + r] into head outputs [T, H * v]. */
export type Attend = (weights: AttentionWeights<Tensor>, cache: Tensor, query: Tensor, heads: Tensor) => void;

/** hidden += Attention(norm(hidden)); appends this pass's rows to the cache of the layer. */
export function attentionBlock(
  context: AttentionContext,
  weights: AttentionWeights<Tensor>,
  cache: Tensor,
  buffers: AttentionBuffers,
): void {
  const { stream } = context;
  stream.latentCompress({
    x: context.hidden,
    norm: weights.norm,
    weight: weights.down.w,
    weight_scale: weights.down.scale,
    q_norm: weights.qNorm,
    latent_norm: weights.latentNorm,
    positions: context.positions,
    slots: context.slots,
    cos_sin: context.cosSin,
    q: buffers.down,
    cache,
    eps: context.eps,
    latent_eps: context.latentEps,
    fp8_activations: weights.down.fp8Activations,
  });
  if (weights.qUp !== undefined) {
    stream.gemm({
      x: buffers.down,
      w: weights.qUp.w,
      w_scale: weights.qUp.scale,
      y: buffers.queryFlat,
      fp8_activations: weights.qUp.fp8Activations,
    });
  }
  context.attend(weights, cache, buffers.query, buffers.heads);
  stream.gemm({
    x: buffers.heads,
    w: weights.out.w,
    w_scale: weights.out.scale,
    residual: context.hidden,
    y: context.hidden,
    fp8_activations: weights.out.fp8Activations,
  });
}

/** Views of the buffers, for the rows of one pass. */
export interface AttentionBuffers {
  /** [T, Nq] */
  down: Tensor;
  /** [T, H, n + r], and the same as [T, H * (n + r)] */
  query: Tensor;
  queryFlat: Tensor;
  /** [T, H * v] */
  heads: Tensor;
}

/** Views for a pass of T rows. */
export function attentionBuffers(views: Views, activations: Activations, dims: Dims, T: number): AttentionBuffers {
  const { H, n, r, v, Nq } = dims;
  const { down, query, heads } = activations.attention;
  const full = query ?? down;
  return {
    down: views.of(down, [T, Nq]),
    query: views.of(full, [T, H, n + r]),
    queryFlat: views.of(full, [T, H * (n + r)]),
    heads: views.of(heads, [T, H * v]),
  };
}

/** Which rows belong to which sequence, for the absorbed form. */
export interface AbsorbedBatch {
  qStart: Tensor;
  lengths: Tensor;
  blockTable: Tensor;
}

/**
 * The absorbed form: queries move into the latent space, keys and values are the cache rows themselves. Reads 1/7 to
 * 1/57 of what expanded keys and values would take, so it is the form of decoding and of short appends.
 */
export function absorbedAttend(
  context: Omit<AttentionContext, 'attend'>,
  views: Views,
  activations: Activations,
  batch: AbsorbedBatch,
): Attend {
  const { stream, dims, T } = context;
  const { plan, query: queryBuffer, latent, lse } = activations.attention.absorbed;
  const absorbed = views.of(queryBuffer, [T, dims.H, dims.L]);
  const out = views.of(latent, [T, dims.H, dims.c]);
  const outLse = views.of(lse, [T, dims.H]);
  stream.decodePlan({ q_start: batch.qStart, lengths: batch.lengths, plan, heads: dims.H });
  return (weights, cache, query, heads) => {
    stream.queryAbsorb({
      q: query,
      w_uk: weights.wUk,
      positions: context.positions,
      cos_sin: context.cosSin,
      out: absorbed,
    });
    stream.mlaDecode({
      q: absorbed,
      q_start: batch.qStart,
      cache,
      block_table: batch.blockTable,
      lengths: batch.lengths,
      plan,
      out,
      lse: outLse,
      scale: context.scale,
    });
    stream.valueExpand({ u: out, w_uv: weights.wUv, out: heads });
  };
}

/** A piece of the context of every sequence: packed rows of its cache. */
export interface ContextChunk {
  /** rows in all */
  rows: number;
  kStart: Tensor;
  kPos: Tensor;
}

/** Queries of every sequence and the chunks of context they look at, for the expanded form. */
export interface ExpandedBatch {
  qStart: Tensor;
  qPos: Tensor;
  blockTable: Tensor;
  chunks: readonly ContextChunk[];
}

/**
 * The multi-head form: cached latents are expanded into per-head keys and values, a chunk of context at a time, and
 * the partial results merged by their log-sum-exp. Fewer operations per query once there are many.
 */
export function expandedAttend(
  context: Omit<AttentionContext, 'attend'>,
  views: Views,
  activations: Activations,
  batch: ExpandedBatch,
): Attend {
  const { stream, dims, T } = context;
  const { H, n, r, v, c } = dims;
  const x = activations.attention.expanded;
  const parts = [
    { out: views.of(x.partA, [T, H * v]), lse: views.of(x.lseA, [T, H]) },
    { out: views.of(x.partB, [T, H * v]), lse: views.of(x.lseB, [T, H]) },
  ] as const;
  const chunks = batch.chunks.map((chunk) => ({
    ...chunk,
    latent: views.of(x.latent, [chunk.rows, c]),
    kRope: views.of(x.kRope, [chunk.rows, r]),
    kNope: views.of(x.kNope, [chunk.rows, H, n]),
    kNopeFlat: views.of(x.kNope, [chunk.rows, H * n]),
    value: views.of(x.value, [chunk.rows, H, v]),
    valueFlat: views.of(x.value, [chunk.rows, H * v]),
  }));
  return (weights, cache, query, heads) => {
    stream.rope({ q: query, positions: context.positions, cos_sin: context.cosSin });
    const wUk = views.of(weights.wUk, [H * n, c]);
    const wUv = views.of(weights.wUv, [H * v, c]);
    chunks.forEach((chunk, i) => {
      const only = chunks.length === 1;
      const part = parts[i === 0 ? 0 : 1];
      stream.loadLatent({
        cache,
        block_table: batch.blockTable,
        k_start: chunk.kStart,
        k_pos: chunk.kPos,
        latent: chunk.latent,
        rope: chunk.kRope,
      });
      stream.gemm({ x: chunk.latent, w: wUk, y: chunk.kNopeFlat });
      stream.gemm({ x: chunk.latent, w: wUv, y: chunk.valueFlat });
      stream.mlaPrefill({
        q: query,
        k_nope: chunk.kNope,
        k_rope: chunk.kRope,
        value: chunk.value,
        q_start: batch.qStart,
        k_start: chunk.kStart,
        q_pos: batch.qPos,
        k_pos: chunk.kPos,
        out: only ? heads : part.out,
        lse: part.lse,
        scale: context.scale,
      });
      if (i > 0) {
        const [a, b] = parts;
        const last = i === chunks.length - 1;
        stream.mergeAttention({
          a: a.out,
          lse_a: a.lse,
          b: b.out,
          lse_b: b.lse,
          out: last ? heads : a.out,
          lse: a.lse,
        });
      }
    });
  };
}
