// rows.cuh - rows of any length in chunks of 8 elements, and reductions over blocks whose size is known at run time.
//
//   load_chunk(row, at, n, vector, v)    elements at .. at + 8 of a row of n as floats; zeros past n
//   store_chunk(row, at, n, vector, v)   the elements among them that exist
//   `vector` says that whole chunks may be accessed by 16 bytes: rows start at multiples of 16 bytes. It is the same
//   for all threads of a launch, and the results do not depend on it. block_sum_of(x, scratch)             sum over all
//   threads, warps in ascending order; scratch: 32 values of shared
//                                        memory. Two barriers.
//   block_best_of(best, scratch)         the same for the largest value; ties to the lowest index
//   block_scan_of(x, scratch)            inclusive prefix sum over the threads of the block
//   order_key(x), from_order_key(k)      unsigned integers in the order of the floats; -0 is +0, NaN is least, none is
//   0
#pragma once
#include <cstdint>

#include "cuda/device/numeric.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {

constexpr int kChunk = 8;

/// Eight elements that are loaded and stored by 16 bytes (fp8: by 8).
template <class T>
struct alignas(sizeof(T) == 1 ? 8 : 16) Eight {
  T v[kChunk];
};

/// A chunk's elements as floats and back. Two bf16 share a register, and the conversions: eight of them one by one take
/// twice the instructions.
template <class T>
__device__ __forceinline__ void unpack(const Eight<T>& chunk, float (&v)[kChunk]) {
  load8(chunk.v, v);
}
template <class T>
__device__ __forceinline__ Eight<T> packed(const float (&v)[kChunk]) {
  Eight<T> chunk;
  store8(chunk.v, v);
  return chunk;
}

template <class T>
__device__ __forceinline__ void load_chunk(const T* row, int64_t at, int64_t n, bool vector, float (&v)[kChunk]) {
  if (vector && at + kChunk <= n) {
    const Eight<T> raw = *reinterpret_cast<const Eight<T>*>(row + at);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = to_float(raw.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = at + i < n ? to_float(row[at + i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void store_chunk(T* row, int64_t at, int64_t n, bool vector, const float (&v)[kChunk]) {
  if (vector && at + kChunk <= n) {
    Eight<T> raw;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) raw.v[i] = from_float<T>(v[i]);
    *reinterpret_cast<Eight<T>*>(row + at) = raw;
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (at + i < n) row[at + i] = from_float<T>(v[i]);
  }
}

/// The same for norm weights, whose type is known at run time only.
__device__ __forceinline__ void load_weight_chunk(const void* row, bool bf16, int64_t at, int64_t n, bool vector,
                                                  float (&v)[kChunk]) {
  if (bf16) {
    load_chunk(static_cast<const Bf16*>(row), at, n, vector, v);
  } else {
    load_chunk(static_cast<const float*>(row), at, n, vector, v);
  }
}

template <class T>
__device__ __forceinline__ T warp_sum_of(T x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

template <class T>
__device__ __forceinline__ T block_sum_of(T x, T* scratch) {
  x = warp_sum_of(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = scratch[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) sum += scratch[i];
  __syncthreads();
  return sum;
}

__device__ __forceinline__ Best block_best_of(Best best, Best* scratch) {
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best;
  __syncthreads();
  best = scratch[0];
  for (unsigned i = 1; i < blockDim.x / 32; ++i) best = better(best, scratch[i]);
  __syncthreads();
  return best;
}

template <class T>
__device__ __forceinline__ T block_scan_of(T x, T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T before = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += before;
  }
  if (lane == 31) scratch[warp] = x;
  __syncthreads();
  T before{};
  for (int i = 0; i < warp; ++i) before += scratch[i];
  __syncthreads();
  return before + x;
}

__device__ __forceinline__ uint32_t order_key(float x) {
  if (x != x) return 1;
  const uint32_t u = __float_as_uint(x + 0.0f);
  return u ^ ((u >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float from_order_key(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

}  // namespace mla::cuda
