// model/snapshot.ts - rows of the cache to a file and back, a page at a time.
import { KeptPages, PAGE_TOKENS, pagesFor, readSnapshot, type SnapshotLayout, writeSnapshot } from '../cache';
import { DTYPE_BYTES, type Tensor } from '../native';
import type { Machine } from './forward';

/** What the files of this model look like. */
export function layoutOf({ cache, dims }: Machine, fingerprint: string): SnapshotLayout {
  return { fingerprint, dtype: cache.shape.dtype, layers: dims.layers, c: dims.c, r: dims.r };
}

/** Writes tokens, and the rows that are kept of them. */
export async function saveText(
  machine: Machine,
  layout: SnapshotLayout,
  path: string,
  tokens: readonly number[],
  kept: KeptPages | null,
  signal: AbortSignal,
): Promise<void> {
  const rows = kept?.tokens.length ?? 0;
  await writeSnapshot(path, layout, { tokens, rows }, readPages(machine, kept?.pages ?? [], signal));
}

async function* readPages(machine: Machine, pages: readonly number[], signal: AbortSignal): AsyncIterable<Uint8Array> {
  const { stream } = machine;
  for (const page of pages) {
    signal.throwIfAborted();
    const parts = await onPage(machine, page, (views) => Promise.all(views.map((view) => stream.read(view))));
    yield Buffer.concat(parts.map((part) => new Uint8Array(part)));
  }
  signal.throwIfAborted();
}

/**
 * Reads what saveText wrote, into pages of its own.
 * @throws ERR_SNAPSHOT, ERR_FILE, ERR_CONTEXT_LENGTH, ERR_NO_PAGES or the signal's reason; no page is taken then
 */
export async function restoreText(
  machine: Machine,
  layout: SnapshotLayout,
  path: string,
  signal: AbortSignal,
): Promise<{ tokens: readonly number[]; kept: KeptPages | null }> {
  const { stream, cache, limits, dims } = machine;
  let pages: number[] = [];
  try {
    const { tokens, rows } = await readSnapshot(
      path,
      layout,
      { context: limits.context, vocab: dims.vocab },
      (text) => {
        pages = cache.pool.take(pagesFor(text.rows));
        return async (bytes, index) => {
          signal.throwIfAborted();
          await onPage(machine, pages[index] as number, async (views) => {
            const part = bytes.length / views.length;
            for (const [l, view] of views.entries()) stream.write(view, bytes.subarray(l * part, (l + 1) * part));
            await stream.record().done;
          });
        };
      },
    );
    signal.throwIfAborted();
    return { tokens, kept: rows === 0 ? null : new KeptPages(cache.pool, tokens.slice(0, rows), pages) };
  } finally {
    cache.pool.releaseAll(pages); // KeptPages has references of its own
  }
}

/** Runs `work` with a page's part of each layer, [64, row]. */
async function onPage<T>({ cache }: Machine, page: number, work: (views: Tensor[]) => Promise<T>): Promise<T> {
  const views = cache.layers.map((layer) => {
    const width = layer.shape[2] as number;
    const bytes = PAGE_TOKENS * width * DTYPE_BYTES[layer.dtype];
    return layer.view(layer.dtype, [PAGE_TOKENS, width], page * bytes);
  });
  try {
    return await work(views);
  } finally {
    for (const view of views) view.dispose();
  }
}
