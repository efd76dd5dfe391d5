// fp8_row.h - a row of an fp8 latent cache: where its parts lie, and how a latent is scaled. An fp8 cache is an f8e4m3
// tensor [pages, 64, bytes of a row].
//
//   c e4m3             zeros up to a multiple of 4
//   a float32 scale    per 128 e4m3; zeros up to a multiple of 16
//   r bf16             zeros up to a multiple of 16
//
// c = 512, r = 64: 512 + 16 + 128 = 656 bytes; c = 256: 256 + 8, 8 zeros, 128 = 400 bytes. Channel i of the latent is
// e4m3[i] * scale[i / 128].
//
// A scale is a power of two from 2^-60 to 2^60, the smallest that brings its channels to 448 or below; where even the
// largest does not, they saturate. So every product is zero or a normal bf16, exactly, and reading rounds nothing; and
// bf16 has room for a scale times other powers of two.
// Where a channel is no finite number the scale is NaN, and all its channels are read as NaN.
#pragma once
#include <cstdint>

// Forced inline: files compiled for several instruction sets use it, see common/float_types.h.
#if defined(__CUDACC__)
#define MLA_ROW_FN __host__ __device__ constexpr
#else
#define MLA_ROW_FN __attribute__((always_inline)) constexpr
#endif

namespace mla {

constexpr int kRowScaleChannels = 128;         // of an fp8 row that share a scale
constexpr uint32_t kRowLeastScale = 67;        // exponent bits of 2^-60
constexpr uint32_t kRowMostScale = 187;        // of 2^60
constexpr uint32_t kRowNoScale = 0x7fc00000u;  // NaN

/// Bytes from the beginning of a row, which is a multiple of 16.
struct Fp8Row {
  int64_t c, r;

  MLA_ROW_FN int64_t scales() const { return (c + kRowScaleChannels - 1) / kRowScaleChannels; }
  MLA_ROW_FN int64_t scale_at() const { return (c + 3) / 4 * 4; }
  MLA_ROW_FN int64_t rope_at() const { return (scale_at() + 4 * scales() + 15) / 16 * 16; }
  MLA_ROW_FN int64_t rope_end() const { return rope_at() + 2 * r; }
  MLA_ROW_FN int64_t bytes() const { return (rope_end() + 15) / 16 * 16; }
};

/// The bits of the scale for a largest magnitude of these float32 bits; as integers NaN is above infinity, and that
/// above every number.
MLA_ROW_FN uint32_t row_scale_bits(uint32_t largest) {
  if (largest >= 0x7f800000u) return kRowNoScale;
  // 448 is 1.75 * 2^8.
  const uint32_t exponent = (largest >> 23) + ((largest & 0x7fffffu) > 0x600000u ? 1 : 0);
  const uint32_t scale = exponent < kRowLeastScale + 8 ? kRowLeastScale : exponent - 8;
  return (scale < kRowMostScale ? scale : kRowMostScale) << 23;
}

/// What channels are multiplied with before they are rounded to e4m3: one over the scale, exactly. 1 for NaN.
MLA_ROW_FN uint32_t row_inverse_bits(uint32_t scale) {
  return scale == kRowNoScale ? 127u << 23 : (254u << 23) - scale;
}

}  // namespace mla
