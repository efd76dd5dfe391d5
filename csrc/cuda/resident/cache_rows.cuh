// cache_rows.cuh - rows of the cache in a resident kernel: how they lie, the newest one, how a page's stages are asked
// for.
#pragma once
#include "cuda/attention/fp8_rows.cuh"
#include "cuda/resident/absorb.cuh"

namespace mla::cuda {

/// The newest token: is it written to the cache by this step, and is it what stands behind the others there?
struct NewestToken {
  int position, slot;
  bool written, fresh;

  __device__ __forceinline__ NewestToken(const Resident& p, int length) {
    position = *p.position;
    slot = *p.slot;
    written = position >= 0 && position < p.position_end && slot >= 0 && slot < p.cache_slots;
    const int last = length - 1;
    fresh = written && last >= 0 && slot / CacheRange::kPage == p.block_table[last / CacheRange::kPage] &&
            slot % CacheRange::kPage == last % CacheRange::kPage;
  }
};

/// Rows of the cache: their bytes, and how far apart they lie in a stage, which spreads ldmatrix over all banks.
template <class Cache>
struct CacheRow {
  static constexpr int kBytes = kCacheRow * 2, kPitch = ResidentRing::kCachePitch, kKeyAt = kLatentC * 2;
};
template <>
struct CacheRow<F8E4M3> {
  static constexpr Fp8Row kRow{kLatentC, kKeyR};
  static constexpr int kBytes = kRow.bytes(), kPitch = kBytes, kKeyAt = kRow.rope_at();
  static constexpr int kScaleAt = kRow.scale_at();
  static_assert(kPitch % 128 == 16);
};

/// The page's number in the cache. One that does not exist is read as the first one.
__device__ __forceinline__ int page_number(const Resident& p, int page) {
  const uint32_t number = static_cast<uint32_t>(p.block_table[page]);
  return number < static_cast<uint32_t>(p.cache_slots / CacheRange::kPage) ? static_cast<int>(number) : 0;
}

/// Asks for a stage of a page, by the whole producer warp. `fresh`: the newest token's row, which is not in the cache
/// yet, stays as it was.
template <class Cache>
__device__ __forceinline__ void attend_fill(const Resident& p, int layer, const CacheRange& range, bool fresh, int page,
                                            int number, int stage, uint32_t to, uint32_t barrier) {
  const auto same = [](auto x) { return __shfl_sync(0xffffffffu, x, 0); };
  const int token = page * CacheRange::kPage + stage * ResidentRing::kRows;
  int rows = min(ResidentRing::kRows, range.length - token);
  if (token + rows == range.length && fresh) --rows;
  using Row = CacheRow<Cache>;
  const int64_t row = int64_t{number} * CacheRange::kPage + stage * ResidentRing::kRows;
  const uint64_t from = same(reinterpret_cast<uint64_t>(p.layer[layer].cache) + row * Row::kBytes);
  rows = same(rows);
  to = same(to);
  barrier = same(barrier);
  if (elect_lane()) {
    mbarrier_arrive_expect(barrier, rows * Row::kBytes);
    const auto copy = [&](int r) {
      bulk_load(to + r * Row::kPitch, reinterpret_cast<const void*>(from + r * Row::kBytes), Row::kBytes, barrier);
    };
    if (Row::kPitch == Row::kBytes) {
      if (rows > 0) bulk_load(to, reinterpret_cast<const void*>(from), rows * Row::kBytes, barrier);
    } else if (rows == ResidentRing::kRows) {
#pragma unroll
      for (int r = 0; r < ResidentRing::kRows; ++r) copy(r);
    } else {
#pragma unroll 1
      for (int r = 0; r < rows; ++r) copy(r);
    }
  }
  __syncwarp();
}

}  // namespace mla::cuda
