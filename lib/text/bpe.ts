// bpe.ts - byte-level byte pair encoding: of all neighbouring pairs that have a merge, the one of lowest rank (leftmost on a
// tie) is merged, until none is left. A heap of (rank, position) over a linked list makes that n log n for any input: the
// plain rescan is quadratic, and one long run of letters then blocks for minutes.
import { MlaError } from '../errors';
import { BYTE_TO_CHAR } from './byte-level';

const EMPTY = -1;
/** The heap orders pairs by rank * POSITIONS + position, exact in a double: ranks are below 2^21, positions below 2^24. */
const POSITIONS = 2 ** 24;
/** Words are remembered up to this length in UTF-16 units, and this many of them; the table is then emptied. */
const CACHED_LENGTH = 32;
const CACHED_WORDS = 16_384;

export interface BpeOptions {
  /** Vocabulary: token as written in tokenizer.json -> id. */
  vocab: ReadonlyMap<string, number>;
  /** Pairs in order of rank. */
  merges: readonly (readonly [string, string])[];
  /** `ignore_merges`: a word that is in the vocabulary as a whole is that token, whatever the merges say. */
  ignoreMerges: boolean;
}

/** The merge table of one vocabulary. Holds scratch memory: one encode at a time. */
export class Bpe {
  /** Open addressing, four numbers per slot: left id, right id, rank, id of the merged token. */
  private readonly slots: Int32Array;
  private readonly mask: number;
  private readonly byteIds = new Int32Array(256).fill(EMPTY);
  private readonly words: ReadonlyMap<string, number> | null;
  private readonly cache = new Map<string, readonly number[]>();
  private scratch = new Scratch(256);

  /** @throws ERR_TOKENIZER when a merge names an unknown token, or a byte of UTF-8 has no token */
  constructor({ vocab, merges, ignoreMerges }: BpeOptions) {
    this.words = ignoreMerges ? vocab : null;
    for (let byte = 0; byte < 256; byte++) this.byteIds[byte] = vocab.get(BYTE_TO_CHAR[byte] as string) ?? EMPTY;
    const missing = Array.from(this.byteIds.keys()).filter(
      (byte) => occursInUtf8(byte) && this.byteIds[byte] === EMPTY,
    );
    if (missing.length > 0) {
      throw new MlaError(
        'ERR_TOKENIZER',
        `model.vocab has no token for ${missing.length} of the 243 bytes of UTF-8 (first: 0x${(missing[0] as number).toString(16)}). Expected a byte-level vocabulary with all of them.`,
      );
    }

    const capacity = 2 ** Math.ceil(Math.log2(Math.max(16, merges.length * 2)));
    this.mask = capacity - 1;
    this.slots = new Int32Array(capacity * 4).fill(EMPTY);
    merges.forEach(([left, right], rank) => {
      const ids = [left, right, left + right].map((token) => vocab.get(token));
      const unknown = ids.indexOf(undefined);
      if (unknown >= 0) {
        const token = JSON.stringify([left, right, left + right][unknown]).slice(0, 80);
        throw new MlaError('ERR_TOKENIZER', `model.merges[${rank}]: the token ${token} is not in model.vocab.`);
      }
      this.slots.set(
        [ids[0] as number, ids[1] as number, rank, ids[2] as number],
        this.slotOf(ids[0] as number, ids[1] as number),
      );
    });
  }

  /** Appends the ids of one word (one piece of the pre-tokenizer; well-formed UTF-16) to `out`. */
  encodeWord(word: string, out: number[]): void {
    const known = this.cache.get(word);
    if (known !== undefined) {
      for (const id of known) out.push(id);
      return;
    }
    const start = out.length;
    this.encodeNew(word, out);
    if (word.length <= CACHED_LENGTH) {
      if (this.cache.size >= CACHED_WORDS) this.cache.clear();
      this.cache.set(word, out.slice(start));
    }
  }

  /** Appends one id per byte of `bytes`: how a token is spelled when it must not be used itself. */
  spellBytes(bytes: Uint8Array, out: number[]): void {
    for (const byte of bytes) out.push(this.byteIds[byte] as number);
  }

  private encodeNew(word: string, out: number[]): void {
    const bytes = Buffer.from(word, 'utf8');
    if (this.words !== null) {
      let token = '';
      if (bytes.length <= 1024) for (const byte of bytes) token += BYTE_TO_CHAR[byte];
      const id = this.words.get(token);
      if (id !== undefined) {
        out.push(id);
        return;
      }
    }
    // A long word's memory is not kept: one prompt must not cost 100 MB for ever.
    const scratch = bytes.length <= 65_536 ? this.scratch.atLeast(bytes.length) : new Scratch(bytes.length);
    if (bytes.length <= 65_536) this.scratch = scratch;
    this.merge(bytes, scratch, out);
  }

  private merge(bytes: Uint8Array, { ids, next, previous, ranks, heap }: Scratch, out: number[]): void {
    const length = bytes.length;
    for (let i = 0; i < length; i++) {
      ids[i] = this.byteIds[bytes[i] as number] as number;
      previous[i] = i - 1;
      next[i] = i + 1;
    }
    heap.clear();
    for (let i = 0; i < length; i++) this.watch(i, length, ids, next, ranks, heap);

    while (heap.size > 0) {
      const key = heap.pop();
      const rank = Math.floor(key / POSITIONS);
      const at = key - rank * POSITIONS;
      if (ranks[at] !== rank) continue; // the pair has changed since it was pushed
      const right = next[at] as number;
      ids[at] = this.slots[this.slotOf(ids[at] as number, ids[right] as number) + 3] as number;
      ranks[right] = EMPTY;
      const after = next[right] as number;
      next[at] = after;
      if (after < length) previous[after] = at;
      this.watch(at, length, ids, next, ranks, heap);
      if ((previous[at] as number) >= 0) this.watch(previous[at] as number, length, ids, next, ranks, heap);
    }
    for (let i = 0; i < length; i = next[i] as number) out.push(ids[i] as number);
  }

  /** Notes the rank of the pair that starts at `at` and queues it. */
  private watch(at: number, length: number, ids: Int32Array, next: Int32Array, ranks: Int32Array, heap: KeyHeap): void {
    const right = next[at] as number;
    const rank =
      right < length ? (this.slots[this.slotOf(ids[at] as number, ids[right] as number) + 2] as number) : EMPTY;
    ranks[at] = rank;
    if (rank !== EMPTY) heap.push(rank * POSITIONS + at);
  }

  /** Index of the slot of a pair, or of the free slot where it would stand (whose rank is EMPTY). */
  private slotOf(left: number, right: number): number {
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    hash ^= hash >>> 15;
    let slot = hash & this.mask;
    for (;;) {
      const base = slot * 4;
      const found = this.slots[base] as number;
      if (found === EMPTY || (found === left && this.slots[base + 1] === right)) return base;
      slot = (slot + 1) & this.mask;
    }
  }
}

/** Working memory for words of up to `capacity` bytes. */
class Scratch {
  readonly ids: Int32Array;
  readonly next: Int32Array;
  readonly previous: Int32Array;
  /** Rank of the pair that starts here, EMPTY for none. */
  readonly ranks: Int32Array;
  readonly heap: KeyHeap;

  constructor(readonly capacity: number) {
    this.ids = new Int32Array(capacity);
    this.next = new Int32Array(capacity);
    this.previous = new Int32Array(capacity);
    this.ranks = new Int32Array(capacity);
    // n pairs at first; each merge takes one out and puts at most two in, and there are fewer than n merges.
    this.heap = new KeyHeap(capacity * 2);
  }

  atLeast(capacity: number): Scratch {
    return capacity <= this.capacity ? this : new Scratch(2 ** Math.ceil(Math.log2(capacity)));
  }
}

/** A binary heap of numbers, smallest first, of fixed capacity. */
class KeyHeap {
  size = 0;
  private readonly keys: Float64Array;

  constructor(capacity: number) {
    this.keys = new Float64Array(capacity + 1);
  }

  clear(): void {
    this.size = 0;
  }

  push(key: number): void {
    const keys = this.keys;
    let at = this.size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if ((keys[parent] as number) <= key) break;
      keys[at] = keys[parent] as number;
      at = parent;
    }
    keys[at] = key;
  }

  pop(): number {
    const keys = this.keys;
    const top = keys[0] as number;
    const last = keys[--this.size] as number;
    const size = this.size;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && (keys[child + 1] as number) < (keys[child] as number)) child++;
      if ((keys[child] as number) >= last) break;
      keys[at] = keys[child] as number;
      at = child;
    }
    keys[at] = last;
    return top;
  }
}

/** UTF-8 has no bytes 0xC0, 0xC1 and 0xF5..0xFF. */
function occursInUtf8(byte: number): boolean {
  return byte !== 0xc0 && byte !== 0xc1 && byte < 0xf5;
}
