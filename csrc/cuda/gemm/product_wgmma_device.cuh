// product_wgmma_device.cuh - the parts of product_wgmma.cuh: shapes, which tiles a block takes, where things lie in
// shared memory.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_wgmma.h"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {

constexpr int kMathThreads = 256;
constexpr int kLoadThreads = 128;
constexpr int kWgmmaThreads = kMathThreads + kLoadThreads;
constexpr int kHopperShared = 232448;  // bytes of shared memory of a block
constexpr int kTokenTilesAtATime = 8;
/// Tiles of a cluster that may have been dealt out and not been taken up by one of its warps: these are at most a ring
/// of stages apart, and a tile has one stage or more.
constexpr int kDealt = 16;

template <class Weight, int kTokens, bool kGatheredTokens, int kBlocks>
struct WgmmaShape {
  using W = Weight;
  using Index = int64_t;  // of a tile
  static constexpr int kMostTokens = kTokens, kTileWeights = kWgmmaWeights, kCluster = kBlocks;
  static constexpr bool kGathered = kGatheredTokens;
  static constexpr bool kScaled = sizeof(W) == 1;
  /// Blocks of a multiprocessor. fp8 weights by few tokens: turning weights into bf16 is the bound, and takes more
  /// warps than one block has.
  static constexpr int kResident = kScaled && kMostTokens <= 64 ? 2 : 1;
  /// Of a thread: what the compiler may give all of them, dealt out anew.
  static constexpr int kLoadRegisters = kResident == 1 && kGathered ? 56 : 40;
  static constexpr int kMathRegisters = kResident == 2 ? 96 : kGathered ? 224 : 232;
  static constexpr int kStageK = kResident == 2 ? 128 : 64;
  static constexpr int kHalves = kStageK / 64;  // 64 k of tokens are 128 bytes
  static constexpr int kWBytes = kWgmmaWeights * kStageK * sizeof(W);
  static constexpr int kHalfBytes = kMostTokens * 128;
  static constexpr int kStageBytes = kWBytes + kHalves * kHalfBytes;
  static constexpr bool kTurns = kScaled && kMostTokens > 64;  // of the warpgroups, in asking for products
  /// Tokens whose results are written at a time; float32: half; gated, where they are half as many, 32 or more. Tiles
  /// of 160 and 208 tokens have less room for them and so a stage more.
  static constexpr int kPiece = kMostTokens == 160 || kMostTokens == 208 ? 16 : kScaled ? 32 : 64;
  static constexpr int kGatedPiece = kPiece < 32 ? 32 : kPiece;
  static constexpr int kStagingBytes = kPiece * 64 * 2;
  static constexpr int kSharedBytes = (kHopperShared + 1024) / kResident - 1024;  // 1 KB a block is not ours
  static constexpr int kFree = kSharedBytes - 1024 - 4 * kStagingBytes;
  static constexpr int kStages = kFree / kStageBytes < 8 ? kFree / kStageBytes : 8;

  /// Stages of a tile; what lies behind the last k counts as zeros.
  __device__ static int steps(const Product& p) {
    constexpr int kUnit = kScaled ? kSegment : kStageK;
    return static_cast<int>((p.k + kUnit - 1) / kUnit) * (kUnit / kStageK);
  }
  /// Tokens of the tiles of a group that is cut into so many: equal ones.
  __device__ static int tile_tokens(int rows, int tiles) { return ((rows + tiles - 1) / tiles + 7) / 8 * 8; }
  static_assert(kStages * 40 + kDealt * 12 <= 1024 && kStages + 2 <= kDealt && !(kGathered && kCluster > 1));
};

/// A tile, as the loaders describe it: tokens [row0, row0 + count) of the group by weights from w0 on.
struct WgmmaTile {
  int group, row0, count, w0;
};

/// Which tiles a cluster takes; called by whole warps.
template <class S>
struct WgmmaWalk {
  const Product& p;
  const WgmmaPlan& plan;
  typename S::Index index;
  int first = 0;                 // uneven groups, from the last one: a group,
  typename S::Index before = 0;  // and the tiles of all groups before it

  /// The tile at `index`; false behind the last one.
  __device__ bool at(WgmmaTile& tile) {
    int group_rows, token_tiles, tile_tokens, begin = 0;
    typename S::Index within;
    if (p.offsets == nullptr) {
      const auto per_group = static_cast<typename S::Index>(plan.token_tiles) * plan.weight_tiles;
      tile.group = static_cast<int>(index / per_group);
      if (tile.group >= p.groups) return false;
      within = index - tile.group * per_group;
      group_rows = static_cast<int>(p.rows);
      token_tiles = plan.token_tiles;
      tile_tokens = plan.tile_tokens;
    } else {
      const int lane = threadIdx.x % 32;
      for (;;) {
        if (first >= p.groups) return false;
        // The last group first: an always-on expert has the rows of all tokens, and its tiles take longest.
        const GroupRows group(p, static_cast<int>(first + lane < p.groups ? p.groups - 1 - first - lane : p.groups));
        const int tiles = group.tiles(S::kMostTokens) * plan.weight_tiles;
        const int until = inclusive_scan(tiles, lane);
        const unsigned past = __ballot_sync(kFullWarp, before + until > index);
        if (past != 0) {
          const int owner = __ffs(past) - 1;
          begin = __shfl_sync(kFullWarp, group.begin, owner);
          group_rows = __shfl_sync(kFullWarp, group.end, owner) - begin;
          within = index - before - __shfl_sync(kFullWarp, until - tiles, owner);
          tile.group = static_cast<int>(p.groups) - 1 - first - owner;
          break;
        }
        before += __shfl_sync(kFullWarp, until, 31);
        first += 32;
      }
      token_tiles = (group_rows + S::kMostTokens - 1) / S::kMostTokens;
      tile_tokens = S::tile_tokens(group_rows, token_tiles);
    }
    const int band = kTokenTilesAtATime * plan.weight_tiles;
    const int turn = static_cast<int>(within / band);
    const int height = min(kTokenTilesAtATime, token_tiles - turn * kTokenTilesAtATime);
    const int rest = static_cast<int>(within - static_cast<typename S::Index>(turn) * band);
    const int token0 = (turn * kTokenTilesAtATime + rest % height) * tile_tokens;
    tile.row0 = begin + token0;
    tile.count = max(0, min(tile_tokens, group_rows - token0));
    tile.w0 = rest / height * (S::kCluster * S::kTileWeights);
    if constexpr (S::kCluster > 1) tile.w0 += static_cast<int>(cluster_rank()) * S::kTileWeights;
    return true;
  }
};

/// Where things lie in shared memory.
template <class S>
struct WgmmaShared {
  unsigned char* base;  // 1024-aligned; stages, staging, barriers, tiles, which tiles come next

  __device__ uint32_t stage(uint32_t i) const { return shared_address(base) + i * S::kStageBytes; }
  __device__ unsigned char* staging(int warpgroup) const {
    return base + S::kStages * S::kStageBytes + warpgroup * 2 * S::kStagingBytes;
  }
  __device__ unsigned char* after() const { return base + S::kStages * S::kStageBytes + 4 * S::kStagingBytes; }
  __device__ uint32_t full(uint32_t i) const { return shared_address(after()) + i * 8; }
  __device__ uint32_t empty(uint32_t i) const { return full(S::kStages + i); }
  __device__ WgmmaTile& tile(uint32_t i) const { return reinterpret_cast<WgmmaTile*>(after() + 3 * S::kStages * 8)[i]; }
  /// fp8 weights: scales of the stage's rows of w, of gate rows and up rows if gated
  __device__ float2& scales(uint32_t i) const { return reinterpret_cast<float2*>(after() + 2 * S::kStages * 8)[i]; }
  /// Uneven groups: where the cluster's i-th tile after its first is announced, and the barrier that tells so.
  __device__ uint32_t dealt(uint32_t i) const { return full(5 * S::kStages) + i % kDealt * 4; }
  __device__ uint32_t dealt_barrier(uint32_t i) const { return full(5 * S::kStages) + kDealt * 4 + i % kDealt * 8; }
};

/// The stage may be filled again, as far as this warp is concerned.
template <class S>
__device__ __forceinline__ void release_stage(const WgmmaShared<S>& shared, uint32_t stage) {
  if constexpr (S::kCluster == 1) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared.empty(stage));
  } else {
    if (threadIdx.x % 32 < S::kCluster) mbarrier_arrive_cluster_relaxed(shared.empty(stage), threadIdx.x % 32);
  }
}

}  // namespace mla::cuda
