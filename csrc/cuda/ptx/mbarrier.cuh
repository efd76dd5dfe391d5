// mbarrier.cuh - barriers in shared memory that count arriving threads and arriving bytes (PTX ISA, "mbarrier").
//
// A barrier's phase ends when all expected arrivals and all expected bytes are there; waiters name the parity of the
// phase they wait for: 0 for the first, then 1, 0, ... A thread that is to wait for "empty" before anything was ever
// filled waits for parity 1, which counts as passed.
//
// One thread initialises, then calls mbarrier_fence_init() before the __syncthreads() that shows the barrier to the
// other threads (and to the copy engine, and to the other blocks of a cluster after cluster_sync()).
// Test: test/gpu/ptx.cu.
#pragma once
#include <cstdint>

namespace mla::cuda {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives at the barrier at the same shared address of block `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// The same without showing that block what this thread wrote, and so without waiting until it has got through: for "I
/// have read", or where the other block looks at nothing. Relaxed at the scope of the cluster would be the same machine
/// code.
__device__ __forceinline__ void mbarrier_arrive_cluster_relaxed(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// Arrives, and makes the phase wait for that many bytes as well.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// One of the expected arrivals, by the copy engine of cp.async: when all that this thread asked for has arrived.
__device__ __forceinline__ void cp_async_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/// Whether the phase has ended; the hardware may suspend the thread for a while before it answers no.
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

/// The same for a barrier that other blocks of the cluster arrive at: what they wrote before is seen after it.
__device__ __forceinline__ void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

/// The place in a ring of stages: which one, and the parity of its current phase. `filled` is what a consumer waits
/// for on a full barrier; a producer waits for `filled ^ 1` on an empty one.
template <int kStages>
struct RingCursor {
  uint32_t stage = 0, filled = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      filled ^= 1;
    }
  }
};

}  // namespace mla::cuda
