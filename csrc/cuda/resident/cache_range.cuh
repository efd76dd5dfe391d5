// cache_range.cuh - which rows of the cache a block of a resident kernel attends to.
//
// Pages of 64 tokens are dealt over all blocks in order, the first blocks one more. Where there are two blocks for
// every page, both take all of its tokens, each for half of the heads. A block takes its pages from the last to the
// first, so that the newest token, which is not in the cache yet when its page is loaded, stands in the block's first
// stages. A stage has up to 16 tokens of a page.
#pragma once
#include "cuda/resident/ring.cuh"

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

}  // namespace mla::cuda
