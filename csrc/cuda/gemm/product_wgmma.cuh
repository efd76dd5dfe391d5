// product_wgmma.cuh - products of many rows on Hopper: from the bandwidth of the weights up to the rate of its matrix
// units.
//
// Formula: product.h. A tile is 128 rows of w by up to kMostTokens rows of x ("tokens"). Weights are the rows of
//   wgmma's A, tokens the columns of B: an expert with 19 tokens costs 24 columns, not 128 rows, and each weight is
//   read once. With gate and up rows interleaved by 8, both of a feature are sums of one thread (rows g and g + 8).
// Grid: one block a multiprocessor (two with fp8 weights and up to 64 tokens), in clusters of kCluster that share their
//   tokens (each brings a part of them to both by multicast). A cluster takes tiles until none is left, those of uneven
//   groups by a counter (WgmmaTiles). Tokens of a group are cut into equal tiles.
// Block: 2 warpgroups multiply, 64 rows of w each; 4 warps load. Weights, and tokens that lie in order, come by the
//   copy engine in swizzled boxes; tokens that `order` gathers by 16-byte cp.async into the same layout.
// Stage: 64 k of both (fp8 weights by up to 64 tokens: 128). `full` ends when its bytes are there, `empty` when all 8
//   warps (of both blocks) have multiplied it. The loaders tell the others by the stage which tile begins with it.
// Sums: one chain of m64nNk16 over all k. fp8 weights become bf16 in registers, where A may stand, and sums may change
//   their unit every 128 k (product_wgmma_scaled.cuh).
// Results: through shared memory, 64 tokens (fp8 weights: 32; tiles of 160 and 208: 16; in float32 half as many) at a
// time and warpgroup, so that
//   rows of y are written by 16 bytes a thread (product_wgmma_emit.cuh).
// Registers: up to 128 sums of 232, or 32 of 96 where two blocks share a multiprocessor; loaders 40.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts. docs/kernels/tile-products.md tells why.
#pragma once
#include <algorithm>
#include <array>

#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_wgmma_emit.cuh"
#include "cuda/gemm/product_wgmma_load.cuh"
#include "cuda/gemm/product_wgmma_scaled.cuh"
#include "cuda/ptx/tensor_map.h"

namespace mla::cuda {

// ---- multiplication ------------------------------------------------------------------------------------------------

/// The sums of one tile, whose first stage is full, with N columns.
template <class S, int N>
__device__ __forceinline__ void multiply_tile(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                              RingCursor<S::kStages>& at, float (&d)[N / 2]) {
  if constexpr (!S::kScaled) {
    const int warpgroup = threadIdx.x / 128, steps = S::steps(p);
    uint32_t previous = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(shared.full(at.stage), at.filled);
      if constexpr (S::kGathered) fence_proxy_async();  // cp.async wrote what wgmma reads
      const uint32_t stage = shared.stage(at.stage);
      const uint64_t a = wgmma_tile(stage + warpgroup * 8192, 16, 1024);
      const uint64_t b = wgmma_tile(stage + S::kWBytes, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) Wgmma<N>::bf16(d, a + 2 * i, b + 2 * i, step > 0 || i > 0);
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        release_stage<S>(shared, previous);
      }
      previous = at.stage;
      at.advance();
    }
    wgmma_wait<0>();
    release_stage<S>(shared, previous);
    keep(d);
  } else {
    ScaledTile<S, N>(p, shared, at, d).multiply();
  }
}

/// The same with the smallest of the sizes that holds the tile's tokens; d[N / 2..] is left alone.
template <class S, int N, int... kMore>
__device__ __forceinline__ void multiply_sized(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                               RingCursor<S::kStages>& at, float (&d)[S::kMostTokens / 2]) {
  if constexpr (sizeof...(kMore) > 0) {
    if (tile.count > N) return multiply_sized<S, kMore...>(p, shared, tile, at, d);
  }
  multiply_tile<S, N>(p, shared, tile, at, reinterpret_cast<float(&)[N / 2]>(d));
}

template <class S>
__global__ void __cluster_dims__(S::kCluster, 1, 1) __launch_bounds__(kWgmmaThreads, S::kResident)
    product_wgmma_kernel(const __grid_constant__ Product p, const __grid_constant__ WgmmaPlan plan,
                         const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                         uint32_t* counter) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  const WgmmaShared<S> shared{dynamic};
  if (threadIdx.x == kMathThreads) {
    for (int i = 0; i < S::kStages; ++i) {
      mbarrier_init(shared.full(i), S::kGathered ? 1 + kLoadThreads : S::kScaled ? 3 : 2);  // weights, tokens, scales
      mbarrier_init(shared.empty(i), 8 * S::kCluster);
    }
    for (int i = 0; i < kDealt; ++i) mbarrier_init(shared.dealt_barrier(i), 1);
    mbarrier_fence_init();
    prefetch_tensor_map(&w_map);
    if (!S::kGathered) prefetch_tensor_map(&x_map);
  }
  if constexpr (S::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int64_t first = blockIdx.x / S::kCluster, stride = gridDim.x / S::kCluster;
  if (threadIdx.x >= kMathThreads) {
    give_registers<S::kLoadRegisters>();
    if constexpr (S::kGathered) {
      load_gathered<S>(p, plan, shared, &w_map, first, stride);
    } else if (threadIdx.x < kMathThreads + 32) {
      load_all_weights<S>(p, plan, shared, &w_map, first, stride, counter);
    } else if (threadIdx.x < kMathThreads + 64) {
      load_all_tokens<S>(p, plan, shared, &x_map, first, stride);
    } else {
      pdl_wait();
    }
    pdl_launch_dependents();
  } else {
    take_registers<S::kMathRegisters>();
    pdl_wait();
    pdl_launch_dependents();
    const bool wide = p.y_row % 8 == 0 && p.y_group % 8 == 0 && aligned16(p.y) && aligned16(p.residual);
    RingCursor<S::kStages> at;
    int turn = 0;
    if constexpr (S::kTurns) begin_turns();
    for (;;) {
      mbarrier_wait(shared.full(at.stage), at.filled);
      const WgmmaTile tile = shared.tile(at.stage);
      if (tile.count < 0) break;
      float d[S::kMostTokens / 2];
      if constexpr (S::kMostTokens == 256) {
        multiply_sized<S, 32, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240, 256>(p, shared, tile, at, d);
      } else if constexpr (S::kMostTokens == 208) {
        multiply_sized<S, 32, 64, 96, 128, 144, 160, 176, 192, 208>(p, shared, tile, at, d);
      } else if constexpr (S::kMostTokens == 160) {
        multiply_sized<S, 32, 64, 80, 96, 112, 128, 144, 160>(p, shared, tile, at, d);
      } else if constexpr (S::kMostTokens == 128) {
        multiply_sized<S, 16, 32, 48, 64, 80, 96, 112, 128>(p, shared, tile, at, d);
      } else {
        multiply_sized<S, 8, 16, 24, 32, 40, 48, 56, 64>(p, shared, tile, at, d);
      }
      emit_wgmma<S>(p, shared, tile, wide, turn, d);
    }
    if constexpr (S::kTurns) end_turns();
  }
  if constexpr (S::kCluster > 1) cluster_sync();  // nobody leaves while the other still writes to it
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t launch_wgmma(const Product& p, const WgmmaPlan& plan, int multiprocessors, uint32_t* counter,
                         cudaStream_t stream) {
  CUtensorMap w_map{}, x_map{};
  const std::array<int64_t, 3> w_dims{p.k, p.n, p.groups};
  const std::array<int64_t, 2> w_strides{p.k, p.groups > 1 ? p.w_group : p.n * p.k};
  const std::array<int, 3> w_box{S::kStageK, kWgmmaWeights, 1};
  if (!make_tensor_map(p.w, p.w_dtype, w_dims, w_strides, w_box,
                       S::kScaled && S::kStageK == 64 ? Swizzle::k64 : Swizzle::k128, &w_map)
           .ok())
    return cudaErrorInvalidValue;
  if (!S::kGathered) {
    const bool heads = p.offsets == nullptr && p.groups > 1;
    const std::array<int64_t, 3> x_dims{p.k, p.rows, heads ? p.groups : 1};
    const std::array<int64_t, 2> x_strides{p.x_row, heads ? p.x_group : p.rows * p.x_row};
    const std::array<int, 3> x_box{64, plan.box_tokens, 1};
    if (!make_tensor_map(p.x, p.x_dtype, x_dims, x_strides, x_box, Swizzle::k128, &x_map).ok())
      return cudaErrorInvalidValue;
  }
  int64_t clusters = multiprocessors * S::kResident / S::kCluster;
  if (p.offsets == nullptr) clusters = std::min(clusters, p.groups * plan.token_tiles * plan.weight_tiles);
  return launch_pdl(product_wgmma_kernel<S>, dim3(static_cast<unsigned>(clusters * S::kCluster)), dim3(kWgmmaThreads),
                    S::kSharedBytes, stream, p, plan, w_map, x_map, counter);
}

}  // namespace mla::cuda
