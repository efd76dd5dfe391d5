// product_codes.cuh - fp8 weights as bf16 in registers, for products whose sums are kept in a unit that changes with
// the scale of each 128 k (product_wgmma_scaled.cuh, product_split.cuh).
//
// A scale is factor * 2^exponent. The power of two goes into the codes, exactly; sums are in units of the factor:
//   sums *= factor before / factor now at each change, and by the last factor at the end.
#pragma once
#include <cstdint>

namespace mla::cuda {

/// Two neighbouring codes as bf16, times a power of two: `power` is it times 2^120, twice.
__device__ __forceinline__ uint32_t codes_to_bf16(uint16_t codes, uint32_t power) {
  uint32_t extended, out;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(extended) : "r"(static_cast<uint32_t>(codes)));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(extended << 4 & 0x87f087f0u), "r"(power), "r"(0x80008000u));
  return out;
}

/// The same for four codes: elements 0 and 1, 2 and 3.
__device__ __forceinline__ void codes_to_bf16(uint32_t four, uint32_t power, uint32_t& low, uint32_t& high) {
  const auto scaled = [power](uint32_t extended) {
    uint32_t out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(extended << 4 & 0x87f087f0u), "r"(power), "r"(0x80008000u));
    return out;
  };
  uint32_t first, second;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(first) : "r"(four));
  asm("prmt.b32 %0, %1, 0, 0xb3a2;" : "=r"(second) : "r"(four));
  low = scaled(first);
  high = scaled(second);
}

/// A scale as factor * 2^exponent: the factor lies in [1, 2) unless the scale is out of all proportion. Scale 0: no
/// code counts, and any factor will do.
struct SplitScale {
  float factor;
  uint32_t power;  // 2^(120 + exponent) as bf16, twice

  __device__ SplitScale(float scale, float factor_before) : factor(factor_before), power(0) {
    if (scale == 0) return;
    constexpr int kLeast = -100, kMost = 7;
    const int exponent = min(max(static_cast<int>(__float_as_uint(scale) >> 23 & 255) - 127, kLeast), kMost);
    factor = scale * __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
    power = static_cast<uint32_t>(247 + exponent) << 7;
    power |= power << 16;
  }
};

}  // namespace mla::cuda
