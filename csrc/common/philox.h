// philox.h - the random numbers of both backends, bit for bit the same on the CPU and on the GPU.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a function of a
// 64-bit key and a 128-bit counter, so a number depends on where it is used and on nothing that happened before.
//
//   use          key        counter                       words
//   sample       seeds[b]   (positions[b], id / 4, 0, 0)  word id % 4 -> uniform -> Gumbel noise of token `id`
//   fillRandom   seed       (i low, i high, 0, 0)         words 0 and 1 -> uniforms -> standard normal of element i
//
// A key's first word is the low half of the seed, its second the high half.
// uniform:  u = (2 * (word >> 9) + 1) * 2^-24, one of 2^23 equidistant values strictly inside (0, 1), exact in float32.
//           (24 random bits plus a half would not fit: the largest rounds to 1, and log(-log(1)) is infinite.)
// gumbel:   g = -log(-log(u))
// normal:   z = sqrt(-2 log(u0)) * cos(2 pi u1)
// log and cos are written out here with fused multiply-adds only, because libraries differ in the last bit. No product
// below feeds a plain + or -, so a compiler has nothing to contract; do not build users of this file with fast-math.
//
// Everything has internal linkage: this file is compiled for several instruction sets in one binary.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define MLA_PHILOX_FN static __host__ __device__ __forceinline__
#else
#define MLA_PHILOX_FN static inline __attribute__((always_inline))
#endif

namespace mla {

struct PhiloxWords {
  uint32_t w[4];
};

MLA_PHILOX_FN PhiloxWords philox4x32_10(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

MLA_PHILOX_FN float philox_uniform(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>((word >> 9) * 2 + 1)) * 0x1p-24f;
}

/// Natural logarithm of a positive normal float, within 3 ulp: log(2^k m) = k ln 2 + 2 atanh((m - 1) / (m + 1)) with m
/// between sqrt(1/2) and sqrt(2), where five terms of the series are enough.
MLA_PHILOX_FN float philox_log(float x) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  int32_t bits;
  memcpy(&bits, &x, 4);
  const int32_t k = (bits - kSqrtHalf) >> 23;
  bits -= k * (1 << 23);
  float m;
  memcpy(&m, &bits, 4);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  float p = 2.0f / 9.0f;
  p = __builtin_fmaf(p, z, 2.0f / 7.0f);
  p = __builtin_fmaf(p, z, 2.0f / 5.0f);
  p = __builtin_fmaf(p, z, 2.0f / 3.0f);
  p = __builtin_fmaf(p, z, 2.0f);
  return __builtin_fmaf(static_cast<float>(k), 0x1.62e43p-1f, s * p);
}

/// Gumbel noise, between -2.82 and 16.64.
MLA_PHILOX_FN float philox_gumbel(uint32_t word) { return -philox_log(-philox_log(philox_uniform(word))); }

/// cos(2 pi u) for u in (0, 1): with b = 1/4 - |u - 1/2| (exact) it is -sin(2 pi b), |2 pi b| <= pi / 2.
MLA_PHILOX_FN float philox_cos_2pi(float u) {
  const float t = u - 0.5f;
  const float b = 0.25f - (t < 0 ? -t : t);
  const float z = b * b;
  float p = 3.8199525848482821f;  // (2 pi)^(2j+1) / (2j+1)!, j = 6 .. 0
  p = __builtin_fmaf(p, z, -15.094642576822991f);
  p = __builtin_fmaf(p, z, 42.058693944897655f);
  p = __builtin_fmaf(p, z, -76.705859753061386f);
  p = __builtin_fmaf(p, z, 81.605249276075054f);
  p = __builtin_fmaf(p, z, -41.341702240399760f);
  p = __builtin_fmaf(p, z, 6.2831853071795865f);
  return -(b * p);
}

/// Standard normal from two words.
MLA_PHILOX_FN float philox_normal(uint32_t word0, uint32_t word1) {
  const float r = __builtin_sqrtf(-2.0f * philox_log(philox_uniform(word0)));
  return r * philox_cos_2pi(philox_uniform(word1));
}

}  // namespace mla
