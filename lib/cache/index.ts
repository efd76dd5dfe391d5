// cache - pages, their owners, and the slab they lie in.
export { type CacheDtype, type CacheRow, cacheRowBytes, fp8RowParts } from './cache-row';
export { LatentCache, type LatentCacheShape, latentCacheSpec } from './latent-cache';
export { PAGE_TOKENS, PagePool, type PageStats, pagesFor } from './page-pool';
export { PrefixIndex } from './prefix-index';
export { replaceFile } from './replace-file';
export {
  readSnapshot,
  type SnapshotLayout,
  type SnapshotLimits,
  type SnapshotText,
  writeSnapshot,
} from './snapshot-file';
export { KeptPages, type PageCopy, TextPages } from './text-pages';
