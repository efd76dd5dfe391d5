// simd.h - the small vocabulary of vectors that all CPU kernels are written in.
//
// F is a vector of kLanes floats, I of kLanes int32, U of kLanes uint32 (GCC vector types, so + - * / < > ?: & | << >>
// work lane by lane; a comparison gives an I of 0 or -1). kLanes is 16, 8 or 4 with the instruction set.
//
//   set1(x)  zero()                        all lanes equal
//   load(p)  load_tail(p, n)               p: const float* | const Bf16* | const F16* | const F8E4M3*, any alignment;
//                                          load_tail reads n < kLanes elements and fills with zeros
//   store(p, v)  store_tail(p, v, n)       p: float* | Bf16*, rounding to nearest even
//   fma(a, b, c)                           a * b + c (one rounding where the processor has it)
//   vmax vmin vabs vsqrt bitcast_i bitcast_f
//   any_bits(u)                            whether any bit of any lane is set
//   hsum(v)  hmax(v)                       over the lanes, always in the same order; hsum4 gives four sums at once
//   exp(v)  silu(v)                        relative error of exp below 1e-6; exp(-inf) = 0, exp(+large) = inf, NaN
//   stays dot(a, b, n)  sum_squares(x, n)        of any two loadable types; the order of additions depends on n alone
//   widen(p, n, float* out)  narrow(const float*, n, p)    whole rows
//   round_to<T>(x), round_vec<T>(v)        the value as T would hold it, as float
//   visit_float(dtype, f)                  f(float{}) or f(Bf16{}): `using T = decltype(tag)`
//
// Rules for files that include this one:
// - All code stands inside `namespace mla::cpu::MLA_CPU_ISA`. File-local helpers are `static` or in an unnamed
//   namespace there.
// - No standard containers, std::sort, std::function or std::to_string in a kernel: their out-of-line copies are shared
//   by the linker with the rest of the program and would carry the wrong instructions. Errors are made with
//   invalid_arg() of cpu/errors.h, which is compiled once.
// - Use fma() where a fused product is wanted; the build turns implicit contraction off, so that one formula gives the
//   same bits in every loop it stands in.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/float_types.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef MLA_CPU_ISA
#error "simd.h belongs to files that are compiled per instruction set with MLA_CPU_ISA"
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define MLA_SIMD_512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MLA_SIMD_256 1
#elif defined(__SSE4_1__)
#define MLA_SIMD_128 1
#endif

#define MLA_INLINE static inline __attribute__((always_inline))

namespace mla::cpu::MLA_CPU_ISA {

#if defined(MLA_SIMD_512)
constexpr int kLanes = 16;
#elif defined(MLA_SIMD_256)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));

MLA_INLINE F zero() { return F{}; }
MLA_INLINE F set1(float x) { return x - F{}; }
MLA_INLINE I set1_i(int32_t x) { return x - I{}; }
MLA_INLINE I bitcast_i(F v) { return (I)v; }
MLA_INLINE F bitcast_f(I v) { return (F)v; }
MLA_INLINE F bitcast_f(U v) { return (F)v; }

// ---- loads --------------------------------------------------------------------------------------------------------

/// kLanes unsigned 16-bit integers as 32-bit lanes; bytes likewise, with their sign.
MLA_INLINE U load_u16(const void* p) {
#if defined(MLA_SIMD_512)
  return (U)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(MLA_SIMD_256)
  return (U)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#elif defined(MLA_SIMD_128)
  return (U)_mm_cvtepu16_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
#else
  uint16_t x[kLanes];
  std::memcpy(x, p, sizeof x);
  return U{x[0], x[1], x[2], x[3]};
#endif
}

MLA_INLINE I load_s8(const void* p) {
#if defined(MLA_SIMD_512)
  return (I)_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#elif defined(MLA_SIMD_256)
  return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
#elif defined(MLA_SIMD_128)
  int32_t x;
  std::memcpy(&x, p, sizeof x);
  return (I)_mm_cvtepi8_epi32(_mm_cvtsi32_si128(x));
#else
  int8_t x[kLanes];
  std::memcpy(x, p, sizeof x);
  return I{x[0], x[1], x[2], x[3]};
#endif
}

MLA_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

MLA_INLINE F load(const Bf16* p) { return bitcast_f(load_u16(p) << 16); }

MLA_INLINE F load(const F16* p) {
#if defined(MLA_SIMD_512)
  return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(MLA_SIMD_256)
  return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  float x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = to_f32(p[i]);
  return load(x);
#endif
}

/// f8e4m3 values times 2^-120, exactly; NaN comes out as a number.
MLA_INLINE F load_f8_bits(const F8E4M3* p) {
  // With the sign extended, a shift by 20 puts sign, exponent and mantissa in place and copies of the sign between.
  return bitcast_f((load_s8(p) << 20) & set1_i(static_cast<int32_t>(0x87f00000u)));
}

MLA_INLINE F load(const F8E4M3* p) {
  const I bits = bitcast_i(load_f8_bits(p));
  const F value = bitcast_f(bits) * set1(0x1p120f);
  const I nan = (bits & set1_i(0x07f00000)) == set1_i(0x07f00000);
  return bitcast_f(bitcast_i(value) | (nan & set1_i(0x7fc00000)));
}

template <class T>
MLA_INLINE F load_tail(const T* p, int n) {
  T x[kLanes] = {};
  std::memcpy(x, p, sizeof(T) * static_cast<size_t>(n));
  return load(x);
}

#if defined(MLA_SIMD_512)
MLA_INLINE F load_tail(const float* p, int n) {
  return (F)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
MLA_INLINE F load_tail(const Bf16* p, int n) {
  const __m256i u = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p);
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(u), 16);
}
#endif

// ---- stores -------------------------------------------------------------------------------------------------------

MLA_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }

/// The upper halves of the lanes after rounding to bf16, in the lower halves.
MLA_INLINE U bf16_bits(F v) {
  const U u = (U)v;
  const U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const U quiet = (u >> 16) | 0x40u;
  const I nan = v != v;
  return ((U)nan & quiet) | (~(U)nan & rounded);
}

MLA_INLINE void store(Bf16* p, F v) {
  const U u = bf16_bits(v);
#if defined(MLA_SIMD_512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)u));
#elif defined(MLA_SIMD_256)
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)u, (__m256i)u), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#elif defined(MLA_SIMD_128)
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi32((__m128i)u, (__m128i)u));
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(u[i]);
#endif
}

template <class T>
MLA_INLINE void store_tail(T* p, F v, int n) {
  T x[kLanes];
  store(x, v);
  std::memcpy(p, x, sizeof(T) * static_cast<size_t>(n));
}

#if defined(MLA_SIMD_512)
MLA_INLINE void store_tail(float* p, F v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
}
#endif

// ---- arithmetic ---------------------------------------------------------------------------------------------------

MLA_INLINE F fma(F a, F b, F c) {
#if defined(MLA_SIMD_512)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(MLA_SIMD_256)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/// The lane of b where either is NaN.
MLA_INLINE F vmax(F a, F b) {
#if defined(MLA_SIMD_512)
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(MLA_SIMD_256)
  return (F)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

MLA_INLINE F vmin(F a, F b) {
#if defined(MLA_SIMD_512)
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(MLA_SIMD_256)
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

MLA_INLINE F vabs(F v) { return bitcast_f(bitcast_i(v) & set1_i(0x7fffffff)); }

MLA_INLINE F vsqrt(F v) {
#if defined(MLA_SIMD_512)
  return (F)_mm512_sqrt_ps((__m512)v);
#elif defined(MLA_SIMD_256)
  return (F)_mm256_sqrt_ps((__m256)v);
#elif defined(MLA_SIMD_128)
  return (F)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// ---- over the lanes -----------------------------------------------------------------------------------------------

typedef float F4 __attribute__((vector_size(16)));

/// Adds halves until four lanes are left: lane i gets all lanes that are i mod 4.
MLA_INLINE F4 fold4(F v) {
#if defined(MLA_SIMD_512)
  const __m256 low = _mm512_castps512_ps256((__m512)v);
  const __m256 high = _mm512_extractf32x8_ps((__m512)v, 1);
  const __m256 half = _mm256_add_ps(low, high);
  return (F4)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(MLA_SIMD_256)
  return (F4)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
  return v;
#endif
}

MLA_INLINE float hsum(F v) {
  const F4 x = fold4(v);
  return (x[0] + x[2]) + (x[1] + x[3]);
}

/// {hsum(a), hsum(b), hsum(c), hsum(d)}, with the same bits as hsum.
MLA_INLINE F4 hsum4(F a, F b, F c, F d) {
  const F4 p = fold4(a), q = fold4(b), r = fold4(c), s = fold4(d);
  const F4 pq_low = __builtin_shufflevector(p, q, 0, 4, 1, 5), pq_high = __builtin_shufflevector(p, q, 2, 6, 3, 7);
  const F4 rs_low = __builtin_shufflevector(r, s, 0, 4, 1, 5), rs_high = __builtin_shufflevector(r, s, 2, 6, 3, 7);
  const F4 pq = pq_low + pq_high, rs = rs_low + rs_high;  // (0 + 2 of both), (1 + 3 of both)
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

MLA_INLINE float hmax(F v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

/// Whether any bit of any lane is set.
MLA_INLINE bool any_bits(U v) {
#if defined(MLA_SIMD_512)
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(MLA_SIMD_256)
  return _mm256_testz_si256((__m256i)v, (__m256i)v) == 0;
#elif defined(MLA_SIMD_128)
  return _mm_testz_si128((__m128i)v, (__m128i)v) == 0;
#else
  return (v[0] | v[1] | v[2] | v[3]) != 0;
#endif
}

// ---- functions ----------------------------------------------------------------------------------------------------

MLA_INLINE F exp(F x) {
  // e^x = 2^n * e^r with |r| <= ln2/2; ln2 in two parts keeps r exact, the polynomial is the Taylor series to x^7.
  // Below -104 the result is zero, above 88.8 it is infinite; in between 2^n is applied as two factors in range.
  const F inf = set1(__builtin_inff());
  F v = x > set1(89.0f) ? set1(89.0f) : x;
  v = v < set1(-105.0f) ? set1(-105.0f) : v;
  const F magic = set1(12582912.0f);  // 1.5 * 2^23: the sum has the nearest integer in its low bits
  const F shifted = fma(v, set1(1.44269504088896341f), magic);
  const F n = shifted - magic;
  F r = fma(n, set1(-0.693145751953125f), v);
  r = fma(n, set1(-1.42860677e-6f), r);
  F p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  const I exponent = bitcast_i(shifted) - bitcast_i(magic);
  const I first = exponent >> 1;
  const I second = exponent - first;
  const F result = p * bitcast_f((first + 127) << 23) * bitcast_f((second + 127) << 23);
  const F kept = x > set1(88.8f) ? inf : result;
  return x != x ? x : kept;
}

MLA_INLINE float exp1(float x) { return exp(set1(x))[0]; }

/// x / (1 + e^-x).
MLA_INLINE F silu(F x) { return x / (set1(1.0f) + exp(zero() - x)); }

// ---- rows ---------------------------------------------------------------------------------------------------------

template <class A, class B>
MLA_INLINE float dot(const A* a, const B* b, int64_t n) {
  F s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 = fma(load(a + i), load(b + i), s0);
    s1 = fma(load(a + i + kLanes), load(b + i + kLanes), s1);
    s2 = fma(load(a + i + 2 * kLanes), load(b + i + 2 * kLanes), s2);
    s3 = fma(load(a + i + 3 * kLanes), load(b + i + 3 * kLanes), s3);
  }
  for (; i + kLanes <= n; i += kLanes) s0 = fma(load(a + i), load(b + i), s0);
  if (i < n) s1 = fma(load_tail(a + i, static_cast<int>(n - i)), load_tail(b + i, static_cast<int>(n - i)), s1);
  return hsum((s0 + s1) + (s2 + s3));
}

template <class T>
MLA_INLINE float sum_squares(const T* x, int64_t n) {
  return dot(x, x, n);
}

template <class T>
MLA_INLINE void widen(const T* p, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(p + i));
  if (i < n) store_tail(out + i, load_tail(p + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

template <class T>
MLA_INLINE void narrow(const float* p, int64_t n, T* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(p + i));
  if (i < n) store_tail(out + i, load_tail(p + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

template <class T>
MLA_INLINE float round_to(float x) {
  T y;
  convert(x, &y);
  return to_f32(y);
}

template <class T>
struct RoundVec;
template <>
struct RoundVec<float> {
  MLA_INLINE F apply(F v) { return v; }
};
template <>
struct RoundVec<Bf16> {
  MLA_INLINE F apply(F v) { return bitcast_f(bf16_bits(v) << 16); }
};

template <class T>
MLA_INLINE F round_vec(F v) {
  return RoundVec<T>::apply(v);
}

/// The factor of an RMS norm, 1 / sqrt(mean(x^2) + eps), and one normed row: out = x * factor * weight. All norms of
/// this backend go through these two, so that a fused norm has the bits of a separate one.
template <class T>
MLA_INLINE float rms_factor(const T* x, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum_squares(x, n) / static_cast<float>(n) + eps);
}

template <class T, class W, class O>
MLA_INLINE void norm_row(const T* x, const W* weight, float factor, int64_t n, O* out) {
  const F f = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * f * load(weight + i));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_tail(out + i, load_tail(x + i, rest) * f * load_tail(weight + i, rest), rest);
  }
}

/// Rotates r channels by pairs (x0,x1),(x2,x3)...: (a cos - b sin, a sin + b cos). cos_sin is one row [r/2, 2]; x and
/// out may be the same memory.
template <class T, class O>
MLA_INLINE void rope_row(const T* x, const float* cos_sin, int64_t r, O* out) {
  for (int64_t i = 0; i < r; i += 2) {
    const float a = to_f32(x[i]), b = to_f32(x[i + 1]);
    const float c = cos_sin[i], s = cos_sin[i + 1];
    convert(a * c - b * s, out + i);
    convert(a * s + b * c, out + i + 1);
  }
}

/// Calls f with a value of the element type of `t`, which must be f32 or bf16 (the checks see to that).
template <class Fn>
MLA_INLINE auto visit_float(DType t, Fn&& f) {
  return t == DType::kBF16 ? f(Bf16{}) : f(float{});
}

}  // namespace mla::cpu::MLA_CPU_ISA
