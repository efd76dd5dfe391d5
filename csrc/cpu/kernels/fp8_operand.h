// fp8_operand.h - rows of a product's operand as fp8 activations: each value becomes q * 2^e, q an e4m3 and 2^e the
// scale of its row and 128 columns (row_scale_bits() of ops/fp8_row.h). Test: test/cpu/fp8-activations.test.ts.
#pragma once
#include "cpu/kernels/simd.h"
#include "ops/fp8_row.h"

namespace mla::cpu::MLA_CPU_ISA {

/// The nearest e4m3 of each lane, ties to even; 448 beyond it. NaN comes out as a number.
MLA_INLINE F round_e4m3(F v) {
  const U u = (U)v;
  const U sign = u & 0x80000000u;
  const U magnitude = u & 0x7fffffffu;
  const F normal = bitcast_f((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) & 0xfff00000u);
  // Below 2^-6 units are 2^-9, which are the last bits of numbers from 2^14 on.
  const F small = (bitcast_f(magnitude) + set1(0x1p14f)) - set1(0x1p14f);
  const F rounded = bitcast_f(magnitude) < set1(0x1p-6f) ? small : normal;
  return bitcast_f((U)vmin(rounded, set1(448.0f)) | sign);
}

/// The largest magnitude of n <= 128 values, as bits: NaN is above infinity, and that above every number.
MLA_INLINE uint32_t largest_bits(const float* x, int64_t n) {
  U most = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    const U size = (U)(rest == kLanes ? load(x + i) : load_tail(x + i, rest)) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  uint32_t best = most[0];
  for (int lane = 1; lane < kLanes; ++lane) best = most[lane] > best ? most[lane] : best;
  return best;
}

/// A row of n float32 values as fp8 activations, in place.
MLA_INLINE void round_fp8_operand(float* row, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kRowScaleChannels) {
    float* const x = row + begin;
    const int64_t count = n - begin < kRowScaleChannels ? n - begin : kRowScaleChannels;
    const uint32_t bits = row_scale_bits(largest_bits(x, count));
    const F scale = set1(float_from_bits(bits)), inverse = set1(float_from_bits(row_inverse_bits(bits)));
    for (int64_t i = 0; i < count; i += kLanes) {
      const int rest = static_cast<int>(count - i < kLanes ? count - i : kLanes);
      if (rest == kLanes) {
        store(x + i, round_e4m3(load(x + i) * inverse) * scale);
      } else {
        store_tail(x + i, round_e4m3(load_tail(x + i, rest) * inverse) * scale, rest);
      }
    }
  }
}

}  // namespace mla::cpu::MLA_CPU_ISA
