// float_types.h - the narrow floating-point formats as bit patterns, and their scalar conversions.
//
// Everything here is forced inline: these functions are used by files compiled for several instruction sets, and an
// out-of-line copy could be merged with one that the running processor cannot execute.
#pragma once
#include <cstdint>

#include "common/dtype.h"

#define MLA_ALWAYS_INLINE static inline __attribute__((always_inline))

namespace mla {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
/// The "fn" variant: no infinities, 0x7f and 0xff are NaN, the largest value is 448.
struct F8E4M3 {
  uint8_t bits;
};
/// A power of two, 2^(bits - 127); 255 is NaN.
struct F8E8M0 {
  uint8_t bits;
};

MLA_ALWAYS_INLINE uint32_t float_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
MLA_ALWAYS_INLINE float float_from_bits(uint32_t u) { return __builtin_bit_cast(float, u); }

MLA_ALWAYS_INLINE float to_f32(float x) { return x; }
MLA_ALWAYS_INLINE float to_f32(Bf16 x) { return float_from_bits(static_cast<uint32_t>(x.bits) << 16); }

MLA_ALWAYS_INLINE float to_f32(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // The exponent lands 112 too low; the product with 2^112 also makes subnormals right.
  return float_from_bits(sign | float_bits(float_from_bits(magnitude << 13) * 0x1p112f));
}

MLA_ALWAYS_INLINE float to_f32(F8E4M3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return float_from_bits(sign | 0x7fc00000u);
  return float_from_bits(sign | float_bits(float_from_bits(magnitude << 20) * 0x1p120f));
}

MLA_ALWAYS_INLINE float to_f32(F8E8M0 x) {
  if (x.bits == 255) return float_from_bits(0x7fc00000u);
  if (x.bits == 0) return 0x1p-127f;
  return float_from_bits(static_cast<uint32_t>(x.bits) << 23);
}

/// Round to nearest even; NaN stays NaN (quiet).
MLA_ALWAYS_INLINE Bf16 to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// Round to nearest even; beyond 65504 infinity.
MLA_ALWAYS_INLINE F16 to_f16(float x) {
  const uint32_t u = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts units of 2^-24 in the lowest mantissa bit, and the addition rounds to nearest even.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

/// Round to nearest even, saturating at 448; NaN stays NaN.
MLA_ALWAYS_INLINE F8E4M3 to_f8e4m3(float x) {
  const uint32_t u = float_bits(x);
  const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint8_t>(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return {static_cast<uint8_t>(sign | 0x7eu)};  // 448 and above
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^14 puts units of 2^-9 in the lowest mantissa bit.
    const float shifted = float_from_bits(magnitude) + 0x1p14f;
    return {static_cast<uint8_t>(sign | (float_bits(shifted) - 0x46800000u))};
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20))};
}

MLA_ALWAYS_INLINE void convert(float x, float* out) { *out = x; }
MLA_ALWAYS_INLINE void convert(float x, Bf16* out) { *out = to_bf16(x); }
MLA_ALWAYS_INLINE void convert(float x, F16* out) { *out = to_f16(x); }
MLA_ALWAYS_INLINE void convert(float x, F8E4M3* out) { *out = to_f8e4m3(x); }

}  // namespace mla
