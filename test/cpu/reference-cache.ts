// cpu/reference-cache.ts - a paged cache as it looks in life: pages in any order, everything that no token was written
// to is NaN, and table entries past a sequence's length are wild numbers.
import type { Tensor } from '../../lib/native';
import type { Act, Laboratory, Random } from './reference';

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

/** A cache of random rows for sequences of these lengths. */
export async function pagedCache(
  lab: Laboratory,
  random: Random,
  dtype: Act,
  width: number,
  lengths: readonly number[],
): Promise<PagedCache> {
  const needed = lengths.map((n) => Math.ceil(n / PAGE));
  const tablePages = Math.max(...needed) + 2;
  const pages = needed.reduce((a, b) => a + b, 0) + 3;
  const free = Array.from({ length: pages }, (_, i) => i);
  const values = new Float64Array(pages * PAGE * width).fill(Number.NaN);
  const entries = new Array<number>(lengths.length * tablePages).fill(WILD);
  const rows = lengths.map((length, b) => {
    const row = random.values(dtype, length * width);
    for (let j = 0; j < length; j++) {
      const at = b * tablePages + Math.floor(j / PAGE);
      if (j % PAGE === 0) entries[at] = free.splice(random.below(free.length), 1)[0] as number;
      const slot = (entries[at] as number) * PAGE + (j % PAGE);
      values.set(row.subarray(j * width, (j + 1) * width), slot * width);
    }
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

/** Prefix sums, as q_start and k_start want them. */
export function starts(counts: readonly number[], first = 0): number[] {
  const sums = [first];
  for (const n of counts) sums.push((sums[sums.length - 1] as number) + n);
  return sums;
}
