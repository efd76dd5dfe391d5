// few_load.cuh - the warp that loads keys and queries for the few-rows decode kernel, ahead and across work items.
#pragma once
#include "cuda/attention/few_item.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace mla::cuda::few {

/// The loading warp.
template <int kC, int kN>
__device__ __forceinline__ void produce(const Args& a, const Maps& maps, const Layout<kC, kN>& at, int rank,
                                        int cluster, int clusters) {
  using S = Sizes<kC, kN>;
  const int lane = threadIdx.x % 32, items = item_count(a);
  const bool leader = lane == 0;
  RingCursor<S::kSlots> ring;
  uint32_t query_filled = 0;
  bool waited = !a.early;
  for (int index = cluster; index < items; index += clusters) {
    Item item;
    if (!find_item<kN>(a, index, rank, &item)) continue;
    const int32_t* table = a.block_table + int64_t{item.sequence} * a.max_pages;
    const int tiles = item.tiles(), first_page = item.begin / kPageTokens;
    const CUtensorMap* map = item.box() == kTileKeys ? &maps.cache : &maps.cache_parts[item.box() == 32 ? 0 : 1];
    int page = 0;
    for (int t = 0; t < tiles || t == 0; ++t) {
      if (t % 32 == 0) page = t + lane < tiles ? table[first_page + t + lane] : -1;
      if (t < tiles) {
        const int number = __shfl_sync(kFullWarp, page, t % 32);
        // What lies outside of the tensor arrives as zeros.
        const int y = (number >= 0 && number < a.pages ? number : a.pages) * kPageTokens + item.begin % kPageTokens;
        for (int i = 0; i < S::kTiles; ++i) {
          mbarrier_wait(at.empty + ring.stage * 8, ring.filled ^ 1);
          if (leader) {
            mbarrier_arrive_expect(at.full + ring.stage * 8, item.box() * 128);
            tile_load(at.ring + ring.stage * kTileBytes, map, at.full + ring.stage * 8, i == 0 ? kC : (i - 1) * 64, y);
          }
          ring.advance();
        }
      }
      if (t == 0) {
        // The query comes from the operation before; keys are already on their way.
        if (!waited) pdl_wait();
        waited = true;
        mbarrier_wait(at.query_empty, query_filled ^ 1);
        query_filled ^= 1;
        if (leader) {
          mbarrier_arrive_expect(at.query_full, S::kQueryBytes);
          for (int i = 0; i < S::kTiles; ++i) {
            tile_load(at.query + i * S::kQueryTile, &maps.query, at.query_full, i == 0 ? kC : (i - 1) * 64, item.row,
                      kEvictLast);
          }
        }
      }
    }
    if (item.active > 1 && rank < item.active) {
      // Slots without data, for what this block has summed up.
      for (int i = 0; i < S::kExchange; ++i) {
        mbarrier_wait(at.empty + ring.stage * 8, ring.filled ^ 1);
        if (leader) mbarrier_arrive(at.full + ring.stage * 8);
        ring.advance();
      }
    }
  }
  if (!waited) pdl_wait();
}

}  // namespace mla::cuda::few
