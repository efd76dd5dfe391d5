// link_words.cuh - single looks and stores of a link's words, and wide words.
#pragma once
#include "cuda/resident/link.cuh"

namespace mla::cuda {

/// One look at a word.
__device__ __forceinline__ LinkWord link_look(const LinkWord* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

/// A wide word: 96 bits of data and the epoch behind them, by one access of 16 bytes: .b128, unlike a vector of that
/// size, is read and written whole.
__device__ __forceinline__ void link_store_wide(uint4* to, uint32_t x, uint32_t y, uint32_t z, uint32_t epoch) {
  asm volatile(
      "{ .reg .b128 word;\n"
      "mov.b128 word, {%1, %2};\n"
      "st.relaxed.gpu.global.b128 [%0], word; }" ::"l"(to),
      "l"(static_cast<uint64_t>(y) << 32 | x), "l"(static_cast<uint64_t>(epoch) << 32 | z)
      : "memory");
}

/// One look; .w is the epoch.
__device__ __forceinline__ uint4 link_look_wide(const uint4* from) {
  uint64_t low, high;
  asm volatile(
      "{ .reg .b128 word;\n"
      "ld.relaxed.gpu.global.b128 word, [%2];\n"
      "mov.b128 {%0, %1}, word; }"
      : "=l"(low), "=l"(high)
      : "l"(from)
      : "memory");
  return make_uint4(static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
                    static_cast<uint32_t>(high >> 32));
}

}  // namespace mla::cuda
