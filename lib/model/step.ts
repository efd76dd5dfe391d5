// model/step.ts - one step of a batch: checked whole before anything is enqueued, then decode of the running rows, then
// the new tokens, then their first samples.

import { PAGE_TOKENS, type PageCopy, pagesFor } from '../cache';
import { invalidArg, MlaError } from '../errors';
import { DTYPE_BYTES } from '../native';
import { maxContextChunks, maxPassSequences } from './buffers';
import { type AttentionForm, headPass, type Machine, type PrefillItem, prefillPass } from './forward';
import { featuresOf, MASK, type SamplingFeatures, samplePass, writeMask, writeSampling } from './sampling';
import { Sequence, type SequenceOwner } from './sequence';
import type { StepEntry } from './types';
import { Views } from './views';

/** Tokens of one sequence that go into one pass. */
interface Piece {
  sequence: Sequence;
  tokens: readonly number[] | Int32Array;
  /** whether a token is sampled after the last of them */
  sample: boolean;
}

/** A step whose arguments are right and whose pages exist. */
export interface CheckedStep {
  decode: Sequence[];
  prefill: Piece[];
  expected: Expected;
}

/** What a step is to bring, one of each for every entry, in their order. */
export interface Expected {
  sequences: Sequence[];
  /** rows that it has after the step */
  lengths: number[];
  /** likeliest ids wanted beside the sampled one; -1 where nothing is sampled */
  top: number[];
  /** the most of them */
  mostTop: number;
}

/** Steps that have been checked. */
let checks = 0;

/** Checks everything a step could be refused for. Changes nothing that counts. */
export function checkStep(machine: Machine, entries: readonly StepEntry[], owner: SequenceOwner): CheckedStep {
  const { limits, cache } = machine;
  if (!Array.isArray(entries) || entries.length === 0) throw invalidArg('entries', 'at least one step entry', entries);
  // Made in full length at once, and filled by index: a step of many rows has little else to do.
  const count = entries.length;
  const sequences = new Array<Sequence>(count);
  const lengths = new Array<number>(count);
  const top = new Array<number>(count);
  const prefill: Piece[] = [];
  let mostTop = 0;
  const check = ++checks;
  let missing = 0;
  for (let i = 0; i < count; i++) {
    const { sequence, tokens, sample = true } = entries[i] as StepEntry;
    if (!(sequence instanceof Sequence) || sequence.owner !== owner || sequence.disposed)
      throw invalidArg('sequence', 'an open sequence of this model', sequence);
    if (sequence.failed) {
      throw new MlaError('ERR_STATE', `Sequence ${sequence.id} was in a step that failed; dispose it and start again.`);
    }
    if (sequence.checked === check)
      throw invalidArg('entries', `each sequence once (sequence ${sequence.id} is there twice)`, entries);
    sequence.checked = check;
    const sampled = tokens === undefined || sample !== false;
    const length = sequence.length + (tokens?.length ?? 1);
    if (tokens === undefined) {
      if (!sequence.live) {
        throw new MlaError(
          'ERR_STATE',
          `Sequence ${sequence.id} has no sampled token to continue from; give the tokens that come next.`,
        );
      }
    } else {
      checkTokens(machine, sequence, tokens);
      prefill.push({ sequence, tokens, sample });
    }
    missing += sequence.text.missing(sampled ? pagesAhead(length, limits.context) : length);
    sequences[i] = sequence;
    lengths[i] = length;
    top[i] = sampled ? sequence.top : -1;
    if (sampled && sequence.top > mostTop) mostTop = sequence.top;
  }
  if (missing > cache.pool.available) cache.pool.take(missing); // throws the error that says how many are missing
  const decode = prefill.length === 0 ? sequences : sequences.filter((_, i) => entries[i]?.tokens === undefined);
  return { decode, prefill, expected: { sequences, lengths, top, mostTop } };
}

/** Rows there must be pages for once `length` are cached and one more is sampled. */
function pagesAhead(length: number, context: number): number {
  return Math.min(length + 1, context);
}

function checkTokens(machine: Machine, sequence: Sequence, tokens: readonly number[] | Int32Array): void {
  const { context } = machine.limits;
  if (!(Array.isArray(tokens) || tokens instanceof Int32Array) || tokens.length === 0) {
    throw invalidArg('tokens', 'a non-empty array of token ids', tokens);
  }
  if (sequence.length + tokens.length > context) {
    throw new MlaError(
      'ERR_CONTEXT_LENGTH',
      `${sequence.length + tokens.length} tokens do not fit the context of ${context}; ` +
        'shorten the text, or load the model with a larger context.',
    );
  }
  for (const id of tokens) {
    if (!Number.isInteger(id) || id < 0 || id >= machine.dims.vocab) {
      throw invalidArg('tokens', `ids from 0 to ${machine.dims.vocab - 1}`, id);
    }
  }
}

/** Enqueues the decoding of running rows: their graph, after what changed on the host since the last step. */
export function enqueueDecode(
  machine: Machine,
  sequences: readonly Sequence[],
  replay: (bucket: number, features: SamplingFeatures) => void,
): void {
  if (sequences.length === 0) return;
  const { limits, marks } = machine;
  let rows = 0;
  let features = 0;
  const grown: Sequence[] = [];
  for (const sequence of sequences) {
    const { text, row } = sequence;
    const length = text.length + 1;
    const end = pagesAhead(length, limits.context);
    if (text.missing(end) > 0) growRow(machine, sequence, end);
    text.advance();
    if (sequence.tableOnDevice < text.pages.length) grown.push(sequence);
    const mayNotStop = length < sequence.minLength;
    if (mayNotStop || marks.masked.size > 0) writeMask(machine, sequence);
    features |= mayNotStop ? sequence.features | MASK : sequence.features;
    if (row >= rows) rows = row + 1;
  }
  writeTables(machine, grown);
  replay(bucketOf(rows, limits.maxSequences), features);
}

/** Takes the pages of a running row for rows up to `end`. */
function growRow(machine: Machine, sequence: Sequence, end: number): void {
  const copy = sequence.grow(end);
  if (copy === null) return;
  copyPage(machine, copy);
  // `advance` has chosen the place in the page as it was
  const slot = copy[1] * PAGE_TOKENS + (sequence.length % PAGE_TOKENS);
  machine.stream.write(machine.rows.slots, Int32Array.of(slot), sequence.row * 4);
}

function copyPage({ stream, inputs, cache }: Machine, copy: PageCopy): void {
  stream.write(inputs.pageCopy, Int32Array.from(copy));
  stream.copyPages({ pairs: inputs.pageCopy, cache: cache.slab });
}

/** Rows of the smallest graph that holds `rows` rows: a power of two, or all. */
export function bucketOf(rows: number, maxSequences: number): number {
  return Math.min(1 << (32 - Math.clz32(rows - 1)), maxSequences);
}

/** Enqueues new tokens in passes, and the first sample of every sequence whose tokens are all in. */
export function enqueuePrefill(machine: Machine, pieces: readonly Piece[], form: 'auto' | AttentionForm): void {
  const { limits } = machine;
  for (const { sequence, tokens, sample } of pieces) {
    const length = sequence.length + tokens.length;
    const copy = sequence.grow(sample ? pagesAhead(length, limits.context) : length);
    if (copy !== null) copyPage(machine, copy);
  }
  for (const pass of packPasses(machine, pieces, form)) {
    const views = new Views();
    try {
      const items: PrefillItem[] = pass.pieces.map(({ sequence, tokens }) => ({
        tokens,
        start: sequence.length,
        pages: sequence.text.pages.slice(0, pagesFor(sequence.length + tokens.length)),
      }));
      const hidden = prefillPass(machine, views, items, pass.form);
      for (const { sequence, tokens } of pass.pieces) sequence.text.append(tokens);
      enqueueSamples(machine, views, pass.pieces, hidden);
    } finally {
      views.dispose();
    }
  }
  // What follows on the stream finds these pages written.
  for (const { sequence } of pieces) sequence.publish();
}

interface Pass {
  pieces: Piece[];
  form: AttentionForm;
}

/** Cuts pieces into passes that fit the buffers, in order. */
export function packPasses(machine: Machine, pieces: readonly Piece[], form: 'auto' | AttentionForm): Pass[] {
  const { limits } = machine;
  const passes: { pieces: Piece[]; rows: number; context: number; form: AttentionForm }[] = [];
  const maxContext = maxContextChunks(limits) * limits.contextRows;
  for (const { sequence, tokens, sample } of pieces) {
    const few = sequence.length > 0 ? limits.absorbedRows : limits.absorbedFirst;
    const wanted = form === 'auto' ? (tokens.length <= few ? 'absorbed' : 'expanded') : form;
    const most = wanted === 'absorbed' ? limits.absorbedRows : limits.prefillRows;
    for (let done = 0; done < tokens.length; ) {
      const last = passes.at(-1);
      const before = sequence.length + done;
      const fits =
        last !== undefined &&
        last.form === wanted &&
        last.rows < most &&
        last.pieces.length < maxPassSequences(limits) &&
        last.pieces.every((p) => p.sequence !== sequence);
      const room = fits ? most - last.rows : most;
      const count = Math.min(room, tokens.length - done);
      const piece: Piece = {
        sequence,
        tokens: tokens.slice(done, done + count),
        sample: sample && done + count === tokens.length,
      };
      if (fits && last.context + before + count <= maxContext) {
        last.pieces.push(piece);
        last.rows += count;
        last.context += before + count;
      } else if (fits) {
        passes.push({ pieces: [], rows: 0, context: 0, form: wanted });
        continue;
      } else {
        passes.push({ pieces: [piece], rows: count, context: before + count, form: wanted });
      }
      done += count;
    }
  }
  return passes.filter((pass) => pass.pieces.length > 0);
}

function enqueueSamples(
  machine: Machine,
  views: Views,
  pieces: readonly Piece[],
  hidden: Parameters<typeof headPass>[2],
): void {
  const { stream, inputs, rows, dims, activations } = machine;
  const ends: number[] = [];
  const sampled: Sequence[] = [];
  let end = 0;
  for (const { sequence, tokens, sample } of pieces) {
    end += tokens.length;
    if (!sample) continue;
    ends.push(end - 1);
    sampled.push(sequence);
  }
  if (sampled.length === 0) return;
  stream.write(inputs.lastRows, Int32Array.from(ends));
  const logits = headPass(machine, views, hidden, sampled.length);
  const bytes = dims.vocab * 4;
  const normedBytes = dims.d * DTYPE_BYTES[activations.normed.dtype];
  let at = 0;
  for (const neighbours of neighboursOf(sampled, sampleAlike)) {
    const first = (neighbours[0] as Sequence).row;
    const count = neighbours.length;
    stream.copy({
      src: logits,
      dst: rows.logits,
      blocks: 1,
      block_bytes: count * bytes,
      src_offset: at * bytes,
      dst_offset: first * bytes,
    });
    for (const sequence of neighbours) {
      sequence.tableOnDevice = 0;
      writeMask(machine, sequence);
      sequence.live = true;
    }
    writeTables(machine, neighbours);
    writeSampling(machine, neighbours);
    const lengths = Int32Array.from(neighbours, ({ length }) => length);
    stream.write(rows.lengths, lengths, first * 4);
    stream.write(
      rows.positions,
      lengths.map((length) => length - 1),
      first * 4,
    );
    stream.write(rows.finished, new Int32Array(count), first * 4);
    const normed = views.of(activations.normed, [count, dims.d], at * normedBytes);
    samplePass(machine, views, { first, count, normed, features: featuresOf(neighbours) });
    at += count;
  }
}

/** Cuts a list where the next one is not in the next row, or differs. */
function neighboursOf(sequences: readonly Sequence[], alike: (a: Sequence, b: Sequence) => boolean): Sequence[][] {
  const runs: Sequence[][] = [];
  for (const sequence of sequences) {
    const run = runs.at(-1);
    const last = run?.at(-1);
    if (last?.row === sequence.row - 1 && alike(last, sequence)) run?.push(sequence);
    else runs.push([sequence]);
  }
  return runs;
}

function sampleAlike(a: Sequence, b: Sequence): boolean {
  return featuresOf([a]) === featuresOf([b]);
}

function lackTheSamePages(a: Sequence, b: Sequence): boolean {
  return a.tableOnDevice === b.tableOnDevice && a.text.pages.length === b.text.pages.length;
}

/** Makes a row padding, in stream order. */
export function parkRow(machine: Machine, row: number): void {
  const { stream, rows } = machine;
  const none = Int32Array.of(-1);
  for (const tensor of [rows.ids, rows.positions, rows.slots]) stream.write(tensor, none, row * 4);
  stream.write(rows.lengths, Int32Array.of(0), row * 4);
}

/**
 * Sends the pages that the device's tables do not have yet. Texts that began together get a page in the same step: those
 * of neighbouring rows go in one piece, which is laid out in the tables there.
 */
function writeTables({ stream, rows, inputs }: Machine, sequences: readonly Sequence[]): void {
  const width = rows.blockTable.shape[1] as number;
  for (const neighbours of neighboursOf(sequences, lackTheSamePages)) {
    const { row, text: first, tableOnDevice: known } = neighbours[0] as Sequence;
    const count = first.pages.length - known;
    const news = new Int32Array(neighbours.length * count);
    let filled = 0;
    for (const { text } of neighbours) {
      for (let i = known; i < known + count; i++) news[filled++] = text.pages[i] as number;
    }
    const at = (row * width + known) * 4;
    if (neighbours.length === 1) stream.write(rows.blockTable, news, at);
    else {
      stream.write(inputs.blockTable, news);
      stream.copy({
        src: inputs.blockTable,
        dst: rows.blockTable,
        blocks: neighbours.length,
        block_bytes: count * 4,
        src_stride: count * 4,
        dst_offset: at,
        dst_stride: width * 4,
      });
    }
    for (const sequence of neighbours) sequence.tableOnDevice = known + count;
  }
}
