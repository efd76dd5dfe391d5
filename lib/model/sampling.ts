// model/sampling.ts - how the next token of a row is chosen: what the device knows of its settings, and the pass that
// samples. Penalties, bias, mask and likeliest ids cost memory traffic, so they are part of a pass (and of its graph)
// only where a row of the step asks for them; rows that do not are then given values that change nothing.

import { DTYPE_BYTES, type Tensor } from '../native';
import { MAX_STOP_IDS } from './buffers';
import type { Machine } from './forward';
import type { Sequence } from './sequence';
import type { SamplingSettings } from './types';
import type { Views } from './views';

/** kInPrompt of csrc/ops/ops.h: the flag in a count of an id that stands in the prompt. */
const IN_PROMPT = 1 << 30;

/** What the rows of a step ask of sampling, beyond the settings every row has: the sum of some of these. */
export const PENALTIES = 1;
export const BIAS = 2;
export const MASK = 4;
export const TOP = 8;
export type SamplingFeatures = number;

/** All of it: what memory is planned for. */
export const ALL_FEATURES: SamplingFeatures = PENALTIES | BIAS | MASK | TOP;

/** Rows whose device memory does not have the values that change nothing. */
export interface RowMarks {
  readonly biased: Set<number>;
  /** rows that have had a bias at some time */
  readonly everBiased: Set<number>;
  readonly masked: Set<number>;
}

/** What these settings ask for at every token; MASK depends on the length. */
export function lastingFeatures(settings: SamplingSettings): SamplingFeatures {
  return (
    (hasPenalties(settings) ? PENALTIES : 0) |
    (hasBias(settings.logitBias) ? BIAS : 0) |
    ((settings.top ?? 0) > 0 ? TOP : 0)
  );
}

/** What sampling these sequences needs, when each has as many tokens as it has rows now. */
export function featuresOf(sequences: readonly Sequence[]): SamplingFeatures {
  let features = 0;
  for (const sequence of sequences) features |= sequence.features | (mayNotStop(sequence) ? MASK : 0);
  return features;
}

/**
 * Enqueues sampling of rows [first, first + count) from their logits, and their advance to the next step.
 * @param normed the rows that the logits were made from [count, d]; read where likeliest ids are wanted
 */
export function samplePass(
  machine: Machine,
  views: Views,
  { first, count, normed, features }: { first: number; count: number; normed: Tensor; features: SamplingFeatures },
): void {
  const { stream, rows, dims, weights, activations } = machine;
  const column = (tensor: Tensor, ...rest: number[]) => {
    const width = rest.reduce((product, dim) => product * dim, 1);
    return views.of(tensor, [count, ...rest], first * width * DTYPE_BYTES[tensor.dtype]);
  };
  const widthOf = (tensor: Tensor) => tensor.shape[1] as number;
  const sampled = column(rows.sampled);
  const positions = column(rows.positions);
  const counts = features & PENALTIES ? column(rows.counts, dims.vocab) : undefined;
  stream.sample({
    logits: column(rows.logits, dims.vocab),
    settings: column(rows.settings, 8),
    seeds: column(rows.seeds),
    positions,
    counts,
    bias: features & BIAS ? column(rows.bias, dims.vocab) : undefined,
    mask: features & MASK ? column(rows.mask, widthOf(rows.mask)) : undefined,
    ids: sampled,
    logprobs: column(rows.logprobs),
    vocab: dims.vocab,
  });
  if (features & TOP) {
    stream.logProbs({
      x: normed,
      head: weights.head ?? weights.embed,
      targets: sampled,
      logprobs: views.of(activations.scores.logprobs, [count]),
      top_ids: column(rows.topIds, widthOf(rows.topIds)),
      top_logprobs: column(rows.topLogprobs, widthOf(rows.topLogprobs)),
    });
  }
  stream.advance({
    sampled,
    block_table: column(rows.blockTable, widthOf(rows.blockTable)),
    stop_ids: column(rows.stopIds, widthOf(rows.stopIds)),
    limits: column(rows.limits),
    ids: column(rows.ids),
    positions,
    lengths: column(rows.lengths),
    slots: column(rows.slots),
    finished: column(rows.finished),
    counts,
  });
}

/**
 * Sends the settings of neighbouring rows to the device, before their first tokens are sampled. All tokens they have are
 * known.
 */
export function writeSampling(machine: Machine, neighbours: readonly Sequence[]): void {
  const { stream, rows } = machine;
  const count = neighbours.length;
  const settings = new Float32Array(count * 8);
  const seeds = new BigInt64Array(count);
  const stops = new Int32Array(count * MAX_STOP_IDS).fill(-1);
  const limits = new Int32Array(count);
  neighbours.forEach(({ sampling: s }, i) => {
    const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = s;
    const penalties = [repetitionPenalty, presencePenalty, frequencyPenalty];
    settings.set([s.temperature, s.topK, s.topP, s.minP, ...penalties], i * 8);
    seeds[i] = BigInt(s.seed);
    stops.set(s.stopIds, i * MAX_STOP_IDS);
    limits[i] = s.maxLength - 1; // `advance` counts tokens that are fed; the last sampled one never is
  });
  const { row } = neighbours[0] as Sequence;
  stream.write(rows.settings, settings, row * 32);
  stream.write(rows.seeds, seeds, row * 8);
  stream.write(rows.stopIds, stops, row * MAX_STOP_IDS * 4);
  stream.write(rows.limits, limits, row * 4);
  for (const sequence of neighbours) writeCountsAndBias(machine, sequence);
}

function writeCountsAndBias({ stream, rows, dims, marks }: Machine, sequence: Sequence): void {
  const { row, sampling } = sequence;
  if (sequence.features & PENALTIES) stream.write(rows.counts, countsOf(sequence, dims.vocab), row * dims.vocab * 4);
  const biased = (sequence.features & BIAS) !== 0;
  if (biased || marks.biased.has(row)) {
    const bias = new Float32Array(dims.vocab);
    for (const [id, value] of Object.entries(sampling.logitBias ?? {})) bias[Number(id)] = value;
    stream.write(rows.bias, bias, row * dims.vocab * 4);
    marks.everBiased.add(row);
    if (biased) marks.biased.add(row);
    else marks.biased.delete(row);
  }
}

/** Forbids or allows the ids that end a text, as the length of the row asks for, before its next token is sampled. */
export function writeMask(machine: Machine, sequence: Sequence): void {
  const { stream, rows, marks } = machine;
  const { row, sampling } = sequence;
  const forbids = mayNotStop(sequence);
  if (forbids === marks.masked.has(row)) return;
  const words = rows.mask.shape[1] as number;
  const mask = new Uint32Array(words).fill(0xffffffff);
  if (forbids) for (const id of sampling.stopIds) mask[id >>> 5] = (mask[id >>> 5] as number) & ~(1 << (id & 31));
  stream.write(rows.mask, mask, row * words * 4);
  if (forbids) marks.masked.add(row);
  else marks.masked.delete(row);
}

/** Gives every row the values that change nothing, whatever the device has. */
export function clearSampling({ stream, rows, dims, limits, marks }: Machine): void {
  const words = rows.mask.shape[1] as number;
  stream.write(rows.mask, new Uint32Array(limits.maxSequences * words).fill(0xffffffff));
  marks.masked.clear();
  // A failed step may have skipped the write that took a bias away, so the marks alone do not tell.
  const zeros = new Float32Array(dims.vocab);
  for (const row of marks.everBiased) stream.write(rows.bias, zeros, row * dims.vocab * 4);
  marks.biased.clear();
}

function hasPenalties(settings: SamplingSettings): boolean {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = settings;
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
}

function hasBias(bias: Readonly<Record<number, number>> | undefined): boolean {
  for (const _ in bias) return true;
  return false;
}

function mayNotStop({ length, minLength }: Sequence): boolean {
  return length < minLength;
}

function countsOf(sequence: Sequence, vocab: number): Int32Array {
  const counts = new Int32Array(vocab);
  const prompt = sequence.sampling.promptLength ?? 0;
  for (let i = 0; i < sequence.length; i++) {
    const id = sequence.text.tokens[i] as number;
    counts[id] = i < prompt ? (counts[id] as number) | IN_PROMPT : (counts[id] as number) + 1;
  }
  return counts;
}
