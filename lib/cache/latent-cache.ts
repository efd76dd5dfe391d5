// cache/latent-cache.ts - the paged latent cache: one slab [layers, pages, 64, row] and the pool that owns its pages.

import type { Device, Tensor, TensorSpec } from '../native';
import { type CacheDtype, type CacheRow, fp8RowParts } from './cache-row';
import { PAGE_TOKENS, PagePool } from './page-pool';

/** What determines the size of a latent cache. */
export interface LatentCacheShape extends CacheRow {
  layers: number;
  pages: number;
  dtype: CacheDtype;
}

/** Element type and shape of the slab; the last dimension is c + r, or the bytes of an fp8 row. */
export function latentCacheSpec({ layers, pages, dtype, c, r }: LatentCacheShape): TensorSpec {
  if (dtype === 'fp8') return { dtype: 'f8e4m3', shape: [layers, pages, PAGE_TOKENS, fp8RowParts({ c, r }).bytes] };
  return { dtype, shape: [layers, pages, PAGE_TOKENS, c + r] };
}

/** Owns the slab; one view per layer is what the attention operations read and write. */
export class LatentCache {
  readonly pool: PagePool;
  readonly slab: Tensor;
  /** per layer [pages, 64, row] */
  readonly layers: readonly Tensor[];

  private constructor(
    slab: Tensor,
    /** what the cache was made from */
    readonly shape: LatentCacheShape,
  ) {
    this.slab = slab;
    this.pool = new PagePool(shape.pages);
    const layerBytes = slab.byteLength / shape.layers;
    this.layers = Array.from({ length: shape.layers }, (_, l) =>
      slab.view(slab.dtype, slab.shape.slice(1), l * layerBytes),
    );
  }

  /** Rejects with ERR_OUT_OF_MEMORY or ERR_OUT_OF_DEVICE_MEMORY; nothing leaks. */
  static async create(device: Device, shape: LatentCacheShape): Promise<LatentCache> {
    const { dtype, shape: dims } = latentCacheSpec(shape);
    return new LatentCache(await device.allocate(dtype, dims), shape);
  }

  /** Ends the handles; the memory returns when queued work is done with it. Idempotent. */
  dispose(): void {
    for (const layer of this.layers) layer.dispose();
    this.slab.dispose();
  }
}
