// reduce.cuh - sums and maxima over a warp or a block. The order is fixed by lane and warp numbers alone, so results
// are the same in every run.
//
//   warp_sum(x), warp_max(x)                 every lane receives the result
//   block_sum<kThreads>(x, scratch)          every thread receives the result; scratch: kThreads / 32 floats of shared
//   block_max<kThreads>(x, scratch)          memory. Holds two barriers, so scratch may be used again at once.
//   Best, better(a, b), warp_best(b)         the largest value with its index; ties to the lowest index; NaN loses
#pragma once
#include <cstdint>

namespace mla::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

template <int kThreads>
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = scratch[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

template <int kThreads>
__device__ __forceinline__ float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float best = scratch[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) best = fmaxf(best, scratch[i]);
  __syncthreads();
  return best;
}

struct Best {
  float value;
  int32_t index;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  // b wins only if larger, or equal and earlier; a NaN in b compares false. A NaN in a loses to any number.
  const bool take =
      b.value > a.value || (b.value == a.value && b.index < a.index) || (a.value != a.value && b.value == b.value);
  return take ? b : a;
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(kFullWarp, best.value, offset), __shfl_xor_sync(kFullWarp, best.index, offset)};
    best = better(best, other);
  }
  return best;
}

}  // namespace mla::cuda
