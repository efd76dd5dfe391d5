// cache/page-pool.ts - who owns each page of the latent cache. Invariant after every call: free + cached + held = total.

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

/**
 * Reference-counted pages. When its last reference goes, a page is free, or, if its content is worth keeping, cached:
 * cached pages are taken when there is no free one, the one that was used longest ago first.
 */
export class PagePool {
  readonly total: number;
  readonly #references: Uint32Array;
  /** A stack: the page freed last is taken first, so that its memory is likely still warm. */
  readonly #free: number[];
  /** Pages with content worth keeping, and whom to tell when it goes. */
  readonly #contents = new Map<number, () => void>();
  /** Those of them without references, the longest unused first. */
  readonly #cached = new Set<number>();

  /** @param total pages in the cache, at least 1 */
  constructor(total: number) {
    if (!Number.isInteger(total) || total < 1) throw invalidArg('pages', 'an integer of at least 1', total);
    this.total = total;
    this.#references = new Uint32Array(total);
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i);
  }

  /** Pages that can be taken: those nobody holds. */
  get available(): number {
    return this.#free.length + this.#cached.size;
  }

  /** Pages with at least one reference. */
  get held(): number {
    return this.total - this.available;
  }

  stats(): PageStats {
    return { total: this.total, free: this.#free.length, cached: this.#cached.size, held: this.held };
  }

  /**
   * Takes `count` pages, each with one reference.
   * @throws ERR_NO_PAGES when fewer are available; nothing has changed then
   */
  take(count: number): number[] {
    if (count > this.available) {
      throw new MlaError(
        'ERR_NO_PAGES',
        `The latent cache has ${this.available} of ${this.total} pages free, and ${count} are needed; ` +
          'finish or dispose other sequences, or load the model with more pages.',
      );
    }
    const pages: number[] = [];
    for (let i = 0; i < count; i++) {
      const page = this.#free.pop() ?? this.#takeCached();
      this.#references[page] = 1;
      pages.push(page);
    }
    return pages;
  }

  /** One more reference to a page that is held or cached. */
  share(page: number): void {
    if (!this.#cached.delete(page)) this.#mustBeHeld(page);
    this.#references[page] = this.references(page) + 1;
  }

  /** One reference less; the page is free or cached when it was the last. */
  release(page: number): void {
    this.#mustBeHeld(page);
    const left = this.references(page) - 1;
    this.#references[page] = left;
    if (left > 0) return;
    if (this.#contents.has(page)) this.#cached.add(page);
    else this.#free.push(page);
  }

  /**
   * Releases the pages of a text, from its end: so that of two cached pages, the one that makes no sense without the
   * other is taken first.
   */
  releaseAll(pages: readonly number[]): void {
    for (let i = pages.length - 1; i >= 0; i--) this.release(pages[i] as number);
  }

  /** References to a page; 0 means that it is free or cached. */
  references(page: number): number {
    return this.#references[page] ?? 0;
  }

  /** From now on the content of this page, which is held, is worth keeping; `forget` is called when it is taken. */
  keepContent(page: number, forget: () => void): void {
    this.#mustBeHeld(page);
    this.#contents.set(page, forget);
  }

  /** Whether the content of a page is kept: then nobody may write to it. */
  keepsContent(page: number): boolean {
    return this.#contents.has(page);
  }

  /** The content of no page is worth anything any more. */
  forgetContents(): void {
    this.#contents.clear();
    this.#free.push(...this.#cached);
    this.#cached.clear();
  }

  #takeCached(): number {
    const [page] = this.#cached as Iterable<number> as [number];
    this.#cached.delete(page);
    this.#contents.get(page)?.();
    this.#contents.delete(page);
    return page;
  }

  #mustBeHeld(page: number): void {
    if (this.references(page) === 0) throw new MlaError('ERR_INTERNAL', `Page ${page} is not held.`);
  }
}
