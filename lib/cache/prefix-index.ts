// cache/prefix-index.ts - which pages hold which beginnings of texts, so that a prompt takes over what it shares with an
// earlier one. A tree: a node is one full page, its path from the root the text up to there. A hash only finds
// candidates; what counts are the token ids.
//
// Whoever holds a page of the tree holds the pages above it too (publish sees to that), and pages are released from the
// end of a text. So the page that was unused longest never has one below it, and the tree has no holes.

import { PAGE_TOKENS, type PagePool } from './page-pool';

/** A full page and the text up to its end. */
export interface PrefixNode {
  readonly parent: PrefixNode | null;
  /** pages from the root to here, this one included */
  readonly depth: number;
  readonly page: number;
  readonly tokens: readonly number[];
  /** null until there is one */
  children: Children | null;
}

/** Nodes by the hash of their tokens. */
type Children = Map<number, PrefixNode[]>;

/** Finds and publishes the full pages of texts. */
export class PrefixIndex {
  /** First pages, by salt: texts of different salts never meet. */
  readonly #roots = new Map<string, Children>();
  #size = 0;
  #epoch = 0;

  constructor(private readonly pool: PagePool) {}

  /** Pages in the tree. */
  get size(): number {
    return this.#size;
  }

  /** Changes when the tree is cleared: nodes from before mean nothing then. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The longest known beginning of `tokens`, in whole pages, of at most `limit` tokens; null when none is known. */
  find(salt: string, tokens: readonly number[], limit: number): PrefixNode | null {
    let node: PrefixNode | null = null;
    for (let end = PAGE_TOKENS; end <= limit; end += PAGE_TOKENS) {
      const children: Children | null | undefined = node === null ? this.#roots.get(salt) : node.children;
      if (!children) break;
      const start = end - PAGE_TOKENS;
      const next = childOf(children, hashOf(tokens, start), tokens, start);
      if (next === undefined) break;
      node = next;
    }
    return node;
  }

  /**
   * Says that `page`, which the caller holds together with all pages up to `parent`, holds the next 64 of `tokens`.
   * @returns its node, or the one that has the same text already: the caller should then hold that one's page instead
   */
  publish(salt: string, parent: PrefixNode | null, tokens: readonly number[], page: number): PrefixNode {
    const depth = parent === null ? 0 : parent.depth;
    const start = depth * PAGE_TOKENS;
    const children = parent === null ? this.#root(salt) : childrenOf(parent);
    const hash = hashOf(tokens, start);
    const known = childOf(children, hash, tokens, start);
    if (known !== undefined) return known;
    const own = tokens.slice(start, start + PAGE_TOKENS);
    const node: PrefixNode = { parent, depth: depth + 1, page, tokens: own, children: null };
    children.set(hash, [...(children.get(hash) ?? []), node]);
    this.#size++;
    this.pool.keepContent(page, () => {
      this.#size--;
      const left = (children.get(hash) ?? []).filter((sibling) => sibling !== node);
      if (left.length > 0) children.set(hash, left);
      else children.delete(hash);
      if (parent === null && children.size === 0) this.#roots.delete(salt);
    });
    return node;
  }

  /** Forgets all texts: nobody may find a page that a failed step may have spoiled. */
  clear(): void {
    this.#roots.clear();
    this.#size = 0;
    this.#epoch++;
    this.pool.forgetContents();
  }

  #root(salt: string): Children {
    const known = this.#roots.get(salt);
    if (known !== undefined) return known;
    const root: Children = new Map();
    this.#roots.set(salt, root);
    return root;
  }
}

function childrenOf(node: PrefixNode): Children {
  node.children ??= new Map();
  return node.children;
}

function childOf(children: Children, hash: number, tokens: readonly number[], start: number): PrefixNode | undefined {
  return children.get(hash)?.find((child) => child.tokens.every((id, i) => id === tokens[start + i]));
}

/** FNV-1a over the ids of one page. */
function hashOf(tokens: ArrayLike<number>, start: number): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < PAGE_TOKENS; i++) hash = Math.imul(hash ^ (tokens[start + i] as number), 0x01000193);
  return hash >>> 0;
}
