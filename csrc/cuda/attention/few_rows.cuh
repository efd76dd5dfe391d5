// few_rows.cuh - fragments of scores and outputs of the few-rows decode kernel: query rows are columns, 8 j + 2 (lane %
// 4) and the next in each thread, keys or channels are rows.
#pragma once
#include "cuda/device/reduce.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda::few {

/// Stores fragment d of a matrix [64 x N] transposed, as bf16 rows of 64 with the 128-byte swizzle.
template <int kN>
__device__ __forceinline__ void store_transposed(uint32_t tile, const uint32_t (&pairs)[kN / 4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = lane % 8, piece = (warp * 2 + lane / 8 % 2) ^ row;
  const uint32_t to = tile + row * 128 + piece * 16;
#pragma unroll
  for (int j = 0; j + 1 < kN / 8; j += 2) {
    stmatrix_x4_trans(to + (j + lane / 16) * 1024,
                      {pairs[2 * j], pairs[2 * j + 1], pairs[2 * j + 2], pairs[2 * j + 3]});
  }
  if constexpr (kN / 8 % 2 == 1) stmatrix_x2_trans(to + (kN / 8 - 1) * 1024, {pairs[kN / 4 - 2], pairs[kN / 4 - 1]});
}

/// What a thread knows of its rows: those of columns 8 j + 2 (lane % 4) and the next, for each j.
template <int kN>
struct RowState {
  float largest[kN / 4];  // what probabilities relate to, in powers of two; -inf before the first key
  float sum[kN / 4];
};

template <int kN, class Combine>
__device__ __forceinline__ void over_keys(float (&x)[kN / 4], Combine combine) {
#pragma unroll
  for (int c = 0; c < kN / 4; ++c) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) x[c] = combine(x[c], __shfl_xor_sync(kFullWarp, x[c], i));
  }
}

/// Combines x over the four warps of a warpgroup; a barrier of so many threads stands before the reads.
template <int kN, class Combine>
__device__ __forceinline__ void over_warps(float (&x)[kN / 4], uint32_t stat, int group, int barrier, int threads,
                                           Combine combine) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const uint32_t mine = stat + (group * 4 * kN + lane % 4 * 2) * 4;
  if (lane < 4) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) shared_store2(mine + (warp * kN + j * 8) * 4, x[2 * j], x[2 * j + 1]);
  }
  named_barrier_sync(barrier, threads);
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    float2 all = shared_load2(mine + j * 32);
#pragma unroll
    for (int w = 1; w < 4; ++w) {
      const float2 other = shared_load2(mine + (w * kN + j * 8) * 4);
      all.x = combine(all.x, other.x);
      all.y = combine(all.y, other.y);
    }
    x[2 * j] = all.x;
    x[2 * j + 1] = all.y;
  }
}

}  // namespace mla::cuda::few
