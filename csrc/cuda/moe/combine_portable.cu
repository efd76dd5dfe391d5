// combine_portable.cu - out[t] = residual[t] + sum over j ascending of weights[t, j] * parts[slots[t, j]].
//
// Grid: a thread for each 4 columns of a token (each column where rows are no multiple of 16 bytes); 256 threads.
// Precision: float32 fused multiply-adds in the order of j, rounded once; the same as in product_stream.cuh.
// Test: test/gpu/matrix-experts.test.ts.
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/combine.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

template <int kWidth>
__global__ void __launch_bounds__(kThreads) combine_parts_kernel(const __grid_constant__ Combine c, const float* parts,
                                                                 const int32_t* used_rows, int parts_rows) {
  pdl_wait();
  const int used = min(*used_rows, parts_rows);
  const int64_t per_token = c.n / kWidth;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < c.tokens * per_token;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t t = i / per_token, column = i % per_token * kWidth;
    float sum[kWidth] = {};
    for (int j = 0; j < c.per_token; ++j) {
      const int slot = c.slots[t * c.per_token + j];
      if (slot < 0 || slot >= used) continue;
      const float weight = c.weights[t * c.per_token + j];
      const float* const from = parts + slot * c.n + column;
      if constexpr (kWidth == 4) {
        const float4 v = *reinterpret_cast<const float4*>(from);
        sum[0] = fmaf(weight, v.x, sum[0]);
        sum[1] = fmaf(weight, v.y, sum[1]);
        sum[2] = fmaf(weight, v.z, sum[2]);
        sum[3] = fmaf(weight, v.w, sum[3]);
      } else {
        sum[0] = fmaf(weight, *from, sum[0]);
      }
    }
    const int64_t at = t * c.out_row + column;
#pragma unroll
    for (int v = 0; v < kWidth; ++v) {
      if (c.dtype == DType::kF32) {
        if (c.residual != nullptr) sum[v] += static_cast<const float*>(c.residual)[at + v];
        static_cast<float*>(c.out)[at + v] = sum[v];
      } else {
        if (c.residual != nullptr) sum[v] += to_float(static_cast<const Bf16*>(c.residual)[at + v]);
        static_cast<Bf16*>(c.out)[at + v] = from_float<Bf16>(sum[v]);
      }
    }
  }
  pdl_launch_dependents();
}

template <int kWidth>
cudaError_t launch(const Combine& c, const float* parts, const int32_t* used, int64_t parts_rows, cudaStream_t stream) {
  constexpr int64_t kMaxBlocks = 16384;
  const int64_t blocks = div_up<int64_t>(c.tokens * (c.n / kWidth), kThreads);
  return launch_pdl(combine_parts_kernel<kWidth>,
                    dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)), dim3(kThreads), 0, stream,
                    c, parts, used, static_cast<int>(parts_rows));
}

}  // namespace

cudaError_t launch_combine_parts(const Combine& c, const float* parts, const int32_t* used, int64_t parts_rows,
                                 cudaStream_t stream) {
  return c.n % 4 == 0 ? launch<4>(c, parts, used, parts_rows, stream) : launch<1>(c, parts, used, parts_rows, stream);
}

cudaError_t load_combine_kernels() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, combine_parts_kernel<4>);
  return error != cudaSuccess ? error : cudaFuncGetAttributes(&attributes, combine_parts_kernel<1>);
}

}  // namespace mla::cuda
