// model/sequence.ts - one text in the making: its pages, its row on the device, and what the host knows of it.

import { type PagePool, pagesFor } from '../cache';
import { invalidArg, MlaError } from '../errors';
import { MAX_STOP_IDS } from './buffers';
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
  release(sequence: Sequence): void;
}

/** Pages and state of one sequence; the public face is {@link SequenceHandle}. */
export class Sequence implements SequenceHandle {
  readonly pages: number[] = [];
  length = 0;
  disposed = false;
  /** a step it was part of failed: its cache and row can no longer be trusted */
  failed = false;
  /** whether the device holds the token that comes next, and will decode this row in the next step */
  live = false;
  /** whether settings, stop ids and limit must be written to the row before the next sampled token */
  settingsChanged = true;
  /** block table entries that the device's row has */
  tableOnDevice = 0;
  sampling: SamplingSettings;

  constructor(
    readonly id: number,
    /** row of the batch; -1 for a text that is only scored */
    readonly row: number,
    private readonly owner: SequenceOwner,
  ) {
    this.sampling = { ...GREEDY, maxLength: owner.context };
  }

  setSampling(settings: SamplingSettings): void {
    if (this.disposed) throw new MlaError('ERR_DISPOSED', `Sequence ${this.id} has been disposed.`);
    checkSampling(settings, this.owner);
    this.sampling = { ...settings, stopIds: [...settings.stopIds] };
    this.settingsChanged = true;
  }

  /** Pages still missing for `tokens` tokens. */
  missingPages(tokens: number): number {
    return Math.max(0, pagesFor(tokens) - this.pages.length);
  }

  /** Takes the missing pages. @throws ERR_NO_PAGES, nothing taken then */
  grow(pool: PagePool, tokens: number): void {
    this.pages.push(...pool.take(this.missingPages(tokens)));
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.owner.release(this);
  }
}

function checkSampling(s: SamplingSettings, owner: SequenceOwner): void {
  const number = (name: keyof SamplingSettings, ok: (v: number) => boolean, expected: string) => {
    const value = s[name];
    if (typeof value !== 'number' || !ok(value)) throw invalidArg(name, expected, value);
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
  const ids = s.stopIds;
  if (!Array.isArray(ids) || ids.length > MAX_STOP_IDS) throw invalidArg('stopIds', `at most ${MAX_STOP_IDS} ids`, ids);
  for (const id of ids) {
    if (!Number.isInteger(id) || id < 0 || id >= owner.vocab) {
      throw invalidArg('stopIds', `token ids from 0 to ${owner.vocab - 1}`, id);
    }
  }
}
