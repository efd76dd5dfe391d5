// product_chain.cuh - products of many rows on every GPU, where sums may have any order: one chain over all of k.
//
// Formula: product.h. Without a second set of sums a warp has 64 by 64 results, and reads a third less from shared
//   memory for each product than the tiles of product_tile.cuh, whose order of sums deterministic models need.
// Grid: as many blocks as fit; each takes tiles blockIdx, blockIdx + gridDim, ... and goes on loading across them.
// Tensor cores: rows of w are A, rows of x the columns of B, so that codes of fp8 weights become operands in whatever
//   registers they are in.
// Stage: some k of both operands, through cp.async. Pieces of 16 bytes stand where lanes that read at once hit other
//   banks.
// Operands: with bf16 weights through ldmatrix, 16 k ahead, in registers of their own; with fp8 weights both by 32 k,
//   each register loaded anew behind its last use.
// fp8 scales: their power of two goes into the codes; sums are in units of the rest, and change them with each 128 k
//   (product_codes.cuh).
// Results pass through the stage that was read last.
// Design and figures: docs/kernels/portable-products.md. Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_codes.cuh"
#include "cuda/gemm/product_tile_device.cuh"

namespace mla::cuda {

/// kTileRows rows of x by kTileColumns rows of w, 64 by 64 of them a warp's; kK of a stage, kRing stages.
template <class Weight, int kTileRows, int kTileColumns, int kK, int kRing, int kBlocksAtMost>
struct ChainShape {
  using W = Weight;
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kWarpsDown = kRows / 64;  // along rows of x
  static constexpr int kWarps = kWarpsDown * (kColumns / 64), kThreads = 32 * kWarps;
  static constexpr int kBlocks = kBlocksAtMost;  // of a multiprocessor
  static constexpr int kStages = kRing, kStageK = kK;
  static constexpr int kSteps = kStageK / 16;
  static constexpr int kTurn = sizeof(W) == 1 ? kSegment / kStageK : 1;  // stages of a loop's turn
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kXRow = kStageK * 2, kWRow = kStageK * static_cast<int>(sizeof(W));  // bytes of a row
  static constexpr int kXBytes = kRows * kXRow, kStageBytes = kXBytes + kColumns * kWRow;
  static constexpr int kXPieces = kXBytes / 16 / kThreads;  // of a thread, per stage
  static constexpr int kWPieces = kColumns * kWRow / 16 / kThreads;
  static constexpr int kResultPitch = 64 + 4;  // floats; lanes that write at once hit different banks
  static constexpr int kListed = kStages + 1;  // tiles that can be under way
  // Offsets in shared memory, and its size.
  static constexpr int kTiles = kStages * kStageBytes;
  static constexpr int kRowTiles = kTiles + kWarps * kListed * static_cast<int>(sizeof(int4));
  static constexpr int kSharedBytes = kRowTiles + static_cast<int>(sizeof(int4));
  static_assert(kXPieces * kThreads * 16 == kXBytes && kWPieces * kThreads * 16 == kColumns * kWRow);
  static_assert(kWarps * 8 * kResultPitch * 4 <= kStageBytes);
  static_assert((kStages - 1) % kTurn == 0);  // tiles begin with a turn, for the loader too
};

/// What piece numbers of a row are exclusive-ored with. ldmatrix reads one piece of eight rows at a time, 16-byte loads
/// four neighbouring pieces of two rows, 8-byte loads two of four rows.
template <class S>
__device__ __forceinline__ int turn_x(int row) {
  return S::kScaled ? row % 2 * 4 : S::kXRow == 128 ? row % 8 : row / 2 % 4;
}
template <class S>
__device__ __forceinline__ int turn_w(int row) {
  return S::kScaled ? row / 2 % 2 * 2 : turn_x<S>(row);
}

/// What a thread copies of each stage: a 16-byte piece of some rows of both operands.
template <class S>
struct ChainLoader {
  using W = typename S::W;
  static constexpr int kXRowPieces = S::kXRow / 16, kWRowPieces = S::kWRow / 16;
  static constexpr int kXStep = S::kThreads / kXRowPieces, kWStep = S::kThreads / kWRowPieces;  // to its next row
  int x[S::kXPieces];  // 16-byte pieces behind p.x; negative where there is no row
  const W* w;          // its first row
  int w_rows;          // rows of w from there on
  int step;            // the stage to ask for; past the last one where there is no tile

  __device__ __forceinline__ void aim(const Product& p, RowTile tile, int64_t n0) {
    const int piece = threadIdx.x % kXRowPieces, row = threadIdx.x / kXRowPieces;
#pragma unroll
    for (int j = 0; j < S::kXPieces; ++j) {
      const int r = row + j * kXStep;
      x[j] = -1;
      if (r >= tile.count) continue;
      const int64_t from = operand_row(p, tile.row0 + r);
      if (from >= 0) x[j] = static_cast<int>((tile.group * p.x_group + from * p.x_row) / 8) + piece;
    }
    const int w_row = threadIdx.x / kWRowPieces;
    w = static_cast<const W*>(p.w) + tile.group * p.w_group + (n0 + w_row) * p.k +
        threadIdx.x % kWRowPieces * Chunk<W>::kLoad;
    const int64_t left = p.n - n0 - w_row;
    w_rows = static_cast<int>(left < S::kColumns ? left : S::kColumns);
    step = 0;
  }

  __device__ __forceinline__ void load_x(const Product& p, uint32_t stage) const {
    const int piece = threadIdx.x % kXRowPieces, row = threadIdx.x / kXRowPieces, k0 = step * S::kStageK;
    const bool inside = k0 < static_cast<int>(p.k) - piece * 8;
    const uint32_t at = stage + row * S::kXRow + (piece ^ turn_x<S>(row)) * 16;
    const Bf16* const from = static_cast<const Bf16*>(p.x) + k0;
#pragma unroll
    for (int j = 0; j < S::kXPieces; ++j)
      cp_async16(at + j * kXStep * S::kXRow, reinterpret_cast<const char*>(from) + int64_t{x[j]} * 16,
                 inside && x[j] >= 0);
  }

  __device__ __forceinline__ void load_w(const Product& p, uint32_t stage) const {
    const int piece = threadIdx.x % kWRowPieces, row = threadIdx.x / kWRowPieces, k0 = step * S::kStageK;
    const int rows = k0 < static_cast<int>(p.k) - piece * Chunk<W>::kLoad ? w_rows : 0;
    const uint32_t at = stage + S::kXBytes + row * S::kWRow + (piece ^ turn_w<S>(row)) * 16;
    // Registers are scarcer with fp8 weights, and 5 % faster so; bf16 weights 1 % slower (H200, 2026-11).
    const int row_step = kWStep * static_cast<int>(p.k);
    const W* from = w + k0;
#pragma unroll
    for (int j = 0; j < S::kWPieces; ++j) {
      cp_async16(at + j * kWStep * S::kWRow, S::kScaled ? w + k0 + int64_t{row_step} * j : from, j * kWStep < rows);
      from += kWStep * p.k;
    }
  }
};

/// Results of a warp: 16-row pieces of w by 8-row pieces of x, as m16n8k16 has them.
using ChainSums = float[4][8][4];

/// Shared addresses of what a lane reads.
struct ChainAddress {
  uint32_t x, w;

  __device__ __forceinline__ ChainAddress operator+(uint32_t stage) const { return {x + stage, w + stage}; }
};

/// Scales of fp8 weights: of even and of odd 8-row pieces of a warp's w (gate and up), asked for a segment ahead.
template <class S>
struct ChainScales {
  int at = 0;  // of the next segment's, in p.scale; that of odd pieces is a constant behind it
  float next_low = 1, next_high = 1;
  SplitScale low{0, 1}, high{0, 1};
  float by_low = 1, by_high = 1;

  /// column: the warp's first row of w.
  __device__ __forceinline__ void begin(const Product& p, int group, int64_t column) {
    if constexpr (!S::kScaled) return;
    const int64_t segments = div_up<int64_t>(p.k, kSegment);
    const int64_t last = div_up<int64_t>(p.gated ? p.n / 2 : p.n, kSegment) - 1;
    const int64_t block = (p.gated ? column / 2 : column) / kSegment;
    at = static_cast<int>(group * p.scale_group + (block < last ? block : last) * segments);
    ask(p);
    low = high = SplitScale(0, 1);
  }
  /// Asks for the next segment's.
  __device__ __forceinline__ void ask(const Product& p) {
    const float* const from = p.scale + at;
    next_low = from[0];
    next_high = from[p.gated ? div_up<int64_t>(p.n / 2, kSegment) * div_up<int64_t>(p.k, kSegment) : 0];
    ++at;
  }
  /// At the first k of a segment: its scales, and what brings sums into their unit. `more`: there is another one.
  __device__ __forceinline__ void take(const Product& p, bool more) {
    if constexpr (!S::kScaled) return;
    const float low_before = low.factor, high_before = high.factor;
    low = SplitScale(next_low, low_before);
    high = SplitScale(next_high, high_before);
    by_low = __fdividef(low_before, low.factor);
    by_high = __fdividef(high_before, high.factor);
    if (more) ask(p);
  }
  /// The end of a tile: sums in units of one.
  __device__ __forceinline__ void finish(ChainSums& sums) const {
    if constexpr (S::kScaled) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int v = 0; v < 4; ++v) sums[i][j][v] *= v < 2 ? low.factor : high.factor;
        }
      }
    }
  }
};

/// Operands of a warp. step<s>() multiplies 16 k, the first or the second of 32, and loads ahead: bf16 what the next
/// step takes, fp8 in the second step what the next two take. kFirst: of a segment; sums change their unit.
template <class S, bool kScaled = S::kScaled>
struct ChainOperands;

template <class S>
struct ChainOperands<S, false> {
  uint32_t w[2][4][4], x[2][4][4];

  static __device__ __forceinline__ ChainAddress address(int warp_row, int warp_column, int lane) {
    const int turn = turn_x<S>(lane % 8);
    return {(warp_row + lane % 8 + lane / 16 * 8) * S::kXRow + (lane / 8 % 2 ^ turn) * 16u,
            S::kXBytes + (warp_column + lane % 16) * S::kWRow + (lane / 16 ^ turn) * 16u};
  }
  /// Of step `s` of the stage at `from`.
  __device__ __forceinline__ void load(ChainAddress from, int s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ldmatrix_x4(w[s % 2][i], (from.w ^ s * 32) + i * 16 * S::kWRow);
      ldmatrix_x4(x[s % 2][i], (from.x ^ s * 32) + i * 16 * S::kXRow);
    }
  }
  template <int kStep, bool kFirst>
  __device__ __forceinline__ void step(ChainAddress next, int next_step, const ChainScales<S>&, ChainSums& sums) {
    load(next, next_step);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t* const b = x[kStep % 2][j / 2] + j % 2 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_bf16(sums[i][j], w[kStep % 2][i], {b[0], b[1]});
    }
  }
};

template <class S>
struct ChainOperands<S, true> {
  uint2 w[4][2];
  uint4 x[8];

  static __device__ __forceinline__ ChainAddress address(int warp_row, int warp_column, int lane) {
    const int g = lane / 4, q = lane % 4;
    return {(warp_row + g) * S::kXRow + (q ^ turn_x<S>(g)) * 16u,
            S::kXBytes + (warp_column + g) * S::kWRow + (q / 2 ^ turn_w<S>(g)) * 16u + q % 2 * 8u};
  }
  __device__ __forceinline__ void load_w(ChainAddress from, int s, int i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float2 eight = shared_load2((from.w ^ s * 16) + (2 * i + h) * 8 * S::kWRow);
      w[i][h] = {__float_as_uint(eight.x), __float_as_uint(eight.y)};
    }
  }
  __device__ __forceinline__ void load_x(ChainAddress from, int s, int j) {
    x[j] = shared_load4((from.x ^ s * 32) + j * 8 * S::kXRow);
  }
  __device__ __forceinline__ void load(ChainAddress from, int s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) load_w(from, s, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) load_x(from, s, j);
  }
  template <int kStep, bool kFirst>
  __device__ __forceinline__ void step(ChainAddress next, int next_step, const ChainScales<S>& scales,
                                       ChainSums& sums) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a[4];
      codes_to_bf16(kStep == 0 ? w[i][0].x : w[i][0].y, scales.low.power, a[0], a[2]);
      codes_to_bf16(kStep == 0 ? w[i][1].x : w[i][1].y, scales.high.power, a[1], a[3]);
      if constexpr (kStep == 1) load_w(next, next_step, i);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if constexpr (kFirst) {
#pragma unroll
          for (int v = 0; v < 4; ++v) sums[i][j][v] *= v < 2 ? scales.by_low : scales.by_high;
        }
        mma_bf16(sums[i][j], a, {kStep == 0 ? x[j].x : x[j].z, kStep == 0 ? x[j].y : x[j].w});
        if constexpr (kStep == 1)
          if (i == 3) load_x(next, next_step, j);
      }
    }
  }
};

/// Writes a warp's results, eight rows at a time by way of its part of shared memory, so that memory sees whole
/// sectors. warp_row: its first row in the tile; n0: its first row of w.
template <class S, bool kGated>
__device__ __forceinline__ void emit_chain(const Product& p, RowTile tile, int64_t n0, int warp_row, int lane,
                                           float* results, const ChainSums& sums) {
  constexpr int kEights = kGated ? 4 : 8, kAtOnce = 32 / kEights;  // of a row; rows that a warp writes at once
  const int g = lane / 4, q = lane % 4;
  const bool wide = wide_results(p);
  const int64_t n = (kGated ? n0 / 2 : n0) + lane % kEights * 8, left = (kGated ? p.n / 2 : p.n) - n;
  int row = warp_row + lane / kEights;
  int64_t at = tile.group * p.y_group + (tile.row0 + row) * p.y_row + n;
  const float* const mine = results + lane / kEights * S::kResultPitch + lane % kEights * 8;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        float* const to = results + (2 * q + v) * S::kResultPitch + g;
        if constexpr (kGated) {
          to[i * 8] = gate_up(sums[i][j][v], sums[i][j][2 + v]);
        } else {
          to[i * 16] = sums[i][j][v];
          to[i * 16 + 8] = sums[i][j][2 + v];
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 8; r += kAtOnce) {
      if (row < tile.count && left > 0) {
        float v[8];
        load8(mine + r * S::kResultPitch, v);
        put8(p, at, v, left, wide);
      }
      row += kAtOnce;
      at += kAtOnce * p.y_row;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) product_chain_kernel(const __grid_constant__ Product p) {
  // Nothing static in front of it: product_tile.cuh says what that costs.
  extern __shared__ __align__(128) unsigned char shared[];
  int& row_tiles = *reinterpret_cast<int*>(shared + S::kRowTiles);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % S::kWarpsDown * 64, warp_column = warp / S::kWarpsDown * 64;
  constexpr int kTurnK = S::kTurn * S::kStageK;
  const int steps = static_cast<int>((p.k + kTurnK - 1) / kTurnK) * S::kTurn;  // in stages

  pdl_wait();
  {
    const int count = count_row_tiles<S>(p);
    if (threadIdx.x == 0) row_tiles = count;
  }
  __syncthreads();

  // The loader runs kStages - 1 stages ahead, into the next tiles if need be, and lists them; group -1 is the end. Each
  // warp has a loader and a list of its own, so that nobody waits for another warp's.
  ChainLoader<S> loader{};
  loader.step = steps;
  int4* const list = reinterpret_cast<int4*>(shared + S::kTiles) + warp * S::kListed;
  int aimed = 0;
  const auto aim = [&] {
    Tile tile{{-1, 0, 0}, 0};
    if (tile_of<S>(p, row_tiles, aimed, tile)) loader.aim(p, tile.rows, int64_t{tile.column} * S::kColumns);
    if (lane == 0) list[aimed % S::kListed] = {tile.rows.group, tile.rows.row0, tile.rows.count, tile.column};
    __syncwarp();
    ++aimed;
  };
  const uint32_t stages = shared_address(shared);
  aim();
#pragma unroll 1
  for (int stage = 0; stage < S::kStages - 1; ++stage) {
    loader.load_w(p, stages + stage * S::kStageBytes);
    loader.load_x(p, stages + stage * S::kStageBytes);
    cp_async_commit();
    if (++loader.step >= steps) aim();
  }

  ChainAddress first = ChainOperands<S>::address(warp_row, warp_column, lane) + stages;
  // The compiler would compute them anew for each stage.
  asm volatile("" : "+r"(first.x), "+r"(first.w));
  cp_async_wait<S::kStages - 2>();
  __syncthreads();
  ChainOperands<S> operands;
  operands.load(first, 0);
  int stage = 0;
  ChainScales<S> scales;
#pragma unroll 1
  for (int turn = 0; list[turn % S::kListed].x >= 0; ++turn) {
    scales.begin(p, list[turn % S::kListed].x, int64_t{list[turn % S::kListed].w} * S::kColumns + warp_column);
    ChainSums sums;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[i][j][v] = 0;
      }
    }
#pragma unroll 1
    for (int step = 0; step < steps; step += S::kTurn) {
      scales.take(p, step + S::kTurn < steps);
#pragma unroll
      for (int t = 0; t < S::kTurn * S::kSteps; ++t) {
        constexpr int kPart = S::kSteps == 2 ? 0 : 1;
        const int s = t % S::kSteps;
        const int before = stage == 0 ? S::kStages - 1 : stage - 1;
        // Copies are asked for in two parts, so that operands need not wait behind all of them; behind the last tile
        // they are zeros.
        if (s == 0) loader.load_w(p, stages + before * S::kStageBytes);
        if (s == kPart) {
          loader.load_x(p, stages + before * S::kStageBytes);
          cp_async_commit();
          ++loader.step;
        }
        if (s == S::kSteps - 1) {
          // The next stage has arrived for everyone, and nobody reads this one any more: it is loaded next.
          stage = stage == S::kStages - 1 ? 0 : stage + 1;
          cp_async_wait<S::kStages - 2>();
          __syncthreads();
        }
        const ChainAddress next = first + stage * S::kStageBytes;
        const int next_step = (s + 1) % S::kSteps;
        if (t == 0) {
          operands.template step<0, true>(next, next_step, scales, sums);
        } else if (t % 2 == 0) {
          operands.template step<0, false>(next, next_step, scales, sums);
        } else {
          operands.template step<1, false>(next, next_step, scales, sums);
        }
      }
      if (loader.step >= steps) aim();
    }
    scales.finish(sums);
    const int4 tile = list[turn % S::kListed];
    if (loader.step >= steps) pdl_launch_dependents();
    unsigned char* const last = shared + (stage == 0 ? S::kStages - 1 : stage - 1) * S::kStageBytes;
    const RowTile rows{tile.x, tile.y, tile.z};
    const int64_t n0 = int64_t{tile.w} * S::kColumns + warp_column;
    float* const results = reinterpret_cast<float*>(last) + warp * 8 * S::kResultPitch;
    if (p.gated) {
      emit_chain<S, true>(p, rows, n0, warp_row, lane, results, sums);
    } else {
      emit_chain<S, false>(p, rows, n0, warp_row, lane, results, sums);
    }
    // The stage is loaded again.
    __syncthreads();
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t launch_chain(const Product& p, const Traits& traits, cudaStream_t stream) {
  return launch_pdl(product_chain_kernel<S>, dim3(tile_blocks<S>(p, traits)), dim3(S::kThreads), S::kSharedBytes,
                    stream, p);
}

/// The shapes: 96 KB of stages, which every GPU has. Twice as much is worth 2 % at most (4096 x 2048 x 2048, H200,
/// 2026-11).
template <class W>
using Chain = ChainShape<W, 128, kChainColumns, sizeof(W) == 1 ? 64 : 32, sizeof(W) == 1 ? 3 : 4, 1>;

}  // namespace mla::cuda
