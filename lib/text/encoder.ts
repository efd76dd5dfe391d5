// encoder.ts - text to token ids, on the calling thread. Used by the tokenizer for short texts and by its worker thread.
import { MlaError } from '../errors';
import { AddedTokenFinder } from './added-tokens';
import { Bpe } from './bpe';
import { runWithin } from './deadline';
import { ENCODE_BASE_MS, ENCODE_MS_PER_1024 } from './limits';
import { PreTokenizer } from './pre-tokenizer';
import type { TokenTable } from './token-table';
import type { TokenizerSpec } from './tokenizer-spec';
import { wellFormed } from './well-formed';

/** Texts to encode; a number among them is a token id that stays as it is. */
export type EncodeParts = readonly (string | number)[];

/** The number of UTF-16 units of all texts. */
export function lengthOf(parts: EncodeParts): number {
  return parts.reduce<number>((sum, part) => sum + (typeof part === 'string' ? part.length : 0), 0);
}

/** The encoder of one tokenizer. */
export class Encoder {
  private readonly bpe: Bpe;
  private readonly preTokenizer: PreTokenizer;
  private readonly raw: AddedTokenFinder;
  private readonly normalized: AddedTokenFinder;
  private readonly form: TokenizerSpec['normalization'];

  /** @throws ERR_TOKENIZER for a model or a pattern that cannot be used */
  constructor(
    spec: TokenizerSpec,
    private readonly table: TokenTable,
  ) {
    this.bpe = new Bpe(spec);
    this.preTokenizer = new PreTokenizer(spec.stages);
    this.form = spec.normalization;
    this.raw = new AddedTokenFinder(spec.added.filter((token) => !token.normalized));
    this.normalized = new AddedTokenFinder(
      spec.added
        .filter((token) => token.normalized)
        .map((token) => ({ ...token, content: this.normalize(token.content) })),
    );
  }

  /**
   * Encodes texts, one after the other, without BOS. An id among them stays as it is.
   * @param special true: spellings of added tokens become those tokens; false: they are text like any other
   * @throws ERR_TOKENIZER when a pattern of the tokenizer needs too much time or stack
   */
  encode(parts: EncodeParts, special: boolean): number[] {
    const ids: number[] = [];
    const length = lengthOf(parts);
    const limit = encodeLimitMs(length);
    let finished: boolean;
    try {
      finished = runWithin(limit, () => {
        for (const part of parts) {
          if (typeof part === 'number') {
            ids.push(part);
            continue;
          }
          const text = wellFormed(part); // before the patterns see it
          if (special) this.encodeMarked(text, ids);
          else this.encodePlain(this.normalize(text), ids, false);
        }
      });
    } catch (cause) {
      if (!(cause instanceof Error) || cause.name !== 'RangeError') throw cause;
      throw new MlaError(
        'ERR_TOKENIZER',
        `A pattern of the pre-tokenizer needs too much stack for a text of ${length} characters. Shorten its longest run of letters and accents.`,
        { cause },
      );
    }
    if (!finished) {
      throw new MlaError(
        'ERR_TOKENIZER',
        `A pattern of the pre-tokenizer did not finish a text of ${length} characters in ${limit} ms.`,
      );
    }
    return ids;
  }

  private encodeMarked(text: string, ids: number[]): void {
    for (const segment of this.raw.split(text)) {
      if (typeof segment !== 'string') {
        ids.push(segment.id);
        continue;
      }
      for (const part of this.normalized.split(this.normalize(segment))) {
        if (typeof part === 'string') this.encodePlain(part, ids, true);
        else ids.push(part.id);
      }
    }
  }

  /** Encodes normalized text. `control`: whether a merge may end in the id of an added token. */
  private encodePlain(text: string, ids: number[], control: boolean): void {
    this.preTokenizer.forEachWord(text, (word) => {
      const start = ids.length;
      this.bpe.encodeWord(word, ids);
      if (!control) this.spellOutControls(ids, start);
    });
  }

  /** A vocabulary may have merges that end in an added token's id. Content must not yield it: its bytes take its place. */
  private spellOutControls(ids: number[], start: number): void {
    // One byte has only one spelling, so an added token that is a single byte stays.
    const isControl = (id: number) => this.table.isAdded(id) && this.table.bytesOf(id).length > 1;
    for (let i = start; i < ids.length; i++) {
      if (!isControl(ids[i] as number)) continue;
      for (const id of ids.splice(start)) {
        if (isControl(id)) this.bpe.spellBytes(this.table.bytesOf(id), ids);
        else ids.push(id);
      }
      return;
    }
  }

  private normalize(text: string): string {
    return this.form.reduce((result, form) => result.normalize(form), text);
  }
}

/** Milliseconds that a text of `length` UTF-16 units may take. */
export function encodeLimitMs(length: number): number {
  return ENCODE_BASE_MS + Math.ceil((length / 1024) * ENCODE_MS_PER_1024);
}
