// cache_range.cuh - which rows of the cache a block of a resident kernel attends to.
//
// Pages of 64 tokens are dealt over all blocks in order, the first blocks one more. Where there are two blocks for
// every page, both take all of its tokens, each for half of the heads. A block takes its pages from the last to the
// first, so that the newest token, which is not in the cache yet when its page is loaded, stands in the block's first
// stages. A stage has up to 16 tokens of a page.
#pragma once
#include "cuda/attention/fp8_rows.cuh"
#include "cuda/resident/absorb.cuh"

namespace mla::cuda {

struct CacheRange {
  static constexpr int kPage = 64, kPageStages = kPage / ResidentRing::kRows;

  int length;        // of the sequence
  int sharers;       // blocks that have the same pages, neighbours: 1, or 2 with half of the heads each
  int parts;         // groups of sharers that have pages: the first ones
  int first, pages;  // of this block

  __device__ __forceinline__ CacheRange(int length, int block, int blocks) : length(max(length, 0)) {
    const int all = (this->length + kPage - 1) / kPage;
    sharers = blocks % 2 == 0 && 2 * all <= blocks ? 2 : 1;
    const int groups = blocks / sharers, group = block / sharers, each = all / groups, more = all - each * groups;
    parts = min(all, groups);
    first = each * group + min(group, more);
    pages = each + (group < more ? 1 : 0);
  }

  __device__ __forceinline__ CacheRange(const Resident& p, int block, int blocks)
      : CacheRange(min(*p.length, p.max_pages * kPage), block, blocks) {}

  /// Stages of page i, counted from the block's last: 4 but for the sequence's last page.
  __device__ __forceinline__ int page_of(int i) const { return first + pages - 1 - i; }
  __device__ __forceinline__ int stages_of(int page) const {
    return min(kPage, length - page * kPage + ResidentRing::kRows - 1) / ResidentRing::kRows;
  }
  __device__ __forceinline__ int stages() const {
    return pages == 0 ? 0 : (pages - 1) * kPageStages + stages_of(first + pages - 1);
  }
  /// A block that norms the newest token's latent, and attends to it.
  __device__ __forceinline__ bool newest(int block) const { return block / sharers == max(parts, 1) - 1; }
  /// Which of its sharers a block is. The first one writes the newest token's row to the cache.
  __device__ __forceinline__ int share(int block) const { return block % sharers; }
};

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

/// Stages that attention has in a block, the same number in each layer.
__device__ __forceinline__ int attend_stages(const Resident& p, int block) {
  return CacheRange(p, block, gridDim.x).stages();
}

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
