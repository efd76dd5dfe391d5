// detokenizer.ts - text from token ids as they come. A character may be spread over several tokens (an emoji usually is), so
// its bytes are held back until it is whole.
import { invalidArg } from '../errors';
import type { Tokenizer } from './tokenizer';

export interface DetokenizerOptions {
  /** Leave out tokens marked special, such as end of sentence. Default true. */
  skipSpecial?: boolean;
}

/**
 * A streaming decoder for one sequence. All that `push` and `end` return, joined, equals `tokenizer.decode` of all ids; no
 * single return ends in half a character. Bytes that are not UTF-8 become U+FFFD, as in `decode`.
 */
export class Detokenizer {
  private readonly decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  private readonly skipSpecial: boolean;
  /** whether the decoder may hold the beginning of a character back */
  private mayHold = false;

  constructor(
    private readonly tokenizer: Tokenizer,
    options: DetokenizerOptions = {},
  ) {
    if (typeof options !== 'object' || options === null) throw invalidArg('options', 'an object', options);
    this.skipSpecial = options.skipSpecial ?? true;
  }

  /** Adds one token and returns the characters it completes, often none. */
  push(id: number): string {
    if (!Number.isInteger(id) || id < 0) throw invalidArg('id', 'a token id (an integer, 0 or more)', id);
    if (this.skipSpecial && this.tokenizer.isSpecial(id)) return '';
    const whole = this.mayHold ? null : this.tokenizer.idToText(id);
    if (whole !== null) return whole; // nearly every token; the decoder takes several times as long
    const bytes = this.tokenizer.idToBytes(id);
    if (bytes.length > 0) this.mayHold = (bytes[bytes.length - 1] as number) >= 0x80; // no longer character ends in ASCII
    return this.decoder.decode(bytes, { stream: true });
  }

  /** Ends the sequence: returns U+FFFD if half a character is left, else ''. The object can then be used for a new sequence. */
  end(): string {
    this.mayHold = false;
    return this.decoder.decode();
  }
}
