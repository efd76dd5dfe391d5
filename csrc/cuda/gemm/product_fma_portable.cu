// product_fma_portable.cu - products of any types and sizes with float32 fused multiply-adds: for float32 activations,
// float32 weights, and rows that cannot be read by 16 bytes. Meant for exactness, not for speed.
//
// Formula: product.h. Every result is one chain of fused multiply-adds with ascending k, whatever the number of rows.
// Operands: weights f8e4m3 become q * scale in float32; float32 weights beside bf16 rows are rounded to bf16.
// Grid: blocks walk the 64x64 tiles of results; block: 256 threads, 4x4 results each. Columns of a thread are c, c + 8,
//   c + 32, c + 40, so that with gate and up it holds both of a pair.
// Shared memory: 16 k of 64 rows of both operands as float32, 8.5 KB.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_device.cuh"

namespace mla::cuda {
namespace {

constexpr int kSide = 64;
constexpr int kDepth = 16;
constexpr int kThreads = 256;

__device__ float x_value(const Product& p, int64_t at) {
  return p.x_dtype == DType::kF32 ? static_cast<const float*>(p.x)[at] : to_float(static_cast<const Bf16*>(p.x)[at]);
}

/// w[n, k] of a group as it enters the product.
__device__ float w_value(const Product& p, int group, int64_t n, int64_t k) {
  const int64_t at = group * p.w_group + (p.w_transposed ? k * p.n + n : n * p.k + k);
  switch (p.w_dtype) {
    case DType::kF32: {
      const float w = static_cast<const float*>(p.w)[at];
      return p.x_dtype == DType::kBF16 ? to_float(from_float<Bf16>(w)) : w;
    }
    case DType::kF8E4M3: {
      int64_t block = n / kSegment;
      if (p.gated) {
        const int64_t channel = n / 16 * 8 + n % 8;
        block = channel / kSegment + (n % 16 < 8 ? 0 : div_up<int64_t>(p.n / 2, kSegment));
      }
      const float scale = p.scale[group * p.scale_group + block * div_up<int64_t>(p.k, kSegment) + k / kSegment];
      return to_float(static_cast<const F8E4M3*>(p.w)[at]) * scale;
    }
    default: return to_float(static_cast<const Bf16*>(p.w)[at]);
  }
}

__global__ void __launch_bounds__(kThreads) product_fma_kernel(const __grid_constant__ Product p) {
  __shared__ float xs[kDepth][kSide + 4], ws[kDepth][kSide + 4];
  __shared__ int64_t x_rows[kSide];
  pdl_wait();
  const int tid = threadIdx.x;
  const int per_group = static_cast<int>((p.rows + kSide - 1) / kSide);
  const int row_tiles = p.offsets == nullptr ? per_group * static_cast<int>(p.groups) : count_tiles(p, kSide);
  const int64_t column_tiles = div_up<int64_t>(p.n, kSide);
  const int r0 = tid / 16 * 4, c0 = tid % 16 / 8 * 16 + tid % 8;
  constexpr int kColumns[4] = {0, 8, 32, 40};

  for (int64_t index = blockIdx.x; index < row_tiles * column_tiles; index += gridDim.x) {
    const int row_tile = static_cast<int>(index / column_tiles);
    const int64_t n0 = index % column_tiles * kSide;
    const RowTile tile =
        p.offsets == nullptr ? even_tile(row_tile, per_group, kSide, p.rows) : uneven_tile(p, row_tile, kSide);
    __syncthreads();
    if (tid < kSide) {
      int64_t row = tid < tile.count ? operand_row(p, tile.row0 + tid) : -1;
      if (row >= 0 && p.positions != nullptr && (p.positions[row] < 0 || p.positions[row] >= p.position_end)) row = -1;
      x_rows[tid] = row;
    }
    float acc[4][4] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = tid % kDepth, r = tid / kDepth + j * (kThreads / kDepth);
        const bool inside = k0 + k < p.k && x_rows[r] >= 0;
        xs[k][r] = inside ? x_value(p, tile.group * p.x_group + x_rows[r] * p.x_row + k0 + k) : 0;
        // Neighbouring threads read neighbouring weights either way.
        const int wk = p.w_transposed ? tid / kSide + j * 4 : k, wr = p.w_transposed ? tid % kSide : r;
        ws[wk][wr] = k0 + wk < p.k && n0 + wr < p.n ? w_value(p, tile.group, n0 + wr, k0 + wk) : 0;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        if (k0 + k >= p.k) break;
        float x[4], w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = xs[k][r0 + i];
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = ws[k][c0 + kColumns[j]];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(x[i], w[j], acc[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (r0 + i >= tile.count) continue;
      const int64_t row = tile.group * p.y_group + (tile.row0 + r0 + i) * p.y_row;
      if (p.gated) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          const int64_t n = n0 + c0 + kColumns[j];
          if (n < p.n) put(p, row + n / 16 * 8 + n % 8, gate_up(acc[i][j], acc[i][j + 1]));
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t n = n0 + c0 + kColumns[j];
          if (n < p.n) put(p, row + n, acc[i][j]);
        }
      }
    }
  }
  pdl_launch_dependents();
}

}  // namespace

cudaError_t launch_product_fma(const Product& p, cudaStream_t stream) {
  int64_t row_tiles = p.groups * div_up<int64_t>(p.rows, kSide);
  if (p.offsets != nullptr) row_tiles = p.rows / kSide + (p.groups < p.rows ? p.groups : p.rows);
  const int64_t tiles = row_tiles * div_up<int64_t>(p.n, kSide);
  constexpr int64_t kMaxBlocks = 4096;
  return launch_pdl(product_fma_kernel, dim3(static_cast<unsigned>(tiles < kMaxBlocks ? tiles : kMaxBlocks)),
                    dim3(kThreads), 0, stream, p);
}

cudaError_t load_product_fma() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, product_fma_kernel);
}

}  // namespace mla::cuda
