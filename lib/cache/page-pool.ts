// cache/page-pool.ts - who owns each page of the latent cache. Invariant after every call: free + held === total.

import { invalidArg, MlaError } from '../errors';

/** Tokens per page; the same constant as kPageTokens in csrc/ops/ops.h. */
export const PAGE_TOKENS = 64;

/** Pages needed for `tokens` tokens. */
export function pagesFor(tokens: number): number {
  return Math.ceil(tokens / PAGE_TOKENS);
}

/** Pages of the latent cache, 64 tokens each. */
export interface PageStats {
  readonly total: number;
  /** without content */
  readonly free: number;
  /** content that nobody uses now, kept in case a prompt begins with it; taken as soon as free ones run out */
  readonly cached: number;
  /** in use by sequences */
  readonly held: number;
}

/** Reference-counted pages. A page returns to the free list when its last reference goes. */
export class PagePool {
  readonly total: number;
  readonly #references: Uint32Array;
  /** A stack: the page freed last is taken first, so that its memory is likely still warm. */
  readonly #free: number[];

  /** @param total pages in the cache, at least 1 */
  constructor(total: number) {
    if (!Number.isInteger(total) || total < 1) throw invalidArg('pages', 'an integer of at least 1', total);
    this.total = total;
    this.#references = new Uint32Array(total);
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i);
  }

  stats(): PageStats {
    return { total: this.total, free: this.free, cached: 0, held: this.held };
  }

  /** Pages nobody holds. */
  get free(): number {
    return this.#free.length;
  }

  /** Pages with at least one reference. */
  get held(): number {
    return this.total - this.#free.length;
  }

  /**
   * Takes `count` pages, each with one reference.
   * @throws ERR_NO_PAGES when fewer are free; nothing has changed then
   */
  take(count: number): number[] {
    if (count > this.#free.length) {
      throw new MlaError(
        'ERR_NO_PAGES',
        `The latent cache has ${this.#free.length} of ${this.total} pages free, and ${count} are needed; ` +
          'finish or dispose other sequences, or load the model with more pages.',
      );
    }
    const pages: number[] = [];
    for (let i = 0; i < count; i++) {
      const page = this.#free.pop() as number;
      this.#references[page] = 1;
      pages.push(page);
    }
    return pages;
  }

  /** One more reference to a page that is held. */
  share(page: number): void {
    this.#mustBeHeld(page);
    this.#references[page] = (this.#references[page] as number) + 1;
  }

  /** One reference less; the page is free when it was the last. */
  release(page: number): void {
    this.#mustBeHeld(page);
    const left = (this.#references[page] as number) - 1;
    this.#references[page] = left;
    if (left === 0) this.#free.push(page);
  }

  /** References to a page; 0 means free. */
  references(page: number): number {
    return this.#references[page] ?? 0;
  }

  #mustBeHeld(page: number): void {
    if (this.references(page) === 0) throw new MlaError('ERR_INTERNAL', `Page ${page} is not held.`);
  }
}
