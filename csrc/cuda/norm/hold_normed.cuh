// hold_normed.cuh - RMS norm of a few rows into shared memory, by the warps of a block together; the same bits as
// norm_rows.cu gives, whatever the number of warps.
//
// norm_rows.cu sums a row with norm_threads(d) threads: a thread its chunks of 8 in ascending order, a warp by
// butterflies, the warps in ascending order. Here every warp plays some of those warps for some of the rows.
#pragma once
#include "cuda/norm/norm.h"
#include "cuda/norm/norm_row.cuh"

namespace mla::cuda {

constexpr int kHeldNormRows = 16;
constexpr int kHeldNormWarps = kNormMaxThreads / 32;

/// Rows 0 .. rows of x into rows `pitch` bytes apart in shared memory, in x's type; d is a multiple of 8 and rows start
/// at multiples of 16 bytes. `sums`: rows * kHeldNormWarps floats of shared memory. Called by kWarps whole warps;
/// `warp` counts them from 0; sync() is a barrier of them. The rows are complete after a barrier that follows.
template <int kWarps, class Act, class Sync>
__device__ __forceinline__ void hold_normed(const HeldNorm& n, const Act* x, int64_t x_row, int rows, int d,
                                            unsigned char* held, int pitch, float* sums, int warp, Sync&& sync) {
  constexpr int kAtOnce = 4;  // loads under way
  const int lane = threadIdx.x % 32, per_row = n.threads / 32, tasks = rows * per_row;
  const auto first_of = [&](int task) { return (task % per_row * 32 + lane) * kChunk; };
  for (int task0 = warp; task0 < tasks; task0 += kAtOnce * kWarps) {
    float sum[kAtOnce] = {};
    for (int step = 0; step < d; step += n.threads * kChunk) {
      Eight<Act> raw[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int task = task0 + i * kWarps, at = first_of(task) + step;
        if (task < tasks && at < d) raw[i] = *reinterpret_cast<const Eight<Act>*>(x + task / per_row * x_row + at);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int task = task0 + i * kWarps, at = first_of(task) + step;
        if (task >= tasks || at >= d) continue;
        *reinterpret_cast<Eight<Act>*>(held + task / per_row * pitch + at * static_cast<int>(sizeof(Act))) = raw[i];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) sum[i] = fmaf(to_float(raw[i].v[j]), to_float(raw[i].v[j]), sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int task = task0 + i * kWarps;
      const float total = warp_sum(sum[i]);
      if (task < tasks && lane == 0) sums[task / per_row * kHeldNormWarps + task % per_row] = total;
    }
  }
  sync();
  for (int task = warp; task < tasks; task += kWarps) {
    const int row = task / per_row;
    float sum = sums[row * kHeldNormWarps];
    for (int i = 1; i < per_row; ++i) sum += sums[row * kHeldNormWarps + i];
    const float factor = 1.0f / sqrtf(sum / static_cast<float>(d) + n.eps);
    const bool padding = n.positions != nullptr && n.positions[row] < 0;
    for (int at = first_of(task); at < d; at += n.threads * kChunk) {
      // What this thread put there itself.
      Eight<Act>* const place = reinterpret_cast<Eight<Act>*>(held + row * pitch + at * static_cast<int>(sizeof(Act)));
      Eight<Act> raw = *place;
      float weight[kChunk];
      load_weight_chunk(n.weight, n.weight_bf16, at, d, true, weight);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        raw.v[j] = padding ? from_float<Act>(0.0f) : from_float<Act>(to_float(raw.v[j]) * factor * weight[j]);
      }
      *place = raw;
    }
  }
}

}  // namespace mla::cuda
