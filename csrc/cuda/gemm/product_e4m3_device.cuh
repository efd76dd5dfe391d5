// product_e4m3_device.cuh - the parts of product_e4m3_sm90.cu: sizes, where things lie in shared memory, and which part
// of a tile is whose.
#pragma once
#include "cuda/gemm/product_e4m3.h"
#include "cuda/gemm/product_wgmma_device.cuh"

namespace mla::cuda {

constexpr int kBothLargest = 3;  // named barrier, behind those of the warpgroups

struct E4m3Shape {
  using Index = int;  // of a tile: y has a row of 128 elements or more for each
  static constexpr int kMostTokens = kE4m3Rows, kTileWeights = kE4m3Weights, kCluster = 1, kResident = 1;
  static constexpr bool kGathered = false, kScaled = false;
  static constexpr int kLoadRegisters = 40, kMathRegisters = 232;
  static_assert(kLoadRegisters + 2 * kMathRegisters <= 3 * 168);  // what a thread of the block begins with
  static constexpr int kStageK = kSegment;
  static constexpr int kXBytes = kMostTokens * kStageK, kWBytes = kTileWeights * kStageK;
  static constexpr int kStageBytes = kWBytes + kXBytes;
  static constexpr int kStages = 4;
  static constexpr int kStagingBytes = 8192;  // of a warpgroup, twice
  static constexpr int kBarrierBytes = kStages * 40 + 8 * 16;
  static constexpr int kLargestBytes = kMostTokens * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes + 4 * kStagingBytes + kBarrierBytes + kLargestBytes;

  __device__ static int steps(const Product& p) { return static_cast<int>((p.k + kStageK - 1) / kStageK); }
  /// Whole tiles and a rest, which takes half of the time if it is half a tile.
  __device__ static int tile_tokens(int rows, int tiles) { return kMostTokens; }
  static_assert(kSharedBytes <= kHopperShared);
};

struct E4m3Shared : WgmmaShared<E4m3Shape> {
  /// The tile that this warp has, where it needs no registers.
  __device__ WgmmaTile& tile_of_warp() const {
    return reinterpret_cast<WgmmaTile*>(after() + E4m3Shape::kStages * 40)[threadIdx.x / 32];
  }
  /// The largest h of each of 64 rows, as bf16, of one of the two halves of a tile's columns.
  __device__ uint16_t* largest(int half) const {
    return reinterpret_cast<uint16_t*>(after() + E4m3Shape::kBarrierBytes) + half * (E4m3Shape::kMostTokens / 2);
  }
};

/// What a warpgroup has of a tile: 64 rows by 128 columns, once or twice. A tile of up to 64 rows is dealt out by
/// columns, others by rows.
struct E4m3Part {
  bool narrow;
  int row, column;  // of the first 64 x 128; the second has the columns behind

  __device__ __forceinline__ explicit E4m3Part(bool is_narrow) : narrow(is_narrow) {
    const int warpgroup = threadIdx.x / 128;
    row = narrow ? 0 : warpgroup * 64;
    column = narrow ? warpgroup * 128 : 0;
  }
};

}  // namespace mla::cuda
