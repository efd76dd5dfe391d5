// few_fp8.cuh - how a warpgroup of the few-rows decode kernel multiplies with a page of an fp8 cache (ops/fp8_row.h).
//
// A page lies in shared memory as it does in the cache, row behind row; rows are an odd multiple of 16 bytes apart, so
// that eight of them meet in no bank. Matrix units take keys and values from registers: 16-bit matrix loads bring
// codes, two in place of each 16-bit element, plain for the scores and transposed for the output, and one instruction
// makes f16 of two of them, without their scale. A scale multiplies what belongs to it: scores of 128 channels, in
// float32, and the probabilities that those channels are multiplied with, which a power of two does not round.
//
// f16 has 11 bits where bf16 has 8, and a narrower range:
//   query           times a power of two for each row. What lies 2^-31 and more below the row's largest loses bits,
//                   2^-39 of the largest at most
//   probabilities   p * 2^11 * scale / the largest scale of these channels so far, which the output is relative to;
//   what
//                   lies 2^-25 and more below the largest probability of the largest scale loses bits, 2^-36 of it at
//                   most. A key whose scale is below 2^-24 of the largest counts as zero in these channels.
//
// Four codes in a register are four neighbouring channels of a key (plain), or two channels of two keys (transposed).
// So in each 16 channels
//   scores   k 2q, 2q + 1, 2q + 8, 2q + 9 are channels 4q .. 4q + 3: the query is put into that order when it arrives
//   output   rows g and g + 8 are channels 2g and 2g + 1
#pragma once
#include "cuda/attention/f16_part.cuh"
#include "cuda/attention/few_item.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda::few {

constexpr int kProbUp = 11;  // probabilities are p * 2^11 in f16
static_assert(kProbUp + kFp8Slack < 16);

/// Products with f16 in place of bf16: A from registers, B K-major.
template <int N>
struct WgmmaF16;
#define MLA_WGMMA_F16(N, D, D1, D2, D3, D4, D5)                                                            \
  template <>                                                                                              \
  struct WgmmaF16<N> {                                                                                     \
    static __device__ __forceinline__ void multiply(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, \
                                                    int accumulate) {                                      \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #D5                                                  \
                   ", 0;\n"                                                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" MLA_WGMMA_TEXT_##N           \
                   "}, {%" #D ",%" #D1 ",%" #D2 ",%" #D3 "}, %" #D4 ", p, 1, 1, 0; }"                      \
                   : MLA_WGMMA_REGISTERS_##N                                                               \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                 \
    }                                                                                                      \
  };
MLA_WGMMA_F16(8, 4, 5, 6, 7, 8, 9)
MLA_WGMMA_F16(16, 8, 9, 10, 11, 12, 13)
MLA_WGMMA_F16(24, 12, 13, 14, 15, 16, 17)
MLA_WGMMA_F16(32, 16, 17, 18, 19, 20, 21)
MLA_WGMMA_F16(48, 24, 25, 26, 27, 28, 29)
#undef MLA_WGMMA_F16

__device__ __forceinline__ uint32_t f16_times(uint32_t x, uint32_t y) {
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(x), "r"(y));
  return out;
}

/// Four codes as f16: 0, 1 and 2, 3.
__device__ __forceinline__ void f8_to_f16(uint32_t four, uint32_t& low, uint32_t& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high)
      : "r"(four));
}

/// Makes f16 of the latent channels of a query that has arrived: each row times a power of two that brings its largest
/// to 2^14 or more, of which `row_scale` receives the inverse; in the order of a lane's codes. A warp takes a row.
template <class S>
__device__ __forceinline__ void prepare_query(uint32_t query, uint32_t row_scale, int thread) {
  const int lane = thread % 32, unit = lane % 4, tile = 1 + lane / 4;  // 16 channels
  const bool mine = tile < S::kTiles;
  for (int row = thread / 32; row < S::kRows; row += S::kConsumers / 32) {
    const uint32_t from = query + tile * S::kQueryTile + row * 128;
    const uint32_t low = from + ((2 * unit ^ row % 8) * 16), high = from + ((2 * unit + 1 ^ row % 8) * 16);
    uint32_t x[8] = {};
    if (mine) {
      const uint4 a = shared_load4(low), b = shared_load4(high);
      x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
      x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = max(largest, max(x[i] & 0x7fff0000u, x[i] << 16 & 0x7fff0000u));
    const int exponent = min(max(static_cast<int>(__reduce_max_sync(kFullWarp, largest) >> 23), 30), 240);
    const float up = __uint_as_float((268 - exponent) << 23), down = __uint_as_float((exponent - 14) << 23);
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      y[i] = __uint_as_float(pack_f16(bf16_low(x[i]) * up, bf16_high(x[i]) * up));
    }
    if (mine) {
      shared_store4(low, y[0], y[2], y[4], y[6]);
      shared_store4(high, y[1], y[3], y[5], y[7]);
    }
    if (lane == 0) shared_store1(row_scale + row * 4, __float_as_uint(down));
  }
}

template <class S>
struct Fp8Page {
  static constexpr Fp8Row kRow{S::kLatent, kRope};
  static constexpr int kN = S::kRows, kRowBytes = static_cast<int>(kRow.bytes());
  static constexpr int kScales = S::kProbs;       // of a row, for this warpgroup's channels
  static constexpr int kSteps = kN > 16 ? 2 : 4;  // of 16 channels or keys that a set of registers holds; there are two
  static_assert(kRowBytes / 16 % 2 == 1 && kRowBytes % 16 == 0);

  uint32_t keys;            // where this lane's matrix rows begin, for the scores
  uint32_t values;          // for the output
  float scale[2][kScales];  // of this thread's keys, warp * 16 + lane / 4 and the eighth behind it

  int half;         // of the team: which channels
  uint32_t scales;  // where the first row's are

  __device__ __forceinline__ Fp8Page(uint32_t page, int half, int warp, int lane)
      : keys(page + (warp * 16 + lane % 16) * kRowBytes + lane / 16 * 16),
        values(page + lane * kRowBytes + warp * 16 + half * S::kOwn * 64),
        half(half),
        scales(page + static_cast<int>(kRow.scale_at()) + half * kScales * 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t from = scales + (warp * 16 + i * 8 + lane / 4) * kRowBytes;
#pragma unroll
      for (int g = 0; g < kScales; ++g) scale[i][g] = __uint_as_float(shared_load1(from + g * 4));
    }
  }

  /// s = rows of the page * query over this warpgroup's channels, rotated ones first, in steps of 16.
  __device__ __forceinline__ void scores(uint64_t query_at, uint32_t row_scale, float (&s)[kN / 2]) const {
    constexpr int kRopeSteps = kRope / 16 / S::kShare, kAll = S::kOwn * 4, kScaleSteps = kRowScaleChannels / 16;
    uint32_t a[2][kSteps][4], codes[kSteps / 2][4];
    float part[kN / 2];             // of the channels of a scale
    float latent_sum[kN / 2] = {};  // of them all, for the query as it is scaled
    const uint64_t latent_at = wgmma_advance(query_at, (1 + half * S::kOwn) * S::kQueryTile);
    const uint32_t latent = keys + half * S::kOwn * 64;
    const auto load = [&](int step) {
#pragma unroll
      for (int k = 0; k < kSteps; k += 2) ldmatrix_x4(codes[k / 2], latent + (step + k) * 16);
    };
    // Sets of registers: rotated channels, then latent ones.
    constexpr int kRopeSets = (kRopeSteps + kSteps - 1) / kSteps;
#pragma unroll
    for (int set = 0; set < kRopeSets; ++set) {
#pragma unroll
      for (int k = 0; k < min(kSteps, kRopeSteps); ++k) {
        ldmatrix_x4(a[set % 2][k],
                    keys + static_cast<int>(kRow.rope_at()) + (half * kRopeSteps + set * kSteps + k) * 32);
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < min(kSteps, kRopeSteps); ++k) {
        Wgmma<kN>::bf16(s, a[set % 2][k], wgmma_advance(query_at, (half * kRopeSteps + set * kSteps + k) * 32),
                        set + k > 0);
      }
      wgmma_commit();
    }
    load(0);
#pragma unroll
    for (int step = 0; step < kAll; step += kSteps) {
      const int set = kRopeSets + step / kSteps;
      uint32_t(&now)[kSteps][4] = a[set % 2];
      if (set > 1) wgmma_wait<1>();  // the products that read these registers before
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          f8_to_f16(codes[k / 2][k % 2 * 2 + i], now[k][i], now[k][2 + i]);
        }
      }
      if (step + kSteps < kAll) load(step + kSteps);
      if (step > 0 && step % kScaleSteps == 0) {
        wgmma_wait<0>();
        add(latent_sum, part, step / kScaleSteps - 1);
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        WgmmaF16<kN>::multiply(part, now[k],
                               wgmma_advance(latent_at, (step + k) / 4 * S::kQueryTile + (step + k) % 4 * 32),
                               (step + k) % kScaleSteps > 0);
      }
      wgmma_commit();
    }
    wgmma_wait<0>();
    keep(s);
    add(latent_sum, part, kScales - 1);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float2 down = shared_load2(row_scale + (j * 8 + threadIdx.x % 4 * 2) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[4 * j + i] += latent_sum[4 * j + i] * (i % 2 == 0 ? down.x : down.y);
    }
  }

  /// Raises the bits of the largest scales to those of keys before `count`; all warps come to the same.
  __device__ __forceinline__ void raise(uint32_t (&largest)[kScales], int count) const {
    const int lane = threadIdx.x % 32;
    uint32_t most[kScales] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = lane + 32 * i;
      if (key >= count) continue;
#pragma unroll
      for (int g = 0; g < kScales; ++g) {
        const uint32_t bits = shared_load1(scales + key * kRowBytes + g * 4);
        if (bits < 0x7f800000u) most[g] = max(most[g], bits);
      }
    }
#pragma unroll
    for (int g = 0; g < kScales; ++g) largest[g] = max(largest[g], __reduce_max_sync(kFullWarp, most[g]));
  }

  /// Probabilities, pairs of f16, as stored for the channels of a scale: times scales relative to the largest one so
  /// far. Keys from `count` on are none.
  __device__ __forceinline__ void scaled(const uint32_t (&pairs)[kN / 4], int g, uint32_t largest, int token, int count,
                                         uint32_t (&to)[kN / 4]) const {
    const float inverse = __uint_as_float((254u << 23) - largest);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float relative = token + 8 * i < count ? scale[i][g] * inverse : 0.0f;
      const uint32_t two = pack_f16(relative, relative);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) to[2 * j + i] = f16_times(pairs[2 * j + i], two);
    }
  }

  /// Zeros in place of this warpgroup's channels of rows from `count` on, where anything may stand.
  __device__ __forceinline__ void clear(int count, int thread) const {
    constexpr int kPieces = S::kOwn * 4;  // of 16 bytes
    const uint32_t from = scales - static_cast<int>(kRow.scale_at()) - half * kScales * 4 + half * S::kOwn * 64;
    for (int x = thread; x < (kTileKeys - count) * kPieces; x += 128) {
      shared_store4(from + (count + x / kPieces) * kRowBytes + x % kPieces * 16, 0, 0, 0, 0);
    }
  }

  /// out += values of the page * probabilities. `read` is called when this warp needs the page no longer.
  template <class Read>
  __device__ __forceinline__ void output(uint64_t prob_at, float (&out)[S::kOwn][kN / 2], Read read) const {
    constexpr int kSets = 4 / kSteps, kAll = S::kOwn * kSets;  // a sub-tile's keys, and all, in sets of registers
    uint32_t a[2][kSteps][4], codes[kSteps / 2][4];
    const auto load = [&](int x) {
#pragma unroll
      for (int k = 0; k < kSteps; k += 2) {
        ldmatrix_x4_trans(codes[k / 2], values + x / kSets * 64 + (x % kSets * kSteps + k) * 16 * kRowBytes);
      }
    };
    load(0);
#pragma unroll
    for (int x = 0; x < kAll; ++x) {
      const int i = x / kSets, step = x % kSets * kSteps;
      if (x > 1) wgmma_wait<1>();
      uint32_t(&now)[kSteps][4] = a[x % 2];
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t four = __byte_perm(codes[k / 2][k % 2 * 2 + half], 0, 0x3120);
          f8_to_f16(four, now[k][2 * half], now[k][2 * half + 1]);
        }
      }
      if (x + 1 < kAll) {
        load(x + 1);
      } else {
        read();
      }
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        WgmmaF16<kN>::multiply(out[i], now[k], wgmma_advance(prob_at, i / 2 * kN * 128 + (step + k) * 32), 1);
      }
      wgmma_commit();
    }
    wgmma_wait<0>();
  }

 private:
  /// s += the scores of 128 channels, times their scales.
  __device__ __forceinline__ void add(float (&s)[kN / 2], float (&part)[kN / 2], int g) const {
    keep(part);
    keep(s);
#pragma unroll
    for (int j = 0; j < kN / 2; ++j) s[j] += part[j] * scale[j / 2 % 2][g];
  }
};

}  // namespace mla::cuda::few
