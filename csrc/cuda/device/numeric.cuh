// numeric.cuh - narrow types in registers, and vector accesses of 16 bytes, for all kernels.
//
//   to_float(x)                    float, Bf16, F16, F8E4M3 -> float (exact)
//   from_float<T>(f)               float -> T, round to nearest even (F8E4M3 saturates at 448)
//   pack_bf16(lo, hi)              two floats -> one register of two bf16, element 0 in the low half
//   bf16_low(u), bf16_high(u)      the two halves as float
//   f8_to_bf16(u, lo, hi)          four e4m3 in a register -> elements 0,1 and 2,3 as bf16 pairs; exact, no scale.
//                                  About 4 instructions a pair, on every architecture. The two NaN codes give +-480:
//                                  a checkpoint that holds them is broken, and the test would double the cost.
//   f8_lowered(x)                  two of them times 2^-120, by an instruction less, out of what f8_extended() makes of
//                                  four
//   scale_bf16(pair, by)           two bf16 times two others
//   load16, store16                16 bytes, plain (coherent) accesses; the address must be a multiple of 16
//   load8(p, v), store8(p, v)      8 elements of float or Bf16 as floats; 16-byte accesses, p aligned to 16 bytes
//   load1(p, i), store1(p, i, f)   one element as float
//   prefetch_l2(p)                 asks for the 128-byte line at p; harmless before pdl_wait(), as L2 is coherent
//   aligned16(p)                   may p be accessed by 16 bytes
//   div_up(a, b)                   for host and device
//
// Global data is never read through the read-only path (ld.global.nc): under programmatic dependent launch it may show
// what stood there before the kernel ahead wrote it. So: no const __restrict__ on data that another kernel writes.
#pragma once
#include <cstdint>

#include "common/float_types.h"

namespace mla::cuda {

template <class T>
__host__ __device__ constexpr T div_up(T a, T b) {
  return (a + b - 1) / b;
}

__host__ __device__ inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// ---- conversions --------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
  return out;
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

__device__ __forceinline__ float to_float(F16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
  return out;
}

__device__ __forceinline__ float to_float(F8E4M3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
  // The exponent lands 120 too low; the product also makes subnormals right.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 20) * 0x1p120f));
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float x) {
  Bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
template <>
__device__ __forceinline__ F16 from_float<F16>(float x) {
  F16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
  return out;
}
template <>
__device__ __forceinline__ F8E4M3 from_float<F8E4M3>(float x) {
  const uint32_t u = __float_as_uint(x);
  const uint32_t sign = (u >> 24) & 0x80u;
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t out;
  if (magnitude > 0x7f800000u) {
    out = 0x7fu;
  } else if (magnitude >= 0x43e00000u) {
    out = 0x7eu;  // 448 and above
  } else if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^14 puts units of 2^-9 in the lowest mantissa bit.
    out = __float_as_uint(__uint_as_float(magnitude) + 0x1p14f) - 0x46800000u;
  } else {
    out = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - 0x3c000000u) >> 20;
  }
  return {static_cast<uint8_t>(sign | out)};
}

__device__ __forceinline__ uint32_t scale_bf16(uint32_t pair, uint32_t by) {
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(pair), "r"(by), "r"(0x80008000u));
  return out;
}

// Each code, extended by its sign to 16 bits and moved up by 4, has its sign in place and the magnitude where bf16 has
// its lowest exponent bits. That reads as q * 2^-120.
__device__ __forceinline__ void f8_extended(uint32_t four, uint32_t& first, uint32_t& second) {
  // __byte_perm has no sign extension.
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(first) : "r"(four));
  asm("prmt.b32 %0, %1, 0, 0xb3a2;" : "=r"(second) : "r"(four));
}
__device__ __forceinline__ uint32_t f8_lowered(uint32_t extended) { return extended << 4 & 0x87f087f0u; }

__device__ __forceinline__ void f8_to_bf16(uint32_t four, uint32_t& lo, uint32_t& hi) {
  uint32_t first, second;
  f8_extended(four, first, second);
  lo = scale_bf16(f8_lowered(first), 0x7b807b80u);  // exact, subnormals included
  hi = scale_bf16(f8_lowered(second), 0x7b807b80u);
}

// ---- memory -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

__device__ __forceinline__ void load8(const Bf16* p, float (&v)[8]) {
  const uint4 raw = load16(p);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = bf16_low(words[i]);
    v[2 * i + 1] = bf16_high(words[i]);
  }
}
__device__ __forceinline__ void load8(const float* p, float (&v)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(p);
  const float4 b = *reinterpret_cast<const float4*>(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void store8(Bf16* p, const float (&v)[8]) {
  store16(p, make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])));
}
__device__ __forceinline__ void store8(float* p, const float (&v)[8]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
  *reinterpret_cast<float4*>(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

template <class T>
__device__ __forceinline__ float load1(const T* p, int64_t i) {
  return to_float(p[i]);
}
template <class T>
__device__ __forceinline__ void store1(T* p, int64_t i, float x) {
  p[i] = from_float<T>(x);
}

__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

}  // namespace mla::cuda
