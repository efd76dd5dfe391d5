// product_wgmma_scaled.cuh - the parts of product_wgmma.cuh: multiplication with fp8 weights, which become bf16 in
// registers, where wgmma's A may stand.
//
// Sums are kept in units that may change with each segment of 128 k (product_codes.cuh), so no second set of them is
//   needed, and a tile can have 256 tokens as with bf16 weights. Scales come with their stage: a load of their own at
//   the beginning of each tile costs 4 % with tiles of 256 tokens.
// Few tokens: the conversion is the bound. Two blocks of a multiprocessor take turns by themselves; stages are 128 k,
//   because boxes of 64 bytes a row cost 3 to 5 % (gate and up of V2-Lite, 12 rows an expert; H200, 2026-11).
// Many tokens: the weights of the next stage are converted while products run; sums change their unit when none of
//   theirs is under way. That the warpgroups take turns in asking for products is worth 5 %.
#pragma once
#include "cuda/gemm/product_codes.cuh"
#include "cuda/gemm/product_wgmma_device.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {

/// 64 k of weights of one lane, as bf16.
using ScaledWeights = uint32_t[4][4];

constexpr int kTurn = 3;  // named barriers: the first warpgroup's turn, the second one's

/// Before the first tile, and behind the last one.
__device__ __forceinline__ void begin_turns() {
  if (threadIdx.x >= 128) named_barrier_arrive(kTurn, kMathThreads);
}
__device__ __forceinline__ void end_turns() {
  if (threadIdx.x < 128) named_barrier_sync(kTurn, kMathThreads);
}

/// The sums of one tile. Few tokens: a stage is a segment; many tokens: two stages are one.
template <class S, int N>
struct ScaledTile {
  const WgmmaShared<S>& shared;
  RingCursor<S::kStages>& at;  // the stage that is converted next
  float (&d)[N / 2];
  int segments;
  const unsigned char* codes;  // of this lane in the first stage
  SplitScale low{0, 1}, high{0, 1};

  __device__ __forceinline__ ScaledTile(const Product& p, const WgmmaShared<S>& shared, RingCursor<S::kStages>& at,
                                        float (&d)[N / 2])
      : shared(shared), at(at), d(d), segments(static_cast<int>((p.k + kSegment - 1) / kSegment)) {
    const int lane = threadIdx.x % 32;
    codes = shared.base + (threadIdx.x / 32 * 16 + lane / 4) * S::kStageK + lane % 4 * 2;
  }

  /// All stages of the tile.
  __device__ __forceinline__ void multiply() {
    if constexpr (S::kStageK == kSegment) {
      multiply_few();
    } else {
      static_assert(2 * S::kStageK == kSegment);
      multiply_many();
    }
    rescale(low.factor, high.factor);
  }

 private:
  __device__ __forceinline__ void rescale(float by_low, float by_high) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] *= i % 4 < 2 ? by_low : by_high;
  }

  /// The scales that came with the stage at `at`.
  __device__ __forceinline__ void take_scales() {
    const float2 scales = shared.scales(at.stage);
    low = SplitScale(scales.x, low.factor);
    high = SplitScale(scales.y, high.factor);
  }

  /// 64 k of the stage at `at`: its first ones, or its second.
  __device__ __forceinline__ void convert(ScaledWeights& a, int half) {
    const unsigned char* const stage = codes + at.stage * S::kStageBytes;
    const int swizzle = threadIdx.x % 32 / (512 / S::kStageK);
    const auto pair = [&](int row8, int k8, uint32_t power) {
      const int piece = (half * 4 + k8 / 2 ^ swizzle) * 16 + k8 % 2 * 8;
      return codes_to_bf16(*reinterpret_cast<const uint16_t*>(stage + row8 * 8 * S::kStageK + piece), power);
    };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i][0] = pair(0, 2 * i, low.power);
      a[i][1] = pair(1, 2 * i, high.power);
      a[i][2] = pair(0, 2 * i + 1, low.power);
      a[i][3] = pair(1, 2 * i + 1, high.power);
    }
  }

  // ---- few tokens

  /// Waits for the stage at `at` and goes on to its scales.
  __device__ __forceinline__ void begin_stage() {
    mbarrier_wait(shared.full(at.stage), at.filled);
    if constexpr (S::kGathered) fence_proxy_async();  // cp.async wrote what wgmma reads
    take_scales();
  }

  /// Asks for d += (or =) the weights times the tokens of half a stage.
  __device__ __forceinline__ void ask_half(const ScaledWeights& a, uint32_t stage, int half, bool add) {
    const uint64_t b = wgmma_tile(shared.stage(stage) + S::kWBytes + half * S::kHalfBytes, 16, 1024);
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<N>::bf16(d, a[i], b + 2 * i, add || i > 0);
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_few() {
    ScaledWeights first, second;
    begin_stage();
    convert(first, 0);
    convert(second, 1);
#pragma unroll 1
    for (int segment = 0; segment < segments; ++segment) {
      const uint32_t stage = at.stage;
      const float low_before = low.factor, high_before = high.factor;
      wgmma_fence();
      ask_half(first, stage, 0, segment > 0);
      ask_half(second, stage, 1, true);
      at.advance();
      const bool more = segment + 1 < segments;
      if (more) begin_stage();
      wgmma_wait<1>();
      if (more) convert(first, 0);
      wgmma_wait<0>();
      keep(d);
      release_stage<S>(shared, stage);
      if (more) {
        if (low.factor != low_before || high.factor != high_before)
          rescale(__fdividef(low_before, low.factor), __fdividef(high_before, high.factor));
        convert(second, 1);
      }
    }
  }

  // ---- many tokens

  /// The weights of the next stage, for which it waits; the first of a segment brings new scales. Returns the stage.
  __device__ __forceinline__ uint32_t convert_stage(ScaledWeights& a, bool first) {
    mbarrier_wait(shared.full(at.stage), at.filled);
    if (first) take_scales();
    convert(a, 0);
    const uint32_t converted = at.stage;
    at.advance();
    return converted;
  }

  /// Asks for d += (or =) the weights times the tokens of `stage`. The warpgroups take turns.
  __device__ __forceinline__ void ask_stage(const ScaledWeights& a, uint32_t stage, bool add) {
    const int warpgroup = threadIdx.x / 128;
    const uint64_t b = wgmma_tile(shared.stage(stage) + S::kWBytes, 16, 1024);
    named_barrier_sync(kTurn + warpgroup, kMathThreads);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) Wgmma<N>::bf16(d, a[i], b + 2 * i, add || i > 0);
    wgmma_commit();
    named_barrier_arrive(kTurn + (1 - warpgroup), kMathThreads);
  }

  __device__ __forceinline__ void multiply_many() {
    ScaledWeights even, odd;
    uint32_t even_stage = convert_stage(even, true);
#pragma unroll 1
    for (int segment = 0; segment < segments; ++segment) {
      const float low_before = low.factor, high_before = high.factor;
      const bool more = segment + 1 < segments;
      ask_stage(even, even_stage, segment > 0);
      const uint32_t odd_stage = convert_stage(odd, false);
      ask_stage(odd, odd_stage, true);
      wgmma_wait<1>();
      release_stage<S>(shared, even_stage);
      if (more) even_stage = convert_stage(even, true);
      wgmma_wait<0>();
      keep(d);
      release_stage<S>(shared, odd_stage);
      if (more && (low.factor != low_before || high.factor != high_before))
        rescale(__fdividef(low_before, low.factor), __fdividef(high_before, high.factor));
    }
  }
};

}  // namespace mla::cuda
