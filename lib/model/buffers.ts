// model/buffers.ts - every buffer a forward pass works in, planned from the dimensions before anything is allocated.

import type { Tensor, TensorSpec } from '../native';
import type { Dims, Precision } from './dims';
import type { Allocated } from './specs';

/** Ids that end a sequence, per row. */
export const MAX_STOP_IDS = 16;

/** Sizes that are choices, not properties of the model. */
export interface Limits {
  /** tokens a sequence may have */
  context: number;
  maxSequences: number;
  pages: number;
  /** rows of one prefill pass */
  prefillRows: number;
  /** cached rows that prefill attention expands at a time */
  contextRows: number;
  /** rows that the absorbed form takes at most (decode, and short appends) */
  absorbedRows: number;
  /** new tokens of a sequence that take it, where none of the sequence is in the cache */
  absorbedFirst: number;
  /** likeliest ids per position that scoring can return */
  maxTop: number;
}

/** What one row of the batch needs to advance by itself on the device; one column per sequence. */
export function rowSpecs(dims: Dims, limits: Limits) {
  const B = limits.maxSequences;
  const i32 = (...shape: number[]): TensorSpec => ({ dtype: 'i32', shape });
  return {
    ids: i32(B),
    positions: i32(B),
    lengths: i32(B),
    slots: i32(B),
    blockTable: i32(B, Math.ceil(limits.context / 64)),
    stopIds: i32(B, MAX_STOP_IDS),
    limits: i32(B),
    /** what the host reads after a step: sampled ids, finished flags, log-probabilities (f32) */
    results: i32(3, B),
    settings: { dtype: 'f32', shape: [B, 8] } as TensorSpec,
    seeds: { dtype: 'i64', shape: [B] } as TensorSpec,
    /** 0, 1, 2, ...: a decode step has one query row per sequence */
    qStart: i32(B + 1),
    logits: { dtype: 'f32', shape: [B, dims.vocab] } as TensorSpec,
    /** what only some requests ask for; see sampling.ts */
    counts: i32(B, dims.vocab),
    bias: { dtype: 'f32', shape: [B, dims.vocab] } as TensorSpec,
    mask: { dtype: 'u32', shape: [B, Math.ceil(dims.vocab / 32)] } as TensorSpec,
    topIds: i32(B, limits.maxTop),
    topLogprobs: { dtype: 'f32', shape: [B, limits.maxTop] } as TensorSpec,
  };
}

/** Chunks of context that one prefill pass can look at: one sequence at full length always fits. */
export function maxContextChunks(limits: Limits): number {
  return Math.ceil(limits.context / limits.contextRows) + 1;
}

/** Sequences in one prefill pass: all of them, and one text that is only scored and has no row of its own. */
export function maxPassSequences(limits: Limits): number {
  return limits.maxSequences + 1;
}

/** What the host tells a prefill pass: which tokens, where they stand, what they may look at. */
export function inputSpecs(limits: Limits) {
  const R = limits.prefillRows;
  const B = maxPassSequences(limits);
  const i32 = (...shape: number[]): TensorSpec => ({ dtype: 'i32', shape });
  return {
    ids: i32(R),
    positions: i32(R),
    slots: i32(R),
    qStart: i32(B + 1),
    qPos: i32(B),
    /** one row per chunk of context */
    kStart: i32(maxContextChunks(limits), B + 1),
    kPos: i32(maxContextChunks(limits), B),
    lengths: i32(B),
    blockTable: i32(B, Math.ceil(limits.context / 64)),
    lastRows: i32(B),
    /** one page to be copied: from, to */
    pageCopy: i32(1, 2),
    targets: i32(R),
  };
}

/** Activations of a pass of at most max(prefillRows, maxSequences) rows; every layer uses the same ones. */
export function activationSpecs(dims: Dims, precision: Precision, limits: Limits, planInts: number) {
  const { d, H, n, r, v, c, L, Nq, qRank, E, S, K, mi, I } = dims;
  const R = Math.max(limits.prefillRows, limits.maxSequences);
  const A = Math.max(limits.absorbedRows, limits.maxSequences);
  const X = limits.contextRows;
  const act = (...shape: number[]): TensorSpec => ({ dtype: precision.act, shape });
  const f32 = (...shape: number[]): TensorSpec => ({ dtype: 'f32', shape });
  const i32 = (...shape: number[]): TensorSpec => ({ dtype: 'i32', shape });
  return {
    hidden: act(R, d),
    normed: act(R, d),
    /** last rows of a prefill pass, and their logits */
    lastHidden: act(maxPassSequences(limits), d),
    lastLogits: f32(maxPassSequences(limits), dims.vocab),
    attention: {
      /** the query, or with q-LoRA the query latent */
      down: act(R, Nq),
      query: qRank > 0 ? act(R, H, n + r) : undefined,
      heads: act(R, H * v),
      absorbed: { plan: i32(planInts), query: act(A, H, L), latent: act(A, H, c), lse: f32(A, H) },
      expanded: {
        latent: act(X, c),
        kRope: act(X, r),
        kNope: act(X, H, n),
        value: act(X, H, v),
        partA: f32(R, H * v),
        lseA: f32(R, H),
        partB: f32(R, H * v),
        lseB: f32(R, H),
      },
    },
    feedForward: {
      dense: act(R, I),
      moe:
        E === 0
          ? undefined
          : {
              ids: i32(R, K),
              weights: f32(R, K),
              offsets: i32(E + S + 1),
              order: i32(R * K),
              slots: i32(R, K),
              hidden: act(R * K, mi),
            },
    },
    scores: { logprobs: f32(R), topIds: i32(R, limits.maxTop), topLogprobs: f32(R, limits.maxTop) },
  };
}

/** Row state on the device; sampled, finished and logprobs are the rows of `results`. */
export type Rows = Allocated<ReturnType<typeof rowSpecs>> & { sampled: Tensor; finished: Tensor; logprobs: Tensor };
export type Inputs = Allocated<ReturnType<typeof inputSpecs>>;
export type Activations = Allocated<ReturnType<typeof activationSpecs>>;
