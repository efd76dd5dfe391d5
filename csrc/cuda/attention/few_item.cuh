// few_item.cuh - what the few-rows decode kernel is given, how big its parts are, how a block finds its work.
#pragma once
#include <cuda.h>

#include "common/float_types.h"
#include "cuda/attention/few_plan.h"
#include "cuda/device/reduce.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda::few {

constexpr int kRope = 64;
constexpr int kTileKeys = 64;
constexpr int kTileBytes = kTileKeys * 128;  // a sub-tile: 64 channels of a page

/// With an fp8 cache: how far scores may pass what probabilities relate to, in powers of two, before the output is
/// rescaled. A probability above 1 is rounded where 1 would not be; f16 rounds by 2^-12, which the output's own
/// rounding hides.
constexpr int kFp8Slack = 4;

/// What a block does of one row tile.
struct Piece {
  int sequence;
  int row;             // first query row, counted over all T * H
  int rows;            // in this tile, at least 1
  int first;           // the tile's first row within its sequence
  int visible_offset;  // row i of the sequence sees visible_offset + i / H keys
  int begin, end;      // keys; may be none
  int slot;            // of the partial result; -1: the block does the whole tile
  int seen;            // keys that every row of the tile sees: the limit of its first row

  __device__ int tiles() const { return (end - begin + kTileKeys - 1) / kTileKeys; }
  __device__ bool shared() const { return end - begin > kTileKeys; }  // by two warpgroups that take turns

  /// How many keys from the sequence's first one on a row of the tile sees, at most up to the piece's last.
  __device__ int visible(int row_in_tile, int heads) const {
    return min(visible_offset + (first + row_in_tile) / heads, end);
  }
};

template <int kC, int kN, bool kPacked = false>
struct Sizes {
  static constexpr int kLatent = kC, kRows = kN;
  static constexpr bool kFp8 = kPacked;  // rows of the cache (ops/fp8_row.h)
  static constexpr int kOutTiles = kC / 64;
  static constexpr int kTiles = kOutTiles + 1;  // sub-tiles of a page: rope, then latent channels
  // Two warpgroups take pages in turns, each with an output of its own, as long as registers hold it (of an fp8 cache
  // keys pass through registers, too). With more rows they are one team, of which each has half the output channels.
  static constexpr int kTeams = kN <= (kFp8 && kC == 512 ? 24 : 32) ? 2 : 1;
  static constexpr int kShare = kTeams == 1 ? 2 : 1;
  static constexpr bool kTurns = kTeams == 2;
  static constexpr int kOwn = kOutTiles / kShare;  // output tiles of a warpgroup
  static constexpr int kReaders = 4 * kShare;      // warps that read a sub-tile
  static constexpr int kWarpgroups = kTeams * kShare, kConsumers = 128 * kWarpgroups;

  // Where the output leaves too few registers, the loading warp gives its own away, which whole warpgroups do.
  static constexpr bool kPassesRegisters = kN > (kFp8 ? 8 : 16);
  static constexpr int kThreads = kConsumers + (kPassesRegisters ? 128 : 32);
  static constexpr int kQueryTile = kN * 128;
  static constexpr int kQueryBytes = kTiles * kQueryTile;
  // Probabilities of a warpgroup: with an fp8 cache once for each scale of a key, multiplied by it.
  static constexpr int kProbs = kFp8 ? kOwn * 64 / kRowScaleChannels : 1;
  static constexpr int kProbBytes = kProbs * kN * 128;
  // Scores over the channels of a warpgroup, which the other one of its team needs.
  static constexpr int kPartBytes = kFp8 && kShare == 2 ? kTileKeys * kN * 4 : 0;
  static constexpr int kBarrierBytes = 512;
  static constexpr int kStatBytes = kWarpgroups * 4 * kN * 4;  // a figure of each row and warp
  static constexpr int kFigureBytes =
      kTurns ? 2 * kN * 8 + 16 : 0;  // of an exchange: maxima and sums, where the rest is
  // A slot of a ring holds a sub-tile, or a page of packed rows as they lie in the cache.
  static constexpr int kPageBytes = kTileKeys * static_cast<int>(Fp8Row{kC, kRope}.bytes());
  static constexpr int kSlotBytes = kFp8 ? kPageBytes : kTileBytes, kPageSlots = kFp8 ? 1 : kTiles;
  static constexpr int kExchange =
      kTurns ? (kN * kC * 2 + kSlotBytes - 1) / kSlotBytes : 0;  // slots that hold half an output
  static constexpr int kRowScaleBytes = kFp8 ? kN * 4 : 0;
  static constexpr int kSmallBytes = (kBarrierBytes + kStatBytes + kFigureBytes + kRowScaleBytes +
                                      kConsumers / 32 * static_cast<int>(sizeof(Piece)) + 127) /
                                     128 * 128;
  static constexpr int kHeldBytes = kQueryBytes + kWarpgroups * (kProbBytes + kPartBytes) + kSmallBytes;
  static constexpr int kRings = kTeams;
  static constexpr int kSlots = (232448 - kHeldBytes) / kSlotBytes / kRings;
  static constexpr int kRingBytes = kSlots * kSlotBytes;
  static constexpr int kBytes = kRings * kRingBytes + kHeldBytes;
  static_assert(kSlots > (kFp8 ? 1 : kPageSlots - 1) && kSlots >= kExchange && kRingBytes % 1024 == 0);
  static_assert(2 * (kRings * kSlots + 1) * 8 <= kBarrierBytes);
};

/// At most, a lane each.
constexpr int kMostFreshRows = 32;

struct Args {
  const int32_t* plan;         // few_plan.h
  const int32_t* q_start;      // [B + 1]
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* lengths;      // [B]
  const uint8_t* cache;        // [pages, 64, bytes of a row], if rows are packed
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
  int fresh_rows;
  const int32_t* fresh_slots;  // [fresh_rows]: rows of the cache that early_keys is not about
  float scale_log2;            // scale * log2(e)
  bool early;                  // plan and tables are settled before pdl_wait()
  bool early_keys;             // so is the cache
};

struct Maps {
  CUtensorMap query;  // [T * H, c + r] in boxes of N rows x 64
  CUtensorMap cache;  // [pages * 64, c + r] in boxes of 64 rows x 64, unless rows are packed
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
      const int q_begin = max(a_.q_start[sequence_], 0), q_end = min(max(a_.q_start[sequence_ + 1], 0), a_.tokens);
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
      piece->seen = piece->visible(0, a_.heads);
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
  uint32_t ring, query, prob, part, full, empty, query_full, query_empty, stat, row_scale, figures, stages, pieces;

  __device__ explicit Layout(uint32_t base) {
    ring = base;
    query = ring + S::kRings * S::kRingBytes;
    prob = query + S::kQueryBytes;
    part = prob + S::kWarpgroups * S::kProbBytes;
    full = part + S::kWarpgroups * S::kPartBytes;
    empty = full + S::kRings * S::kSlots * 8;
    query_full = empty + S::kRings * S::kSlots * 8;
    query_empty = query_full + 8;
    stat = full + S::kBarrierBytes;
    row_scale = stat + S::kStatBytes;
    figures = row_scale + S::kRowScaleBytes;
    stages = figures + 2 * S::kRows * 8;
    pieces = figures + S::kFigureBytes;
  }
};

}  // namespace mla::cuda::few
