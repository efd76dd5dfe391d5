// product_wgmma.cuh - products of many rows on Hopper: from the bandwidth of the weights up to the rate of its matrix
// units.
//
// Formula: product.h. A tile is 128 rows of w by up to kMostTokens rows of x ("tokens"). Weights are the rows of
// wgmma's
//   A, tokens the columns of B: an expert with 19 tokens costs 24 columns, not 128 rows, and each weight is read once.
//   With gate and up rows interleaved by 8, both of a feature are sums of the same thread (rows g and g + 8).
// Grid: one block a multiprocessor, in clusters of kCluster that share their tokens (each brings a part of them to both
//   by multicast). A block takes tiles until none is left. Tokens of a group are cut into equal tiles.
// Block: 2 warpgroups multiply, 64 rows of w each; 4 warps load. Weights, and tokens that lie in order, come by the
// copy
//   engine in 128-byte swizzled boxes; tokens that `order` gathers by 16-byte cp.async into the same layout.
// Stage: 64 k of both (fp8 weights: 128). `full` ends when its bytes are there, `empty` when all 8 warps (of both
//   blocks) have multiplied it. The loaders tell the others by the stage which tile begins with it.
// Sums: bf16 weights: one chain of m64nNk16 over all k. fp8 weights: a chain for each 128 k, total = fma(scale, chain,
//   total); codes become bf16 in registers, where A may stand.
// Results: through shared memory, 64 tokens (32 in float32) at a time and warpgroup, so that rows of y are written by
// 16
//   bytes a thread.
// Registers: up to 128 sums (fp8 twice 64) of 232; loaders 40.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts. docs/kernels/tile-products.md tells why.
#pragma once
#include <algorithm>
#include <array>

#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_wgmma.h"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {

constexpr int kMathThreads = 256;
constexpr int kLoadThreads = 128;
constexpr int kWgmmaThreads = kMathThreads + kLoadThreads;
constexpr int kHopperShared = 232448;       // bytes of shared memory of a block
constexpr int kStagingBytes = 32 * 68 * 4;  // 32 tokens by 64 float32, rows moved by 4 banks; or 64 tokens by 64 bf16
constexpr int kStagingPitch = 68;           // floats
constexpr int kTokenTilesAtATime = 8;

template <class Weight, int kTokens, bool kGatheredTokens, int kBlocks>
struct WgmmaShape {
  using W = Weight;
  static constexpr int kMostTokens = kTokens, kCluster = kBlocks;
  static constexpr bool kGathered = kGatheredTokens;
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kStageK = kScaled ? 128 : 64;
  static constexpr int kHalves = kStageK / 64;  // 64 k of tokens are 128 bytes
  static constexpr int kWBytes = kWgmmaWeights * 128;
  static constexpr int kHalfBytes = kMostTokens * 128;
  static constexpr int kStageBytes = kWBytes + kHalves * kHalfBytes;
  static constexpr int kFree = kHopperShared - 1024 - 4 * kStagingBytes;
  static constexpr int kStages = kFree / kStageBytes < 8 ? kFree / kStageBytes : 8;
  static constexpr int kSharedBytes = kHopperShared;
  static_assert(kStages * 32 <= 1024 && !(kGathered && kCluster > 1));
};

/// A tile, as the loaders describe it: tokens [row0, row0 + count) of the group by weights [w0, w0 + 128).
struct WgmmaTile {
  int group, row0, count, w0;
};

/// Which tiles a cluster takes; called by whole warps.
template <class S>
struct WgmmaWalk {
  const Product& p;
  const WgmmaPlan& plan;
  int64_t index;
  int first = 0;       // uneven groups: a group,
  int64_t before = 0;  // and the tiles of all groups before it

  /// The tile at `index`; false behind the last one.
  __device__ bool at(WgmmaTile& tile) {
    int group_rows, token_tiles, tile_tokens, begin = 0;
    int64_t within;
    if (p.offsets == nullptr) {
      const int64_t per_group = static_cast<int64_t>(plan.token_tiles) * plan.weight_tiles;
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
        const GroupRows group(p, first + lane);
        const int tiles = group.tiles(S::kMostTokens) * plan.weight_tiles;
        const int until = inclusive_scan(tiles, lane);
        const unsigned past = __ballot_sync(kFullWarp, before + until > index);
        if (past != 0) {
          const int owner = __ffs(past) - 1;
          begin = __shfl_sync(kFullWarp, group.begin, owner);
          group_rows = __shfl_sync(kFullWarp, group.end, owner) - begin;
          within = index - before - __shfl_sync(kFullWarp, until - tiles, owner);
          tile.group = first + owner;
          break;
        }
        before += __shfl_sync(kFullWarp, until, 31);
        first += 32;
      }
      token_tiles = (group_rows + S::kMostTokens - 1) / S::kMostTokens;
      tile_tokens = ((group_rows + token_tiles - 1) / token_tiles + 7) / 8 * 8;
    }
    const int band = kTokenTilesAtATime * plan.weight_tiles;
    const int turn = static_cast<int>(within / band);
    const int height = min(kTokenTilesAtATime, token_tiles - turn * kTokenTilesAtATime);
    const int rest = static_cast<int>(within - static_cast<int64_t>(turn) * band);
    const int token0 = (turn * kTokenTilesAtATime + rest % height) * tile_tokens;
    tile.row0 = begin + token0;
    tile.count = max(0, min(tile_tokens, group_rows - token0));
    tile.w0 = rest / height * (S::kCluster * kWgmmaWeights);
    if constexpr (S::kCluster > 1) tile.w0 += static_cast<int>(cluster_rank()) * kWgmmaWeights;
    return true;
  }
};

/// Where things lie in shared memory.
template <class S>
struct WgmmaShared {
  unsigned char* base;  // 1024-aligned; stages, staging, barriers, tiles

  __device__ uint32_t stage(uint32_t i) const { return shared_address(base) + i * S::kStageBytes; }
  __device__ unsigned char* staging(int warpgroup) const {
    return base + S::kStages * S::kStageBytes + warpgroup * 2 * kStagingBytes;
  }
  __device__ unsigned char* after() const { return base + S::kStages * S::kStageBytes + 4 * kStagingBytes; }
  __device__ uint32_t full(uint32_t i) const { return shared_address(after()) + i * 8; }
  __device__ uint32_t empty(uint32_t i) const { return full(S::kStages + i); }
  __device__ WgmmaTile& tile(uint32_t i) const { return reinterpret_cast<WgmmaTile*>(after() + 2 * S::kStages * 8)[i]; }
};

// ---- loaders -------------------------------------------------------------------------------------------------------

/// Asks the copy engine for the weights of a stage.
template <class S>
__device__ __forceinline__ void load_weights(const WgmmaPlan& plan, const WgmmaShared<S>& shared, uint32_t stage,
                                             const CUtensorMap* map, const WgmmaTile& tile, int step) {
  const uint32_t full = shared.full(stage);
  mbarrier_arrive_expect(full, S::kWBytes);
  tile_load(shared.stage(stage), map, full, step * S::kStageK, tile.w0, tile.group,
            plan.once ? kEvictFirst : kEvictNormal);
}

/// One lane asks for all weights. The first stages may be asked for before pdl_wait().
template <class S>
__device__ void load_all_weights(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                                 const CUtensorMap* map, int64_t first, int64_t stride) {
  const int steps = static_cast<int>((p.k + S::kStageK - 1) / S::kStageK);
  WgmmaWalk<S> walk{p, plan, first};
  WgmmaTile tile{};
  int early = 0;
  if (plan.settled && p.offsets == nullptr && walk.at(tile)) {
    early = min(steps, S::kStages);
    if (elect_lane()) {
      shared.tile(0) = tile;
      for (int step = 0; step < early; ++step) load_weights<S>(plan, shared, step, map, tile, step);
    }
  }
  pdl_wait();
  RingCursor<S::kStages> at;
  for (; walk.at(tile); walk.index += stride) {
    if (elect_lane()) {
      for (int step = 0; step < steps; ++step, at.advance()) {
        if (early > 0) {
          --early;
          continue;
        }
        mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
        if (step == 0) shared.tile(at.stage) = tile;
        load_weights<S>(plan, shared, at.stage, map, tile, step);
      }
    }
    __syncwarp();
  }
  if (elect_lane()) {
    mbarrier_wait(shared.empty(at.stage), at.filled ^ 1);
    shared.tile(at.stage).count = -1;
    mbarrier_arrive(shared.full(at.stage));
  }
}

/// One lane asks for all tokens. The blocks of a cluster share the work; each gets all of them.
template <class S>
__device__ void load_all_tokens(const Product& p, const WgmmaPlan& plan, const WgmmaShared<S>& shared,
                                const CUtensorMap* map, int64_t first, int64_t stride) {
  const int steps = static_cast<int>((p.k + S::kStageK - 1) / S::kStageK);
  const int rank = S::kCluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  pdl_wait();
  WgmmaWalk<S> walk{p, plan, first};
  WgmmaTile tile{};
  RingCursor<S::kStages> at;
  for (; walk.at(tile); walk.index += stride) {
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
  const int steps = static_cast<int>((p.k + S::kStageK - 1) / S::kStageK);
  constexpr int kMine = S::kMostTokens / 16;  // rows of a lane: 4 warp + lane / 8 + 16 i
  const int row = warp * 4 + lane / 8, piece = lane % 8;
  pdl_wait();
  WgmmaWalk<S> walk{p, plan, first};
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
        load_weights<S>(plan, shared, at.stage, w_map, tile, step);
      }
      const uint32_t to = shared.stage(at.stage) + S::kWBytes + row * 128 + ((piece ^ row % 8) * 16);
#pragma unroll
      for (int half = 0; half < S::kHalves; ++half) {
        const int64_t k = static_cast<int64_t>(step) * S::kStageK + half * 64 + piece * 8;
        const Bf16* const x = static_cast<const Bf16*>(p.x) + k;
#pragma unroll
        for (int i0 = 0; i0 < kMine; i0 += 4) {
          if (16 * i0 >= tile.count) break;
#pragma unroll
          for (int i = i0; i < i0 + 4; ++i) {
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

// ---- results -------------------------------------------------------------------------------------------------------

/// 4 results from column n on; `whole` if they may be written at once, `residual` is then what to add.
__device__ __forceinline__ void put4(const Product& p, int64_t at, int64_t n, bool whole, uint2 residual, float4 v) {
  if (!whole) {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < p.n) put(p, at + i, values[i]);
    return;
  }
  v.x += bf16_low(residual.x);
  v.y += bf16_high(residual.x);
  v.z += bf16_low(residual.y);
  v.w += bf16_high(residual.y);
  if (p.y_dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = v;
  } else {
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.y) + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
}

/// gate_up() by the quick functions: within some units of the last float32 place, the result is rounded to bf16.
__device__ __forceinline__ float gate_up_quick(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/// The warpgroup's 64 rows of w by the tile's tokens. `turn` alternates between its two staging buffers, so that one
/// barrier a piece is enough.
template <class S>
__device__ __forceinline__ void emit_wgmma(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                           bool wide, int& turn, const float (&d)[S::kMostTokens / 2]) {
  constexpr int N = S::kMostTokens;
  const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int64_t row = tile.group * p.y_group + tile.row0 * p.y_row;
  const int matrix = lane / 8, line = lane % 8;
  if (S::kGathered || p.gated) {
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += 64) {
      if (t0 >= tile.count) break;
      unsigned char* const buffer = shared.staging(warpgroup) + turn * kStagingBytes;
      turn ^= 1;
      // [64 tokens][32 features] bf16; four rows of 64 bytes are two lines of banks
#pragma unroll
      for (int j0 = t0 / 8; j0 < t0 / 8 + 8; j0 += 4) {
        uint32_t r[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const float* const v = d + 4 * (j0 + m);
          r[m] = pack_bf16(gate_up_quick(v[0], v[2]), gate_up_quick(v[1], v[3]));
        }
        const int token = 8 * (j0 + matrix) - t0 + line;
        stmatrix_x4_trans(shared_address(buffer) + token * 64 + ((warp ^ (token / 2 % 4)) * 16), r);
      }
      named_barrier_sync(1 + warpgroup, 128);
      const int64_t n = tile.w0 / 2 + warpgroup * 32 + thread % 4 * 8;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = thread / 4 + 32 * i;
        if (t0 + token >= tile.count || n >= p.n / 2) continue;
        const uint4 v = load16(buffer + token * 64 + ((thread % 4 ^ (token / 2 % 4)) * 16));
        Bf16* const to = static_cast<Bf16*>(p.y) + row + (t0 + token) * p.y_row + n;
        if (wide) {
          store16(to, v);
        } else {
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int e = 0; e < 8; ++e) to[e] = Bf16{static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))};
        }
      }
    }
  } else if (p.y_dtype == DType::kBF16 && p.residual == nullptr) {
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += 64) {
      if (t0 >= tile.count) break;
      unsigned char* const buffer = shared.staging(warpgroup) + turn * kStagingBytes;
      turn ^= 1;
      // [64 tokens][64 weights] bf16
#pragma unroll
      for (int j = t0 / 8; j < t0 / 8 + 8; j += 2) {
        const int token = 8 * (j + matrix / 2) - t0 + line;
        const uint32_t to = shared_address(buffer) + token * 128 + (((2 * warp + matrix % 2) ^ line) * 16);
        const uint32_t r[4] = {pack_bf16(d[4 * j], d[4 * j + 1]), pack_bf16(d[4 * j + 2], d[4 * j + 3]),
                               pack_bf16(d[4 * j + 4], d[4 * j + 5]), pack_bf16(d[4 * j + 6], d[4 * j + 7])};
        stmatrix_x4_trans(to, r);
      }
      named_barrier_sync(1 + warpgroup, 128);
      const int64_t n = tile.w0 + warpgroup * 64 + thread % 8 * 8;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = thread / 8 + 16 * i;
        if (t0 + token >= tile.count || n >= p.n) continue;
        const uint4 v = load16(buffer + token * 128 + ((thread % 8 ^ token % 8) * 16));
        Bf16* const to = static_cast<Bf16*>(p.y) + row + (t0 + token) * p.y_row + n;
        if (wide && n + 8 <= p.n) {
          store16(to, v);
        } else {
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int e = 0; e < 8; ++e)
            if (n + e < p.n) to[e] = Bf16{static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))};
        }
      }
    }
  } else {
    // [32 tokens][64 weights] float32; 16 threads a token
    const int64_t n = tile.w0 + warpgroup * 64 + thread % 16 * 4;
    const bool whole = wide && n + 4 <= p.n;
    // Residuals are asked for three pieces ahead: they come from far.
    constexpr int kAhead = 3;
    uint2 residual[kAhead][4];
    const auto ask = [&](int t0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = t0 + thread / 16 + 8 * i;
        residual[t0 / 32 % kAhead][i] = make_uint2(0, 0);
        if (p.residual != nullptr && whole && token < tile.count)
          residual[t0 / 32 % kAhead][i] =
              *reinterpret_cast<const uint2*>(static_cast<const Bf16*>(p.residual) + row + token * p.y_row + n);
      }
    };
#pragma unroll
    for (int t0 = 0; t0 < N && t0 < 32 * kAhead; t0 += 32) ask(t0);
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += 32) {
      if (t0 >= tile.count) break;
      float* const buffer = reinterpret_cast<float*>(shared.staging(warpgroup) + turn * kStagingBytes);
      turn ^= 1;
#pragma unroll
      for (int j = t0 / 8; j < t0 / 8 + 4; ++j) {
        float* const to = buffer + (8 * j - t0 + 2 * q) * kStagingPitch + 16 * warp + g;
        to[0] = d[4 * j];
        to[kStagingPitch] = d[4 * j + 1];
        to[8] = d[4 * j + 2];
        to[kStagingPitch + 8] = d[4 * j + 3];
      }
      named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = thread / 16 + 8 * i;
        if (t0 + token >= tile.count || n >= p.n) continue;
        const float4 v = *reinterpret_cast<const float4*>(buffer + token * kStagingPitch + thread % 16 * 4);
        put4(p, row + (t0 + token) * p.y_row + n, n, whole, residual[t0 / 32 % kAhead][i], v);
      }
      if (t0 + 32 * kAhead < N) ask(t0 + 32 * kAhead);
    }
  }
}

// ---- multiplication ------------------------------------------------------------------------------------------------

/// The stage may be filled again, as far as this warp is concerned.
template <class S>
__device__ __forceinline__ void release_stage(const WgmmaShared<S>& shared, uint32_t stage) {
  if constexpr (S::kCluster == 1) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(shared.empty(stage));
  } else {
    if (threadIdx.x % 32 < S::kCluster) mbarrier_arrive_cluster_relaxed(shared.empty(stage), threadIdx.x % 32);
  }
}

/// Two neighbouring codes as bf16.
__device__ __forceinline__ uint32_t codes_to_bf16(uint16_t codes) {
  uint32_t extended, out;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(extended) : "r"(static_cast<uint32_t>(codes)));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(out)
      : "r"(extended << 4 & 0x87f087f0u), "r"(0x7b807b80u), "r"(0x80008000u));
  return out;
}

/// The sums of one tile, whose first stage is full, with N columns.
template <class S, int N>
__device__ __forceinline__ void multiply_tile(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                              RingCursor<S::kStages>& at, float (&d)[N / 2]) {
  const int warpgroup = threadIdx.x / 128;
  const int steps = static_cast<int>((p.k + S::kStageK - 1) / S::kStageK);
  if constexpr (!S::kScaled) {
    uint32_t previous = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(shared.full(at.stage), at.filled);
      if constexpr (S::kGathered) fence_proxy_async();  // cp.async wrote what wgmma reads
      const uint32_t stage = shared.stage(at.stage);
      const uint64_t a = wgmma_tile(stage + warpgroup * 8192, 16, 1024);
      const uint64_t b = wgmma_tile(stage + S::kWBytes, 16, 1024);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) Wgmma<N>::bf16(d, a + 2 * i, b + 2 * i, step > 0 || i > 0);
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        release_stage<S>(shared, previous);
      }
      previous = at.stage;
      at.advance();
    }
    wgmma_wait<0>();
    release_stage<S>(shared, previous);
    keep(d);
  } else {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int64_t first = (p.gated ? tile.w0 / 2 : tile.w0) / kSegment;
    const float* const low_scale = p.scale + tile.group * p.scale_group + first * steps;
    const float* const high_scale = low_scale + (p.gated ? div_up<int64_t>(p.n / 2, kSegment) * steps : 0);
    const bool scaled = tile.w0 < p.n;  // not the second of a pair past the end
    float low = scaled ? low_scale[0] : 0, high = scaled ? high_scale[0] : 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0;
    const uint32_t offset = (warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + g) * 128 + 2 * q;
    // A stage's weights of this lane as bf16; waits for the stage.
    const auto convert = [&](const RingCursor<S::kStages>& from, uint32_t(&a)[8][4]) {
      mbarrier_wait(shared.full(from.stage), from.filled);
      if constexpr (S::kGathered) fence_proxy_async();
      const unsigned char* const codes = shared.base + from.stage * S::kStageBytes + offset;
      const auto pair = [&](int row8, int k8) {
        return codes_to_bf16(*reinterpret_cast<const uint16_t*>(codes + row8 * 1024 + (k8 / 2 ^ g) * 16 + k8 % 2 * 8));
      };
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        a[i][0] = pair(0, 2 * i);
        a[i][1] = pair(1, 2 * i);
        a[i][2] = pair(0, 2 * i + 1);
        a[i][3] = pair(1, 2 * i + 1);
      }
    };
    // One stage; the next one's weights are converted while its products run.
    const auto multiply = [&](int step, uint32_t(&a)[8][4], uint32_t(&next)[8][4]) {
      const int later = min(step + 1, steps - 1);
      const float next_low = scaled ? low_scale[later] : 0, next_high = scaled ? high_scale[later] : 0;
      const uint32_t stage = shared.stage(at.stage);
      float chain[N / 2];
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint64_t b = wgmma_tile(stage + S::kWBytes + i / 4 * S::kHalfBytes, 16, 1024) + i % 4 * 2;
        Wgmma<N>::bf16(chain, a[i], b, i > 0);
      }
      wgmma_commit();
      const uint32_t multiplied = at.stage;
      at.advance();
      if (step + 1 < steps) convert(at, next);
      wgmma_wait<0>();
      keep(chain);
      release_stage<S>(shared, multiplied);
#pragma unroll
      for (int i = 0; i < N / 2; ++i) d[i] = fmaf(i % 4 < 2 ? low : high, chain[i], d[i]);
      low = next_low;
      high = next_high;
    };
    uint32_t even[8][4], odd[8][4];
    convert(at, even);
#pragma unroll 1
    for (int step = 0; step < steps; step += 2) {
      multiply(step, even, odd);
      if (step + 1 < steps) multiply(step + 1, odd, even);
    }
  }
}

/// The same with the smallest of the sizes that holds the tile's tokens; d[N / 2..] is left alone.
template <class S, int N, int... kMore>
__device__ __forceinline__ void multiply_sized(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                               RingCursor<S::kStages>& at, float (&d)[S::kMostTokens / 2]) {
  if constexpr (sizeof...(kMore) > 0) {
    if (tile.count > N) return multiply_sized<S, kMore...>(p, shared, tile, at, d);
  }
  multiply_tile<S, N>(p, shared, tile, at, reinterpret_cast<float(&)[N / 2]>(d));
}

template <class S>
__global__ void __cluster_dims__(S::kCluster, 1, 1) __launch_bounds__(kWgmmaThreads, 1)
    product_wgmma_kernel(const __grid_constant__ Product p, const __grid_constant__ WgmmaPlan plan,
                         const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  const WgmmaShared<S> shared{dynamic};
  if (threadIdx.x == kMathThreads) {
    for (int i = 0; i < S::kStages; ++i) {
      mbarrier_init(shared.full(i), S::kGathered ? 1 + kLoadThreads : 2);
      mbarrier_init(shared.empty(i), 8 * S::kCluster);
    }
    mbarrier_fence_init();
    prefetch_tensor_map(&w_map);
    if (!S::kGathered) prefetch_tensor_map(&x_map);
  }
  if constexpr (S::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  const int64_t first = blockIdx.x / S::kCluster, stride = gridDim.x / S::kCluster;
  if (threadIdx.x >= kMathThreads) {
    give_registers<S::kGathered ? 56 : 40>();
    if constexpr (S::kGathered) {
      load_gathered<S>(p, plan, shared, &w_map, first, stride);
    } else if (threadIdx.x < kMathThreads + 32) {
      load_all_weights<S>(p, plan, shared, &w_map, first, stride);
    } else if (threadIdx.x < kMathThreads + 64) {
      load_all_tokens<S>(p, plan, shared, &x_map, first, stride);
    } else {
      pdl_wait();
    }
    pdl_launch_dependents();
  } else {
    take_registers<S::kGathered ? 224 : 232>();
    pdl_wait();
    pdl_launch_dependents();
    const bool wide = p.y_row % 8 == 0 && p.y_group % 8 == 0 && aligned16(p.y) && aligned16(p.residual);
    RingCursor<S::kStages> at;
    int turn = 0;
    for (;;) {
      mbarrier_wait(shared.full(at.stage), at.filled);
      const WgmmaTile tile = shared.tile(at.stage);
      if (tile.count < 0) break;
      float d[S::kMostTokens / 2];
      if constexpr (S::kMostTokens == 256) {
        multiply_sized<S, 32, 64, 96, 128, 160, 192, 224, 256>(p, shared, tile, at, d);
      } else if constexpr (S::kMostTokens == 128) {
        multiply_sized<S, 16, 32, 48, 64, 80, 96, 128>(p, shared, tile, at, d);
      } else {
        multiply_sized<S, 8, 16, 24, 32, 40, 48, 56, 64>(p, shared, tile, at, d);
      }
      emit_wgmma<S>(p, shared, tile, wide, turn, d);
    }
  }
  if constexpr (S::kCluster > 1) cluster_sync();  // nobody leaves while the other still writes to it
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t launch_wgmma(const Product& p, const WgmmaPlan& plan, int multiprocessors, cudaStream_t stream) {
  CUtensorMap w_map{}, x_map{};
  const std::array<int64_t, 3> w_dims{p.k, p.n, p.groups};
  const std::array<int64_t, 2> w_strides{p.k, p.groups > 1 ? p.w_group : p.n * p.k};
  const std::array<int, 3> w_box{S::kScaled ? 128 : 64, kWgmmaWeights, 1};
  if (!make_tensor_map(p.w, p.w_dtype, w_dims, w_strides, w_box, Swizzle::k128, &w_map).ok())
    return cudaErrorInvalidValue;
  if (!S::kGathered) {
    const bool heads = p.offsets == nullptr && p.groups > 1;
    const std::array<int64_t, 3> x_dims{p.k, p.rows, heads ? p.groups : 1};
    const std::array<int64_t, 2> x_strides{p.x_row, heads ? p.x_group : p.rows * p.x_row};
    const std::array<int, 3> x_box{64, plan.box_tokens, 1};
    if (!make_tensor_map(p.x, p.x_dtype, x_dims, x_strides, x_box, Swizzle::k128, &x_map).ok())
      return cudaErrorInvalidValue;
  }
  int64_t clusters = multiprocessors / S::kCluster;
  if (p.offsets == nullptr) clusters = std::min(clusters, p.groups * plan.token_tiles * plan.weight_tiles);
  return launch_pdl(product_wgmma_kernel<S>, dim3(static_cast<unsigned>(clusters * S::kCluster)), dim3(kWgmmaThreads),
                    S::kSharedBytes, stream, p, plan, w_map, x_map);
}

}  // namespace mla::cuda
