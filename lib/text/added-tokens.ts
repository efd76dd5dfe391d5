// added-tokens.ts - finds the spellings of added tokens in a text: leftmost first, longest first, in one pass over the text.

/** One entry of `added_tokens` in tokenizer.json, with its defaults filled in. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Skipped by decoding that skips special tokens. DeepSeek's role and tool tokens are added but not special. */
  readonly special: boolean;
  /** Looked for after the normalizer has run, rather than in the text as given. */
  readonly normalized: boolean;
  /** Only where no word character stands next to it. */
  readonly singleWord: boolean;
  /** Swallows the white space before it. */
  readonly lstrip: boolean;
  /** Swallows the white space after it. */
  readonly rstrip: boolean;
}

/** A piece of a text: plain text, or the token that was spelled there. */
export type Segment = string | AddedToken;

interface Node {
  token: AddedToken | null;
  next: Map<number, Node> | null;
}

const WORD_CHARACTER = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u;
const SPACE = /\s/u;

/** A prefix tree over the spellings; its size is the sum of their lengths, its cost per character of text at most their longest. */
export class AddedTokenFinder {
  private readonly root: Node = { token: null, next: null };
  /** 1 for every UTF-16 unit that starts a spelling, so that ordinary text costs one look-up per unit. */
  private readonly starts = new Uint8Array(0x10000);

  constructor(tokens: Iterable<AddedToken>) {
    for (const token of tokens) {
      let node = this.root;
      for (let i = 0; i < token.content.length; i++) {
        const unit = token.content.charCodeAt(i);
        node.next ??= new Map();
        let child = node.next.get(unit);
        if (child === undefined) {
          child = { token: null, next: null };
          node.next.set(unit, child);
        }
        node = child;
      }
      node.token = token;
      this.starts[token.content.charCodeAt(0)] = 1;
    }
  }

  /** Cuts `text` at every added token; empty pieces are left out. */
  split(text: string): Segment[] {
    const segments: Segment[] = [];
    let from = 0; // first unit not yet given out
    let at = 0;
    while (at < text.length) {
      const token = this.starts[text.charCodeAt(at)] === 1 ? this.longestAt(text, at) : null;
      if (token === null || (token.singleWord && touchesWord(text, at, at + token.content.length))) {
        at += token === null ? 1 : token.content.length;
        continue;
      }
      let start = at;
      let end = at + token.content.length;
      if (token.lstrip) while (start > from && SPACE.test(text.charAt(start - 1))) start--;
      if (token.rstrip) while (end < text.length && SPACE.test(text.charAt(end))) end++;
      if (start > from) segments.push(text.slice(from, start));
      segments.push(token);
      from = end;
      at = end;
    }
    if (from < text.length) segments.push(text.slice(from));
    return segments;
  }

  private longestAt(text: string, at: number): AddedToken | null {
    let node: Node | undefined = this.root;
    let found: AddedToken | null = null;
    for (let i = at; i < text.length && node?.next; i++) {
      node = node.next.get(text.charCodeAt(i));
      if (node?.token) found = node.token;
    }
    return found;
  }
}

function touchesWord(text: string, start: number, end: number): boolean {
  return (
    (start > 0 && WORD_CHARACTER.test(text.charAt(start - 1))) ||
    (end < text.length && WORD_CHARACTER.test(text.charAt(end)))
  );
}
