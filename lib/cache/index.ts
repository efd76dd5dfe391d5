// cache - pages, their owners, and the slab they lie in.
export { LatentCache, type LatentCacheShape, latentCacheSpec } from './latent-cache';
export { PAGE_TOKENS, PagePool, type PageStats, pagesFor } from './page-pool';
