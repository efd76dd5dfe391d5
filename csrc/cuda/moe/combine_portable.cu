// combine_portable.cu - out[t] = residual[t] + sum over j ascending of weights[t, j] * parts[slots[t, j]].
//
// Grid: a warp for some neighbouring tokens, as many as have about 8 rows together, by 512 bytes of their columns (32
// columns where rows of out are no multiple of 16 bytes); 8 warps. Bandwidth-bound: 8 rows of a warp are under way at
// the same time, whether they are of one token or of eight.
// Precision: float32 fused multiply-adds in the order of j, rounded once; the same as in product_ring.cuh.
// Test: test/gpu/matrix-experts.test.ts.
#include <algorithm>

#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/moe/combine.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 8;  // rows of parts

/// Neighbouring columns as they stand in memory.
template <class T, int kWidth>
struct alignas(kWidth == 1 ? sizeof(T) : 16) Columns {
  T v[kWidth];
};

/// kSeveral: an item has several tokens, and so at most kAtOnce rows.
template <class T, int kWidth, bool kSeveral>
__global__ void __launch_bounds__(kThreads, 3)
    combine_parts_kernel(const __grid_constant__ Combine c, int together, const T* parts, const int32_t* used_rows,
                         int parts_rows) {
  pdl_wait();
  pdl_launch_dependents();
  using Piece = Columns<T, kWidth>;
  const int lane = threadIdx.x % 32, each = max(static_cast<int>(c.per_token), 1);
  const int used = min(*used_rows, parts_rows);
  const int64_t pieces = div_up<int64_t>(c.n, 32 * kWidth), items = div_up<int64_t>(c.tokens, together) * pieces;
  const int64_t warps = gridDim.x * int64_t{kThreads / 32};
  for (int64_t item = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / 32; item < items; item += warps) {
    const int64_t token = item / pieces * together, column = (item % pieces * 32 + lane) * kWidth;
    const int rows = static_cast<int>(min(c.tokens - token, static_cast<int64_t>(together))) * each;
    const bool mine = column < c.n;
    int64_t at = token * c.out_row + column;
    float sum[kWidth] = {};
    const auto put = [&] {
      if (c.residual != nullptr) {
        const auto add = *reinterpret_cast<const Piece*>(static_cast<const T*>(c.residual) + at);
#pragma unroll
        for (int v = 0; v < kWidth; ++v) sum[v] += to_float(add.v[v]);
      }
      Piece out;
#pragma unroll
      for (int v = 0; v < kWidth; ++v) out.v[v] = from_float<T>(sum[v]);
      *reinterpret_cast<Piece*>(static_cast<T*>(c.out) + at) = out;
    };
    int left = each;  // rows of the token at hand
    for (int row0 = 0; row0 < rows; row0 += kAtOnce) {
      // Lane l knows the l-th of the rows that are read at once; what they bring is added in their order.
      int slot = -1;
      float weight = 0;
      if (lane < kAtOnce && row0 + lane < rows && c.per_token > 0) {
        slot = c.slots[token * each + row0 + lane];
        weight = c.weights[token * each + row0 + lane];
      }
      const unsigned exist = __ballot_sync(kFullWarp, slot >= 0 && slot < used);
      Piece values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t from = __shfl_sync(kFullWarp, slot, i);
        if ((exist >> i & 1) != 0 && mine) values[i] = *reinterpret_cast<const Piece*>(parts + from * c.n + column);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float by = __shfl_sync(kFullWarp, weight, i);
        if ((exist >> i & 1) != 0) {
#pragma unroll
          for (int v = 0; v < kWidth; ++v) sum[v] = fmaf(by, to_float(values[i].v[v]), sum[v]);
        }
        if constexpr (kSeveral) {
          if (row0 + i >= rows || --left > 0) continue;
          if (mine) put();
#pragma unroll
          for (int v = 0; v < kWidth; ++v) sum[v] = 0;
          at += c.out_row;
          left = each;
        }
      }
    }
    if (!kSeveral && mine) put();
  }
}

template <class T, int kWidth>
cudaError_t launch(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows, cudaStream_t stream) {
  // Fewer warps leave multiprocessors waiting. H200, 2026-11-27, one row a token, 7168 columns: 4,096 tokens 65 us by
  // one token a warp, 32 by eight; 512 tokens 7.7 and 5.9 by two.
  constexpr int64_t kMaxBlocks = 16384, kEnoughWarps = 4096;
  const auto warps = [&](int64_t together) { return div_up(c.tokens, together) * div_up<int64_t>(c.n, 32 * kWidth); };
  int64_t together = std::max<int64_t>(1, kAtOnce / std::max<int64_t>(1, c.per_token));
  while (together > 1 && warps(together) < kEnoughWarps) together /= 2;
  const int64_t blocks = std::min(kMaxBlocks, div_up<int64_t>(warps(together), kThreads / 32));
  const auto kernel = together > 1 ? combine_parts_kernel<T, kWidth, true> : combine_parts_kernel<T, kWidth, false>;
  return launch_pdl(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, c,
                    static_cast<int>(together), static_cast<const T*>(parts), used, static_cast<int>(parts_rows));
}

template <class T>
cudaError_t launch_fitting(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows,
                           cudaStream_t stream) {
  const bool wide = c.n % 8 == 0 && c.out_row % 8 == 0 && aligned16(c.out) && aligned16(c.residual);
  return wide ? launch<T, 16 / sizeof(T)>(c, parts, used, parts_rows, stream)
              : launch<T, 1>(c, parts, used, parts_rows, stream);
}

}  // namespace

cudaError_t launch_combine_parts(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows,
                                 cudaStream_t stream) {
  return c.dtype == DType::kBF16 ? launch_fitting<Bf16>(c, parts, used, parts_rows, stream)
                                 : launch_fitting<float>(c, parts, used, parts_rows, stream);
}

cudaError_t load_combine_kernels() {
  const auto load = [](auto... kernels) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSuccess;
    ((error = error == cudaSuccess ? cudaFuncGetAttributes(&attributes, kernels) : error), ...);
    return error;
  };
  return load(combine_parts_kernel<Bf16, 8, false>, combine_parts_kernel<Bf16, 8, true>,
              combine_parts_kernel<Bf16, 1, false>, combine_parts_kernel<Bf16, 1, true>,
              combine_parts_kernel<float, 4, false>, combine_parts_kernel<float, 4, true>,
              combine_parts_kernel<float, 1, false>, combine_parts_kernel<float, 1, true>);
}

}  // namespace mla::cuda
