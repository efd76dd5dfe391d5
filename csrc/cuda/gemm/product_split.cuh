// product_split.cuh - products of more than 16 rows on Hopper of which too few tiles of 128 weight rows can be made for
// all multiprocessors: the blocks of a cluster share a tile's k.
//
// Formula: product.h. Weights are the rows of wgmma's A, rows of x ("tokens") the columns of B, N a multiple of 8.
// Grid: a cluster of `split` blocks for each tile of each group. Up to 128 rows are one tile, and a block takes half a
//   multiprocessor, or a whole one where there are few: the next kernel's blocks find room and load weights while the
//   last ones of this one end. More rows are tiles of up to 256, and a block takes a whole multiprocessor.
// Block: two warpgroups multiply, 64 rows of w each; a warp asks the copy engine for weights, before pdl_wait() where
//   they are settled, another for tokens. A stage is 64 k of both in 128-byte swizzled rows.
// Sums: each block's part of k is one chain of m64nNk16 (fp8 weights: product_codes.cuh); the parts, float32 in the
//   blocks' shared memory, are added in ascending order, each block adding a share of the tile's results.
// Shared memory: stages, and in their place the sums when all is multiplied: [tokens][132].
// Test: test/gpu/matrix.test.ts. docs/kernels/few-rows.md and tile-products.md tell why.
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
  int group, w0, row0, rank;  // the tile; the block's number in the cluster
  int first, steps;           // its part of k, in stages

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

/// Four sums of all blocks, added in the order of k.
template <int kSplit>
__device__ __forceinline__ float4 add_parts(const uint32_t (&parts)[kSplit], uint32_t at) {
  float4 v[kSplit];
#pragma unroll
  for (int i = 0; i < kSplit; ++i) v[i] = cluster_load4(parts[i] + at);
#pragma unroll
  for (int i = 1; i < kSplit; ++i) {
    v[0].x += v[i].x;
    v[0].y += v[i].y;
    v[0].z += v[i].z;
    v[0].w += v[i].w;
  }
  return v[0];
}

/// Four results next to each other, of which `left` exist; `whole` if they may be written at once, `residual` is then
/// what to add.
__device__ __forceinline__ void emit_four(const Product& p, int64_t at, int64_t left, bool whole, uint2 residual,
                                          float4 v) {
  if (!whole) {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < left) put(p, at + i, values[i]);
    return;
  }
  v = {v.x + bf16_low(residual.x), v.y + bf16_high(residual.x), v.z + bf16_low(residual.y),
       v.w + bf16_high(residual.y)};
  if (p.y_dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = v;
  } else {
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.y) + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
}

/// This block's share of the tile's results: some of its rows, kTogether of them at once, four columns
/// a thread: what comes from other multiprocessors is asked for together and waited for once.
template <class W, int kSplit, int kTogether>
__device__ __forceinline__ void emit_parts(const SplitBlock<W>& b) {
  const Product& p = b.p;
  uint32_t parts[kSplit];
#pragma unroll
  for (int i = 0; i < kSplit; ++i) parts[i] = cluster_address(shared_address(b.shared), i);
  const int across = p.gated ? 16 : 32, stride = b.kMath / across;  // threads of a row; rows at a time
  const int i = static_cast<int>(threadIdx.x) % across;
  const int64_t n = (p.gated ? b.w0 / 2 : b.w0) + i * 4, columns = p.gated ? p.n / 2 : p.n;
  const bool whole =
      p.y_row % 4 == 0 && p.y_group % 4 == 0 && aligned16(p.y) && aligned16(p.residual) && n + 4 <= columns;
  const int64_t base = b.group * p.y_group + n;
  const auto place = [&](int row) { return base + (b.row0 + row) * p.y_row; };
  const int rows = min(b.plan.tokens, static_cast<int>(p.rows) - b.row0);
  const int end = rows * (b.rank + 1) / kSplit;
  for (int first = rows * b.rank / kSplit + static_cast<int>(threadIdx.x) / across; first < end;
       first += kTogether * stride) {
    float4 v[kTogether];
    uint2 residual[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int row = min(first + j * stride, end - 1);
      residual[j] = make_uint2(0, 0);
      if (p.residual != nullptr && whole)
        residual[j] = *reinterpret_cast<const uint2*>(static_cast<const Bf16*>(p.residual) + place(row));
      const uint32_t at = (row * b.kPitch + (p.gated ? i / 2 * 16 + i % 2 * 4 : i * 4)) * sizeof(float);
      v[j] = add_parts<kSplit>(parts, at);
      if (p.gated) {
        const float4 up = add_parts<kSplit>(parts, at + 8 * sizeof(float));
        v[j] = {gate_up(v[j].x, up.x), gate_up(v[j].y, up.y), gate_up(v[j].z, up.z), gate_up(v[j].w, up.w)};
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int row = first + j * stride;
      if (row < end && n < columns) emit_four(p, place(row), columns - n, whole, residual[j], v[j]);
    }
  }
}

template <class W, int kMostTokens>
__global__ void __launch_bounds__(SplitBlock<W>::kThreads,
                                  SplitBlock<W>::kScaled || kMostTokens > kSplitFewTokens ? 1 : 2)
    product_split_kernel(const __grid_constant__ Product p, const __grid_constant__ SplitPlan plan,
                         const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
  using B = SplitBlock<W>;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(8) uint64_t barrier_words[2 * kSplitStages];
  const int warp = threadIdx.x / 32, tile = static_cast<int>(blockIdx.x) / plan.split;
  B b{.p = p, .plan = plan, .shared = shared, .barriers = shared_address(barrier_words)};
  const int weight_tile = tile / plan.token_tiles;  // of all groups
  b.group = weight_tile / plan.weight_tiles;
  b.w0 = (weight_tile - b.group * plan.weight_tiles) * kSplitWeights;
  b.row0 = (tile - weight_tile * plan.token_tiles) * plan.tokens;
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
                  plan.token_tiles == 1 ? kEvictFirst : kEvictNormal);
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
                    (b.first + step) * B::kStageK + half * 64, b.row0, b.group, kEvictNormal);
        at.advance(plan.stages);
      }
    }
  } else {
    pdl_wait();
    pdl_launch_dependents();
    if constexpr (kMostTokens > kSplitFewTokens) {
      hold_sums<W, 64, 96, 128, 176, 256>(b);
    } else {
      hold_sums<W, 24, 32, 40, 48, 56, 64, 80, 96, 128>(b);
    }
  }
  __syncwarp();
  cluster_sync();
  if (threadIdx.x < B::kMath) {
    constexpr int kRows = kMostTokens > kSplitFewTokens ? 8 : 1;
    if (plan.split == 2) emit_parts<W, 2, kRows>(b);
    if (plan.split == 3) emit_parts<W, 3, (kRows + 1) / 2>(b);
    if (plan.split == 4) emit_parts<W, 4, (kRows + 1) / 2>(b);
    if (plan.split == 8) emit_parts<W, 8, (kRows + 3) / 4>(b);
  }
  __syncwarp();
  cluster_arrive_relaxed();  // what this block read is in its registers, whose stores have been issued
  cluster_wait();            // nobody leaves while others read its sums
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W, int kMostTokens>
cudaError_t launch_split(const Product& p, const SplitPlan& plan, cudaStream_t stream) {
  CUtensorMap w_map{}, x_map{};
  const int64_t w_dims[] = {p.k, p.n, p.groups}, w_strides[] = {p.k, p.groups > 1 ? p.w_group : p.n * p.k};
  const int64_t x_dims[] = {p.k, p.rows, p.groups},
                x_strides[] = {p.x_row, p.groups > 1 ? p.x_group : p.rows * p.x_row};
  const int w_box[] = {SplitBlock<W>::kStageK, kSplitWeights, 1}, x_box[] = {64, plan.tokens, 1};
  if (!make_tensor_map(p.w, p.w_dtype, w_dims, w_strides, w_box, Swizzle::k128, &w_map).ok() ||
      !make_tensor_map(p.x, p.x_dtype, x_dims, x_strides, x_box, Swizzle::k128, &x_map).ok())
    return cudaErrorInvalidValue;
  const auto blocks = static_cast<unsigned>(p.groups * plan.weight_tiles * plan.token_tiles * plan.split);
  return launch_clusters(product_split_kernel<W, kMostTokens>, dim3(blocks), dim3(SplitBlock<W>::kThreads), plan.split,
                         static_cast<size_t>(plan.bytes), stream, p, plan, w_map, x_map);
}

}  // namespace mla::cuda
