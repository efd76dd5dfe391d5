// product_held.cuh - products of up to 8 rows on Hopper whose weights all fit into the GPU's shared memory.
//
// Formula and order of sums: product.h. What such a product takes is not its bytes but its latency: the copy engine
// brings all weights of a block before pdl_wait() returns, and what follows is one way to L2 for x, a chain of tensor
// core products, one barrier and a sum.
// Grid: (blocks of 16 weight rows, groups). Block: a warp for each 128 k. Limits: k <= 2048, no uneven groups, not
// gated. Shared memory: 17 KB for each 1024 bytes of a weight row.
// Test: test/gpu/matrix.test.ts.
#pragma once
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_held.h"
#include "cuda/gemm/product_held_device.cuh"

namespace mla::cuda {

template <class W>
__global__ void __maxnreg__(48)
    product_held_kernel(const __grid_constant__ Product p, bool weights_settled, bool eager) {
  constexpr bool kScaled = sizeof(W) == 1;
  extern __shared__ __align__(128) unsigned char held[];
  __shared__ HeldShared shared;
  if (eager) pdl_launch_dependents();
  const int segment = threadIdx.x / 32, segments = blockDim.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int k = static_cast<int>(p.k), n0 = blockIdx.x * kHeldItemRows;
  const int64_t group = blockIdx.y;
  const HeldWeights<W> weights{shared, held, k};
  weights.begin();
  if (!weights_settled) pdl_wait();
  weights.load(static_cast<const W*>(p.w) + group * p.w_group + n0 * p.k, static_cast<int>(p.n) - n0);
  if (kScaled && lane == 0) {
    shared.scales[segment] = p.scale[group * p.scale_group + n0 / kSegment * segments + segment];
  }
  if (weights_settled) pdl_wait();
  if (!eager) pdl_launch_dependents();

  const int k_first = segment * kSegment + q * HeldWeights<W>::kOwn;
  const Bf16* const row = static_cast<const Bf16*>(p.x) + group * p.x_group + g * p.x_row + k_first;
  uint4 x[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int at = HeldWeights<W>::x_at(j);
    x[j] = g < p.rows && k_first + at < k ? __ldcg(reinterpret_cast<const uint4*>(row + at)) : make_uint4(0, 0, 0, 0);
  }
  const auto place = [&](int i) { return group * p.y_group + held_row(i) * p.y_row + n0 + held_column(i); };
  const auto exists = [&](int i) { return i < kHeldSums && held_row(i) < p.rows && n0 + held_column(i) < p.n; };
  float residual = 0;
  if (p.residual != nullptr && exists(threadIdx.x)) {
    residual = to_float(static_cast<const Bf16*>(p.residual)[place(threadIdx.x)]);
  }
  float acc[4] = {};
  weights.multiply(x, acc);
  give_sums(shared, acc);
  __syncthreads();
  for (int i = threadIdx.x; i < kHeldSums; i += blockDim.x) {
    if (!exists(i)) continue;
    float total = held_sum<kScaled>(shared, segments, i);
    if (p.residual != nullptr) {
      total += i == static_cast<int>(threadIdx.x) ? residual : to_float(static_cast<const Bf16*>(p.residual)[place(i)]);
    }
    if (p.y_dtype == DType::kF32) {
      static_cast<float*>(p.y)[place(i)] = total;
    } else {
      static_cast<Bf16*>(p.y)[place(i)] = from_float<Bf16>(total);
    }
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W>
cudaError_t launch_held(const Product& p, bool weights_settled, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(div_up<int64_t>(p.n, kHeldItemRows)), static_cast<unsigned>(p.groups));
  const dim3 block(static_cast<unsigned>(div_up<int64_t>(p.k, kSegment) * 32));
  // valueExpand and o_proj: what is launched behind them is short, and its launch would not hide. V2-Lite, 4,096 tokens
  // of context, a step of 1, 2, 4, 8 sequences in bf16 is 100, 59, 103, 110 us faster by it, of 2090 to 6180; in fp8
  // 84, 61, 84, 96 (H200, 2026-11).
  const bool eager = p.groups > 1 || p.residual != nullptr;
  return eager ? launch_eager(product_held_kernel<W>, grid, block, 1, held_bytes(p), stream, p, weights_settled, true)
               : launch_pdl(product_held_kernel<W>, grid, block, held_bytes(p), stream, p, weights_settled, false);
}

}  // namespace mla::cuda
