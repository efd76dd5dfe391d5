// product_e4m3_load.cuh - the parts of product_e4m3_sm90.cu: the warp that brings x. Weights come as in
// product_wgmma_load.cuh.
#pragma once
#include "cuda/gemm/product_e4m3_device.cuh"
#include "cuda/gemm/product_wgmma_load.cuh"

namespace mla::cuda {

/// One lane asks for all rows of x.
__device__ __forceinline__ void load_all_rows(const Product& p, const WgmmaPlan& plan, const E4m3Shared& shared,
                                              const CUtensorMap* map) {
  const int steps = E4m3Shape::steps(p);
  pdl_wait();
  WgmmaWalk<E4m3Shape> walk{p, plan, static_cast<int>(blockIdx.x)};
  WgmmaTile tile{};
  RingCursor<E4m3Shape::kStages> at;
  for (; walk.at(tile); walk.index += gridDim.x) {
    if (elect_lane()) {
      const int box_rows = plan.box_tokens, boxes = (tile.count + box_rows - 1) / box_rows;
      for (int step = 0; step < steps; ++step, at.advance()) {
        mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
        const uint32_t full = shared.full(at.stage), to = shared.stage(at.stage) + E4m3Shape::kWBytes;
        mbarrier_arrive_expect(full, boxes * box_rows * E4m3Shape::kStageK);
        for (int box = 0; box < boxes; ++box)
          tile_load(to + box * box_rows * E4m3Shape::kStageK, map, full, step * E4m3Shape::kStageK,
                    tile.row0 + box * box_rows, kEvictNormal);
      }
    }
    __syncwarp();
  }
  if (elect_lane()) {
    mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
    mbarrier_arrive(shared.full(at.stage));
  }
}

}  // namespace mla::cuda
