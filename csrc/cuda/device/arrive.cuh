// arrive.cuh - counters in global memory that blocks of one kernel arrive at (Launch::counters).
#pragma once
#include <cstdint>

namespace mla::cuda {

/// How many have arrived before; what they wrote is seen, and what this block wrote before its last barrier by whoever
/// arrives after it.
__device__ __forceinline__ unsigned arrive(unsigned* counter) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

}  // namespace mla::cuda
