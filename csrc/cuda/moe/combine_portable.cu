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
  const bool packed = c.dtype == DType::kBF16 && c.out_row % 4 == 0 && (reinterpret_cast<uintptr_t>(c.out) & 7) == 0 &&
                      (reinterpret_cast<uintptr_t>(c.residual) & 7) == 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < c.tokens * per_token;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t t = i / per_token, column = i % per_token * kWidth;
    float sum[kWidth] = {};
    // The reads of several rows are under way at the same time; what they bring is added in their order.
    constexpr int kAtOnce = 8;
    for (int j0 = 0; j0 < c.per_token; j0 += kAtOnce) {
      int slots[kAtOnce];
      float weights[kAtOnce], values[kAtOnce][kWidth];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const bool listed = j0 + j < c.per_token;
        slots[j] = listed ? c.slots[t * c.per_token + j0 + j] : -1;
        weights[j] = listed ? c.weights[t * c.per_token + j0 + j] : 0;
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (slots[j] < 0 || slots[j] >= used) continue;
        const float* const from = parts + slots[j] * c.n + column;
        if constexpr (kWidth == 4) {
          const float4 v = *reinterpret_cast<const float4*>(from);
          values[j][0] = v.x, values[j][1] = v.y, values[j][2] = v.z, values[j][3] = v.w;
        } else {
          values[j][0] = *from;
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (slots[j] < 0 || slots[j] >= used) continue;
#pragma unroll
        for (int v = 0; v < kWidth; ++v) sum[v] = fmaf(weights[j], values[j][v], sum[v]);
      }
    }
    const int64_t at = t * c.out_row + column;
    if (kWidth == 4 && packed) {  // % kWidth only keeps the other instance within its array
      if (c.residual != nullptr) {
        const uint2 r = *reinterpret_cast<const uint2*>(static_cast<const Bf16*>(c.residual) + at);
        const float add[4] = {bf16_low(r.x), bf16_high(r.x), bf16_low(r.y), bf16_high(r.y)};
#pragma unroll
        for (int v = 0; v < 4; ++v) sum[v % kWidth] += add[v];
      }
      *reinterpret_cast<uint2*>(static_cast<Bf16*>(c.out) + at) =
          make_uint2(pack_bf16(sum[0], sum[1 % kWidth]), pack_bf16(sum[2 % kWidth], sum[3 % kWidth]));
      continue;
    }
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
