// cpu/reference-cache.ts - a paged cache as it looks in life: pages in any order, everything that no token was written
// to is NaN, and table entries past a sequence's length are wild numbers.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Tensor } from '../../lib/native';
import { type Act, encode, type Laboratory, type Random, rounded } from './reference';

/** Tokens of a page. */
export const PAGE = 64;
/** What unused entries of a block table hold. */
export const WILD = 2147480000;

export interface PagedCache {
  cache: Tensor;
  table: Tensor;
  /** Cached rows of each sequence, flat [length, width], as stored. */
  rows: Float64Array[];
  /** The table's entries, [sequences, tablePages]. */
  entries: number[];
  tablePages: number;
}

/** Places for sequences of these lengths, on pages in any order. */
function placesFor(random: Random, lengths: readonly number[]) {
  const needed = lengths.map((n) => Math.ceil(n / PAGE));
  const tablePages = Math.max(...needed) + 2;
  const pages = needed.reduce((a, b) => a + b, 0) + 3;
  const free = Array.from({ length: pages }, (_, i) => i);
  const entries = new Array<number>(lengths.length * tablePages).fill(WILD);
  needed.forEach((n, b) => {
    for (let i = 0; i < n; i++) entries[b * tablePages + i] = free.splice(random.below(free.length), 1)[0] as number;
  });
  const slot = (b: number, j: number) => (entries[b * tablePages + Math.floor(j / PAGE)] as number) * PAGE + (j % PAGE);
  return { tablePages, pages, entries, slot };
}

/** A cache of random rows for sequences of these lengths. */
export async function pagedCache(
  lab: Laboratory,
  random: Random,
  dtype: Act,
  width: number,
  lengths: readonly number[],
): Promise<PagedCache> {
  const { tablePages, pages, entries, slot } = placesFor(random, lengths);
  const values = new Float64Array(pages * PAGE * width).fill(Number.NaN);
  const rows = lengths.map((length, b) => {
    const row = random.values(dtype, length * width);
    for (let j = 0; j < length; j++) values.set(row.subarray(j * width, (j + 1) * width), slot(b, j) * width);
    return row;
  });
  return {
    cache: await lab.put(dtype, [pages, PAGE, width], values),
    table: await lab.put('i32', [lengths.length, tablePages], entries),
    rows,
    entries,
    tablePages,
  };
}

/** The same as fp8 rows of c + r channels, of which every 128 have a size of their own. `rows` are as read. */
export async function pagedFp8Cache(
  lab: Laboratory,
  random: Random,
  [c, r]: readonly [number, number],
  lengths: readonly number[],
): Promise<PagedCache> {
  const { tablePages, pages, entries, slot } = placesFor(random, lengths);
  const width = c + r;
  const rowBytes = fp8RowBytes(c, r);
  const bytes = new Uint8Array(pages * PAGE * rowBytes).fill(0xff);
  const rows = lengths.map((length, b) => {
    const read = new Float64Array(length * width);
    for (let j = 0; j < length; j++) {
      const sizes = Array.from({ length: Math.ceil(c / 128) + 1 }, () => 2 ** (random.below(3) - 2));
      const row = fp8Row(
        random.values('f32', width).map((x, i) => x * (sizes[i < c ? Math.floor(i / 128) + 1 : 0] as number)),
        c,
      );
      bytes.set(row.bytes, slot(b, j) * rowBytes);
      read.set(row.read, j * width);
    }
    return read;
  });
  const cache = await lab.put('u8', [pages, PAGE, rowBytes], bytes);
  return {
    cache: cache.view('f8e4m3', cache.shape),
    table: await lab.put('i32', [lengths.length, tablePages], entries),
    rows,
    entries,
    tablePages,
  };
}

const upTo = (n: number, unit: number) => Math.ceil(n / unit) * unit;

/** Bytes of an fp8 row of c + r channels. */
export function fp8RowBytes(c: number, r: number): number {
  return upTo(upTo(upTo(c, 4) + 4 * Math.ceil(c / 128), 16) + 2 * r, 16);
}

/**
 * The fp8 row of c latent channels and the rope channels behind them, from its definition: e4m3, zeros up to a multiple
 * of 4, a float32 scale per 128 channels, zeros up to a multiple of 16, bf16, zeros up to a multiple of 16. And the
 * numbers that it reads as.
 */
export function fp8Row(values: ArrayLike<number>, c: number): { bytes: Uint8Array; read: Float64Array } {
  const r = values.length - c;
  const bytes = new Uint8Array(fp8RowBytes(c, r));
  const read = new Float64Array(values.length);
  const scaleAt = upTo(c, 4);
  for (let begin = 0; begin < c; begin += 128) {
    const channels = Array.from({ length: Math.min(128, c - begin) }, (_, i) => values[begin + i] as number);
    const { codes, scale } = scaledBlock(channels);
    bytes.set(encode('f8e4m3', codes), begin);
    bytes.set(encode('f32', [scale]), scaleAt + begin / 32);
    read.set(
      codes.map((q) => q * scale),
      begin,
    );
  }
  const rope = Array.from({ length: r }, (_, i) => rounded('bf16', values[c + i] as number));
  bytes.set(encode('bf16', rope), upTo(scaleAt + 4 * Math.ceil(c / 128), 16));
  read.set(rope, c);
  return { bytes, read };
}

/** Up to 128 values as e4m3 with a power of two, from the definition in csrc/ops/fp8_row.h. */
function scaledBlock(values: readonly number[]): { codes: number[]; scale: number } {
  const finite = values.every(Number.isFinite);
  const largest = Math.max(...values.map(Math.abs));
  let exponent = finite ? -60 : 0;
  while (finite && exponent < 60 && largest / 2 ** exponent > 448) exponent++;
  const codes = values.map((x) => rounded('f8e4m3', x / 2 ** exponent));
  return { codes, scale: finite ? 2 ** exponent : Number.NaN };
}

/** Rows of `width` values as fp8 activations: what enters a product. */
export function fp8Rows(values: Float64Array, width: number): Float64Array {
  const out = new Float64Array(values.length);
  for (let row = 0; row < values.length; row += width) {
    for (let begin = 0; begin < width; begin += 128) {
      const { codes, scale } = scaledBlock([...values.subarray(row + begin, row + Math.min(width, begin + 128))]);
      codes.forEach((q, i) => {
        out[row + begin + i] = q * scale;
      });
    }
  }
  return out;
}

/** A row of k values, and what another library makes of it as fp8 activations (test/golden/make_fp8_rows.py). */
export interface GoldenRow {
  name: string;
  /** the narrowest type that holds x exactly */
  dtype: 'f32' | 'bf16';
  k: number;
  x: number[];
  y: number[];
}

export function fp8GoldenRows(): GoldenRow[] {
  const file = join(__dirname, '..', 'golden', 'fp8-rows.json');
  const { rows } = JSON.parse(readFileSync(file, 'utf8')) as {
    rows: { name: string; dtype: 'f32' | 'bf16'; x: string; y: string }[];
  };
  const numbers = (text: string) => {
    const bytes = Buffer.from(text, 'base64');
    return Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
  };
  return rows.map(({ name, dtype, x, y }) => ({ name, dtype, k: numbers(x).length, x: numbers(x), y: numbers(y) }));
}

/** Prefix sums, as q_start and k_start want them. */
export function starts(counts: readonly number[], first = 0): number[] {
  const sums = [first];
  for (const n of counts) sums.push((sums[sums.length - 1] as number) + n);
  return sums;
}
