// decode_item.cuh - how a block of the decode kernels finds its work item in the plan.
#pragma once
#include "cuda/attention/decode_plan.h"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"

namespace mla::cuda {

/// What the work items of one mlaDecode call have in common.
struct DecodeArgs {
  const void* q;               // [T, H, c + r] act
  const int32_t* q_start;      // [B + 1]
  const void* cache;           // [pages, 64, c + r]
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* lengths;      // [B]
  const int32_t* plan;
  void* out;           // [T, H, c] act
  float* lse;          // [T, H]
  float* partial_out;  // [slots, row_tile, c]
  float2* max_sum;     // [slots, row_tile]
  int slots;
  int tokens;  // T
  int heads;
  int row_tile;
  int c;
  int r;
  int sequences;
  int max_pages;
  int pages;
  bool fixed_parts;  // wide_plan.h
  float scale_log2;  // scale * log2(e)
};

inline DecodeArgs make_decode_args(const MlaDecodeParams& p, const DecodePartials& partials) {
  DecodeArgs a;
  a.q = p.q.data;
  a.q_start = p.q_start.as<int32_t>();
  a.cache = p.cache.data;
  a.block_table = p.block_table.as<int32_t>();
  a.lengths = p.lengths.as<int32_t>();
  a.plan = p.plan.as<int32_t>() + partials.plan_at;
  a.out = p.out.data;
  a.lse = p.lse.as<float>();
  a.partial_out = partials.out;
  a.max_sum = reinterpret_cast<float2*>(partials.max_sum);
  a.slots = partials.slots;
  a.tokens = static_cast<int>(p.q.dim(0));
  a.heads = static_cast<int>(p.q.dim(1));
  a.row_tile = partials.row_tile;
  a.c = static_cast<int>(p.out.dim(2));
  a.r = static_cast<int>(p.q.dim(2) - p.out.dim(2));
  a.sequences = static_cast<int>(p.lengths.dim(0));
  a.max_pages = static_cast<int>(p.block_table.dim(1));
  a.pages = static_cast<int>(p.cache.dim(0));
  a.fixed_parts = partials.fixed_parts;
  a.scale_log2 = p.scale * kLog2E;
  return a;
}

/// The most work items that a plan for these shapes has.
inline int64_t decode_max_items(const MlaDecodeParams& p, const DecodePartials& partials) {
  return partials.slots +
         decode_max_row_tiles(p.q.dim(0) * p.q.dim(1), p.lengths.dim(0), p.q.dim(1), partials.row_tile);
}

/// One split of a sequence's keys against one row tile.
struct DecodeItem {
  int sequence;
  int row;             // first query row, counted over all T * H
  int rows;            // in this tile; may be 0
  int first;           // the tile's first row within its sequence
  int visible_offset;  // row i of the sequence sees visible_offset + i / H keys
  int key_begin;
  int key_end;  // at most the sequence's length
  int slot;     // where the partial result goes; -1: straight to `out`
};

/// The block's item, the same in all threads; false if it has none. Uses s_found, shared memory of 6 ints. Every value
/// is made safe: rows lie within T * H, keys within the row of the block table.
__device__ inline bool find_decode_item(const DecodeArgs& a, int index, int* s_found, DecodeItem* item) {
  if (index >= a.plan[kPlanItems]) return false;  // the way of most blocks of a small batch
  const int32_t* item_start = a.plan + kPlanHeader;
  const int32_t* slot_start = item_start + a.sequences + 1;
  const int split_keys = max(a.plan[kPlanSplitKeys], kPlanKeys) / kPlanKeys * kPlanKeys;
  if (threadIdx.x == 0) s_found[0] = -1;
  __syncthreads();
  for (int b = threadIdx.x; b < a.sequences; b += blockDim.x) {
    const int begin = item_start[b], end = item_start[b + 1];
    const int slot = slot_start[b], length = a.lengths[b];
    const int q_begin = a.q_start[b], q_end = a.q_start[b + 1];
    if (begin >= 0 && begin <= index && index < end) {
      s_found[0] = b;
      s_found[1] = index - begin;
      s_found[2] = slot;
      s_found[3] = length;
      s_found[4] = q_begin;
      s_found[5] = q_end;
    }
  }
  __syncthreads();
  const int b = s_found[0];
  if (b < 0) return false;
  const int q_begin = max(s_found[4], 0), q_end = min(max(s_found[5], 0), a.tokens), tokens = q_end - q_begin;
  if (tokens <= 0) return false;
  const int length = min(max(s_found[3], 0), a.max_pages * kPageTokens);
  const int rows = tokens * a.heads, row_tiles = (rows + a.row_tile - 1) / a.row_tile;
  const int split = s_found[1] / row_tiles, tile = s_found[1] - split * row_tiles;
  const int splits = (max(s_found[3], 1) - 1) / split_keys + 1;
  item->sequence = b;
  item->first = tile * a.row_tile;
  item->row = q_begin * a.heads + item->first;
  item->rows = min(rows - item->first, a.row_tile);
  item->visible_offset = length - tokens + 1;
  item->key_begin = static_cast<int>(min(int64_t{split} * split_keys, int64_t{length}));
  item->key_end = static_cast<int>(min((int64_t{split} + 1) * split_keys, int64_t{length}));
  item->slot = splits > 1 ? s_found[2] + s_found[1] : -1;
  return item->slot < a.slots && s_found[2] >= 0;
}

/// How many keys from the sequence's first one on a row of the tile sees, at most up to the item's last.
__device__ inline int visible_keys(const DecodeItem& item, int row_in_tile, int heads) {
  if (row_in_tile >= item.rows) return 0;
  return min(item.visible_offset + (item.first + row_in_tile) / heads, item.key_end);
}

}  // namespace mla::cuda
