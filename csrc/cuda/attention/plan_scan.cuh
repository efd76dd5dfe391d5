// plan_scan.cuh - what the two parts of decodePlan's kernel share: how sequences are read, sums over lanes and threads.
#pragma once
#include <cstdint>

#include "cuda/device/reduce.cuh"

namespace mla::cuda {

constexpr int kPlanThreads = 1024;
constexpr int kPlanWarps = kPlanThreads / 32;

/// A sequence of the step.
struct PlanSequence {
  int64_t rows;  // query rows: tokens * heads
  int64_t keys;  // none without rows
};

__device__ inline PlanSequence load_sequence(const int32_t* q_start, const int32_t* lengths, int b, int heads) {
  const int64_t tokens = int64_t{q_start[b + 1]} - q_start[b];
  const int64_t length = lengths[b];
  return {tokens > 0 ? tokens * heads : 0, tokens > 0 && length > 0 ? length : 0};
}

template <class T>
__device__ T sum_lanes(T x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(kFullWarp, x, i);
  return x;
}

/// Sums of three counters over the threads before this one; `total` receives the sums over all.
struct Counts {
  int64_t items, slots, merge_items;
};

__device__ inline Counts block_exclusive_scan(Counts x, Counts* warp_totals, Counts* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Counts sum = x;
#pragma unroll
  for (int i = 1; i < 32; i *= 2) {
    const int64_t items = __shfl_up_sync(kFullWarp, sum.items, i);
    const int64_t slots = __shfl_up_sync(kFullWarp, sum.slots, i);
    const int64_t merge_items = __shfl_up_sync(kFullWarp, sum.merge_items, i);
    if (lane >= i) {
      sum.items += items;
      sum.slots += slots;
      sum.merge_items += merge_items;
    }
  }
  if (lane == 31) warp_totals[warp] = sum;
  __syncthreads();
  Counts before{0, 0, 0};
  *total = {0, 0, 0};
  for (int i = 0; i < kPlanWarps; ++i) {
    const Counts& t = warp_totals[i];
    if (i == warp) before = *total;
    *total = {total->items + t.items, total->slots + t.slots, total->merge_items + t.merge_items};
  }
  __syncthreads();  // warp_totals may be written again
  return {before.items + sum.items - x.items, before.slots + sum.slots - x.slots,
          before.merge_items + sum.merge_items - x.merge_items};
}

__device__ inline int32_t clamp_int(int64_t x) { return static_cast<int32_t>(x < INT32_MAX ? x : INT32_MAX); }

}  // namespace mla::cuda
