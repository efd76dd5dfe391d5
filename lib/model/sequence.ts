// model/sequence.ts - one text in the making: its pages, its row on the device, and what the host knows of it.

import type { KeptPages, PageCopy, TextPages } from '../cache';
import { invalidArg, MlaError } from '../errors';
import { MAX_STOP_IDS } from './buffers';
import { lastingFeatures, type SamplingFeatures } from './sampling';
import type { SamplingSettings, SequenceHandle } from './types';

/** Greedy, without an end. */
export const GREEDY: Omit<SamplingSettings, 'maxLength'> = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  seed: 0,
  stopIds: [],
};

/** What a sequence needs of its model. */
export interface SequenceOwner {
  readonly context: number;
  readonly vocab: number;
  readonly maxTop: number;
  release(sequence: Sequence): void;
}

/** Pages and state of one sequence; the public face is {@link SequenceHandle}. */
export class Sequence implements SequenceHandle {
  disposed = false;
  /** a step it was part of failed: its cache and row can no longer be trusted */
  failed = false;
  /** whether the device holds the token that comes next, and will decode this row in the next step */
  live = false;
  /** the check of a step that it was part of last; no set of a step's sequences has to be made */
  checked = 0;
  /** block table entries that the device's row has */
  tableOnDevice = 0;
  sampling: SamplingSettings;
  /** of `sampling`, for every step at hand: what it asks for, the length from which on the text may end, likeliest ids */
  features: SamplingFeatures = 0;
  minLength = 0;
  top = 0;

  constructor(
    readonly id: number,
    /** row of the batch; -1 for a text that is only scored */
    readonly row: number,
    readonly text: TextPages,
    readonly owner: SequenceOwner,
  ) {
    this.sampling = { ...GREEDY, maxLength: owner.context };
  }

  /** Tokens in the cache, those of enqueued steps included. */
  get length(): number {
    return this.text.length;
  }

  setSampling(settings: SamplingSettings): void {
    this.#mustBeOpen();
    if (this.live) {
      throw new MlaError('ERR_STATE', `Sequence ${this.id} is being decoded; set its sampling before its prompt.`);
    }
    checkSampling(settings, this.owner);
    this.sampling = { ...settings, stopIds: [...settings.stopIds] };
    this.features = lastingFeatures(settings);
    this.minLength = settings.minLength ?? 0;
    this.top = settings.top ?? 0;
  }

  begin(tokens: readonly number[], kept: KeptPages | null, salt: string): number {
    this.#mustBeOpen();
    return this.text.begin(tokens, kept, salt);
  }

  keep(): KeptPages {
    this.#mustBeOpen();
    return this.text.keep();
  }

  /** Takes the pages for rows up to `end`. @returns the copy to be made first, or null. @throws ERR_NO_PAGES */
  grow(end: number): PageCopy | null {
    const copy = this.text.grow(end);
    if (copy !== null) this.#tableChanged(this.text.pages.indexOf(copy[1]));
    return copy;
  }

  /** Lets other texts begin with the full pages of this one. */
  publish(): void {
    const replaced = this.text.publish();
    if (replaced !== null) this.#tableChanged(replaced);
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.owner.release(this);
  }

  #tableChanged(from: number): void {
    this.tableOnDevice = Math.min(this.tableOnDevice, from);
  }

  #mustBeOpen(): void {
    if (this.disposed) throw new MlaError('ERR_DISPOSED', `Sequence ${this.id} has been disposed.`);
  }
}

function checkSampling(s: SamplingSettings, owner: SequenceOwner): void {
  const number = (name: keyof SamplingSettings, ok: (v: number) => boolean, expected: string) => {
    const value = s[name];
    if (typeof value !== 'number' || !ok(value)) throw invalidArg(name, expected, value);
  };
  const optional = (name: keyof SamplingSettings, ok: (v: number) => boolean, expected: string) => {
    if (s[name] !== undefined) number(name, ok, expected);
  };
  number('temperature', (v) => v >= 0 && v <= 100, 'a number from 0 to 100');
  number('topK', (v) => Number.isInteger(v) && v >= 0 && v <= 2 ** 24, 'an integer of at least 0');
  number('topP', (v) => v > 0 && v <= 1, 'a number above 0, up to 1');
  number('minP', (v) => v >= 0 && v <= 1, 'a number from 0 to 1');
  number('seed', (v) => Number.isSafeInteger(v) && v >= 0, 'a non-negative safe integer');
  number(
    'maxLength',
    (v) => Number.isInteger(v) && v >= 1 && v <= owner.context,
    `an integer from 1 to ${owner.context}`,
  );
  const length = (v: number) => Number.isInteger(v) && v >= 0;
  optional('minLength', length, 'an integer of at least 0');
  optional('promptLength', length, 'an integer of at least 0');
  optional('repetitionPenalty', (v) => v > 0 && v <= 100, 'a number above 0, up to 100');
  optional('presencePenalty', (v) => Math.abs(v) <= 100, 'a number from -100 to 100');
  optional('frequencyPenalty', (v) => Math.abs(v) <= 100, 'a number from -100 to 100');
  optional('top', (v) => Number.isInteger(v) && v >= 0 && v <= owner.maxTop, `an integer from 0 to ${owner.maxTop}`);
  const isId = (id: unknown) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < owner.vocab;
  for (const [id, value] of Object.entries(s.logitBias ?? {})) {
    if (!isId(Number(id))) throw invalidArg('logitBias', `token ids from 0 to ${owner.vocab - 1}`, id);
    if (!(Math.abs(value) <= 1000)) throw invalidArg(`logitBias[${id}]`, 'a number from -1000 to 1000', value);
  }
  const ids = s.stopIds;
  if (!Array.isArray(ids) || ids.length > MAX_STOP_IDS) throw invalidArg('stopIds', `at most ${MAX_STOP_IDS} ids`, ids);
  for (const id of ids) if (!isId(id)) throw invalidArg('stopIds', `token ids from 0 to ${owner.vocab - 1}`, id);
}
