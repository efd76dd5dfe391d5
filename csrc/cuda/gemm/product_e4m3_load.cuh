// product_e4m3_load.cuh - the parts of product_e4m3_sm90.cu: the warp that loads.
#pragma once
#include "cuda/gemm/product_e4m3_device.cuh"
#include "cuda/gemm/product_wgmma_load.cuh"

namespace mla::cuda {

/// One warp asks for rows and weights of tile after tile. Tiles differ in time, so a block that has asked for most of
/// one takes the next one that no block has, by a counter that is 0 before and after; its first is that of its index.
/// The first weights may be asked for before pdl_wait().
__device__ __forceinline__ void load_tiles(const Product& p, const WgmmaPlan& plan, const E4m3Shared& shared,
                                           const CUtensorMap* w_map, const CUtensorMap* x_map, unsigned* counter) {
  const int steps = E4m3Shape::steps(p);
  WgmmaWalk<E4m3Shape> walk{p, plan, static_cast<int>(blockIdx.x)};
  WgmmaTile tile{};
  int early = 0;
  if (plan.settled && p.offsets == nullptr && walk.at(tile)) {
    early = min(steps, E4m3Shape::kStages);
    if (elect_lane()) {
      shared.tile(0) = tile;
      for (int step = 0; step < early; ++step) load_weights<E4m3Shape>(p, plan, shared, step, w_map, tile, step);
    }
  }
  pdl_wait();
  RingCursor<E4m3Shape::kStages> at;
  unsigned taken = ~0u;
  while (walk.at(tile)) {
    taken = 0;
    if (elect_lane()) {
      const int box_rows = plan.box_tokens, boxes = (tile.count + box_rows - 1) / box_rows;
      for (int step = 0; step < steps; ++step, at.advance()) {
        if (step + 1 == steps) taken = atomicAdd(counter, 1u);
        if (early > 0) {
          --early;
        } else {
          mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
          if (step == 0) shared.tile(at.stage) = tile;
          load_weights<E4m3Shape>(p, plan, shared, at.stage, w_map, tile, step);
        }
        const uint32_t full = shared.full(at.stage), to = shared.stage(at.stage) + E4m3Shape::kWBytes;
        mbarrier_arrive_expect(full, boxes * box_rows * E4m3Shape::kStageK);
        for (int box = 0; box < boxes; ++box)
          tile_load(to + box * box_rows * E4m3Shape::kStageK, x_map, full, step * E4m3Shape::kStageK,
                    tile.row0 + box * box_rows, kEvictNormal);
      }
    }
    taken = __reduce_add_sync(kFullWarp, taken);  // of all other lanes 0
    walk.index = static_cast<int>(gridDim.x + taken);
  }
  const int tiles =
      p.offsets == nullptr ? static_cast<int>(p.groups) * plan.token_tiles * plan.weight_tiles : walk.before;
  if (elect_lane()) {
    if (taken + 1 == static_cast<unsigned>(tiles)) *counter = 0;  // nobody takes another one
    mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
    shared.tile(at.stage).count = -1;
    mbarrier_arrive(shared.full(at.stage));
    mbarrier_arrive(shared.full(at.stage));
  }
}

}  // namespace mla::cuda
