// fp8_rows.cuh - rows of an fp8 latent cache (ops/fp8_row.h) as numbers. All conversions are exact.
#pragma once
#include "cuda/device/numeric.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {

/// Elements of Cache that a row has: c + r, or for fp8 its bytes.
template <class Cache>
__device__ __forceinline__ int64_t cache_row_elements(int64_t c, int64_t r) {
  return c + r;
}
template <>
__device__ __forceinline__ int64_t cache_row_elements<F8E4M3>(int64_t c, int64_t r) {
  return Fp8Row{c, r}.bytes();
}

__device__ __forceinline__ float row_scale(const F8E4M3* row, const Fp8Row& at, int64_t channel) {
  return reinterpret_cast<const float*>(row + at.scale_at())[channel / kRowScaleChannels];
}

/// Latent channel i.
__device__ __forceinline__ float load1_scaled(const F8E4M3* row, const Fp8Row& at, int64_t i) {
  return to_float(row[i]) * row_scale(row, at, i);
}

/// Latent channels i to i + 7; i is a multiple of 8.
__device__ __forceinline__ void load8_scaled(const F8E4M3* row, const Fp8Row& at, int64_t i, float (&v)[8]) {
  const uint2 codes = *reinterpret_cast<const uint2*>(row + i);
  const float scale = row_scale(row, at, i);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint32_t word = j < 4 ? codes.x : codes.y;
    v[j] = to_float(F8E4M3{static_cast<uint8_t>(word >> 8 * (j % 4))}) * scale;
  }
}

/// Eight codes as bf16 times a scale, its float32 bits; for a scale that is no number, NaN.
__device__ __forceinline__ uint4 f8_to_bf16_scaled(uint2 codes, uint32_t scale) {
  const uint32_t pair = __byte_perm(scale, scale, 0x3232);  // a power of two has no further bits
  uint4 v;
  f8_to_bf16(codes.x, v.x, v.y);
  f8_to_bf16(codes.y, v.z, v.w);
  return make_uint4(scale_bf16(v.x, pair), scale_bf16(v.y, pair), scale_bf16(v.z, pair), scale_bf16(v.w, pair));
}

}  // namespace mla::cuda
