// fp8_chunk.cuh - fp8 activations in registers: 16 threads, half of a warp, with the 128 columns that share a scale,
// and pairs of codes.
#pragma once
#include "cuda/device/rows.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {

/// The nearest e4m3, ties to even; 448 beyond it. NaN comes out as a number.
__device__ __forceinline__ float round_e4m3(float x) {
  const uint32_t u = __float_as_uint(x), magnitude = u & 0x7fffffffu;
  const float normal = __uint_as_float((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) & 0xfff00000u);
  // Below 2^-6 units are 2^-9, which are the last bits of numbers from 2^14 on.
  const float small = __fsub_rn(__fadd_rn(__uint_as_float(magnitude), 0x1p14f), 0x1p14f);
  const float rounded = fminf(__uint_as_float(magnitude) < 0x1p-6f ? small : normal, 448.0f);
  return __uint_as_float(__float_as_uint(rounded) | (u & 0x80000000u));
}

/// Two floats as 16 bits of two e4m3, `lo` in the low half; rounded as from_float<F8E4M3> does.
__device__ __forceinline__ uint32_t pack_e4m3(float lo, float hi) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
  return from_float<F8E4M3>(lo).bits | static_cast<uint32_t>(from_float<F8E4M3>(hi).bits) << 8;
#else
  uint16_t out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(hi), "f"(lo));
  return out;
#endif
}

/// Eight bf16 as codes under a scale of these bits (row_scale_bits() of ops/fp8_row.h), which may be none.
__device__ __forceinline__ uint2 quantize_eight(uint4 v, uint32_t scale) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  const float by = __uint_as_float(row_inverse_bits(scale));
  uint32_t codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = pack_e4m3(bf16_low(words[i]) * by, bf16_high(words[i]) * by);
  if (scale == kRowNoScale) return make_uint2(0x7f7f7f7f, 0x7f7f7f7f);
  return make_uint2(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

/// v becomes q * 2^e (row_scale_bits() of ops/fp8_row.h). `lanes` call it, one or both halves of a warp; columns past
/// the row's end are zeros.
__device__ __forceinline__ void round_fp8_chunk(unsigned lanes, float (&v)[kChunk]) {
  static_assert(kRowScaleChannels == 16 * kChunk);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) largest = max(largest, __shfl_xor_sync(lanes, largest, offset));
  const uint32_t bits = row_scale_bits(largest);
  const float scale = __uint_as_float(bits), inverse = __uint_as_float(row_inverse_bits(bits));
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = round_e4m3(v[i] * inverse) * scale;
}

}  // namespace mla::cuda
