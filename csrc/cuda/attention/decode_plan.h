// decode_plan.h - the layout of decodePlan's tensor, shared by the kernel that writes it and those that read it.
//
// The query rows of a sequence are its (token, head) pairs, token after token; a row tile is `row_tile` of them. The
// keys of a sequence are cut into splits of `split_keys`, the last one shorter. A work item is one split against one
// row tile; item i of sequence b is split (i - item_start[b]) / row tiles and row tile (i - item_start[b]) % row tiles,
// so that neighbouring blocks read the same keys. A sequence of one split is written to `out` at once; one of several
// splits leaves partial results in slots of the workspace, which a second kernel merges.
//
// plan = header [kPlanHeader], then item_start, slot_start and merge_start, [B + 1] each:
//   item_start[b]   work items before sequence b
//   slot_start[b]   partial results before sequence b
//   merge_start[b]  work items of the merge kernel before sequence b: of its rows, where they have several splits, or
//                   none (zeros)
#pragma once
#include <cstdint>
#include <numeric>

#include "cuda/launch.h"

namespace mla::cuda {

constexpr int kPlanRowTile = 0;    // query rows of a row tile
constexpr int kPlanSplitKeys = 1;  // keys of a split, a multiple of kPlanKeys
constexpr int kPlanItems = 2;
constexpr int kPlanMergeItems = 3;
constexpr int kPlanHeader = 8;

constexpr int kPlanKeys = 32;  // keys that one iteration of the kernels takes; divides a page
constexpr int kMaxRowTile = 32;

/// Query rows that share the reading of keys: a token's heads, rounded up to what the tensor cores take at once.
constexpr int decode_row_tile(int64_t heads) { return heads > 16 ? 32 : 16; }

/// Teams of the merge kernel's blocks; a row with many partial results is shared by several.
constexpr int kMergeTeams = 8;
constexpr int kMergeTeamParts = 4;
__host__ __device__ constexpr int merge_groups(int64_t parts) {
  int groups = 1;
  while (groups < kMergeTeams && parts > groups * kMergeTeamParts) groups *= 2;
  return groups;
}

/// Work items of the merge kernel for so many rows: each is what a block takes at once, kMergeTeams / merge_groups
/// rows.
__host__ __device__ constexpr int64_t merge_items(int64_t rows, int64_t parts) {
  return (rows * merge_groups(parts) + kMergeTeams - 1) / kMergeTeams;
}

constexpr int64_t decode_plan_size(int64_t sequences) { return kPlanHeader + 3 * (sequences + 1); }

/// The most row tiles that `rows` = T * H query rows of `sequences` sequences can have.
inline int64_t decode_max_row_tiles(int64_t rows, int64_t sequences, int64_t heads, int64_t row_tile) {
  // A sequence's rows are a multiple of the heads: that bounds what its last tile lacks.
  return (rows + sequences * (row_tile - std::gcd(heads, row_tile))) / row_tile;
}

constexpr int kManySlots = 4;

/// Partial results that the plan may ask for with so many row tiles. Few tiles are cut into no more items than run at
/// once: each one is a block that the GPU has to start, with or without work. Many need finer cuts to even out their
/// lengths. Never falls with the number of tiles, so that the most that the shapes allow is enough for every plan.
constexpr int64_t decode_max_slots(int64_t multiprocessors, int64_t row_tiles) {
  return (row_tiles * 4 <= multiprocessors ? 1 : kManySlots) * multiprocessors;
}

}  // namespace mla::cuda
