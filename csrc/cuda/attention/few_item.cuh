// few_item.cuh - what the few-rows decode kernel is given, how big its parts are, how a block finds its work.
#pragma once
#include <cuda.h>

#include "common/float_types.h"
#include "cuda/attention/few_plan.h"
#include "cuda/device/reduce.cuh"

namespace mla::cuda::few {

constexpr int kRope = 64;
constexpr int kTileKeys = 64;
constexpr int kTileBytes = kTileKeys * 128;  // a sub-tile: 64 channels of a page

/// What a block does of one row tile.
struct Piece {
  int sequence;
  int row;             // first query row, counted over all T * H
  int rows;            // in this tile, at least 1
  int first;           // the tile's first row within its sequence
  int visible_offset;  // row i of the sequence sees visible_offset + i / H keys
  int begin, end;      // keys; may be none
  int slot;            // of the partial result; -1: the block does the whole tile

  __device__ int tiles() const { return (end - begin + kTileKeys - 1) / kTileKeys; }
  __device__ bool shared() const { return end - begin > kTileKeys; }  // by two warpgroups that take turns

  /// How many keys from the sequence's first one on a row of the tile sees, at most up to the piece's last.
  __device__ int visible(int row_in_tile, int heads) const {
    return min(visible_offset + (first + row_in_tile) / heads, end);
  }
};

template <int kC, int kN>
struct Sizes {
  static constexpr int kLatent = kC, kRows = kN;
  static constexpr int kOutTiles = kC / 64;
  static constexpr int kTiles = kOutTiles + 1;  // sub-tiles of a page: rope, then latent channels
  // Two warpgroups take pages in turns, each with an output of its own, as long as registers hold it; more rows halve
  // the output channels.
  static constexpr bool kTurns = kN <= 32;
  static constexpr int kOwn = kTurns ? kOutTiles : kOutTiles / 2;  // output tiles of a warpgroup
  static constexpr int kReaders = kTurns ? 4 : 8;                  // warps that read a sub-tile
  static constexpr int kConsumers = 256;
  // Where the output leaves too few registers, the loading warp gives its own away, which whole warpgroups do.
  static constexpr bool kPassesRegisters = kN > 16;
  static constexpr int kThreads = kConsumers + (kPassesRegisters ? 128 : 32);
  static constexpr int kQueryTile = kN * 128;
  static constexpr int kQueryBytes = kTiles * kQueryTile;
  static constexpr int kProbBytes = kN * 128;
  static constexpr int kBarrierBytes = 512;
  static constexpr int kStatBytes = 2 * 4 * kN * 4;  // a figure of each row and warp
  static constexpr int kFigureBytes =
      kTurns ? 2 * kN * 8 + 16 : 0;  // of an exchange: maxima and sums, where the rest is
  static constexpr int kExchange = kTurns ? kN * kC * 2 / kTileBytes : 0;  // slots that hold half an output
  static constexpr int kSmallBytes =
      (kBarrierBytes + kStatBytes + kFigureBytes + kConsumers / 32 * static_cast<int>(sizeof(Piece)) + 127) / 128 * 128;
  static constexpr int kHeldBytes = kQueryBytes + 2 * kProbBytes + kSmallBytes;
  static constexpr int kRings = kTurns ? 2 : 1;  // of sub-tiles: those that take turns have one each
  static constexpr int kSlots = (232448 - kHeldBytes) / kTileBytes / kRings;
  static constexpr int kRingBytes = kSlots * kTileBytes;
  static constexpr int kBytes = kRings * kRingBytes + kHeldBytes;
  static_assert(kSlots >= kTiles && kSlots >= kExchange);
  static_assert(2 * (kRings * kSlots + 1) * 8 <= kBarrierBytes);
};

struct Args {
  const int32_t* plan;         // few_plan.h
  const int32_t* q_start;      // [B + 1]
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* lengths;      // [B]
  Bf16* out;                   // [T, H, c]
  float* lse;                  // [T, H]
  float* partial_out;          // [slots, N, c], not divided by the sums
  float2* max_sum;             // [slots, N]
  int tokens;                  // T
  int heads;
  int sequences;
  int max_pages;
  int pages;
  int slots;
  float scale_log2;  // scale * log2(e)
  bool early;        // all but the query is settled before pdl_wait()
};

struct Maps {
  CUtensorMap query;  // [T * H, c + r] in boxes of N rows x 64
  CUtensorMap cache;  // [pages * 64, c + r] in boxes of 64 rows x 64
};

/// The pieces of a block, one after the other. Every value is made safe: rows lie within T * H, keys within the row of
/// the block table, slots within the workspace; a plan that makes no sense ends early.
template <int kN>
class Walk {
 public:
  __device__ explicit Walk(const Args& a) : a_(a) {
    const int block = static_cast<int>(blockIdx.x);
    const int32_t* start = a.plan + kFewHeader + 2 * (a.sequences + 1) + block * kFewStart;
    sequence_ = start[0];
    tile_ = start[1];
    page_ = start[2];
    row_tile_ = min(max(a.plan[kFewRowTile], 1), kN);
    share_ = min(max(a.plan[kFewShare], 1), kMaxShare);
    at_ = block * share_;
    left_ = min(max(a.plan[kFewPages] - at_, 0), share_);
    if (sequence_ < 0 || sequence_ >= a.sequences || tile_ < 0 || page_ < 0) left_ = 0;
  }

  __device__ bool done() const { return left_ == 0; }

  /// Where the next piece's pages begin in the block table, if its sequence has any rows.
  __device__ int64_t next_page() const { return int64_t{sequence_} * a_.max_pages + min(page_, a_.max_pages - 1); }

  __device__ __forceinline__ bool next(Piece* piece) {
    for (; left_ > 0 && sequence_ < a_.sequences; ++sequence_, tile_ = 0, page_ = 0) {
      const int q_begin = max(a_.q_start[sequence_], 0), q_end = min(a_.q_start[sequence_ + 1], a_.tokens);
      const int length = min(max(a_.lengths[sequence_], 0), a_.max_pages * kPageTokens);
      const int tokens = q_end - q_begin, rows = tokens * a_.heads;
      if (tokens <= 0) continue;
      const int tiles = (rows + row_tile_ - 1) / row_tile_, pages = max((length + kPageTokens - 1) / kPageTokens, 1);
      if (tile_ >= tiles || page_ >= pages) break;
      const int count = min(pages - page_, left_);
      const FewTile blocks = few_tile(max(at_ - page_, 0), pages, share_);
      piece->sequence = sequence_;
      piece->first = tile_ * row_tile_;
      piece->row = q_begin * a_.heads + piece->first;
      piece->rows = min(rows - piece->first, row_tile_);
      piece->visible_offset = length - tokens + 1;
      piece->begin = page_ * kPageTokens;
      piece->end = min((page_ + count) * kPageTokens, length);
      piece->slot = blocks.parts() > 1 ? blocks.first + static_cast<int>(blockIdx.x) : -1;
      if (piece->slot >= a_.slots) break;
      at_ += count;
      left_ -= count;
      page_ = 0;
      if (++tile_ == tiles) {
        ++sequence_;
        tile_ = 0;
      }
      return true;
    }
    left_ = 0;
    return false;
  }

 private:
  static constexpr int kMaxShare = 1 << 20;  // so that the line's pages are counted in 32 bits

  const Args& a_;
  int row_tile_, share_;
  int sequence_, tile_, page_;  // the next piece
  int at_, left_;               // its place in the line, and pages that the block has yet to do
};

/// Where things lie in shared memory.
template <class S>
struct Layout {
  uint32_t ring, query, prob, full, empty, query_full, query_empty, stat, figures, stages, pieces;

  __device__ explicit Layout(uint32_t base) {
    ring = base;
    query = ring + S::kRings * S::kRingBytes;
    prob = query + S::kQueryBytes;
    full = prob + 2 * S::kProbBytes;
    empty = full + S::kRings * S::kSlots * 8;
    query_full = empty + S::kRings * S::kSlots * 8;
    query_empty = query_full + 8;
    stat = full + S::kBarrierBytes;
    figures = stat + S::kStatBytes;
    stages = figures + 2 * S::kRows * 8;
    pieces = figures + S::kFigureBytes;
  }
};

}  // namespace mla::cuda::few
