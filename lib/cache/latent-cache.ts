// cache/latent-cache.ts - the paged latent cache: one slab [layers, pages, 64, c + r] and the pool that owns its pages.

import type { Device, DType, Tensor, TensorSpec } from '../native';
import { PAGE_TOKENS, PagePool } from './page-pool';

/** What determines the size of a latent cache. */
export interface LatentCacheShape {
  layers: number;
  pages: number;
  /** kv_lora_rank + qk_rope_head_dim */
  rowWidth: number;
  dtype: DType;
}

/** Element type and shape of the slab. */
export function latentCacheSpec(shape: LatentCacheShape): TensorSpec {
  return { dtype: shape.dtype, shape: [shape.layers, shape.pages, PAGE_TOKENS, shape.rowWidth] };
}

/** Owns the slab; one view per layer is what the attention operations read and write. */
export class LatentCache {
  readonly pool: PagePool;
  readonly slab: Tensor;
  /** per layer [pages, 64, c + r] */
  readonly layers: readonly Tensor[];

  private constructor(slab: Tensor, shape: LatentCacheShape) {
    this.slab = slab;
    this.pool = new PagePool(shape.pages);
    const layerShape = [shape.pages, PAGE_TOKENS, shape.rowWidth];
    const layerBytes = slab.byteLength / shape.layers;
    this.layers = Array.from({ length: shape.layers }, (_, l) => slab.view(shape.dtype, layerShape, l * layerBytes));
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
