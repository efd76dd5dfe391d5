// prefill_tile.cuh - how a block of the prefill kernels finds its query tile and the keys that it looks at.
//
// The rows that belong to no sequence, before the first one and after the last one, count as two more sequences without
// keys, so that they become zeros like every row without keys. Segment i of these B + 2 has tiles from
// start(i) / tile + i on: that leaves room for all of its tiles, so that no prefix sum is needed; numbers without a
// tile stay idle.
#pragma once
#include "cuda/attention/softmax.cuh"
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

/// The tile with number `index`, the same in all threads; false if there is none. Of a sequence the last tiles, which
/// see the most keys, come first. s_segment: an int of shared memory. Rows and keys lie within their tensors whatever
/// the starts and positions are.
__device__ inline bool find_prefill_tile(const PrefillArgs& a, int index, int tile, int* s_segment, PrefillTile* out) {
  const auto start = [&](int segment) {  // of 0 to B + 2
    if (segment == 0) return 0;
    return segment <= a.sequences + 1 ? min(max(a.q_start[segment - 1], 0), a.rows) : a.rows;
  };
  if (threadIdx.x == 0) *s_segment = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < a.sequences + 2; i += blockDim.x) {
    const int begin = start(i), first = begin / tile + i, count = (start(i + 1) - begin + tile - 1) / tile;
    if (index >= first && index < first + count) *s_segment = i;
  }
  __syncthreads();
  const int segment = *s_segment;
  if (segment < 0) return false;
  const int begin = start(segment), end = start(segment + 1);
  const int count = (end - begin + tile - 1) / tile, number = count - 1 - (index - (begin / tile + segment));
  out->row = begin + number * tile;
  out->rows = min(end - out->row, tile);
  out->key = out->keys = out->shift = 0;
  if (number < 0 || out->rows <= 0) return false;
  const int b = segment - 1;
  if (b < 0 || b >= a.sequences) return true;
  const int key = min(max(a.k_start[b], 0), a.key_rows), key_end = min(max(a.k_start[b + 1], key), a.key_rows);
  const int64_t shift = int64_t{a.q_pos[b]} + number * tile - a.k_pos[b];
  const int64_t limit = a.key_rows + 1;  // keeps the sums below within 32 bits
  out->key = key;
  out->shift = static_cast<int>(min(max(shift, -limit - tile), limit));
  out->keys = max(min(key_end - key, out->rows + out->shift), 0);
  return true;
}

}  // namespace mla::cuda
