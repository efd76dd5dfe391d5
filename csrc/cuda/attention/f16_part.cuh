// f16_part.cuh - partial results of attention over a part of the keys, in f16: half the bytes of float32 to write and
// to read again, which is what batches of few sequences wait for.
//
// A row of a part is u = sum p * latent, l = sum p, both relative to m: a merge adds up u * 2^m and l * 2^m. So
// (m - k, l * 2^k, u * 2^k) is the same row. k brings the largest |u| of the row to the upper end of f16's range; what
// is rounded then is off by 2^-12 of itself, an eighth of what the rounding of probabilities and results to bf16 is,
// down to 2^-28 of the row's largest.
//
// Columns: a lane of a product's output has two in every 8 of a row. Of each 32 columns its eight stand side by side,
// so that writing them takes no exchange: place 32 b + 8 q + 2 i + j is column 32 b + 8 i + 2 q + j.
#pragma once
#include <cstdint>

namespace mla::cuda {

/// The column at a place of a row.
__device__ __forceinline__ int part_column(int place) {
  return place / 32 * 32 + place % 8 / 2 * 8 + place % 32 / 8 * 2 + place % 2;
}

/// k of a row. It has bounds: parts must not come to be further apart than the exponents of float32.
__device__ __forceinline__ int part_power(float largest) {
  const int exponent = (__float_as_int(largest) >> 23) - 127;
  return min(max(14 - exponent, -100), 20);
}

__device__ __forceinline__ float power_of_two(int power) { return __int_as_float((127 + power) << 23); }

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

__device__ __forceinline__ float2 unpack_f16(uint32_t pair) {
  float2 out;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
      : "=f"(out.x), "=f"(out.y)
      : "r"(pair));
  return out;
}

}  // namespace mla::cuda
