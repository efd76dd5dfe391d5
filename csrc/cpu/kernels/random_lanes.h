// random_lanes.h - common/philox.h on whole vectors, with the same bits as its scalar functions.
//
// Those bits need a fused multiply-add. Where the instruction set has none, the lanes go through the scalar functions
// (whose fma is then the C library's).
#pragma once
#include "common/philox.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

#if defined(MLA_SIMD_512) || defined(MLA_SIMD_256)

/// Low and high halves of the 64-bit products a[i] * m.
MLA_INLINE void multiply_wide(U a, uint32_t m, U* low, U* high) {
#if defined(MLA_SIMD_512)
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(m));
  const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  *low = (U)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  *high = (U)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#else
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(m));
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  *low = (U)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  *high = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#endif
}

/// philox4x32_10 with one counter per lane; c0..c3 become the four words.
MLA_INLINE void philox_lanes(uint64_t key, U c[4]) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    U a_low, a_high, b_low, b_high;
    multiply_wide(c[0], 0xD2511F53u, &a_low, &a_high);
    multiply_wide(c[2], 0xCD9E8D57u, &b_low, &b_high);
    c[0] = b_high ^ c[1] ^ k0;
    c[2] = a_high ^ c[3] ^ k1;
    c[1] = b_low;
    c[3] = a_low;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

MLA_INLINE F lanes_to_float(I v) { return __builtin_convertvector(v, F); }

MLA_INLINE F uniform_lanes(U words) { return lanes_to_float((I)((words >> 9) * 2 + 1)) * set1(0x1p-24f); }

MLA_INLINE F log_lanes(F x) {
  I bits = bitcast_i(x);
  const I k = (bits - 0x3f3504f3) >> 23;
  bits -= k << 23;
  const F m = bitcast_f(bits);
  const F s = (m - 1.0f) / (m + 1.0f);
  const F z = s * s;
  F p = set1(2.0f / 9.0f);
  p = fma(p, z, set1(2.0f / 7.0f));
  p = fma(p, z, set1(2.0f / 5.0f));
  p = fma(p, z, set1(2.0f / 3.0f));
  p = fma(p, z, set1(2.0f));
  return fma(lanes_to_float(k), set1(0x1.62e43p-1f), s * p);
}

MLA_INLINE F gumbel_lanes(U words) { return -log_lanes(-log_lanes(uniform_lanes(words))); }

MLA_INLINE F cos_2pi_lanes(F u) {
  const F b = set1(0.25f) - vabs(u - 0.5f);
  const F z = b * b;
  F p = set1(3.8199525848482821f);
  p = fma(p, z, set1(-15.094642576822991f));
  p = fma(p, z, set1(42.058693944897655f));
  p = fma(p, z, set1(-76.705859753061386f));
  p = fma(p, z, set1(81.605249276075054f));
  p = fma(p, z, set1(-41.341702240399760f));
  p = fma(p, z, set1(6.2831853071795865f));
  return -(b * p);
}

/// Standard normals of elements i .. i + kLanes; i is a multiple of kLanes.
MLA_INLINE F normal_lanes(uint64_t key, uint64_t i) {
  U c[4] = {U{} + static_cast<uint32_t>(i), U{} + static_cast<uint32_t>(i >> 32), U{}, U{}};
  for (int j = 0; j < kLanes; ++j) c[0][j] += static_cast<uint32_t>(j);
  philox_lanes(key, c);
  return vsqrt(set1(-2.0f) * log_lanes(uniform_lanes(c[0]))) * cos_2pi_lanes(uniform_lanes(c[1]));
}

/// Gumbel noise of ids first .. first + 4 * kLanes at one position; first is a multiple of 4.
MLA_INLINE void gumbel_block(uint64_t key, int32_t position, int32_t first, float* out) {
  U c[4] = {U{} + static_cast<uint32_t>(position), U{} + static_cast<uint32_t>(first / 4), U{}, U{}};
  for (int j = 0; j < kLanes; ++j) c[1][j] += static_cast<uint32_t>(j);
  philox_lanes(key, c);
  float words[4][kLanes];
  for (int w = 0; w < 4; ++w) store(words[w], gumbel_lanes(c[w]));
  for (int j = 0; j < kLanes; ++j) {
    for (int w = 0; w < 4; ++w) out[4 * j + w] = words[w][j];
  }
}

/// mean + stddev * z in one rounding.
MLA_INLINE F scale_normals(F z, float mean, float stddev) { return fma(set1(stddev), z, set1(mean)); }

#else

MLA_INLINE F normal_lanes(uint64_t key, uint64_t i) {
  F z;
  for (int j = 0; j < kLanes; ++j) {
    const uint64_t n = i + static_cast<uint64_t>(j);
    const PhiloxWords r = philox4x32_10(key, static_cast<uint32_t>(n), static_cast<uint32_t>(n >> 32), 0, 0);
    z[j] = philox_normal(r.w[0], r.w[1]);
  }
  return z;
}

MLA_INLINE void gumbel_block(uint64_t key, int32_t position, int32_t first, float* out) {
  for (int j = 0; j < kLanes; ++j) {
    const PhiloxWords r =
        philox4x32_10(key, static_cast<uint32_t>(position), static_cast<uint32_t>(first / 4 + j), 0, 0);
    for (int w = 0; w < 4; ++w) out[4 * j + w] = philox_gumbel(r.w[w]);
  }
}

MLA_INLINE F scale_normals(F z, float mean, float stddev) {
  for (int j = 0; j < kLanes; ++j) z[j] = __builtin_fmaf(stddev, z[j], mean);
  return z;
}

#endif

}  // namespace mla::cpu::MLA_CPU_ISA
