// bulk.cuh - the copy engine: contiguous bytes and tiles of tensors between global and shared memory, without registers
// (PTX ISA, "cp.async.bulk").
//
// Loads report to an mbarrier of the block (mbarrier_arrive_expect with the bytes of the whole box, what lies outside
// of the tensor included; it arrives as zeros). Contiguous copies: addresses and bytes are multiples of 16. Tiles: the
// shared address is a multiple of 128, of 1024 with a 128-byte swizzle; the tensor map is a __grid_constant__
// parameter. One thread issues. Shared memory that ordinary stores wrote and the copy engine or wgmma reads next needs
// fence_proxy_async() in every writing thread before the barrier between them.
// Test: test/gpu/ptx.cu.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace mla::cuda {

/// L2 policies as the 64-bit descriptors that createpolicy gives for whole accesses.
constexpr uint64_t kEvictNormal = 0x1000000000000000;
constexpr uint64_t kEvictFirst = 0x12F0000000000000;
constexpr uint64_t kEvictLast = 0x14F0000000000000;

__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void bulk_load(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier,
                                          uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

/// Asks for bytes to be brought into L2; nobody is told when they are there.
__device__ __forceinline__ void bulk_prefetch_l2(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Tile at coordinates (innermost first) of a tensor of 2, 3 or 4 dimensions.
__device__ __forceinline__ void tile_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                          uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tile_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                          int z, uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tile_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                          int z, int w, uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "l"(policy)
      : "memory");
}

/// The same tile into all blocks of the cluster that `blocks` has a bit for, each at the same shared address, reporting
/// to the barrier at the same address there.
__device__ __forceinline__ void tile_load_multicast(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x,
                                                    int y, uint16_t blocks, uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(blocks), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tile_load_multicast(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x,
                                                    int y, int z, uint16_t blocks, uint64_t policy = kEvictFirst) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6, %7;" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(blocks), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void tile_store(const CUtensorMap* map, uint32_t shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared), "r"(x), "r"(y)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Waits until at most kLeft of this thread's store groups still read shared memory.
template <int kLeft>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}

}  // namespace mla::cuda
