// product_e4m3_sm90.cu - products of e4m3 by e4m3 on Hopper's matrix units, many rows.
//
// Formula: product.h, with x = codes * 2^exponent, an exponent for each 128 k of a row (docs/numerics.md), and
//   y[r, j] = sum over blocks b of 128 k, ascending: 2^exponent[r, b] * scale[j / 128, b] * segment, in float32;
//   a segment is a chain of m64n128k32 products, which keep some 14 bits of their sum.
// Grid: one block a multiprocessor, which takes tiles until none is left, by a counter: 128 rows of x by 256 rows of w;
//   the rest of a group's rows is a tile of its own, which takes half of the time if it has up to 64.
// Block: 2 warpgroups multiply, 64 rows by 256 each (of a tile of up to 64 rows: 64 by 128); 1 of 4 warps loads. x is
// wgmma's A, so a thread has two rows and needs two exponents a segment, which it reads. Stage: 128 k of both, 48 KB.
// Registers: 128 sums, 64 for the segment of 128 columns; 232 in all, loaders 40. While one warpgroup adds a segment to
//   its sums (64 fused multiply-adds a thread), the other one multiplies.
// Results: product_e4m3_emit.cuh. SwiGLU's output can be rounded to e4m3 in registers: the 128 features of a row that
//   share an exponent are sums of four lanes.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts. docs/kernels/tile-products.md tells why.
#include <algorithm>
#include <array>

#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_e4m3_emit.cuh"
#include "cuda/gemm/product_e4m3_load.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {

namespace {

/// The sums of one tile, whose first stage is full.
template <int kParts>
__device__ __forceinline__ void multiply_e4m3(const Product& p, const E4m3Shared& shared, const WgmmaTile& tile,
                                              RingCursor<E4m3Shape::kStages>& at, float (&total)[2][64]) {
  const int steps = E4m3Shape::steps(p);
  const E4m3Part part(tile.count <= 64);
  // 2^exponent of this thread's two rows, four steps to a word, and the scales of up to two blocks of rows of w: read
  // ahead of use.
  const int row = part.row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const auto exponents = [&](int r) {
    return reinterpret_cast<const uint32_t*>(p.x_exponents + (tile.row0 + min(r, tile.count - 1)) * p.x_exponents_row);
  };
  const uint32_t *low_words = exponents(row), *high_words = exponents(row + 8);
  const float* scale = p.scale + tile.group * p.scale_group + (p.gated ? tile.w0 / 2 : tile.w0) / kSegment * steps;
  const int other = p.gated ? (p.n / 2 + kSegment - 1) / kSegment * steps : tile.w0 + kSegment < p.n ? steps : 0;
  uint32_t low = 0, high = 0, next_low = *low_words, next_high = *high_words;
  float2 next_scales = make_float2(scale[0], scale[other]);
#pragma unroll
  for (int c = 0; c < kParts; ++c)
#pragma unroll
    for (int i = 0; i < 64; ++i) total[c][i] = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(shared.full(at.stage), at.filled);
    const uint32_t stage = shared.stage(at.stage);
    const uint64_t a = wgmma_tile(stage + E4m3Shape::kWBytes + part.row * E4m3Shape::kStageK, 16, 1024);
    const float2 scales = next_scales;
    if (step % 4 == 0) {
      low = next_low;
      high = next_high;
    }
    float by_low, by_high;
#pragma unroll
    for (int c = 0; c < kParts; ++c) {
      const uint64_t b = wgmma_tile(stage + (part.column + c * 128) * E4m3Shape::kStageK, 16, 1024);
      float segment[64];
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) Wgmma<128>::e4m3(segment, a + 2 * i, b + 2 * i, i > 0);
      wgmma_commit();
      if (c == 0) {
        by_low = __uint_as_float((low & 255) << 23);
        by_high = __uint_as_float((high & 255) << 23);
        low >>= 8;
        high >>= 8;
        if (step + 1 < steps) {
          ++scale;
          next_scales = make_float2(scale[0], scale[other]);
          if (step % 4 == 0 && step + 4 < steps) {
            next_low = *++low_words;
            next_high = *++high_words;
          }
        }
      }
      wgmma_wait<0>();
      keep(segment);
      if (c + 1 == kParts) release_stage<E4m3Shape>(shared, at.stage);
      // of even and of odd eights of columns
      const float even = p.gated || (c == 0 && part.column == 0) ? scales.x : scales.y;
      const float odd = p.gated ? scales.y : even;
      const float by[2][2] = {{by_low * even, by_low * odd}, {by_high * even, by_high * odd}};
#pragma unroll
      for (int i = 0; i < 64; ++i) total[c][i] = fmaf(segment[i], by[i / 2 % 2][i / 4 % 2], total[c][i]);
    }
    at.advance();
  }
}

template <int kParts>
__device__ __forceinline__ void e4m3_tile(const Product& p, const E4m3Shared& shared, const WgmmaTile& tile,
                                          RingCursor<E4m3Shape::kStages>& at, const CUtensorMap* y_map) {
  float total[2][64];
  multiply_e4m3<kParts>(p, shared, tile, at, total);
  E4m3Emit<kParts>(p, shared, total, y_map).emit();
}

__global__ void __launch_bounds__(kWgmmaThreads, 1)
    product_e4m3_kernel(const __grid_constant__ Product p, const __grid_constant__ WgmmaPlan plan,
                        const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                        const __grid_constant__ CUtensorMap y_map, unsigned* counter) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  const E4m3Shared shared{{dynamic}};
  if (threadIdx.x == kMathThreads) {
    for (int i = 0; i < E4m3Shape::kStages; ++i) {
      mbarrier_init(shared.full(i), 2);  // weights, rows
      mbarrier_init(shared.empty(i), 8);
    }
    mbarrier_fence_init();
    prefetch_tensor_map(&w_map);
    prefetch_tensor_map(&x_map);
  }
  __syncthreads();
  if (threadIdx.x >= kMathThreads) {
    give_registers<E4m3Shape::kLoadRegisters>();
    const int warp = threadIdx.x / 32 - kMathThreads / 32;
    if (warp == 0) {
      load_tiles(p, plan, shared, &w_map, &x_map, counter);
    } else {
      pdl_wait();
    }
    pdl_launch_dependents();
  } else {
    take_registers<E4m3Shape::kMathRegisters>();
    pdl_wait();
    pdl_launch_dependents();
    RingCursor<E4m3Shape::kStages> at;
    for (;;) {
      mbarrier_wait(shared.full(at.stage), at.filled);
      const WgmmaTile tile = shared.tile(at.stage);
      if (tile.count < 0) break;
      shared.tile_of_warp() = tile;
      __syncwarp();
      if (tile.count > 64 && tile.w0 + 128 < p.n) {
        e4m3_tile<2>(p, shared, tile, at, &y_map);
      } else {
        e4m3_tile<1>(p, shared, tile, at, &y_map);
      }
    }
    if (threadIdx.x % 32 == 0) bulk_wait_read<0>();
  }
}

}  // namespace

// ---- host ----------------------------------------------------------------------------------------------------------

cudaError_t launch_e4m3(const Product& p, const WgmmaPlan& plan, int multiprocessors, unsigned* counter,
                        cudaStream_t stream) {
  CUtensorMap w_map{}, x_map{}, y_map{};
  const std::array<int64_t, 3> w_dims{p.k, p.n, p.groups};
  const std::array<int64_t, 2> w_strides{p.k, p.groups > 1 ? p.w_group : p.n * p.k};
  const std::array<int, 3> w_box{E4m3Shape::kStageK, E4m3Shape::kTileWeights, 1};
  if (!make_tensor_map(p.w, p.w_dtype, w_dims, w_strides, w_box, Swizzle::k128, &w_map).ok())
    return cudaErrorInvalidValue;
  const std::array<int64_t, 2> x_dims{p.k, p.rows};
  const std::array<int64_t, 1> x_strides{p.x_row};
  const std::array<int, 2> x_box{E4m3Shape::kStageK, plan.box_tokens};
  if (!make_tensor_map(p.x, p.x_dtype, x_dims, x_strides, x_box, Swizzle::k128, &x_map).ok())
    return cudaErrorInvalidValue;
  if (p.y_dtype == DType::kBF16) {
    const std::array<int64_t, 2> y_dims{p.gated ? p.n / 2 : p.n, p.rows};
    const std::array<int64_t, 1> y_strides{p.y_row};
    const std::array<int, 2> y_box{64, 16};
    if (!make_tensor_map(p.y, p.y_dtype, y_dims, y_strides, y_box, Swizzle::k128, &y_map).ok())
      return cudaErrorInvalidValue;
  }
  int64_t blocks = multiprocessors;
  if (p.offsets == nullptr) blocks = std::min<int64_t>(blocks, int64_t{plan.token_tiles} * plan.weight_tiles);
  return launch_pdl(product_e4m3_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kWgmmaThreads),
                    E4m3Shape::kSharedBytes, stream, p, plan, w_map, x_map, y_map, counter);
}

cudaError_t load_e4m3(int shared_bytes_per_block) {
  return load_into_context(product_e4m3_kernel, shared_bytes_per_block);
}

}  // namespace mla::cuda
