// few_plan.h - the layout of decodePlan's second part, which the Hopper kernel for few query rows follows;
// decode_plan.h has the others.
//
// Query rows and row tiles are those of decode_plan.h, with another size of tile. A sequence without keys has one page
// of none. The pages of all row tiles, tile after tile and sequence after sequence, stand in one line, which is dealt
// out to the kernel's blocks in equal shares: block i does pages [i * share, (i + 1) * share). What a block does of one
// row tile is a piece. A tile that one block does alone is written to `out` at once; of the others every piece leaves a
// partial result, which the merge kernel adds up. The piece of block i, of a tile whose first piece block f does, is in
// slot f + i of the workspace: tiles never meet in a slot, because a tile of n pieces has slots 2 f .. 2 f + n - 1 and
// the next one starts at block f + n - 1 or later.
//
// part = header [kFewHeader], page_start [B + 1], merge_start [B + 1], starts [blocks, 3]:
//   page_start[b]   pages in the line before sequence b
//   merge_start[b]  work items of the merge kernel before sequence b (decode_plan.h)
//   starts[i]       sequence, row tile and page within it that block i begins with; sequence -1 without work
#pragma once
#include <cstdint>

#include "cuda/attention/decode_plan.h"

namespace mla::cuda {

constexpr int kFewRowTile = 0;  // query rows of a row tile, a multiple of 8
constexpr int kFewShare = 1;    // pages of a block
constexpr int kFewPages = 2;    // in all
constexpr int kFewMergeItems = 3;
constexpr int kFewHeader = 8;
constexpr int kFewStart = 3;  // integers of a block's start

constexpr int kMaxFewTile = 64;  // query rows

/// Partial results that a plan may ask for; one block runs on each multiprocessor.
__host__ __device__ constexpr int few_slots(int multiprocessors) { return 2 * multiprocessors; }

/// Where the part begins in the plan's tensor, its elements, and where the next one (wide_plan.h) begins.
constexpr int64_t few_plan_offset(int64_t sequences) { return decode_plan_size(sequences); }
constexpr int64_t few_plan_size(int64_t sequences, int multiprocessors) {
  return kFewHeader + 2 * (sequences + 1) + int64_t{kFewStart} * multiprocessors;
}
constexpr int64_t wide_plan_offset(int64_t sequences, int multiprocessors) {
  return few_plan_offset(sequences) + few_plan_size(sequences, multiprocessors);
}

/// Query rows of a tile: as many as a sequence has on average, which all have in a step of generation.
__host__ __device__ constexpr int few_row_tile(int64_t tokens, int64_t sequences, int64_t heads) {
  const int64_t rows = sequences > 0 ? (tokens + sequences - 1) / sequences * heads : heads;
  return rows >= kMaxFewTile ? kMaxFewTile : rows <= 8 ? 8 : static_cast<int>((rows + 7) / 8 * 8);
}

/// The blocks that a row tile is dealt out to, by its place in the line.
struct FewTile {
  int first, last;
  __host__ __device__ constexpr int parts() const { return last - first + 1; }
};
__host__ __device__ constexpr FewTile few_tile(uint32_t first_page, uint32_t pages, uint32_t share) {
  return {static_cast<int>(first_page / share), static_cast<int>((first_page + pages - 1) / share)};
}

/// The most pieces of a row tile of a sequence of so many tiles, each of so many pages, whose first one begins at
/// first_page.
__host__ __device__ constexpr int few_parts(uint32_t first_page, int64_t tiles, uint32_t pages, uint32_t share) {
  return few_tile(tiles > 1 ? share - 1 : first_page, pages, share).parts();
}

}  // namespace mla::cuda
