// combine_portable.cu - out[t] = residual[t] + sum over j ascending of weights[t, j] * parts[slots[t, j]].
//
// Grid: a thread for each 8 columns of a token (each column where rows of out are no multiple of 16 bytes); 256
// threads. Bandwidth-bound.
// Precision: float32 fused multiply-adds in the order of j, rounded once; the same as in product_ring.cuh.
// Test: test/gpu/matrix-experts.test.ts.
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/combine.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

/// Neighbouring columns as they stand in memory.
template <class T, int kWidth>
struct alignas(kWidth == 1 ? sizeof(T) : 16) Columns {
  T v[kWidth];
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, 3)
    combine_parts_kernel(const __grid_constant__ Combine c, const T* parts, const int32_t* used_rows, int parts_rows) {
  pdl_wait();
  pdl_launch_dependents();
  const int used = min(*used_rows, parts_rows);
  const int64_t per_token = c.n / kWidth;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < c.tokens * per_token;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t t = i / per_token, column = i % per_token * kWidth, at = t * c.out_row + column;
    float sum[kWidth] = {};
    // The reads of several rows are under way at the same time; what they bring is added in their order.
    constexpr int kAtOnce = 8;
    for (int j0 = 0; j0 < c.per_token; j0 += kAtOnce) {
      int slots[kAtOnce];
      float weights[kAtOnce];
      Columns<T, kWidth> values[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const bool listed = j0 + j < c.per_token;
        slots[j] = listed ? c.slots[t * c.per_token + j0 + j] : -1;
        weights[j] = listed ? c.weights[t * c.per_token + j0 + j] : 0;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (slots[j] >= 0 && slots[j] < used)
          values[j] = *reinterpret_cast<const Columns<T, kWidth>*>(parts + slots[j] * c.n + column);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (slots[j] < 0 || slots[j] >= used) continue;
#pragma unroll
        for (int v = 0; v < kWidth; ++v) sum[v] = fmaf(weights[j], to_float(values[j].v[v]), sum[v]);
      }
    }
    if (c.residual != nullptr) {
      const auto add = *reinterpret_cast<const Columns<T, kWidth>*>(static_cast<const T*>(c.residual) + at);
#pragma unroll
      for (int v = 0; v < kWidth; ++v) sum[v] += to_float(add.v[v]);
    }
    Columns<T, kWidth> out;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) out.v[v] = from_float<T>(sum[v]);
    *reinterpret_cast<Columns<T, kWidth>*>(static_cast<T*>(c.out) + at) = out;
  }
}

template <class T, int kWidth>
cudaError_t launch(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 16384;
  const int64_t blocks = div_up<int64_t>(c.tokens * (c.n / kWidth), kThreads);
  return launch_pdl(combine_parts_kernel<T, kWidth>,
                    dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)), dim3(kThreads), 0, stream,
                    c, static_cast<const T*>(parts), used, static_cast<int>(parts_rows));
}

template <class T>
cudaError_t launch_fitting(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows,
                           cudaStream_t stream) {
  const bool wide = c.n % 8 == 0 && c.out_row % 8 == 0 && aligned16(c.out) && aligned16(c.residual);
  return wide ? launch<T, 8>(c, parts, used, parts_rows, stream) : launch<T, 1>(c, parts, used, parts_rows, stream);
}

}  // namespace

cudaError_t launch_combine_parts(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows,
                                 cudaStream_t stream) {
  return c.dtype == DType::kBF16 ? launch_fitting<Bf16>(c, parts, used, parts_rows, stream)
                                 : launch_fitting<float>(c, parts, used, parts_rows, stream);
}

cudaError_t load_combine_kernels() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, combine_parts_kernel<Bf16, 8>);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, combine_parts_kernel<Bf16, 1>);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, combine_parts_kernel<float, 8>);
  return error == cudaSuccess ? cudaFuncGetAttributes(&attributes, combine_parts_kernel<float, 1>) : error;
}

}  // namespace mla::cuda
