// link.cuh - how the blocks of a resident kernel give each other vectors: words that carry their own flag.
//
// A word is 64 bits in global memory, written and read whole: 32 bits of data (two bf16 values, or a float) and the
// epoch they belong to. Who needs it looks until the epoch is there: no fence, no counter, no barrier of the grid, and
// one trip to L2 instead of three. Epochs grow by one a layer and never repeat, so a word needs no clearing; memory
// begins as zeros and epoch 0 is never used. A link has two buffers, for odd and even epochs: a block may already write
// the next layer's words while another still reads this layer's.
// (The idea is that of NCCL's low-latency protocol.)
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ptx/mbarrier.cuh"

namespace mla::cuda {

/// `data` of a float or of two bf16 in ascending order.
struct LinkWord {
  uint32_t data, epoch;
};
static_assert(sizeof(LinkWord) == 8);

__device__ __forceinline__ void link_store(LinkWord* to, uint32_t data, uint32_t epoch) {
  const uint64_t word = static_cast<uint64_t>(epoch) << 32 | data;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

/// One look at two words: are both of this epoch?
__device__ __forceinline__ bool link_look(const LinkWord* from, uint32_t epoch, uint32_t (&data)[2]) {
  uint64_t words[2];
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(words[0]), "=l"(words[1]) : "l"(from) : "memory");
  data[0] = static_cast<uint32_t>(words[0]), data[1] = static_cast<uint32_t>(words[1]);
  return words[0] >> 32 == epoch && words[1] >> 32 == epoch;
}

/// Looks at kPairs * 2 words, pairs `stride` words apart, until all of them are of this epoch. `from` is aligned to 16
/// bytes. All loads of a look are under way at once. Where they are not there at once, it waits for the word `sign`
/// first, the same one for a whole warp: what all blocks look at all the time is what writers have to get past.
template <int kPairs>
__device__ __forceinline__ void link_load(const LinkWord* from, int stride, uint32_t epoch,
                                          uint32_t (&data)[2 * kPairs], const LinkWord* sign = nullptr) {
  for (;;) {
    bool there = true;
    uint64_t words[2 * kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                   : "=l"(words[2 * i]), "=l"(words[2 * i + 1])
                   : "l"(from + i * stride)
                   : "memory");
    }
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      data[i] = static_cast<uint32_t>(words[i]);
      there &= static_cast<uint32_t>(words[i] >> 32) == epoch;
    }
    if (there) break;
    while (sign != nullptr) {
      uint64_t word;
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(sign) : "memory");
      if (static_cast<uint32_t>(word >> 32) == epoch) break;
    }
  }
}

}  // namespace mla::cuda
