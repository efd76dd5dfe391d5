// product_tile.cuh - products of many rows, and of experts of any number: tiles that a block computes over all of k.
//
// Formula and order of sums: product.h; the bits are those of product_stream.cuh.
// Grid: as many blocks as fit; each takes tiles blockIdx, blockIdx + gridDim, ... and goes on loading across them.
//   Tiles are walked 8 row tiles at a time, so that weights and rows that blocks share at the same time stay in L2.
// Tile: rows of x by rows of w, shapes at the end of the file; a warp has 16 to 64 by 32 or 64 of its results.
// Stage: 64 k of both operands, through cp.async. A row of x (and of bf16 weights) is 8 pieces of 16 bytes; odd rows
//   have piece j at j ^ 5, so that the eight lanes that read at once, two rows of four pieces, hit different banks.
//   Rows of fp8 weights are 4 pieces and need none of that.
// Registers: a segment's sums and the totals, 64 floats each of a thread in the largest tile.
// Shared memory: the stages, and which tiles are under way. Results pass through the stage that was read last.
// Operands: read from shared memory half a stage (x) and two pieces (w) before the tensor cores want them.
// Tensor cores: rows of x are A, weights B. An fp8 scale is constant over a tile (two with gate and up) and a segment.
// Design and figures: docs/kernels/portable-products.md. Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_tile_device.cuh"

namespace mla::cuda {

constexpr int kStageK = 64;

template <class Weight, int kTileRows, int kTileColumns, int kWarpRows, int kWarpColumns, int kBlocksAtMost, int kRing>
struct TileShape {
  using W = Weight;
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kWarpsDown = kTileRows / kWarpRows;          // along rows of x
  static constexpr int kWarpsAcross = kTileColumns / kWarpColumns;  // along rows of w
  static constexpr int kWarps = kWarpsDown * kWarpsAcross, kThreads = 32 * kWarps;
  static constexpr int kBlocks = kBlocksAtMost;  // of a multiprocessor
  static constexpr int kStages = kRing;
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kDown = kWarpRows / 16;      // 16-row pieces of a warp
  static constexpr int kAcross = kWarpColumns / 8;  // 8-column pieces of a warp
  static constexpr int kXBytes = kRows * kStageK * 2;
  static constexpr int kWBytes = kColumns * kStageK * static_cast<int>(sizeof(W));
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kXPieces = kXBytes / 16 / kThreads;  // of a thread, per stage
  static constexpr int kWPieces = kWBytes / 16 / kThreads;
  static constexpr int kWRowPieces = kStageK * static_cast<int>(sizeof(W)) / 16;
  static constexpr int kResultPitch = kWarpColumns + 8;  // floats between rows of results in shared memory
  static constexpr int kListed = kStages + 1;            // tiles that can be under way
  // Offsets in shared memory, and its size.
  static constexpr int kTiles = kStages * kStageBytes;
  static constexpr int kRowTiles = kTiles + kWarps * kListed * static_cast<int>(sizeof(int4));
  static constexpr int kSharedBytes = kRowTiles + static_cast<int>(sizeof(int4));
  static_assert(kXPieces * kThreads * 16 == kXBytes && kWPieces * kThreads * 16 == kWBytes);
  static_assert(kWarps * 8 * kResultPitch * 4 <= kStageBytes);
};

/// What a thread copies of each stage: a 16-byte piece of some rows of both operands.
template <class S>
struct TileLoader {
  using W = typename S::W;
  static constexpr int kXStep = S::kThreads / 8, kWStep = S::kThreads / S::kWRowPieces;  // to its next row
  const Bf16* x[S::kXPieces];                                                            // null where there is no row
  const W* w;                                                                            // its first row
  int w_rows;                                                                            // rows of w from there on
  int step;                                                                              // next 64 k to ask for

  __device__ __forceinline__ void aim(const Product& p, RowTile tile, int64_t n0) {
    const int piece = threadIdx.x % 8, row = threadIdx.x / 8;
#pragma unroll
    for (int j = 0; j < S::kXPieces; ++j) {
      const int r = row + j * kXStep;
      x[j] = nullptr;
      if (r >= tile.count) continue;
      const int64_t from = operand_row(p, tile.row0 + r);
      if (from >= 0) x[j] = static_cast<const Bf16*>(p.x) + tile.group * p.x_group + from * p.x_row + piece * 8;
    }
    const int w_row = threadIdx.x / S::kWRowPieces;
    w = static_cast<const W*>(p.w) + tile.group * p.w_group + (n0 + w_row) * p.k +
        threadIdx.x % S::kWRowPieces * Chunk<W>::kLoad;
    const int64_t left = p.n - n0 - w_row;
    w_rows = static_cast<int>(left < S::kColumns ? left : S::kColumns);
    step = 0;
  }

  __device__ __forceinline__ void load(const Product& p, uint32_t stage) {
    const int k0 = step * kStageK;
    {
      const int piece = threadIdx.x % 8, row = threadIdx.x / 8;
      const bool inside = k0 + piece * 8 < p.k;
      const uint32_t at = stage + row * 128 + (piece ^ (row % 2 * 5)) * 16;
#pragma unroll
      for (int j = 0; j < S::kXPieces; ++j) cp_async16(at + j * kXStep * 128, x[j] + k0, inside && x[j] != nullptr);
    }
    const int piece = threadIdx.x % S::kWRowPieces, row = threadIdx.x / S::kWRowPieces;
    const bool inside = k0 + piece * Chunk<W>::kLoad < p.k;
    const int place = S::kScaled ? piece : piece ^ (row % 2 * 5);
    const uint32_t at = stage + S::kXBytes + (row * S::kWRowPieces + place) * 16;
    const W* from = w + k0;
#pragma unroll
    for (int j = 0; j < S::kWPieces; ++j) {
      cp_async16(at + j * kWStep * S::kWRowPieces * 16, from, inside && j * kWStep < w_rows);
      from += kWStep * p.k;
    }
    ++step;
  }
};

/// Sums of a warp: of the segment under way, and of those before it.
template <class S>
struct TileSums {
  float acc[S::kDown][S::kAcross][4], total[S::kDown][S::kAcross][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < S::kAcross; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) total[i][j][v] = 0;
      }
    }
  }

  /// Adds the segment. Its scales: of even and odd 8-column pieces.
  __device__ __forceinline__ void add(float even, float odd) {
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < S::kAcross; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          total[i][j][v] =
              S::kScaled ? fmaf(j % 2 == 0 ? even : odd, acc[i][j][v], total[i][j][v]) : total[i][j][v] + acc[i][j][v];
        }
      }
    }
  }
};

/// v, in a register of its own. A takes four registers in a row, two loads bring every other one of them. Moves ptxas
/// would repeat for each product, into registers that the product before still reads: 215 TFLOP/s instead of 239 in one
/// call (4096 x 3072 x 2048, H200, 2026-11). It does not see that `zero` is none.
__device__ __forceinline__ uint32_t settle(uint32_t v, uint32_t zero) {
  uint32_t out;
  asm volatile("or.b32 %0, %1, %2;" : "=r"(out) : "r"(v), "r"(zero));
  return out;
}

/// Half a stage, as a warp reads it: shared addresses of this lane's pieces of its first rows.
struct HalfStage {
  uint32_t x, w;
};

template <class S>
__device__ __forceinline__ HalfStage half_stage(uint32_t stage, int c, int warp_row, int warp_column, int lane) {
  const int g = lane / 4, q = lane % 4, odd = g % 2 * 5;
  const int x_place = ((S::kScaled ? 2 * q + c : 4 * c + q) ^ odd) * 16;
  return {stage + (warp_row + g) * 128 + x_place,
          stage + S::kXBytes + (warp_column + g) * (S::kWRowPieces * 16) + (S::kScaled ? q * 16 : x_place)};
}

/// Operands that have been asked for before they are needed: x of the next half stage, w of the next pieces.
template <class S>
struct TileOperands {
  static constexpr int kRing = 4, kAhead = 2;
  uint4 x[S::kDown][2], w[kRing];
  static_assert(S::kAcross % kRing == 0);

  __device__ __forceinline__ void load_x(HalfStage from, int i) {
    x[i][0] = shared_load4(from.x + i * 16 * 128);
    x[i][1] = shared_load4(from.x + (i * 16 + 8) * 128);
  }
  __device__ __forceinline__ void load_w(HalfStage from, int j) {
    w[j % kRing] = shared_load4(from.w + j * 8 * S::kWRowPieces * 16);
  }
};

/// acc += half c of a stage's 64 k, 32 of them in two steps; kFirst: of a segment. Asks for the half after it.
template <bool kFirst, class S>
__device__ __forceinline__ void multiply(HalfStage now, HalfStage next, int c, uint32_t zero, TileOperands<S>& o,
                                         TileSums<S>& sums) {
  uint32_t a[S::kDown][2][4];
#pragma unroll
  for (int i = 0; i < S::kDown; ++i) {
    const uint4 low = o.x[i][0], high = o.x[i][1];
    const uint32_t words[8] = {low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w};
#pragma unroll
    for (int v = 0; v < 8; ++v) a[i][v / 4][v % 4] = settle(words[v], zero);
  }
#pragma unroll
  for (int j = 0; j < S::kAcross; ++j) {
    if (j + o.kAhead < S::kAcross) {
      o.load_w(now, j + o.kAhead);
    } else {
      o.load_w(next, j + o.kAhead - S::kAcross);
    }
    // x comes in the second half of the pieces.
#pragma unroll
    for (int i = 0; i < S::kDown; ++i)
      if (S::kAcross / 2 + i * (S::kAcross / 2) / S::kDown == j) o.load_x(next, i);
    const uint4 v = o.w[j % o.kRing];
    uint32_t b[2][2];
    if constexpr (S::kScaled) {
      f8_to_bf16(c == 0 ? v.x : v.z, b[0][0], b[0][1]);
      f8_to_bf16(c == 0 ? v.y : v.w, b[1][0], b[1][1]);
    } else {
      b[0][0] = v.x, b[0][1] = v.y, b[1][0] = v.z, b[1][1] = v.w;
    }
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
      if constexpr (kFirst) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums.acc[i][j][e] = 0;
      }
      mma_bf16(sums.acc[i][j], a[i][0], b[0]);
    }
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) mma_bf16(sums.acc[i][j], a[i][1], b[1]);
  }
}

/// Writes a warp's results, eight rows at a time by way of its part of shared memory, so that memory sees whole
/// sectors. warp_row: its first row in the tile; n0: its first row of w.
template <class S>
__device__ __forceinline__ void emit_tile(const Product& p, RowTile tile, int64_t n0, int warp_row, int lane,
                                          float* results, const float (&total)[S::kDown][S::kAcross][4]) {
  const int g = lane / 4, q = lane % 4;
  const bool wide = wide_results(p);
  const int eights = p.gated ? S::kAcross / 2 : S::kAcross;  // of a row
  const int64_t first = p.gated ? n0 / 2 : n0, columns = p.gated ? p.n / 2 : p.n;
#pragma unroll
  for (int i = 0; i < 2 * S::kDown; ++i) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < S::kAcross; ++j) {
      const float* const v = total[i / 2][j] + i % 2 * 2;
      *reinterpret_cast<float2*>(results + g * S::kResultPitch + j * 8 + 2 * q) = make_float2(v[0], v[1]);
    }
    __syncwarp();
#pragma unroll 1
    for (int at = lane; at < 8 * eights; at += 32) {
      const int row = warp_row + i * 8 + at / eights;
      const int64_t n = first + at % eights * 8;
      if (row >= tile.count || n >= columns) continue;
      const float* const from = results + at / eights * S::kResultPitch + at % eights * (p.gated ? 16 : 8);
      float v[8];
      load8(from, v);
      if (p.gated) {
        float up[8];
        load8(from + 8, up);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = gate_up(v[e], up[e]);
      }
      put8(p, tile.group * p.y_group + (tile.row0 + row) * p.y_row + n, v, columns - n, wide);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) product_tile_kernel(const __grid_constant__ Product p) {
  // Nothing static in front of it: where a stage's rows of 128 bytes are no lines of shared memory, 4096 x 3072 x 2048
  // takes 216 us instead of 180 (H200, 2026-11).
  extern __shared__ __align__(128) unsigned char shared[];
  int& row_tiles = *reinterpret_cast<int*>(shared + S::kRowTiles);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % S::kWarpsDown * S::kDown * 16, warp_column = warp / S::kWarpsDown * S::kAcross * 8;
  const int steps = static_cast<int>((p.k + kStageK - 1) / kStageK), segments = (steps + 1) / 2;
  const uint32_t zero = static_cast<uint32_t>(p.k >> 62);

  pdl_wait();
  {
    const int count = count_row_tiles<S>(p);
    if (threadIdx.x == 0) row_tiles = count;
  }
  __syncthreads();

  // The loader runs kStages - 1 stages ahead, into the next tiles if need be, and lists them; group -1 is the end. Each
  // warp has a loader and a list of its own, so that nobody waits for another warp's.
  TileLoader<S> loader;
  int4* const list = reinterpret_cast<int4*>(shared + S::kTiles) + warp * S::kListed;
  int aimed = 0;
  const auto aim = [&] {
    Tile tile{{-1, 0, 0}, 0};
    loader.step = steps;
    if (tile_of<S>(p, row_tiles, aimed, tile)) loader.aim(p, tile.rows, int64_t{tile.column} * S::kColumns);
    if (lane == 0) list[aimed % S::kListed] = {tile.rows.group, tile.rows.row0, tile.rows.count, tile.column};
    __syncwarp();
    ++aimed;
  };
  const auto load = [&](int stage) {
    if (loader.step < steps) {
      loader.load(p, shared_address(shared + stage * S::kStageBytes));
      if (loader.step == steps) aim();
    }
    cp_async_commit();
  };
  aim();
#pragma unroll 1
  for (int stage = 0; stage < S::kStages - 1; ++stage) load(stage);

  const uint32_t stages = shared_address(shared);
  const auto half = [&](int stage, int c) {
    return half_stage<S>(stages + stage * S::kStageBytes, c, warp_row, warp_column, lane);
  };
  cp_async_wait<S::kStages - 2>();
  __syncthreads();
  TileOperands<S> operands;
#pragma unroll
  for (int i = 0; i < S::kDown; ++i) operands.load_x(half(0, 0), i);
#pragma unroll
  for (int j = 0; j < operands.kAhead; ++j) operands.load_w(half(0, 0), j);
  int stage = 0;
  TileSums<S> sums;
#pragma unroll 1
  for (int turn = 0; list[turn % S::kListed].x >= 0; ++turn) {
    const float *even_scale = nullptr, *odd_scale = nullptr;  // of even and odd 8-column pieces
    if constexpr (S::kScaled) {
      const int4 tile = list[turn % S::kListed];
      const int64_t n0 = int64_t{tile.w} * S::kColumns, block = (p.gated ? n0 / 2 : n0) / kSegment;
      even_scale = odd_scale = p.scale + tile.x * p.scale_group + block * segments;
      if (p.gated) odd_scale += div_up<int64_t>(p.n / 2, kSegment) * segments;
    }
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const HalfStage first = half(stage, 0), second = half(stage, 1);
      if (step % 2 == 0) {
        multiply<true>(first, second, 0, zero, operands, sums);
      } else {
        multiply<false>(first, second, 0, zero, operands, sums);
      }
      cp_async_wait<S::kStages - 3>();
      // The next stage has arrived for everyone, and nobody reads the one before any more: it is loaded next.
      __syncthreads();
      load(stage == 0 ? S::kStages - 1 : stage - 1);
      stage = stage == S::kStages - 1 ? 0 : stage + 1;
      multiply<false>(second, half(stage, 0), 1, zero, operands, sums);
      if (step % 2 == 0 && step + 1 < steps) continue;
      if constexpr (S::kScaled) {
        sums.add(even_scale[step / 2], odd_scale[step / 2]);
      } else {
        sums.add(1, 1);
      }
    }
    const int4 tile = list[turn % S::kListed];
    if (loader.step == steps) pdl_launch_dependents();
    // The last stage is free until the next barrier has been passed; here, once everyone has read it.
    __syncthreads();
    unsigned char* const last = shared + (stage == 0 ? S::kStages - 1 : stage - 1) * S::kStageBytes;
    emit_tile<S>(p, {tile.x, tile.y, tile.z}, int64_t{tile.w} * S::kColumns + warp_column, warp_row, lane,
                 reinterpret_cast<float*>(last) + warp * 8 * S::kResultPitch, sums.total);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t launch_tile(const Product& p, const Traits& traits, cudaStream_t stream) {
  return launch_pdl(product_tile_kernel<S>, dim3(tile_blocks<S>(p, traits)), dim3(S::kThreads), S::kSharedBytes, stream,
                    p);
}

/// The shapes. Rows that a tile has and an expert has not cost tensor cores as much as others: hence 16 and 32.
template <class W>
using Tile16 = TileShape<W, 16, 128, 16, 32, sizeof(W) == 1 ? 4 : 3, 4>;
template <class W>
using Tile32 = TileShape<W, 32, 128, 32, 32, sizeof(W) == 1 ? 3 : 2, 4>;
template <class W>
using Tile64 = TileShape<W, 64, 64, 32, 32, 3, 4>;
template <class W, int kStages>
using Tile128 = TileShape<W, 128, 128, sizeof(W) == 1 ? 64 : 32, sizeof(W) == 1 ? 32 : 64, 1, kStages>;

/// Does a block have room for four stages of the largest tile? Three fit everywhere.
template <class W>
bool four_stages(int shared_bytes_per_block) {
  return Tile128<W, 4>::kSharedBytes <= shared_bytes_per_block;
}

template <class W>
cudaError_t launch_product_tile(const Product& p, int tile_rows, const Traits& traits, cudaStream_t stream) {
  switch (tile_rows) {
    case 16: return launch_tile<Tile16<W>>(p, traits, stream);
    case 32: return launch_tile<Tile32<W>>(p, traits, stream);
    case 64: return launch_tile<Tile64<W>>(p, traits, stream);
    default:
      return four_stages<W>(traits.shared_bytes_per_block) ? launch_tile<Tile128<W, 4>>(p, traits, stream)
                                                           : launch_tile<Tile128<W, 3>>(p, traits, stream);
  }
}

template <class W>
cudaError_t load_product_tile(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_tile_kernel<Tile16<W>>);
  if (error == cudaSuccess) error = load(product_tile_kernel<Tile32<W>>);
  if (error == cudaSuccess) error = load(product_tile_kernel<Tile64<W>>);
  if (error == cudaSuccess) {
    error = four_stages<W>(shared_bytes_per_block) ? load(product_tile_kernel<Tile128<W, 4>>)
                                                   : load(product_tile_kernel<Tile128<W, 3>>);
  }
  return error;
}

}  // namespace mla::cuda
