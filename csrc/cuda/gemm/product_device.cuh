// product_device.cuh - what the product kernels share on the device: gating, results, and tiles of uneven groups.
#pragma once
#include "cuda/device/numeric.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/gemm/product.h"

namespace mla::cuda {

__device__ __forceinline__ float gate_up(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

/// A value as bf16 holds it.
__device__ __forceinline__ float rounded_bf16(float x) { return to_float(from_float<Bf16>(x)); }

/// How many k one 16-byte load of weights holds, and how many k a lane group of four covers with it.
template <class W>
struct Chunk {
  static constexpr int kLoad = 16 / sizeof(W);
  static constexpr int kWidth = 4 * kLoad;
};

/// One result. The residual is read from the same place first.
__device__ __forceinline__ void put(const Product& p, int64_t at, float value) {
  if (p.residual != nullptr) {
    value += p.x_dtype == DType::kF32 ? static_cast<const float*>(p.residual)[at]
                                      : to_float(static_cast<const Bf16*>(p.residual)[at]);
  }
  if (p.y_dtype == DType::kF32) {
    static_cast<float*>(p.y)[at] = value;
  } else {
    static_cast<Bf16*>(p.y)[at] = from_float<Bf16>(value);
  }
}

/// Some rows of one group: rows [row0, row0 + count) of y (within the group where groups are equal).
struct RowTile {
  int group;
  int row0;
  int count;
};

/// Tile `index` of equal groups, `per_group` tiles each.
__device__ __forceinline__ RowTile even_tile(int index, int per_group, int height, int64_t rows) {
  const int group = index / per_group;
  const int row0 = (index - group * per_group) * height;
  const int64_t left = rows - row0;
  return {group, row0, static_cast<int>(left < height ? left : height)};
}

/// Rows [begin, end) of group e. Device data may be nonsense: it is cut to what lies within `rows`.
struct GroupRows {
  int begin, end;

  __device__ __forceinline__ GroupRows(const Product& p, int e) : begin(0), end(0) {
    if (e >= p.groups) return;
    const int rows = static_cast<int>(p.rows);
    begin = min(max(p.offsets[e], 0), rows);
    end = min(max(p.offsets[e + 1], begin), rows);
  }
  __device__ __forceinline__ int tiles(int height) const { return (end - begin + height - 1) / height; }
};

__device__ __forceinline__ int inclusive_scan(int x, int lane) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

/// Tiles of all groups together; called by whole warps.
__device__ __forceinline__ int count_tiles(const Product& p, int height) {
  int tiles = 0;
  for (int e = threadIdx.x % 32; e < p.groups; e += 32) tiles += GroupRows(p, e).tiles(height);
  return __reduce_add_sync(kFullWarp, tiles);
}

/// Tile `index` < count_tiles(); called by whole warps.
__device__ __forceinline__ RowTile uneven_tile(const Product& p, int index, int height) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int e0 = 0; e0 < p.groups; e0 += 32) {
    const GroupRows group(p, e0 + lane);
    const int tiles = group.tiles(height);
    const int until = before + inclusive_scan(tiles, lane);
    const unsigned past = __ballot_sync(kFullWarp, until > index);
    if (past != 0) {
      const int owner = __ffs(past) - 1;
      const int row0 = group.begin + (index - (until - tiles)) * height;
      RowTile tile{e0 + owner, __shfl_sync(kFullWarp, row0, owner), 0};
      tile.count = min(height, __shfl_sync(kFullWarp, group.end, owner) - tile.row0);
      return tile;
    }
    before = __shfl_sync(kFullWarp, until, 31);
  }
  return {0, 0, 0};
}

/// The row of x that row i of y multiplies; -1 if there is none.
__device__ __forceinline__ int64_t operand_row(const Product& p, int64_t i) {
  if (p.order == nullptr) return i;
  const int64_t pair = p.order[i];
  return pair < 0 || pair >= p.x_rows * p.per_row ? -1 : pair / p.per_row;
}

/// Pieces of 8 elements of a row of k, 256 apart, all under way at once; zeros where `exists` is not so and past the
/// end.
template <int kCount>
__device__ __forceinline__ void load_pieces(const Bf16* row, int64_t k0, int64_t k, bool exists, uint4 (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = make_uint4(0, 0, 0, 0);
    if (exists && k0 + i * 256 < k) v[i] = load16(row + k0 + i * 256);
  }
}

}  // namespace mla::cuda
