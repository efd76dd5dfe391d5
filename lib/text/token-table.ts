// token-table.ts - the bytes of every token id, in one buffer. Decoding is joining them; what is not valid UTF-8 becomes U+FFFD.
import type { AddedToken } from './added-tokens';
import { writeTokenBytes } from './byte-level';

const NOTHING = new Uint8Array(0);
const STRICT = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function wholeText(bytes: Uint8Array): string | null {
  try {
    return STRICT.decode(bytes);
  } catch {
    return null;
  }
}

/** Token id -> bytes, for all ids from 0 to size - 1. Ids without a token have no bytes. */
export class TokenTable {
  private readonly bytes: Uint8Array;
  /** [size + 1] where each token starts in `bytes`. */
  private readonly starts: Uint32Array;
  private readonly special: Uint8Array;
  private readonly added: Uint8Array;
  /** Texts of tokens that have been asked for; null where the bytes alone are not whole characters. */
  private readonly texts: (string | null | undefined)[];

  constructor(
    readonly size: number,
    vocab: ReadonlyMap<string, number>,
    addedTokens: readonly AddedToken[],
  ) {
    this.special = new Uint8Array(size);
    this.added = new Uint8Array(size);
    const addedById = new Map(addedTokens.map((token) => [token.id, token]));
    const texts: (string | undefined)[] = new Array(size);
    let capacity = 0;
    for (const [token, id] of vocab) texts[id] = token;
    for (const token of addedTokens) texts[token.id] = token.content;
    for (const text of texts) capacity += (text?.length ?? 0) * 3;

    const bytes = Buffer.allocUnsafe(capacity);
    this.starts = new Uint32Array(size + 1);
    let end = 0;
    texts.forEach((text, id) => {
      const token = addedById.get(id);
      if (token !== undefined) {
        this.added[id] = 1;
        this.special[id] = token.special ? 1 : 0;
      }
      // An added token is text; any other entry is bytes in the byte-level alphabet (or, if it is not, text as well).
      const written = token === undefined && text !== undefined ? writeTokenBytes(text, bytes, end) : -1;
      end += written >= 0 ? written : bytes.write(text ?? '', end, 'utf8');
      this.starts[id + 1] = end;
    });
    // forEach passes over the holes of a sparse array: ids without a token end where the one before ended.
    for (let id = 0; id < size; id++)
      this.starts[id + 1] = Math.max(this.starts[id + 1] as number, this.starts[id] as number);
    this.bytes = new Uint8Array(bytes.subarray(0, end));
    this.texts = new Array(size);
  }

  /** The bytes of a token: a view, not to be written to; empty for an id without a token. */
  bytesOf(id: number): Uint8Array {
    if (!(id >= 0 && id < this.size)) return NOTHING;
    return this.bytes.subarray(this.starts[id], this.starts[id + 1]);
  }

  /** The text of a token whose bytes are whole characters by themselves, as most are; null for the others. */
  textOf(id: number): string | null {
    let text = this.texts[id];
    if (text === undefined) {
      text = wholeText(this.bytesOf(id));
      if (id < this.size) this.texts[id] = text;
    }
    return text;
  }

  /** Whether the token is marked special in tokenizer.json. */
  isSpecial(id: number): boolean {
    return this.special[id] === 1;
  }

  /** Whether the id belongs to an added token, special or not. */
  isAdded(id: number): boolean {
    return this.added[id] === 1;
  }

  /** The bytes of all `ids`, one after the other. */
  join(ids: ArrayLike<number>, skipSpecial: boolean): Uint8Array {
    let length = 0;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      if (!(skipSpecial && this.isSpecial(id))) length += this.bytesOf(id).length;
    }
    const joined = new Uint8Array(length);
    let end = 0;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      if (skipSpecial && this.isSpecial(id)) continue;
      const bytes = this.bytesOf(id);
      joined.set(bytes, end);
      end += bytes.length;
    }
    return joined;
  }
}
