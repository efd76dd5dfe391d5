// cache_row.h - rows of an fp8 latent cache (ops/fp8_row.h) from floats and back.
#pragma once
#include "cpu/kernels/simd.h"
#include "ops/fp8_row.h"

namespace mla::cpu::MLA_CPU_ISA {

/// x [c + r] as a row.
MLA_INLINE void store_fp8_row(const float* x, const Fp8Row& at, uint8_t* row) {
  std::memset(row, 0, static_cast<size_t>(at.bytes()));
  for (int64_t block = 0; block < at.scales(); ++block) {
    const int64_t begin = block * kRowScaleChannels;
    const int64_t end = begin + kRowScaleChannels < at.c ? begin + kRowScaleChannels : at.c;
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t size = float_bits(x[i]) & 0x7fffffffu;
      largest = size > largest ? size : largest;
    }
    const uint32_t scale = row_scale_bits(largest);
    const float inverse = float_from_bits(row_inverse_bits(scale));
    for (int64_t i = begin; i < end; ++i) row[i] = to_f8e4m3(x[i] * inverse).bits;
    std::memcpy(row + at.scale_at() + 4 * block, &scale, sizeof scale);
  }
  narrow(x + at.c, at.r, reinterpret_cast<Bf16*>(row + at.rope_at()));
}

/// n elements of any two types, rounded if need be.
template <class From, class To>
MLA_INLINE void copy_elements(const From* from, int64_t n, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_tail(to + i, load_tail(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

/// A row as latent [c] and rope [r], float or Bf16; either holds them exactly.
template <class To>
MLA_INLINE void load_fp8_row(const uint8_t* row, const Fp8Row& at, To* latent, To* rope) {
  for (int64_t block = 0; block < at.scales(); ++block) {
    float scale;
    std::memcpy(&scale, row + at.scale_at() + 4 * block, sizeof scale);
    const int64_t begin = block * kRowScaleChannels;
    const int64_t n = at.c - begin < kRowScaleChannels ? at.c - begin : kRowScaleChannels;
    const F8E4M3* const codes = reinterpret_cast<const F8E4M3*>(row + begin);
    To* const to = latent + begin;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i, load(codes + i) * set1(scale));
    const int rest = static_cast<int>(n - i);
    if (rest > 0) store_tail(to + i, load_tail(codes + i, rest) * set1(scale), rest);
  }
  copy_elements(reinterpret_cast<const Bf16*>(row + at.rope_at()), at.r, rope);
}

}  // namespace mla::cpu::MLA_CPU_ISA
