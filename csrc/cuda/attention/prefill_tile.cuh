// prefill_tile.cuh - how a block of the prefill kernels finds its query tile and the keys that it looks at.
//
// The rows that belong to no sequence, before the first one and after the last one, count as two more sequences without
// keys, so that they become zeros like every row without keys. Segment i of these B + 2 has tiles from
// start(i) / tile + i on: that leaves room for all of its tiles, so that no prefix sum is needed; numbers without a
// tile stay idle.
#pragma once
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/launch.h"

namespace mla::cuda {

struct PrefillArgs {
  const void* q;           // [T, H, n + r] act
  const void* k_nope;      // [S, H, n] act
  const void* k_rope;      // [S, r] act
  const void* value;       // [S, H, v] act
  const int32_t* q_start;  // [B + 1]
  const int32_t* k_start;  // [B + 1]
  const int32_t* q_pos;    // [B]
  const int32_t* k_pos;    // [B]
  void* out;               // [T, H * v] act or float
  float* lse;              // [T, H]
  bool out_is_f32;
  int rows;      // T
  int key_rows;  // S
  int sequences;
  int heads;
  int n, r, v;
  float scale_log2;  // scale * log2(e)
};

inline PrefillArgs make_prefill_args(const MlaPrefillParams& p) {
  PrefillArgs a;
  a.q = p.q.data;
  a.k_nope = p.k_nope.data;
  a.k_rope = p.k_rope.data;
  a.value = p.value.data;
  a.q_start = p.q_start.as<int32_t>();
  a.k_start = p.k_start.as<int32_t>();
  a.q_pos = p.q_pos.as<int32_t>();
  a.k_pos = p.k_pos.as<int32_t>();
  a.out = p.out.data;
  a.lse = p.lse.as<float>();
  a.out_is_f32 = p.out.dtype == DType::kF32;
  a.rows = static_cast<int>(p.q.dim(0));
  a.key_rows = static_cast<int>(p.k_nope.dim(0));
  a.sequences = static_cast<int>(p.q_pos.dim(0));
  a.heads = static_cast<int>(p.q.dim(1));
  a.n = static_cast<int>(p.k_nope.dim(2));
  a.r = static_cast<int>(p.k_rope.dim(1));
  a.v = static_cast<int>(p.value.dim(2));
  a.scale_log2 = p.scale * kLog2E;
  return a;
}

/// Numbers of tiles in the grid for tiles of `tile` query rows.
inline unsigned prefill_tiles(const MlaPrefillParams& p, int tile) {
  return static_cast<unsigned>(p.q.dim(0) / tile + p.q_pos.dim(0) + 2);
}

struct PrefillTile {
  int row;  // first query row of T
  int rows;
  int key;    // first key row of S
  int keys;   // that any row of the tile sees
  int shift;  // row i of the tile sees keys j <= i + shift
};

/// Segment i, of 0 to B + 1, as one tile; `keys` are all of its keys. Rows and keys lie within their tensors whatever
/// the starts and positions are.
__device__ inline PrefillTile prefill_segment(const PrefillArgs& a, int i) {
  const int last = a.sequences - 1, b = min(max(i - 1, 0), last);
  PrefillTile all{};
  if (last < 0) {
    all.rows = i == 0 ? a.rows : 0;
    return all;
  }
  // Loads that do not wait for one another.
  const int begin = a.q_start[min(max(i - 1, 0), last + 1)], end = a.q_start[min(i, last + 1)];
  const int key = a.k_start[b], key_end = a.k_start[b + 1], q_pos = a.q_pos[b], k_pos = a.k_pos[b];
  all.row = i == 0 ? 0 : min(max(begin, 0), a.rows);
  all.rows = max((i > last + 1 ? a.rows : min(max(end, 0), a.rows)) - all.row, 0);
  if (i != b + 1) return all;
  all.key = min(max(key, 0), a.key_rows);
  all.keys = min(max(key_end, all.key), a.key_rows) - all.key;
  const int64_t limit = int64_t{a.key_rows} + a.rows + 1;  // sees all keys, or none; keeps sums within 32 bits
  all.shift = static_cast<int>(min(max(int64_t{q_pos} - k_pos, -limit), limit));
  return all;
}

/// Tile `number` of tiles of `tile` rows of a segment.
__device__ inline PrefillTile prefill_tile(const PrefillTile& segment, int number, int tile) {
  PrefillTile out;
  out.row = segment.row + number * tile;
  out.rows = min(segment.rows - number * tile, tile);
  out.key = segment.key;
  out.shift = segment.shift + number * tile;
  out.keys = max(min(segment.keys, out.rows + out.shift), 0);
  return out;
}

/// The tile with number `index`, the same in all threads; false if there is none. Of a sequence the last tiles, which
/// see the most keys, come first. s_segment: an int of shared memory.
__device__ inline bool find_prefill_tile(const PrefillArgs& a, int index, int tile, int* s_segment, PrefillTile* out) {
  if (threadIdx.x == 0) *s_segment = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < a.sequences + 2; i += blockDim.x) {
    const PrefillTile segment = prefill_segment(a, i);
    const int first = segment.row / tile + i;
    if (index >= first && index < first + div_up(segment.rows, tile)) *s_segment = i;
  }
  __syncthreads();
  if (*s_segment < 0) return false;
  const PrefillTile segment = prefill_segment(a, *s_segment);
  const int number = div_up(segment.rows, tile) - 1 - (index - (segment.row / tile + *s_segment));
  if (number < 0) return false;
  *out = prefill_tile(segment, number, tile);
  return true;
}

}  // namespace mla::cuda
