// cache/text-pages.ts - the pages of one text: taken as it grows, shared with others that begin the same, copied before
// a shared one is written to.

import { MlaError } from '../errors';
import { PAGE_TOKENS, type PagePool, pagesFor } from './page-pool';
import type { PrefixIndex, PrefixNode } from './prefix-index';

/** A page that must be copied before the next write: [from, to]. */
export type PageCopy = readonly [from: number, to: number];

/** Rows of the cache that outlive the sequence that made them. Each has references of its own to its pages. */
export class KeptPages {
  #disposed = false;

  constructor(
    private readonly pool: PagePool,
    /** the tokens whose rows are kept */
    readonly tokens: readonly number[],
    readonly pages: readonly number[],
  ) {
    for (const page of pages) pool.share(page);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** The same rows once more, to be disposed on their own. */
  share(): KeptPages {
    if (this.#disposed) throw new MlaError('ERR_DISPOSED', 'These rows of the cache have been given back.');
    return new KeptPages(this.pool, this.tokens, this.pages);
  }

  /** Gives the references back. Idempotent. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.pool.releaseAll(this.pages);
  }
}

/** Pages and tokens of one text in the making. */
export class TextPages {
  readonly #pages: number[] = [];
  /** rows that they hold */
  #room = 0;
  /** tokens whose ids are known; the last one may not be in the cache yet */
  readonly #tokens: number[] = [];
  /** the last page that is in the index, and the index it is in */
  #published: PrefixNode | null = null;
  /** pages up to there */
  #publishedPages = 0;
  #epoch: number;
  #salt = '';
  /** rows that are written when all that is enqueued has run */
  #length = 0;
  /** rows that will have been written, whatever ends the text: what may be published */
  #written = 0;
  /** rows whose step has succeeded: what may be kept */
  #confirmed = 0;
  /** whether others may hold the page that the next row goes into: it was taken over, or kept */
  #mayBeShared = false;

  /** @param index null for a text that neither takes over nor leaves anything */
  constructor(
    private readonly pool: PagePool,
    private readonly index: PrefixIndex | null,
  ) {
    this.#epoch = index?.epoch ?? 0;
  }

  get pages(): readonly number[] {
    return this.#pages;
  }

  /** Tokens in the cache, those of enqueued steps included. */
  get length(): number {
    return this.#length;
  }

  /** All tokens whose ids are known. */
  get tokens(): readonly number[] {
    return this.#tokens;
  }

  /**
   * Begins an empty text: takes over rows that are kept, or the cached beginning of `tokens`, whichever is longer; never
   * the last token's, for something has to be computed to sample from.
   * @returns how many tokens the cache has now
   */
  begin(tokens: readonly number[], kept: KeptPages | null, salt: string): number {
    if (this.#pages.length > 0) throw new MlaError('ERR_INTERNAL', 'This text has pages already.');
    this.#salt = salt;
    this.#epoch = this.index?.epoch ?? 0;
    const most = tokens.length - 1;
    const found = this.index?.find(salt, tokens, most) ?? null;
    const fromIndex = (found?.depth ?? 0) * PAGE_TOKENS;
    const fromKept = kept === null || kept.disposed ? 0 : Math.min(kept.tokens.length, most);
    if (fromIndex >= fromKept) {
      for (let node = found; node !== null; node = node.parent) this.#pages.unshift(node.page);
      this.#published = found;
      this.#length = fromIndex;
    } else {
      // Not published: another holder of its pages may be the one who does.
      this.#pages.push(...(kept as KeptPages).pages.slice(0, pagesFor(fromKept)));
      this.#length = fromKept;
    }
    this.#publishedPages = this.#published?.depth ?? 0;
    this.#room = this.#pages.length * PAGE_TOKENS;
    this.#mayBeShared = true;
    for (const page of this.#pages) this.pool.share(page);
    for (let i = 0; i < this.#length; i++) this.#tokens.push(tokens[i] as number);
    this.#written = this.#length;
    this.#confirmed = this.#length;
    this.publish();
    return this.#length;
  }

  /** Pages to be taken before rows [length, end) can be written. */
  missing(end: number): number {
    if (end <= this.#room && !this.#mayBeShared) return 0; // nearly every step of every text
    return Math.max(0, pagesFor(end) - this.#pages.length) + (end > this.#length && this.#mustCopy() ? 1 : 0);
  }

  /**
   * Takes the missing pages for rows [length, end).
   * @returns the copy to be made before anything is written, or null. @throws ERR_NO_PAGES, nothing taken then
   */
  grow(end: number): PageCopy | null {
    const missing = this.missing(end);
    if (missing === 0) return null; // nearly every step of every text
    const copies = end > this.#length && this.#mustCopy();
    const taken = this.pool.take(missing);
    let copy: PageCopy | null = null;
    if (copies) {
      const at = Math.floor(this.#length / PAGE_TOKENS);
      const to = taken.pop() as number;
      copy = [this.#pages[at] as number, to];
      this.#pages[at] = to;
      this.pool.release(copy[0]);
      this.#mayBeShared = false;
    }
    this.#pages.push(...taken);
    this.#room = this.#pages.length * PAGE_TOKENS;
    return copy;
  }

  /** Given tokens follow what is in the cache; a sampled one that is not in it is replaced. Their rows are enqueued. */
  append(tokens: ArrayLike<number>): void {
    this.#tokens.length = this.#length;
    for (let i = 0; i < tokens.length; i++) this.#tokens.push(tokens[i] as number);
    this.#length += tokens.length;
    this.#written = this.#length;
  }

  /** The row of the token sampled last, whatever it is, is enqueued. */
  advance(): void {
    this.#length += 1;
  }

  /** A step has succeeded that brought the text to `length` rows; `token` is what it sampled, or null. */
  confirm(length: number, token: number | null): void {
    this.#confirmed = Math.max(this.#confirmed, Math.min(length, this.#length));
    this.#written = Math.max(this.#written, this.#confirmed);
    if (token !== null) this.#tokens.push(token);
  }

  /**
   * Puts full pages into the index.
   * @returns the first page that was replaced by another with the same content, or null
   */
  publish(): number | null {
    const full = Math.floor(Math.min(this.#written, this.#tokens.length) / PAGE_TOKENS);
    if (full === this.#publishedPages) return null; // nearly every step of every text
    const { index } = this;
    if (index === null || index.epoch !== this.#epoch) return null;
    let replaced: number | null = null;
    for (let at = this.#publishedPages; at < full; at++) {
      const page = this.#pages[at] as number;
      const node = index.publish(this.#salt, this.#published, this.#tokens, page);
      if (node.page !== page) {
        this.pool.share(node.page);
        this.pool.release(page);
        this.#pages[at] = node.page;
        replaced ??= at;
      }
      this.#published = node;
      this.#publishedPages = node.depth;
    }
    return replaced;
  }

  /** Keeps the rows whose steps have succeeded, for other texts to begin with. */
  keep(): KeptPages {
    const rows = Math.min(this.#confirmed, this.#tokens.length);
    this.#mayBeShared = true;
    return new KeptPages(this.pool, this.#tokens.slice(0, rows), this.#pages.slice(0, pagesFor(rows)));
  }

  /** Gives all pages back. */
  release(): void {
    this.pool.releaseAll(this.#pages.splice(0));
    this.#room = 0;
  }

  /** The next row goes into a page that others hold, or may take over. */
  #mustCopy(): boolean {
    if (!this.#mayBeShared || this.#length % PAGE_TOKENS === 0) return false;
    const page = this.#pages[Math.floor(this.#length / PAGE_TOKENS)] as number;
    return this.pool.references(page) > 1 || this.pool.keepsContent(page);
  }
}
