// product_held_device.cuh - the parts of products whose weights wait in shared memory (product_held.cuh): what a block
// holds, and how its results are added up.
//
// A warp takes a segment of 128 k of the block's 16 weight rows, the operands A of a chain of products; rows of x are
// the 8 columns of B. Chain, segments and the k of each step are those of product.h, so the bits are too.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_held.h"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace mla::cuda {

constexpr int kHeldSums =
    kHeldItemRows * kHeldRows;  // results of a segment: four a lane, as the tensor cores give them
constexpr int kHeldPieces = 4;  // at most

/// What a block's warps give each other.
struct HeldShared {
  uint64_t full[kHeldPieces];
  float sums[kHeldSegments][kHeldSums];
  float scales[kHeldSegments];  // of fp8 weights
};

template <class W>
struct HeldWeights {
  static constexpr int kChunks = kSegment * static_cast<int>(sizeof(W)) / 64;
  static constexpr int kOwn = 16 / static_cast<int>(sizeof(W));  // k of 16 bytes
  static constexpr int kPieceK = kHeldPieceBytes / static_cast<int>(sizeof(W));

  HeldShared& shared;
  unsigned char* const held;  // held_bytes()
  const int k;

  /// All threads, once.
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kHeldPieces; ++i) mbarrier_init(shared_address(&shared.full[i]), 1);
      mbarrier_fence_init();
    }
    __syncthreads();
  }

  /// Asks for `rows` rows of k elements that begin at w. All warps, together.
  __device__ __forceinline__ void load(const W* w, int rows) const {
    const int piece = threadIdx.x / 32, lane = threadIdx.x % 32, k0 = piece * kPieceK;
    if (k0 >= k) return;
    rows = min(rows, kHeldItemRows);
    const uint32_t bytes = min(kPieceK, k - k0) * static_cast<uint32_t>(sizeof(W));
    const uint32_t full = shared_address(&shared.full[piece]);
    if (lane == 0) mbarrier_arrive_expect(full, rows * bytes);
    __syncwarp();
    if (lane < rows) {
      bulk_load(shared_address(held + (piece * kHeldItemRows + lane) * kHeldPitch),
                w + static_cast<int64_t>(lane) * k + k0, bytes, full);
    }
    __syncwarp();
  }

  /// Which k of the segment this lane's piece j of x begins at, from its first one on.
  __device__ static constexpr int x_at(int j) { return sizeof(W) == 1 ? j / 2 * 64 + j % 2 * 8 : j * 32; }

  /// acc = this warp's segment times x, whose row g this lane has pieces of.
  __device__ __forceinline__ void multiply(const uint4 (&x)[4], float (&acc)[4]) const {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, k0 = threadIdx.x / 32 * kSegment;
    const int piece = k0 / kPieceK;
    const unsigned char* const from =
        held + (piece * kHeldItemRows + g) * kHeldPitch + (k0 - piece * kPieceK) * static_cast<int>(sizeof(W)) + q * 16;
    mbarrier_wait(shared_address(&shared.full[piece]), 0);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint4 low = load16(from + c * 64), high = load16(from + 8 * kHeldPitch + c * 64);
      if (k0 + (4 * c + q) * kOwn >= k) low = high = make_uint4(0, 0, 0, 0);
      if constexpr (sizeof(W) == 2) {
        mma_bf16(acc, {low.x, high.x, low.y, high.y}, {x[c].x, x[c].y});
        mma_bf16(acc, {low.z, high.z, low.w, high.w}, {x[c].z, x[c].w});
      } else {
        const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
        const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          f8_to_bf16(lows[s], a[0], a[2]);
          f8_to_bf16(highs[s], a[1], a[3]);
          const uint4& v = x[2 * c + s / 2];
          if (s % 2 == 0) {
            mma_bf16(acc, a, {v.x, v.y});
          } else {
            mma_bf16(acc, a, {v.z, v.w});
          }
        }
      }
    }
  }
};

/// This warp's part of the results, for the block.
__device__ __forceinline__ void give_sums(HeldShared& shared, const float (&acc)[4]) {
  *reinterpret_cast<float4*>(&shared.sums[threadIdx.x / 32][threadIdx.x % 32 * 4]) =
      make_float4(acc[0], acc[1], acc[2], acc[3]);
}

/// Result i of kHeldSums, after a barrier.
template <bool kScaled>
__device__ __forceinline__ float held_sum(const HeldShared& shared, int segments, int i) {
  float part[kHeldSegments], total = 0;
#pragma unroll
  for (int s = 0; s < kHeldSegments; ++s) part[s] = s < segments ? shared.sums[s][i] : 0.0f;
#pragma unroll
  for (int s = 0; s < kHeldSegments; ++s) {
    if (s >= segments) break;
    total = kScaled ? fmaf(shared.scales[s], part[s], total) : total + part[s];
  }
  return total;
}

/// Row of x and weight row of result i.
__device__ __forceinline__ int held_row(int i) { return i / 4 % 4 * 2 + i % 2; }
__device__ __forceinline__ int held_column(int i) { return i / 16 + i / 2 % 2 * 8; }

}  // namespace mla::cuda
