// norm_row.cuh - RMS norm of one row by all threads of a block.
#pragma once
#include "cuda/device/rows.cuh"

namespace mla::cuda {

constexpr int kNormMaxThreads = 512;

/// Threads for rows of n elements: one chunk each as far as possible. The order of additions follows from it, so it
/// must depend on nothing but n.
inline int norm_threads(int64_t n) {
  const int64_t wanted = div_up<int64_t>(div_up<int64_t>(n, kChunk), 32) * 32;
  return static_cast<int>(wanted < kNormMaxThreads ? wanted : kNormMaxThreads);
}

/// store(at, x[at .. at + 8] * rsqrt(mean(x^2) + eps) * weight[at .. at + 8]) for all chunks of a row of n.
///   load(at, v, again), load_weight(at, v): a chunk, zeros past n
/// The first two chunks of a thread stay in registers; further ones are loaded `again` by the thread that loaded them
/// first. scratch: 32 floats of shared memory.
template <class Load, class LoadWeight, class Store>
__device__ __forceinline__ void norm_row(int64_t n, float eps, float* scratch, Load&& load, LoadWeight&& load_weight,
                                         Store&& store) {
  constexpr int kHeld = 2;
  const int64_t first = int64_t{threadIdx.x} * kChunk, step = int64_t{blockDim.x} * kChunk;
  float held[kHeld][kChunk], weight[kHeld][kChunk];
  float sum = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t at = first + h * step;
    if (at >= n) continue;
    load(at, held[h], false);
    load_weight(at, weight[h]);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum = fmaf(held[h][i], held[h][i], sum);
  }
  for (int64_t at = first + kHeld * step; at < n; at += step) {
    float v[kChunk];
    load(at, v, false);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum = fmaf(v[i], v[i], sum);
  }
  sum = block_sum_of(sum, scratch);
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t at = first + h * step;
    if (at >= n) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) held[h][i] = held[h][i] * factor * weight[h][i];
    store(at, held[h]);
  }
  for (int64_t at = first + kHeld * step; at < n; at += step) {
    float v[kChunk], w[kChunk];
    load(at, v, true);
    load_weight(at, w);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = v[i] * factor * w[i];
    store(at, v);
  }
}

}  // namespace mla::cuda
