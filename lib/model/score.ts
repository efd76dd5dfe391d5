// model/score.ts - log-probabilities of a text, chunk by chunk; no [tokens, vocab] tensor ever exists.

import { pagesFor } from '../cache';
import { invalidArg, MlaError } from '../errors';
import { type AttentionForm, headPass, type Machine, prefillPass, scorePass } from './forward';
import type { Sequence } from './sequence';
import { packPasses } from './step';
import type { ScoreResult } from './types';
import { Views } from './views';
import type { Watchdog } from './watchdog';

/** What to return besides the log-probabilities. */
export interface ScoreOptions {
  /** likeliest ids per position, 0 to 20 */
  top?: number | undefined;
  /** the raw logits after the last token */
  logits?: boolean | undefined;
  signal?: AbortSignal | undefined;
}

/** @throws ERR_INVALID_ARG, ERR_CONTEXT_LENGTH */
export function checkScore(machine: Machine, tokens: readonly number[], options: ScoreOptions): void {
  const { limits, dims } = machine;
  if (!Array.isArray(tokens) || tokens.length === 0)
    throw invalidArg('tokens', 'a non-empty array of token ids', tokens);
  for (const id of tokens) {
    if (!Number.isInteger(id) || id < 0 || id >= dims.vocab)
      throw invalidArg('tokens', `ids from 0 to ${dims.vocab - 1}`, id);
  }
  if (tokens.length > limits.context) {
    throw new MlaError(
      'ERR_CONTEXT_LENGTH',
      `${tokens.length} tokens do not fit the context of ${limits.context}; load the model with a larger context.`,
    );
  }
  const { top = 0 } = options;
  const most = Math.min(limits.maxTop, dims.vocab);
  if (!Number.isInteger(top) || top < 0 || top > most) throw invalidArg('top', `an integer from 0 to ${most}`, top);
}

/** Of a read that is not made. */
const NOTHING = Promise.resolve(null);

/** Runs the text through an empty sequence and reads the scores of each pass. */
export async function scoreTokens(
  machine: Machine,
  sequence: Sequence,
  tokens: readonly number[],
  options: ScoreOptions,
  form: 'auto' | AttentionForm,
  watchdog: Watchdog,
): Promise<ScoreResult> {
  const { stream, inputs } = machine;
  const top = options.top ?? 0;
  sequence.grow(tokens.length);
  const logprobs = new Float32Array(tokens.length).fill(Number.NaN);
  const alternatives: ScoreResult['top'] = tokens.map(() => []);
  let logits: Float32Array | null = null;
  for (const pass of packPasses(machine, [{ sequence, tokens: [...tokens], sample: true }], form)) {
    options.signal?.throwIfAborted();
    const { tokens: piece, sample: isLast } = pass.pieces[0] as (typeof pass.pieces)[number];
    const start = sequence.length;
    const views = new Views();
    try {
      const pages = sequence.text.pages.slice(0, pagesFor(start + piece.length));
      const hidden = prefillPass(machine, views, [{ tokens: piece, start, pages }], pass.form);
      sequence.text.append(piece);
      // row i predicts the token behind it
      stream.write(
        inputs.targets,
        Int32Array.from(piece, (_, i) => tokens[start + i + 1] ?? -1),
      );
      const scores = scorePass(machine, views, hidden, top);
      const reads = [scores.logprobs, scores.topIds, scores.topLogprobs].map((t) => (t ? stream.read(t) : NOTHING));
      const wantLogits = isLast && options.logits === true;
      if (wantLogits) stream.write(inputs.lastRows, Int32Array.of(piece.length - 1));
      const last = wantLogits ? stream.read(headPass(machine, views, hidden, 1)) : NOTHING;
      const [values, ids, idLogprobs, row] = await watchdog.watch<ArrayBuffer | null>(...reads, last);
      const chunk = new Float32Array(values as ArrayBuffer);
      for (let i = 0; i < piece.length && start + i + 1 < tokens.length; i++) {
        logprobs[start + i + 1] = chunk[i] as number;
        if (top > 0) {
          const rowIds = new Int32Array(ids as ArrayBuffer, i * top * 4, top);
          const rowValues = new Float32Array(idLogprobs as ArrayBuffer, i * top * 4, top);
          alternatives[start + i + 1] = Array.from(rowIds, (id, k) => ({ id, logprob: rowValues[k] as number }));
        }
      }
      if (row instanceof ArrayBuffer) logits = new Float32Array(row);
    } finally {
      views.dispose();
    }
  }
  return { logprobs, top: alternatives, logits };
}
