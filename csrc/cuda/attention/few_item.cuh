// few_item.cuh - what the few-rows decode kernel is given, how big its pieces are, how a block finds its work items.
#pragma once
#include <cuda.h>

#include "common/float_types.h"
#include "cuda/attention/cluster_plan.h"
#include "cuda/device/reduce.cuh"

namespace mla::cuda::few {

constexpr int kRope = 64;
constexpr int kTileKeys = 64;
constexpr int kTileBytes = kTileKeys * 128;  // a sub-tile: 64 channels of a page
constexpr int kMaxCluster = 8;

/// A work item as one block of the cluster sees it.
struct Item {
  int sequence;
  int row;                     // first query row, counted over all T * H
  int rows;                    // in this tile, at least 1
  int first;                   // the tile's first row within its sequence
  int visible_offset;          // row i of the sequence sees visible_offset + i / H keys
  int begin, end;              // this block's keys; may be none
  int group_begin, group_end;  // those of the whole cluster
  int share;                   // keys of a block, but the last
  int active;                  // blocks of the cluster that have keys, at least 1
  int groups;                  // of the sequence
  int slot;                    // of this group's partial result, if there are several
  int first_slot;              // of the first group's
  int slot_stride;             // from a group's to the next's

  __device__ int tiles() const { return (end - begin + kTileKeys - 1) / kTileKeys; }
  __device__ int tiles_of(int rank) const {
    const int from = min(group_begin + rank * share, group_end);
    return (min(group_end - from, share) + kTileKeys - 1) / kTileKeys;
  }
  __device__ int box() const { return min(share, kTileKeys); }  // keys of a load

  /// How many keys from the sequence's first one on a row of the tile sees, at most up to the block's last.
  __device__ int visible(int row_in_tile, int heads) const {
    return min(visible_offset + (first + row_in_tile) / heads, end);
  }
};

template <int kC, int kN>
struct Sizes {
  static constexpr int kOutTiles = kC / 64;
  static constexpr int kTiles = kOutTiles + 1;  // sub-tiles of a page: rope, then latent channels
  static constexpr int kGroups = cluster_block_fills(kN) ? 2 : 1;
  static constexpr int kOwn = kOutTiles / kGroups;  // output tiles of a warpgroup
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + (kGroups == 1 ? 32 : 128);  // whole warpgroups pass registers on
  static constexpr int kBlocks = kGroups == 1 ? 2 : 1;                     // on a multiprocessor
  static constexpr int kQueryTile = kN * 128;
  static constexpr int kQueryBytes = kTiles * kQueryTile;
  static constexpr int kProbBytes = kN * 128;
  static constexpr int kBarrierBytes = kGroups == 1 ? 256 : 512;
  static constexpr int kStatBytes = kGroups * 4 * kN * 4;    // a figure of each row and warp
  static constexpr int kFigureBytes = kMaxCluster * kN * 8;  // maximum and sum of each block of the cluster and row
  static constexpr int kSmallBytes = (kBarrierBytes + kStatBytes + kFigureBytes + kMaxCluster * 4 + 16 +
                                      kConsumers / 32 * static_cast<int>(sizeof(Item)) + 127) /
                                     128 * 128;
  static constexpr int kBudget = kBlocks == 2 ? 115712 : 232448;  // 228 KB less 1 KB a block, halved; 227 KB
  static constexpr int kSlots = (kBudget - kQueryBytes - kGroups * kProbBytes - kSmallBytes) / kTileBytes;
  static constexpr int kExchange = kN * kC * 4 / kTileBytes;  // slots that hold the output in float32
  static constexpr int kBytes = kSlots * kTileBytes + kQueryBytes + kGroups * kProbBytes + kSmallBytes;
  static_assert(kSlots >= kTiles && kSlots >= kExchange && (2 * kSlots + 4) * 8 <= kBarrierBytes);
  static_assert(kMaxClusterGroups * kN * 4 <= kProbBytes);  // the weights of the parts of a sum
};

struct Args {
  const int32_t* plan;         // the cluster part
  const int32_t* q_start;      // [B + 1]
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* lengths;      // [B]
  Bf16* out;                   // [T, H, c]
  float* lse;                  // [T, H]
  float4* partial_out;         // [slots, output tiles, N / 8, 128] fragments, not divided by the sums
  float2* max_sum;             // [slots, output tiles, N]
  int32_t* arrived;            // [slots, 8], part of the plan
  int tokens;                  // T
  int heads;
  int sequences;
  int max_pages;
  int pages;
  int slots;
  int cluster;
  int max_items;     // what no true plan exceeds
  float scale_log2;  // scale * log2(e)
  bool early;        // all but the query is settled before pdl_wait()
};

struct Maps {
  CUtensorMap query;           // [T * H, c + r] in boxes of N rows x 64
  CUtensorMap cache;           // [pages * 64, c + r] in boxes of 64 rows x 64
  CUtensorMap cache_parts[2];  // of 32 and 16 rows
};

/// Work items of the plan; one that makes no sense must not keep the kernel busy for ever.
__device__ __forceinline__ int item_count(const Args& a) { return min(a.plan[kClusterItems], a.max_items); }

/// Item `index` of the plan, the same in all lanes; false if there is none. A whole warp calls it. Every value is made
/// safe: rows lie within T * H, keys within the row of the block table, slots within the workspace.
template <int kN>
__device__ __forceinline__ bool find_item(const Args& a, int index, int rank, Item* item) {
  const int lane = threadIdx.x % 32;
  const int32_t* item_start = a.plan + kClusterHeader;
  const int32_t* slot_start = item_start + a.sequences + 1;
  // The last sequence that begins at or before the item; each step asks 32 of them.
  int b = 0, behind = a.sequences;
  while (behind - b > 1) {
    const int step = (behind - b + 31) / 32, probe = b + lane * step;
    const unsigned yes = __ballot_sync(kFullWarp, probe < behind && item_start[probe] <= index);
    b += max(__popc(yes) - 1, 0) * step;
    behind = min(b + step, behind);
  }
  const int local = index - item_start[b];
  if (local < 0 || index >= item_start[b + 1]) return false;
  const int q_begin = max(a.q_start[b], 0), q_end = min(a.q_start[b + 1], a.tokens), tokens = q_end - q_begin;
  if (tokens <= 0) return false;
  const int row_tile = min(max(a.plan[kClusterRowTile], 1), kN);
  const int group_keys = max(a.plan[kClusterKeys], kTileKeys) / kTileKeys * kTileKeys;
  const int length = min(max(a.lengths[b], 0), a.max_pages * kPageTokens);
  const int rows = tokens * a.heads, row_tiles = (rows + row_tile - 1) / row_tile;
  const int group = local / row_tiles, tile = local - group * row_tiles;
  item->sequence = b;
  item->first = tile * row_tile;
  item->row = q_begin * a.heads + item->first;
  item->rows = min(rows - item->first, row_tile);
  item->visible_offset = length - tokens + 1;
  item->groups = min(max((length + group_keys - 1) / group_keys, 1), kMaxClusterGroups);
  item->group_begin = static_cast<int>(min(int64_t{group} * group_keys, int64_t{length}));
  item->group_end = static_cast<int>(min((int64_t{group} + 1) * group_keys, int64_t{length}));
  const int keys = item->group_end - item->group_begin;
  item->share = cluster_rank_keys(keys, a.cluster);
  item->active = max((keys + item->share - 1) / item->share, 1);
  item->begin = min(item->group_begin + rank * item->share, item->group_end);
  item->end = min(item->begin + item->share, item->group_end);
  const int slot = slot_start[b];
  item->slot = slot + local;
  item->first_slot = slot + tile;
  item->slot_stride = row_tiles;
  return group < item->groups &&
         (item->groups == 1 || (slot >= 0 && item->first_slot + (item->groups - 1) * int64_t{row_tiles} < a.slots));
}

/// Where things lie in shared memory.
template <int kC, int kN>
struct Layout {
  using S = Sizes<kC, kN>;
  uint32_t ring, query, prob, full, empty, query_full, query_empty, ready, done, stat, figures, stage, flag, items;

  __device__ explicit Layout(uint32_t base) {
    ring = base;
    query = ring + S::kSlots * kTileBytes;
    prob = query + S::kQueryBytes;
    full = prob + S::kGroups * S::kProbBytes;
    empty = full + S::kSlots * 8;
    query_full = empty + S::kSlots * 8;
    query_empty = query_full + 8;
    ready = query_empty + 8;
    done = ready + 8;
    stat = full + S::kBarrierBytes;
    figures = stat + S::kStatBytes;
    stage = figures + S::kFigureBytes;
    flag = stage + kMaxCluster * 4;
    items = flag + 16;
  }
};

}  // namespace mla::cuda::few
