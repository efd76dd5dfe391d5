// gpu/inputs.ts - arguments of one operation as plain bytes on the host, so that two devices get exactly the same ones.
// Everything random comes from a seed.
import { DTYPE_BYTES, type DType } from '../../lib/native';
import { encode, Random } from '../cpu/reference';
import { fp8Row, fp8RowBytes } from '../cpu/reference-cache';

/** What an argument is to the operation. */
export type Role = 'in' | 'out' | 'inout';

/** A tensor argument that exists only on the host; each device gets a copy between guard bytes. */
export class Planned {
  constructor(
    readonly role: Role,
    readonly dtype: DType,
    readonly shape: readonly number[],
    /** content before the operation; poison for outputs */
    readonly bytes: Uint8Array,
    /** how far from an aligned address it lies: a multiple of its element's bytes */
    readonly shift = 0,
  ) {}

  /** The same, so far from an aligned address. */
  shifted(shift: number): Planned {
    return new Planned(this.role, this.dtype, this.shape, this.bytes, shift);
  }

  /** The same memory in another shape. */
  reshaped(shape: readonly number[]): Planned {
    return new Planned(this.role, this.dtype, shape, this.bytes, this.shift);
  }

  /** Rows [begin, end) of the first dimension. */
  rows(begin: number, end: number): Planned {
    const rowBytes = this.bytes.length / (this.shape[0] as number);
    return new Planned(
      this.role,
      this.dtype,
      [end - begin, ...this.shape.slice(1)],
      this.bytes.slice(begin * rowBytes, end * rowBytes),
    );
  }
}

/** The plan of decodePlan: each device makes its own before the operation that reads it. */
export class PlannedSplit {
  constructor(
    readonly heads: number,
    readonly qStart: Planned,
    readonly lengths: Planned,
  ) {}
}

/** Bytes that must not be read (NaN in every float type) and are easily told from anything written. */
export function poisonByte(dtype: DType): number {
  return dtype[0] === 'f' || dtype === 'bf16' ? 0xff : 0x7f;
}

/** What stands in page tables past a sequence's last page: a kernel that follows it faults. */
export const WILD_PAGE = 2147480000;
const PAGE_TOKENS = 64;

/** Different rows of an fp8 cache. */
const FP8_ROWS = 256;

/** From this many elements on, values are drawn from a table of TABLE normal numbers: 20 times faster to make. */
const TABLE = 16384;

const count = (shape: readonly number[]) => shape.reduce((product, dimension) => product * dimension, 1);

/** A paged cache as the engine lays it out, with everything poisoned that no sequence owns. */
export interface PagedCache {
  /** [pages, 64, row]; NaN in unowned pages and behind the last token of each sequence */
  cache: Planned;
  /** [B, maxPages]; WILD_PAGE behind the pages of a sequence */
  blockTable: Planned;
  /** [B] */
  lengths: Planned;
  /** slot of token i of sequence b */
  slot(b: number, i: number): number;
}

/** Bytes of the arguments that are tensors. */
export function bytesOf(args: object): number {
  return Object.values(args).reduce((sum, value) => sum + (value instanceof Planned ? value.bytes.length : 0), 0);
}

/** What Inputs throws when arguments take more bytes than it may make. */
export class TooLarge extends Error {}

/** Makes arguments; one seed gives the same ones everywhere. */
export class Inputs {
  readonly random: Random;

  /** @param left bytes that it may make, in all */
  constructor(
    seed: number,
    private left = Number.POSITIVE_INFINITY,
  ) {
    this.random = new Random(seed);
  }

  private spend(dtype: DType, shape: readonly number[]): void {
    this.left -= count(shape) * DTYPE_BYTES[dtype];
    if (this.left < 0) throw new TooLarge(`${dtype} [${shape}] is too large`);
  }

  /** Normal values. */
  normal(dtype: DType, shape: readonly number[], scale = 1, mean = 0, role: Role = 'in'): Planned {
    const n = count(shape);
    this.spend(dtype, shape);
    if (n <= TABLE) return new Planned(role, dtype, shape, encode(dtype, this.random.values(dtype, n, scale, mean)));
    const width = DTYPE_BYTES[dtype];
    const table = encode(dtype, this.random.values(dtype, TABLE, scale, mean));
    const Word = width === 1 ? Uint8Array : width === 2 ? Uint16Array : Uint32Array;
    const words = new Word(table.slice().buffer);
    const out = new Word(n);
    let state = this.random.below(2 ** 31) | 1;
    for (let i = 0; i < n; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      out[i] = words[(state >>> 9) % TABLE] as number;
    }
    return new Planned(role, dtype, shape, new Uint8Array(out.buffer));
  }

  /** Uniform integers of [low, high). */
  integers(dtype: 'i32' | 'i64' | 'u32' | 'u8', shape: readonly number[], low: number, high: number): Planned {
    return this.values(
      dtype,
      shape,
      Array.from({ length: count(shape) }, () => low + this.random.below(high - low)),
    );
  }

  /** These values. */
  values(dtype: DType, shape: readonly number[], values: ArrayLike<number>, role: Role = 'in'): Planned {
    if (values.length !== count(shape)) throw new Error(`${values.length} values for shape [${shape}]`);
    this.spend(dtype, shape);
    return new Planned(role, dtype, shape, encode(dtype, values));
  }

  /** An output, filled with poison: NaN, or 0x7f7f... */
  output(dtype: DType, shape: readonly number[]): Planned {
    this.spend(dtype, shape);
    return new Planned('out', dtype, shape, new Uint8Array(count(shape) * DTYPE_BYTES[dtype]).fill(poisonByte(dtype)));
  }

  /** The same bytes as an argument that is read and written. */
  inout(planned: Planned): Planned {
    return new Planned('inout', planned.dtype, planned.shape, planned.bytes.slice());
  }

  /** cos and sin of position * theta^(-2i/r): [positions, r/2, 2] f32. */
  cosSin(positions: number, r: number, theta = 10000): Planned {
    const values = Float64Array.from({ length: positions * r }, (_, i) => {
      const angle = Math.floor(i / r) * theta ** (-(2 * Math.floor((i % r) / 2)) / r);
      return i % 2 === 0 ? Math.cos(angle) : Math.sin(angle);
    });
    return this.values('f32', [positions, r / 2, 2], values);
  }

  /** What a running sum of lengths gives: [n + 1] i32 from 0. */
  starts(lengths: readonly number[]): Planned {
    const values = [0];
    for (const length of lengths) values.push((values.at(-1) as number) + length);
    return this.values('i32', [values.length], values);
  }

  /** The split plan for mlaDecode. */
  plan(heads: number, qStart: Planned, lengths: Planned): PlannedSplit {
    return new PlannedSplit(heads, qStart, lengths);
  }

  /**
   * A cache for sequences of these lengths, on shuffled pages. Poisoned: three pages that nobody owns, rows behind the
   * last token, and the tails of the table.
   */
  pagedCache(dtype: 'f32' | 'bf16' | 'fp8', lengths: readonly number[], c: number, r: number): PagedCache {
    const [spare, tail] = [3, 2];
    const pagesOf = lengths.map((length) => Math.ceil(length / PAGE_TOKENS));
    const owned = pagesOf.reduce((sum, pages) => sum + pages, 0);
    const pages = owned + spare;
    const order = Array.from({ length: pages }, (_, i) => i);
    for (let i = pages - 1; i > 0; i--) {
      const j = this.random.below(i + 1);
      [order[i], order[j]] = [order[j] as number, order[i] as number];
    }
    const columns = Math.max(...pagesOf, 0) + tail;
    const table = new Int32Array(lengths.length * columns).fill(WILD_PAGE);
    const type = dtype === 'fp8' ? 'f8e4m3' : dtype;
    const shape = [pages, PAGE_TOKENS, dtype === 'fp8' ? fp8RowBytes(c, r) : c + r];
    const rowBytes = (shape[2] as number) * DTYPE_BYTES[type];
    const live = dtype === 'fp8' ? this.fp8Rows(pages * PAGE_TOKENS, c, r) : this.normal(dtype, shape).bytes;
    const bytes = new Uint8Array(live.length).fill(poisonByte(type));
    let next = 0;
    lengths.forEach((length, b) => {
      for (let p = 0; p * PAGE_TOKENS < length; p++) {
        const page = order[next++] as number;
        table[b * columns + p] = page;
        const rows = Math.min(PAGE_TOKENS, length - p * PAGE_TOKENS);
        const from = page * PAGE_TOKENS * rowBytes;
        bytes.set(live.subarray(from, from + rows * rowBytes), from);
      }
    });
    return {
      cache: new Planned('in', type, shape, bytes),
      blockTable: this.values('i32', [lengths.length, columns], table),
      lengths: this.values('i32', [lengths.length], lengths),
      slot: (b, i) => (table[b * columns + Math.floor(i / PAGE_TOKENS)] as number) * PAGE_TOKENS + (i % PAGE_TOKENS),
    };
  }

  /** `count` rows of c + r channels, every 128 of them of a size of their own. */
  private fp8Rows(count: number, c: number, r: number): Uint8Array {
    const table = Array.from({ length: Math.min(count, FP8_ROWS) }, () => {
      const sizes = Array.from({ length: Math.ceil(c / 128) }, () => 2 ** (this.random.below(4) - 2));
      const row = this.random.values('f32', c + r).map((x, i) => x * (i < c ? (sizes[i >> 7] as number) : 1));
      return fp8Row(row, c).bytes;
    });
    const bytes = new Uint8Array(count * fp8RowBytes(c, r));
    for (let i = 0; i < count; i++) {
      bytes.set(table[this.random.below(table.length)] as Uint8Array, i * fp8RowBytes(c, r));
    }
    return bytes;
  }
}
