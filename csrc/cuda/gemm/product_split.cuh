// product_split.cuh - products of 17 to 128 rows on Hopper that are bounded by the bytes of their weights, of which
// too few tiles of 128 rows can be made for all multiprocessors: the blocks of a cluster share a tile's k.
//
// Formula: product.h. Weights are the rows of wgmma's A, rows of x ("tokens") the columns of B, N a multiple of 8.
// Grid: a cluster of `split` blocks for each tile of each group, each of which takes half a multiprocessor, or a whole
//   one where there are few: the next kernel's blocks find room and load weights while the last ones of this one end.
// Block: two warpgroups multiply, 64 rows of w each; a warp asks the copy engine for weights, before pdl_wait() where
//   they are settled, another for tokens. A stage is 64 k of both in 128-byte swizzled rows.
// Sums: each block's part of k is one chain of m64nNk16 (fp8 weights: product_codes.cuh); the parts, float32 in the
// blocks' shared memory, are added in
//   ascending order, each block adding a share of the tile's results.
// Shared memory: stages, and in their place the sums when all is multiplied: [tokens][132].
// Test: test/gpu/matrix.test.ts. docs/kernels/few-rows.md tells why.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_codes.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_split.h"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {

template <class W>
struct SplitBlock {
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kStageK = kScaled ? 128 : 64;
  static constexpr int kMath = kSplitWeights * 2;  // threads
  static constexpr int kThreads = kMath + 64;
  static constexpr int kWBytes = kSplitWeights * 128;
  static constexpr int kPitch = kSplitWeights + 4;  // floats between the sums of two tokens

  const Product& p;
  const SplitPlan& plan;
  unsigned char* shared;
  uint32_t barriers;
  int group, w0, rank;  // the tile; the block's number in the cluster
  int first, steps;     // its part of k, in stages

  __device__ int stage_bytes() const { return kWBytes + kStageK / 64 * plan.tokens * 128; }
  __device__ uint32_t stage(int i) const { return shared_address(shared) + i * stage_bytes(); }
  __device__ uint32_t full(int i) const { return barriers + 8 * i; }
  __device__ uint32_t empty(int i) const { return barriers + 8 * (kSplitStages + i); }
};

/// A place in the ring.
struct SplitCursor {
  int stage = 0;
  uint32_t filled = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      filled ^= 1;
    }
  }
};

/// The block's 64 rows a warpgroup by N tokens, over its part of k.
template <int N>
__device__ __forceinline__ void multiply_part(const SplitBlock<Bf16>& b, float (&d)[N / 2]) {
  const int warpgroup = threadIdx.x / 128;
  SplitCursor at;
  int previous = 0;
#pragma unroll 1
  for (int step = 0; step < b.steps; ++step) {
    mbarrier_wait(b.full(at.stage), at.filled);
    const uint32_t stage = b.stage(at.stage);
    const uint64_t w = wgmma_tile(stage + warpgroup * 8192, 16, 1024);
    const uint64_t x = wgmma_tile(stage + b.kWBytes, 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<N>::bf16(d, w + 2 * i, x + 2 * i, step > 0 || i > 0);
    wgmma_commit();
    if (step > 0) {
      wgmma_wait<1>();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(b.empty(previous));
    }
    previous = at.stage;
    at.advance(b.plan.stages);
  }
  wgmma_wait<0>();
  keep(d);
}

/// The same: codes become bf16 in registers, and sums change their unit with each stage.
template <int N>
__device__ __forceinline__ void multiply_part(const SplitBlock<F8E4M3>& b, float (&d)[N / 2]) {
  const Product& p = b.p;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int64_t segments = (p.k + kSegment - 1) / kSegment;
  const float* const low_scale = p.scale + b.group * p.scale_group + (p.gated ? b.w0 / 2 : b.w0) / kSegment * segments;
  const float* const high_scale = low_scale + (p.gated ? div_up<int64_t>(p.n / 2, kSegment) * segments : 0);
  const uint32_t offset = (threadIdx.x / 32 * 16 + g) * 128 + 2 * q;
  const auto rescale = [&](float by_low, float by_high) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] *= i % 4 < 2 ? by_low : by_high;
  };
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 0;
  SplitScale low(0, 1), high(0, 1);
  SplitCursor at;
#pragma unroll 1
  for (int step = 0; step < b.steps; ++step) {
    const float low_before = low.factor, high_before = high.factor;
    low = SplitScale(low_scale[b.first + step], low_before);
    high = SplitScale(high_scale[b.first + step], high_before);
    mbarrier_wait(b.full(at.stage), at.filled);
    const unsigned char* const codes = b.shared + at.stage * b.stage_bytes() + offset;
    const auto pair = [&](int row8, int k8, uint32_t power) {
      return codes_to_bf16(*reinterpret_cast<const uint16_t*>(codes + row8 * 1024 + (k8 / 2 ^ g) * 16 + k8 % 2 * 8),
                           power);
    };
    uint32_t a[8][4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a[i][0] = pair(0, 2 * i, low.power);
      a[i][1] = pair(1, 2 * i, high.power);
      a[i][2] = pair(0, 2 * i + 1, low.power);
      a[i][3] = pair(1, 2 * i + 1, high.power);
    }
    rescale(__fdividef(low_before, low.factor), __fdividef(high_before, high.factor));
    const uint32_t x = b.stage(at.stage) + b.kWBytes;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; ++i)
      Wgmma<N>::bf16(d, a[i], wgmma_tile(x + i / 4 * b.plan.tokens * 128, 16, 1024) + i % 4 * 2, true);
    wgmma_commit();
    wgmma_wait<0>();
    keep(d);
    if (lane == 0) mbarrier_arrive(b.empty(at.stage));
    at.advance(b.plan.stages);
  }
  rescale(low.factor, high.factor);
}

/// All sums of the block, with the smallest N that holds the tokens, into shared memory.
template <class W, int N, int... kMore>
__device__ __forceinline__ void hold_sums(const SplitBlock<W>& b) {
  if constexpr (sizeof...(kMore) > 0) {
    if (b.plan.tokens > N) return hold_sums<W, kMore...>(b);
  }
  float d[N / 2];
  multiply_part<N>(b, d);
  named_barrier_sync(1, b.kMath);  // the stages have been read
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* const to = reinterpret_cast<float*>(b.shared) + 2 * (lane % 4) * b.kPitch + 16 * warp + lane / 4;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    to[8 * j * b.kPitch] = d[4 * j];
    to[(8 * j + 1) * b.kPitch] = d[4 * j + 1];
    to[8 * j * b.kPitch + 8] = d[4 * j + 2];
    to[(8 * j + 1) * b.kPitch + 8] = d[4 * j + 3];
  }
}

/// Four sums, `at` floats into the parts, of all blocks.
template <int kSplit>
__device__ __forceinline__ float4 add_parts(uint32_t parts, int at) {
  float4 v[kSplit];
#pragma unroll
  for (int i = 0; i < kSplit; ++i) {
    const uint32_t from = parts + at * static_cast<uint32_t>(sizeof(float));
    v[i] = cluster_load4(cluster_address(from, i));
  }
#pragma unroll
  for (int i = 1; i < kSplit; ++i) {
    v[0].x += v[i].x;
    v[0].y += v[i].y;
    v[0].z += v[i].z;
    v[0].w += v[i].w;
  }
  return v[0];
}

/// This block's share of the tile's results.
template <class W, int kSplit>
__device__ __forceinline__ void emit_parts(const SplitBlock<W>& b) {
  const Product& p = b.p;
  const uint32_t parts = shared_address(b.shared);
  const int per_token = kSplitWeights / (p.gated ? 8 : 4), units = static_cast<int>(p.rows) * per_token;
  const int end = units * (b.rank + 1) / kSplit;
  const bool wide = p.y_row % 4 == 0 && p.y_group % 4 == 0 && aligned16(p.y) && aligned16(p.residual);
  for (int u = units * b.rank / kSplit + static_cast<int>(threadIdx.x); u < end; u += b.kMath) {
    const int token = u / per_token, i = u - token * per_token;
    float4 v;
    int64_t n;
    if (p.gated) {
      const int at = token * b.kPitch + i / 2 * 16 + i % 2 * 4;
      const float4 gate = add_parts<kSplit>(parts, at), up = add_parts<kSplit>(parts, at + 8);
      v = {gate_up(gate.x, up.x), gate_up(gate.y, up.y), gate_up(gate.z, up.z), gate_up(gate.w, up.w)};
      n = b.w0 / 2 + i * 4;
    } else {
      v = add_parts<kSplit>(parts, token * b.kPitch + i * 4);
      n = b.w0 + i * 4;
    }
    const int64_t columns = p.gated ? p.n / 2 : p.n;
    const int64_t at = b.group * p.y_group + token * p.y_row + n;
    if (wide && n + 4 <= columns) {
      if (p.residual != nullptr) {
        const uint2 r = *reinterpret_cast<const uint2*>(static_cast<const Bf16*>(p.residual) + at);
        v = {v.x + bf16_low(r.x), v.y + bf16_high(r.x), v.z + bf16_low(r.y), v.w + bf16_high(r.y)};
      }
      if (p.y_dtype == DType::kF32) {
        *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = v;
      } else {
        *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.y) + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
      }
    } else {
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (n + j < columns) put(p, at + j, values[j]);
    }
  }
}

template <class W>
__global__ void __launch_bounds__(SplitBlock<W>::kThreads, SplitBlock<W>::kScaled ? 1 : 2)
    product_split_kernel(const __grid_constant__ Product p, const __grid_constant__ SplitPlan plan,
                         const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
  using B = SplitBlock<W>;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t barrier_words[2 * kSplitStages];
  const int warp = threadIdx.x / 32, tile = static_cast<int>(blockIdx.x) / plan.split;
  B b{.p = p, .plan = plan, .shared = shared, .barriers = shared_address(barrier_words), .group = tile / plan.tiles};
  b.w0 = (tile - b.group * plan.tiles) * kSplitWeights;
  b.rank = static_cast<int>(blockIdx.x) % plan.split;
  const int all = static_cast<int>((p.k + B::kStageK - 1) / B::kStageK);
  b.first = all * b.rank / plan.split;
  b.steps = all * (b.rank + 1) / plan.split - b.first;
  if (threadIdx.x == B::kMath) {
    for (int i = 0; i < plan.stages; ++i) {
      mbarrier_init(b.full(i), 2);
      mbarrier_init(b.empty(i), B::kMath / 32);
    }
    mbarrier_fence_init();
    prefetch_tensor_map(&w_map);
    prefetch_tensor_map(&x_map);
  }
  __syncthreads();
  if (warp == B::kMath / 32) {
    if (elect_lane()) {
      if (!plan.settled) pdl_wait();
      SplitCursor at;
      for (int step = 0; step < b.steps; ++step) {
        if (step == plan.stages && plan.settled) pdl_wait();
        mbarrier_wait(b.empty(at.stage), at.filled ^ 1);
        mbarrier_arrive_expect(b.full(at.stage), B::kWBytes);
        tile_load(b.stage(at.stage), &w_map, b.full(at.stage), (b.first + step) * B::kStageK, b.w0, b.group,
                  kEvictFirst);
        at.advance(plan.stages);
      }
    }
  } else if (warp == B::kMath / 32 + 1) {
    pdl_wait();
    if (elect_lane()) {
      SplitCursor at;
      for (int step = 0; step < b.steps; ++step) {
        mbarrier_wait(b.empty(at.stage), at.filled ^ 1);
        mbarrier_arrive_expect(b.full(at.stage), B::kStageK / 64 * plan.tokens * 128);
#pragma unroll
        for (int half = 0; half < B::kStageK / 64; ++half)
          tile_load(b.stage(at.stage) + B::kWBytes + half * plan.tokens * 128, &x_map, b.full(at.stage),
                    (b.first + step) * B::kStageK + half * 64, 0, b.group, kEvictNormal);
        at.advance(plan.stages);
      }
    }
  } else {
    pdl_wait();
    pdl_launch_dependents();
    hold_sums<W, 24, 32, 40, 48, 56, 64, 80, 96, 128>(b);
  }
  __syncwarp();
  cluster_sync();
  if (threadIdx.x < B::kMath) {
    if (plan.split == 2) emit_parts<W, 2>(b);
    if (plan.split == 4) emit_parts<W, 4>(b);
    if (plan.split == 8) emit_parts<W, 8>(b);
  }
  __syncwarp();
  cluster_arrive_relaxed();  // what this block read is in its registers, whose stores have been issued
  cluster_wait();            // nobody leaves while others read its sums
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W>
cudaError_t launch_split(const Product& p, const SplitPlan& plan, cudaStream_t stream) {
  CUtensorMap w_map{}, x_map{};
  const int64_t w_dims[] = {p.k, p.n, p.groups}, w_strides[] = {p.k, p.groups > 1 ? p.w_group : p.n * p.k};
  const int64_t x_dims[] = {p.k, p.rows, p.groups},
                x_strides[] = {p.x_row, p.groups > 1 ? p.x_group : p.rows * p.x_row};
  const int w_box[] = {SplitBlock<W>::kStageK, kSplitWeights, 1}, x_box[] = {64, plan.tokens, 1};
  if (!make_tensor_map(p.w, p.w_dtype, w_dims, w_strides, w_box, Swizzle::k128, &w_map).ok() ||
      !make_tensor_map(p.x, p.x_dtype, x_dims, x_strides, x_box, Swizzle::k128, &x_map).ok())
    return cudaErrorInvalidValue;
  const auto blocks = static_cast<unsigned>(p.groups * plan.tiles * plan.split);
  return launch_clusters(product_split_kernel<W>, dim3(blocks), dim3(SplitBlock<W>::kThreads), plan.split,
                         static_cast<size_t>(plan.bytes), stream, p, plan, w_map, x_map);
}

}  // namespace mla::cuda
