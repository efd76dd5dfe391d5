// log_probs_portable.cu - log-probability of the target and of the `top` likeliest ids of each row of logits.
//
//   lse = max + log(sum exp(x - max)); logprob = x[target] - lse; top ids fall by x, ties to the lowest id. NaN is
//   never among them; places that no number fills have id -1 and -inf.
// Grid: a block of 1024 threads for each row; thread i owns the ids i, i + 1024, ... Two passes over the row, which L2
//   holds, then one round for each of the top ids: the best of all threads' best is taken, and the warp of its owner
//   looks through the owner's ids for the best one that comes after it.
// Precision: float32; sums in an order that depends on the row's length alone.
// Test: test/gpu/matrix.test.ts.
#include <climits>

#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/gemm/log_probs.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads) logit_rows_kernel(const __grid_constant__ LogitRows p) {
  __shared__ float scratch[kThreads / 32];
  __shared__ Best warps[2][kThreads / 32];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const float infinity = __int_as_float(0x7f800000);
  pdl_wait();
  const int64_t t = blockIdx.x;
  const int vocab = static_cast<int>(p.vocab);
  const float* const row = p.logits + t * p.vocab;

  Best mine{-infinity, INT_MAX};
#pragma unroll 4
  for (int id = tid; id < vocab; id += kThreads) mine = better(mine, {row[id], id});
  const float high = block_max<kThreads>(mine.value, scratch);
  float part = 0;
#pragma unroll 4
  for (int id = tid; id < vocab; id += kThreads) part += expf(row[id] - high);
  const float lse = high + logf(block_sum<kThreads>(part, scratch));
  if (tid == 0) {
    const int target = p.targets[t];
    p.logprobs[t] = target >= 0 && target < vocab ? row[target] - lse : 0;
  }
  for (int j = 0; j < p.top; ++j) {
    const Best of_warp = warp_best(mine);
    if (lane == 0) warps[j % 2][warp] = of_warp;
    // The other half of `warps` was last read before the barrier of the round before.
    __syncthreads();
    const Best best = warp_best(warps[j % 2][lane]);
    const bool found = best.index != INT_MAX;
    if (tid == 0) {
      p.top_ids[t * p.top + j] = found ? best.index : -1;
      p.top_logprobs[t * p.top + j] = best.value - lse;
    }
    const int owner = best.index % kThreads;
    if (!found || warp != owner / 32) continue;
    Best next{-infinity, INT_MAX};
    for (int id = owner + lane * kThreads; id < vocab; id += 32 * kThreads) {
      const float x = row[id];
      if (x < best.value || (x == best.value && id > best.index)) next = better(next, {x, id});
    }
    next = warp_best(next);
    if (lane == owner % 32) mine = next;
  }
  pdl_launch_dependents();
}

}  // namespace

cudaError_t launch_logit_rows(const LogitRows& p, cudaStream_t stream) {
  return launch_pdl(logit_rows_kernel, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0, stream, p);
}

cudaError_t load_log_probs_kernels() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, logit_rows_kernel);
}

}  // namespace mla::cuda
