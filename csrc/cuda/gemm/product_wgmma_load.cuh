// product_wgmma_load.cuh - the parts of product_wgmma.cuh: the warps that load.
#pragma once
#include <cuda.h>

#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_wgmma_device.cuh"
#include "cuda/ptx/bulk.cuh"

namespace mla::cuda {

/// One lane asks for the weights of a stage and their scales.
template <class S>
__device__ __forceinline__ void load_weights(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                                             uint32_t stage, const CUtensorMap* map, const WgmmaTile& tile, int step) {
  const uint32_t full = shared.full(stage);
  if constexpr (S::kScaled) {
    const int64_t segments = (p.k + kSegment - 1) / kSegment;
    const float* const low = p.scale + tile.group * p.scale_group +
                             (p.gated ? tile.w0 / 2 : tile.w0) / kSegment * segments + step * S::kStageK / kSegment;
    const uint32_t to = shared_address(&shared.scales(stage));
    cp_async4(to, low);
    cp_async4(to + 4, low + (p.gated ? div_up<int64_t>(p.n / 2, kSegment) * segments : 0));
    if constexpr (!S::kGathered) cp_async_arrive(full);
  }
  mbarrier_arrive_expect(full, S::kWBytes);
  tile_load(shared.stage(stage), map, full, step * S::kStageK, tile.w0, tile.group,
            plan.once ? kEvictFirst : kEvictNormal);
}

/// The tiles of a cluster, one after the other, for a warp that loads. Those of equal groups are taken in turn. Those
/// of uneven ones differ in time, so a cluster that has asked for nearly all of a tile takes the next one that no
/// cluster has, by a counter that is 0 before and after the kernel; its first one is that of its index.
template <class S>
struct WgmmaTiles {
  const Product& p;
  const WgmmaShared<S>& shared;
  WgmmaWalk<S> walk;
  int stride;
  uint32_t taken = 0;  // tiles after the first one

  __device__ WgmmaTiles(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared, int64_t first,
                        int64_t stride)
      : p(p), shared(shared), walk{p, plan, static_cast<typename S::Index>(first)}, stride(static_cast<int>(stride)) {}

  __device__ bool at(WgmmaTile& tile) { return walk.at(tile); }

  /// In a cluster one warp of each block announces (kAnnounces) that a number is to come, before it waits for it as
  /// others do.
  template <bool kAnnounces>
  __device__ void next() {
    if (p.offsets == nullptr) {
      walk.index += stride;
      return;
    }
    if (S::kCluster > 1 && kAnnounces && elect_lane())
      mbarrier_arrive_expect(shared.dealt_barrier(taken), sizeof(uint32_t));
    mbarrier_wait(shared.dealt_barrier(taken), taken / kDealt % 2);
    uint32_t dealt;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(dealt) : "r"(shared.dealt(taken)) : "memory");
    walk.index = static_cast<typename S::Index>(stride) + dealt;
    ++taken;
  }

  /// One lane of the cluster's first block, at each step of a tile: takes the number of the next one some steps before
  /// the end, and hands it to the blocks a step later, when it is there.
  __device__ void deal(int step, int steps, uint32_t* counter, uint32_t& number) const {
    if (p.offsets == nullptr) return;
    const int ask = max(0, steps - 4);
    if (step == ask) number = atomicAdd(counter, 1u);
    if (step != min(ask + 1, steps - 1)) return;
    if constexpr (S::kCluster == 1) {
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared.dealt(taken)), "r"(number) : "memory");
      mbarrier_arrive(shared.dealt_barrier(taken));
    } else {
#pragma unroll
      for (int rank = 0; rank < S::kCluster; ++rank)
        cluster_send(cluster_address(shared.dealt(taken), rank), cluster_address(shared.dealt_barrier(taken), rank),
                     __uint_as_float(number));
    }
  }

  /// Behind the last tile; the cluster that took the last number of all puts the counter back.
  __device__ void put_back(uint32_t* counter) const {
    if (p.offsets != nullptr && walk.index + 1 == stride + walk.before) *counter = 0;
  }
};

/// One lane asks for all weights. The first stages may be asked for before pdl_wait().
template <class S>
__device__ void load_all_weights(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                                 const CUtensorMap* map, int64_t first, int64_t stride, uint32_t* counter) {
  const int steps = S::steps(p);
  const bool deals = S::kCluster == 1 || cluster_rank() == 0;
  WgmmaTiles<S> tiles(p, plan, shared, first, stride);
  WgmmaTile tile{};
  int early = 0;
  if (plan.settled && p.offsets == nullptr && tiles.at(tile)) {
    early = min(steps, S::kStages);
    if (elect_lane()) {
      shared.tile(0) = tile;
      for (int step = 0; step < early; ++step) load_weights<S>(p, plan, shared, step, map, tile, step);
    }
  }
  pdl_wait();
  RingCursor<S::kStages> at;
  for (; tiles.at(tile); tiles.template next<true>()) {
    if (elect_lane()) {
      uint32_t number = 0;
      for (int step = 0; step < steps; ++step, at.advance()) {
        if (deals) tiles.deal(step, steps, counter, number);
        if (early > 0) {
          --early;
          continue;
        }
        mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
        if (step == 0) shared.tile(at.stage) = tile;
        load_weights<S>(p, plan, shared, at.stage, map, tile, step);
      }
    }
    __syncwarp();
  }
  if (elect_lane()) {
    if (deals) tiles.put_back(counter);
    mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
    shared.tile(at.stage).count = -1;
    const uint32_t full = shared.full(at.stage);
    mbarrier_arrive(full);
    if constexpr (S::kScaled) mbarrier_arrive(full);
  }
}

/// One lane asks for all tokens. The blocks of a cluster share the work; each gets all of them.
template <class S>
__device__ void load_all_tokens(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                                const CUtensorMap* map, int64_t first, int64_t stride) {
  const int steps = S::steps(p);
  const int rank = S::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  pdl_wait();
  WgmmaTiles<S> tiles(p, plan, shared, first, stride);
  WgmmaTile tile{};
  RingCursor<S::kStages> at;
  for (; tiles.at(tile); tiles.template next<false>()) {
    if (elect_lane()) {
      const int boxes = (tile.count + plan.box_tokens - 1) / plan.box_tokens;
      const int group = p.offsets == nullptr ? tile.group : 0;
      for (int step = 0; step < steps; ++step, at.advance()) {
        mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
        const uint32_t full = shared.full(at.stage), to = shared.stage(at.stage) + S::kWBytes;
        mbarrier_arrive_expect(full, boxes * plan.box_tokens * (S::kHalves * 128));
        for (int box = rank; box < boxes; box += S::kCluster) {
          const int row = box * plan.box_tokens;
#pragma unroll
          for (int half = 0; half < S::kHalves; ++half) {
            const uint32_t part = to + half * S::kHalfBytes + row * 128;
            const int k = step * S::kStageK + half * 64;
            if constexpr (S::kCluster == 1) {
              tile_load(part, map, full, k, tile.row0 + row, group, kEvictNormal);
            } else {
              tile_load_multicast(part, map, full, k, tile.row0 + row, group, (1 << S::kCluster) - 1, kEvictNormal);
            }
          }
        }
      }
    }
    __syncwarp();
  }
  if (elect_lane()) {
    mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
    mbarrier_arrive(shared.full(at.stage));
  }
}

/// Four warps bring the tokens, one of them the weights as well.
template <class S>
__device__ void load_gathered(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                              const CUtensorMap* w_map, int64_t first, int64_t stride) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int steps = S::steps(p);
  constexpr int kMine = S::kMostTokens / 16;  // rows of a lane: 4 warp + lane / 8 + 16 i
  constexpr int kTogether = S::kResident == 2 ? 1 : 4;
  const int row = warp * 4 + lane / 8, piece = lane % 8;
  pdl_wait();
  WgmmaWalk<S> walk{p, plan, static_cast<typename S::Index>(first)};
  WgmmaTile tile{};
  RingCursor<S::kStages> at;
  for (; walk.at(tile); walk.index += stride) {
    // The rows of x for this warp's rows, four of each 16; lane l has those numbered l and l + 32. -1: none.
    int from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = warp * 4 + lane % 4 + (lane / 4 + 8 * i) * 16;
      from[i] = r < tile.count ? static_cast<int>(operand_row(p, tile.row0 + r)) : -1;
    }
    for (int step = 0; step < steps; ++step, at.advance()) {
      mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
      if (warp == 0 && lane == 0) {
        if (step == 0) shared.tile(at.stage) = tile;
        load_weights<S>(p, plan, shared, at.stage, w_map, tile, step);
      }
      const uint32_t to = shared.stage(at.stage) + S::kWBytes + row * 128 + ((piece ^ row % 8) * 16);
#pragma unroll
      for (int half = 0; half < S::kHalves; ++half) {
        const int64_t k = static_cast<int64_t>(step) * S::kStageK + half * 64 + piece * 8;
        const Bf16* const x = static_cast<const Bf16*>(p.x) + k;
#pragma unroll
        for (int i0 = 0; i0 < kMine; i0 += kTogether) {
          if (16 * i0 >= tile.count) break;
#pragma unroll
          for (int i = i0; i < i0 + kTogether; ++i) {
            const int x_row = __shfl_sync(kFullWarp, from[i / 8], i % 8 * 4 + lane / 8);
            const bool valid = k < p.k && x_row >= 0;
            cp_async16(to + half * S::kHalfBytes + i * 2048, x + (valid ? x_row * p.x_row : -k), valid);
          }
        }
      }
      cp_async_arrive(shared.full(at.stage));
    }
  }
  mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
  if (warp == 0 && lane == 0) {
    shared.tile(at.stage).count = -1;
    mbarrier_arrive(shared.full(at.stage));
  }
  mbarrier_arrive(shared.full(at.stage));
}

}  // namespace mla::cuda
