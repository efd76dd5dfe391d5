// few_load.cuh - the warp that loads keys and queries for the few-rows decode kernel, ahead and across pieces.
#pragma once
#include "cuda/attention/few_item.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace mla::cuda::few {

/// A page of packed rows into a slot; zeros if there is no such page.
template <class S>
__device__ __forceinline__ void load_packed(const Args& a, int page, uint32_t slot, uint32_t full) {
  constexpr int kParts = 4, kPart = S::kPageBytes / kParts;
  const int lane = threadIdx.x % 32;
  if (page >= 0) {
    if (lane == 0) {
      mbarrier_arrive_expect(full, S::kPageBytes);
      const uint8_t* const from = a.cache + int64_t{page} * S::kPageBytes;
#pragma unroll
      for (int i = 0; i < kParts; ++i) bulk_load(slot + i * kPart, from + i * kPart, kPart, full);
    }
  } else {
    for (int x = lane * 16; x < S::kPageBytes; x += 32 * 16) shared_store4(slot + x, 0, 0, 0, 0);
    fence_proxy_async();  // the copy engine writes here next
    __syncwarp();
    if (lane == 0) mbarrier_arrive(full);
  }
}

/// The loading warp.
template <class S>
__device__ __forceinline__ void produce(const Args& a, const Maps& maps, const Layout<S>& at, Walk<S::kRows> walk) {
  constexpr int kC = S::kLatent;
  const int lane = threadIdx.x % 32;
  const bool leader = lane == 0;
  RingCursor<S::kSlots> rings[2];
  uint32_t query_filled = 0;
  bool waited = !a.early;
  const int fresh_page = lane < a.fresh_rows ? a.fresh_slots[lane] / kPageTokens : -1;
  /// Whether a piece has keys that are not settled, of its pages in the lanes.
  const auto has_fresh = [&](int page, int pages) {
    bool fresh = false;
    for (int i = 0; i < a.fresh_rows; ++i) fresh |= page == __shfl_sync(kFullWarp, fresh_page, i);
    return __any_sync(kFullWarp, fresh && lane < pages);
  };
  const auto load_query = [&](int row) {
    if (!waited) pdl_wait();
    waited = true;
    mbarrier_wait(at.query_empty, query_filled ^ 1);
    query_filled ^= 1;
    if (leader) {
      mbarrier_arrive_expect(at.query_full, S::kQueryBytes);
      for (int i = 0; i < S::kTiles; ++i) {
        tile_load(at.query + i * S::kQueryTile, &maps.query, at.query_full, i == 0 ? kC : (i - 1) * 64, row,
                  kEvictLast);
      }
    }
  };
  while (!walk.done()) {
    // Asked for beside the piece's lengths, which they do not need.
    const int64_t first_page = walk.next_page();
    int page = 0;
    if (first_page + lane < int64_t{a.sequences} * a.max_pages) page = a.block_table[first_page + lane];
    Piece piece;
    if (!walk.next(&piece)) break;
    const int tiles = piece.tiles();
    const int32_t* table = a.block_table + int64_t{piece.sequence} * a.max_pages + piece.begin / kPageTokens;
    const bool asked = table == a.block_table + first_page;
    const bool query_first =
        !waited && (!a.early_keys || (a.fresh_rows > 0 && (!asked || tiles > 32 || has_fresh(page, tiles))));
    if (query_first) load_query(piece.row);
    for (int t = 0; t < tiles || t == 0; ++t) {
      if (t % 32 == 0 && (t > 0 || !asked)) page = t + lane < tiles ? table[t + lane] : -1;
      if (t < tiles) {
        const int number = __shfl_sync(kFullWarp, page, t % 32);
        const bool exists = number >= 0 && number < a.pages;
        // What lies outside of the tensor arrives as zeros.
        const int y = (exists ? number : a.pages) * kPageTokens;
        const auto load_page = [&](RingCursor<S::kSlots>& ring, int which) {
          const uint32_t barriers = which * S::kSlots * 8;
          if constexpr (S::kFp8) {
            mbarrier_wait(at.empty + barriers + ring.stage * 8, ring.filled ^ 1);
            load_packed<S>(a, exists ? number : -1, at.ring + which * S::kRingBytes + ring.stage * S::kSlotBytes,
                           at.full + barriers + ring.stage * 8);
            ring.advance();
          } else {
            for (int i = 0; i < S::kTiles; ++i) {
              const uint32_t full = at.full + barriers + ring.stage * 8;
              mbarrier_wait(at.empty + barriers + ring.stage * 8, ring.filled ^ 1);
              if (leader) {
                mbarrier_arrive_expect(full, kTileBytes);
                tile_load(at.ring + which * S::kRingBytes + ring.stage * kTileBytes, &maps.cache, full,
                          i == 0 ? kC : (i - 1) * 64, y);
              }
              ring.advance();
            }
          }
        };
        if (!S::kTurns || t % 2 == 0) {
          load_page(rings[0], 0);
        } else {
          load_page(rings[1], 1);
        }
      }
      // The query comes from the operation before; keys are already on their way.
      if (t == 0 && !query_first) load_query(piece.row);
    }
    if (S::kTurns && piece.shared()) {
      // Slots without data, for what the warpgroups tell each other.
      for (int i = 0; i < S::kExchange; ++i) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          const uint32_t barrier = (which * S::kSlots + rings[which].stage) * 8;
          mbarrier_wait(at.empty + barrier, rings[which].filled ^ 1);
          if (leader) mbarrier_arrive(at.full + barrier);
          rings[which].advance();
        }
      }
    }
  }
  if (!waited) pdl_wait();
}

}  // namespace mla::cuda::few
