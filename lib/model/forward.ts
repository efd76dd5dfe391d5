// model/forward.ts - the loop over layers, and the two passes made from it: prefill (new tokens of several sequences,
// packed) and decode (one row per sequence, everything it needs already on the device).

import type { LatentCache } from '../cache';
import type { ResolvedConfig } from '../checkpoint';
import type { Stream, Tensor } from '../native';
import {
  type Attend,
  type AttentionContext,
  absorbedAttend,
  attentionBlock,
  attentionBuffers,
  type ContextChunk,
  expandedAttend,
} from './attention';
import { type Activations, type Inputs, type Limits, maxPassSequences, type Rows } from './buffers';
import type { Dims } from './dims';
import { feedForwardBlock, feedForwardBuffers } from './feed-forward';
import { type RowMarks, type SamplingFeatures, samplePass } from './sampling';
import type { Views } from './views';
import type { Weights } from './weights';

/** Everything on the device that a pass uses. */
export interface Machine {
  stream: Stream;
  config: ResolvedConfig;
  dims: Dims;
  limits: Limits;
  /** of the softmax: (n + r)^-0.5, times YaRN's factor */
  scale: number;
  latentEps: number;
  weights: Weights<Tensor>;
  cache: LatentCache;
  rows: Rows;
  marks: RowMarks;
  inputs: Inputs;
  activations: Activations;
  /** [context, r/2, 2] f32 */
  cosSin: Tensor;
}

/** What one sequence brings to a prefill pass. */
export interface PrefillItem {
  tokens: readonly number[] | Int32Array;
  /** position of the first of them: how many tokens the cache holds before */
  start: number;
  pages: readonly number[];
}

/** Which of its two forms attention takes. */
export type AttentionForm = 'absorbed' | 'expanded';

/** Runs all layers over the rows in `hidden`. */
function runLayers(
  machine: Machine,
  views: Views,
  T: number,
  hidden: Tensor,
  positions: Tensor,
  slots: Tensor,
  makeAttend: (context: Omit<AttentionContext, 'attend'>) => Attend,
): void {
  const { stream, config, dims, weights, cache, activations } = machine;
  const shared = {
    stream,
    dims,
    scale: machine.scale,
    eps: config.rms_norm_eps,
    latentEps: machine.latentEps,
    cosSin: machine.cosSin,
    T,
    hidden,
    positions,
    slots,
  };
  const context = { ...shared, attend: makeAttend(shared) };
  const attention = attentionBuffers(views, activations, dims, T);
  const feedForward = feedForwardBuffers(views, activations, dims, T);
  const feedForwardContext = { stream, dims, config, hidden, positions };
  weights.layers.forEach((layer, l) => {
    attentionBlock(context, layer.attention, cache.layers[l] as Tensor, attention);
    feedForwardBlock(feedForwardContext, layer.feedForward, feedForward);
  });
}

/**
 * Enqueues the new tokens of several sequences, packed row after row; their cache rows are written on the way.
 * Returns the residual stream after the last layer, [T, d], valid until the next pass.
 */
export function prefillPass(
  machine: Machine,
  views: Views,
  items: readonly PrefillItem[],
  form: AttentionForm,
): Tensor {
  const { stream, inputs, limits, activations, dims } = machine;
  const B = items.length;
  const T = items.reduce((sum, item) => sum + item.tokens.length, 0);
  const tables = inputs.blockTable.shape[1] as number;
  const ids = new Int32Array(T);
  const positions = new Int32Array(T);
  const slots = new Int32Array(T);
  const qStart = new Int32Array(B + 1);
  const qPos = new Int32Array(B);
  const lengths = new Int32Array(B);
  const blockTable = new Int32Array(B * tables).fill(-1);
  let t = 0;
  items.forEach((item, b) => {
    for (let i = 0; i < item.tokens.length; i++, t++) {
      const position = item.start + i;
      ids[t] = item.tokens[i] as number;
      positions[t] = position;
      slots[t] = (item.pages[position >> 6] as number) * 64 + (position & 63);
    }
    qStart[b + 1] = t;
    qPos[b] = item.start;
    lengths[b] = item.start + item.tokens.length;
    blockTable.set(item.pages, b * tables);
  });
  stream.write(inputs.ids, ids);
  stream.write(inputs.positions, positions);
  stream.write(inputs.slots, slots);
  stream.write(inputs.qStart, qStart);
  stream.write(inputs.qPos, qPos);
  stream.write(inputs.lengths, lengths);
  stream.write(inputs.blockTable, blockTable);

  const hidden = views.of(activations.hidden, [T, dims.d]);
  stream.gatherRows({ table: machine.weights.embed, ids: views.of(inputs.ids, [T]), out: hidden });
  const batch = {
    qStart: views.of(inputs.qStart, [B + 1]),
    qPos: views.of(inputs.qPos, [B]),
    lengths: views.of(inputs.lengths, [B]),
    blockTable: views.of(inputs.blockTable, [B, tables]),
  };
  const chunks = form === 'expanded' ? contextChunks(machine, views, lengths, limits) : [];
  runLayers(machine, views, T, hidden, views.of(inputs.positions, [T]), views.of(inputs.slots, [T]), (context) =>
    form === 'absorbed'
      ? absorbedAttend(context, views, activations, batch)
      : expandedAttend(context, views, activations, { ...batch, chunks }),
  );
  return hidden;
}

/** Cuts the contexts of all sequences, one behind the other, into chunks of at most contextRows rows. */
function contextChunks(machine: Machine, views: Views, lengths: Int32Array, limits: Limits): ContextChunk[] {
  const { stream, inputs } = machine;
  const B = lengths.length;
  const width = maxPassSequences(limits);
  const starts: number[][] = [];
  const positions: number[][] = [];
  let room = 0;
  lengths.forEach((length, b) => {
    for (let done = 0; done < length; ) {
      if (room === 0) {
        starts.push(new Array(B + 1).fill(0));
        positions.push(new Array(B).fill(0));
        room = limits.contextRows;
      }
      const rows = Math.min(room, length - done);
      (positions.at(-1) as number[])[b] = done;
      const start = starts.at(-1) as number[];
      for (let later = b + 1; later <= B; later++) start[later] = (start[later] as number) + rows;
      done += rows;
      room -= rows;
    }
  });
  const packedStarts = new Int32Array(starts.length * (width + 1));
  const packedPositions = new Int32Array(starts.length * width);
  starts.forEach((row, i) => {
    packedStarts.set(row, i * (width + 1));
    packedPositions.set(positions[i] as number[], i * width);
  });
  stream.write(inputs.kStart, packedStarts);
  stream.write(inputs.kPos, packedPositions);
  return starts.map((row, i) => ({
    rows: row[B] as number,
    kStart: views.of(inputs.kStart, [B + 1], i * (width + 1) * 4),
    kPos: views.of(inputs.kPos, [B], i * width * 4),
  }));
}

/** Enqueues the logits of `count` rows of `hidden`, named in inputs.lastRows: [count, vocab], until the next pass. */
export function headPass(machine: Machine, views: Views, hidden: Tensor, count: number): Tensor {
  const { stream, config, weights, activations, inputs, dims } = machine;
  const rows = views.of(activations.lastHidden, [count, dims.d]);
  const normed = views.of(activations.normed, [count, dims.d]);
  const logits = views.of(activations.lastLogits, [count, dims.vocab]);
  stream.gatherRows({ table: hidden, ids: views.of(inputs.lastRows, [count]), out: rows });
  stream.rmsNorm({ x: rows, weight: weights.norm, out: normed, eps: config.rms_norm_eps });
  stream.gemm({ x: normed, w: weights.head ?? weights.embed, y: logits });
  return logits;
}

/** What scorePass leaves on the device, per row of the pass. */
export interface Scores {
  /** [T] f32 */
  logprobs: Tensor;
  /** [T, top], absent for top 0 */
  topIds: Tensor | undefined;
  topLogprobs: Tensor | undefined;
}

/** Enqueues log-probabilities of inputs.targets under each row of `hidden`, and the `top` likeliest ids of each. */
export function scorePass(machine: Machine, views: Views, hidden: Tensor, top: number): Scores {
  const { stream, config, weights, activations, inputs, dims } = machine;
  const T = hidden.shape[0] as number;
  const normed = views.of(activations.normed, [T, dims.d]);
  stream.rmsNorm({ x: hidden, weight: weights.norm, out: normed, eps: config.rms_norm_eps });
  const scores = {
    logprobs: views.of(activations.scores.logprobs, [T]),
    topIds: top > 0 ? views.of(activations.scores.topIds, [T, top]) : undefined,
    topLogprobs: top > 0 ? views.of(activations.scores.topLogprobs, [T, top]) : undefined,
  };
  stream.logProbs({
    x: normed,
    head: weights.head ?? weights.embed,
    targets: views.of(inputs.targets, [T]),
    logprobs: scores.logprobs,
    top_ids: scores.topIds,
    top_logprobs: scores.topLogprobs,
  });
  return scores;
}

/** Enqueues one decode step of rows [0, bucket): everything it needs and changes is on the device. */
export function decodePass(machine: Machine, views: Views, bucket: number, features: SamplingFeatures): void {
  const { stream, config, weights, rows, activations, dims } = machine;
  const hidden = views.of(activations.hidden, [bucket, dims.d]);
  stream.gatherRows({ table: weights.embed, ids: views.of(rows.ids, [bucket]), out: hidden });
  const tables = rows.blockTable.shape[1] as number;
  const batch = {
    qStart: views.of(rows.qStart, [bucket + 1]),
    lengths: views.of(rows.lengths, [bucket]),
    blockTable: views.of(rows.blockTable, [bucket, tables]),
  };
  runLayers(
    machine,
    views,
    bucket,
    hidden,
    views.of(rows.positions, [bucket]),
    views.of(rows.slots, [bucket]),
    (context) => absorbedAttend(context, views, activations, batch),
  );
  const normed = views.of(activations.normed, [bucket, dims.d]);
  stream.rmsNorm({ x: hidden, weight: weights.norm, out: normed, eps: config.rms_norm_eps });
  stream.gemm({ x: normed, w: weights.head ?? weights.embed, y: views.of(rows.logits, [bucket, dims.vocab]) });
  samplePass(machine, views, { first: 0, count: bucket, normed, features });
}
