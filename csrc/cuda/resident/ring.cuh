// ring.cuh - the stages in shared memory through which all weights and cache rows of a resident kernel go.
//
// One sequence of stages through all phases and layers, numbered from 0. A stage has up to 16 rows, of weights or of
// the cache. Those of weights belong to one team of four warps: stage number s to team s % kTeams. The producer fills
// stage s when stage s - kStages has been left, and never has more than Resident::under_way stages on their way: what
// all blocks ask for at once is a queue in front of the memory, in which every small load of the kernel would stand.
//
// A barrier tells a phase from its neighbours only. A team may wait for stage s when it has seen stage s - kTeams, so
// all up to s - kTeams - under_way have come; that has to include s - kStages, whose phase it would take for its own.
#pragma once
#include "cuda/resident/link.cuh"
#include "cuda/resident/resident.h"

namespace mla::cuda {

struct ResidentRing {
  static constexpr int kStages = 10;
  static constexpr int kTeams = 4, kTeamWarps = 4;
  static constexpr int kRows = 16;
  static constexpr int kWeightRowBytes = 1024, kWeightPitch = 1088;  // which spreads 16-byte loads over all banks
  static constexpr int kCachePitch = 1168;                           // rows of up to 1152 bytes
  static constexpr int kStageBytes = kRows * kCachePitch;
  static_assert(kResidentUnderWay <= kStages - kTeams);

  unsigned char* stages;  // kStages * kStageBytes
  uint32_t full, empty;  // shared addresses of kStages barriers each: 1 arrival and bytes; kTeams * kTeamWarps arrivals

  __device__ __forceinline__ unsigned char* at(uint32_t s) const { return stages + s % kStages * kStageBytes; }
  __device__ __forceinline__ uint32_t full_of(uint32_t s) const { return full + 8 * (s % kStages); }
  __device__ __forceinline__ uint32_t empty_of(uint32_t s) const { return empty + 8 * (s % kStages); }
  /// Consumers: until the stage's rows are there.
  __device__ __forceinline__ void wait(uint32_t s) const { mbarrier_wait(full_of(s), s / kStages & 1); }
  /// One lane of each of the team's warps, when the warp has read what it needs. Counts for four: a stage that all 16
  /// warps read is left by single arrivals.
  __device__ __forceinline__ void leave(uint32_t s) const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], 4;" ::"r"(empty_of(s)) : "memory");
  }
  /// Producer: until stage s may be filled.
  __device__ __forceinline__ void wait_to_fill(uint32_t s, uint32_t under_way) const {
    mbarrier_wait(empty_of(s), (s / kStages & 1) ^ 1);
    if (s >= under_way) mbarrier_wait(full_of(s - under_way), (s - under_way) / kStages & 1);
  }
};

}  // namespace mla::cuda
