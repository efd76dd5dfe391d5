// product_wgmma_scaled.cuh - the parts of product_wgmma.cuh: multiplication with fp8 weights, which become bf16 in
// registers, where wgmma's A may stand.
//
// A scale is factor * 2^exponent. The power of two goes into the codes, exactly; the sums are kept in units of the
//   factor, which may change with each segment of 128 k: sums *= factor before / factor now. So no second set of sums
//   is needed, and a tile can have 256 tokens as with bf16 weights.
// The weights of the next stage are converted while products run; sums change their unit when none of theirs is under
//   way, which costs 0.23 us for each 128 k with tiles of 256 tokens, a sixth of all, although the other warpgroup's
//   products could run then. That the two take turns in asking for products is worth 5 % (H200, 2026-11).
#pragma once
#include "cuda/gemm/product_wgmma_device.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {

/// Two neighbouring codes as bf16, times a power of two: `power` is it times 2^120, twice.
__device__ __forceinline__ uint32_t codes_to_bf16(uint16_t codes, uint32_t power) {
  uint32_t extended, out;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(extended) : "r"(static_cast<uint32_t>(codes)));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(extended << 4 & 0x87f087f0u), "r"(power), "r"(0x80008000u));
  return out;
}

/// A scale as factor * 2^exponent: the factor lies in [1, 2) unless the scale is out of all proportion. Scale 0: no
/// code counts, and any factor will do.
struct SplitScale {
  float factor;
  uint32_t power;  // 2^(120 + exponent) as bf16, twice

  __device__ SplitScale(float scale, float factor_before) : factor(factor_before), power(0) {
    if (scale == 0) return;
    constexpr int kLeast = -100, kMost = 7;
    const int exponent = min(max(static_cast<int>(__float_as_uint(scale) >> 23 & 255) - 127, kLeast), kMost);
    factor = scale * __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
    power = static_cast<uint32_t>(247 + exponent) << 7;
    power |= power << 16;
  }
};

constexpr int kTurn = 3;  // named barriers: the first warpgroup's turn, the second one's

/// Before the first tile, and behind the last one.
__device__ __forceinline__ void begin_turns() {
  if (threadIdx.x >= 128) named_barrier_arrive(kTurn, kMathThreads);
}
__device__ __forceinline__ void end_turns() {
  if (threadIdx.x < 128) named_barrier_sync(kTurn, kMathThreads);
}

template <class S, int N>
struct ScaledTile {
  static constexpr int kSixteens = S::kStageK / 16;
  using Weights = uint32_t[kSixteens][4];  // a stage's, of this lane, as bf16

  const WgmmaShared<S>& shared;
  RingCursor<S::kStages>& at;
  float (&d)[N / 2];
  const float *low_scales = nullptr, *high_scales = nullptr;  // of the segments; null past the end of w
  const unsigned char* codes;                                 // of this lane in the first stage
  SplitScale low{0, 1}, high{0, 1};
  float next_low = 0, next_high = 0;  // scales of the next segment
  int segments;

  __device__ __forceinline__ ScaledTile(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                        RingCursor<S::kStages>& at, float (&d)[N / 2])

      : shared(shared), at(at), d(d), segments(static_cast<int>((p.k + kSegment - 1) / kSegment)) {
    const int64_t block = (p.gated ? tile.w0 / 2 : tile.w0) / kSegment;
    if (tile.w0 < p.n) {  // else it is the second of a pair past the end
      low_scales = p.scale + tile.group * p.scale_group + block * segments;
      high_scales = low_scales + (p.gated ? div_up<int64_t>(p.n / 2, kSegment) * segments : 0);
    }
    const int lane = threadIdx.x % 32;
    codes = shared.base + (threadIdx.x / 32 * 16 + lane / 4) * 64 + lane % 4 * 2;
    ask(0);
    low = SplitScale(next_low, 1);
    high = SplitScale(next_high, 1);
    ask(1);
  }

  __device__ __forceinline__ void ask(int segment) {
    if (low_scales == nullptr || segment >= segments) return;
    next_low = low_scales[segment];
    next_high = high_scales[segment];
  }

  __device__ __forceinline__ void rescale(float by_low, float by_high) {
    if (by_low == 1 && by_high == 1) return;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] *= i % 4 < 2 ? by_low : by_high;
  }

  /// The weights of the stage at `at`, for which it waits.
  __device__ __forceinline__ void convert(Weights& a) {
    mbarrier_wait(shared.full(at.stage), at.filled);
    if constexpr (S::kGathered) fence_proxy_async();
    const unsigned char* const stage = codes + at.stage * S::kStageBytes;
    const int swizzle = threadIdx.x % 32 / 8;  // half the row
    const auto pair = [&](int row8, int k8, uint32_t power) {
      const int piece = (k8 / 2 % 4 ^ swizzle) * 16 + k8 % 2 * 8;
      return codes_to_bf16(*reinterpret_cast<const uint16_t*>(stage + k8 / 8 * S::kWHalfBytes + row8 * 512 + piece),
                           power);
    };
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) {
      a[i][0] = pair(0, 2 * i, low.power);
      a[i][1] = pair(1, 2 * i, high.power);
      a[i][2] = pair(0, 2 * i + 1, low.power);
      a[i][3] = pair(1, 2 * i + 1, high.power);
    }
  }

  /// Asks for d += (or =) the weights times the tokens of the stage at `at`, and goes on to the next one. Returns which
  /// it was. The warpgroups take turns.
  __device__ __forceinline__ uint32_t ask_products(const Weights& a, bool add) {
    const uint32_t multiplied = at.stage, tokens = shared.stage(multiplied) + S::kWBytes;
    const int warpgroup = threadIdx.x / 128;
    at.advance();
    named_barrier_sync(kTurn + warpgroup, kMathThreads);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSixteens; ++i) {
      const uint64_t b = wgmma_tile(tokens + i / 4 * S::kHalfBytes, 16, 1024) + i % 4 * 2;
      Wgmma<N>::bf16(d, a[i], b, add || i > 0);
    }
    wgmma_commit();
    named_barrier_arrive(kTurn + (1 - warpgroup), kMathThreads);
    return multiplied;
  }

  /// The weights of the stage at `at`, which begins segment `segment`; `low_change` and `high_change` receive what it
  /// does to sums.
  __device__ __forceinline__ void convert_next(Weights& a, int segment, float& low_change, float& high_change) {
    const float low_before = low.factor, high_before = high.factor;
    low = SplitScale(next_low, low_before);
    high = SplitScale(next_high, high_before);
    low_change = low_before / low.factor;
    high_change = high_before / high.factor;
    ask(segment + 1);
    convert(a);
  }

  /// All stages of the tile.
  __device__ __forceinline__ void multiply() {
    Weights even, odd;
    convert(even);
    if constexpr (S::kStageK == kSegment) {
      const auto multiply_segment = [&](int segment, const Weights& a, Weights& next) {
        float low_change = 1, high_change = 1;
        const uint32_t stage = ask_products(a, segment > 0);
        if (segment + 1 < segments) convert_next(next, segment + 1, low_change, high_change);
        wgmma_wait<0>();
        keep(d);
        release_stage<S>(shared, stage);
        rescale(low_change, high_change);
      };
#pragma unroll 1
      for (int segment = 0; segment < segments; segment += 2) {
        multiply_segment(segment, even, odd);
        if (segment + 1 < segments) multiply_segment(segment + 1, odd, even);
      }
    } else {
#pragma unroll 1
      for (int segment = 0; segment < segments; ++segment) {
        float low_change = 1, high_change = 1;
        const uint32_t first = ask_products(even, segment > 0);
        convert(odd);
        const uint32_t second = ask_products(odd, true);
        wgmma_wait<1>();
        release_stage<S>(shared, first);
        if (segment + 1 < segments) convert_next(even, segment + 1, low_change, high_change);
        wgmma_wait<0>();
        keep(d);
        release_stage<S>(shared, second);
        rescale(low_change, high_change);
      }
    }
    rescale(low.factor, high.factor);
  }
};

}  // namespace mla::cuda
