// product_tile.cuh - products of many rows: bounded by the tensor cores.
//
// Formula and order of sums: product.h; the bits are those of product_stream.cuh.
// Grid: as many blocks as fit; each takes tiles blockIdx, blockIdx + gridDim, ... and goes on loading across them.
// Tiles
//   are walked 8 row tiles at a time, so that weights and rows that blocks share at the same time stay in L2.
// Tile: rows of x by rows of w. 128x128: 8 warps of 64x32, one block a multiprocessor; 64x64 and, for experts with few
//   rows, 32x128: 4 warps of 32x32, several blocks.
// Stage: 64 k of both operands, 3 (4) stages through cp.async. A row of x (and of bf16 weights) is 8
//   pieces of 16 bytes; odd rows have piece j at j ^ 5, so that the eight lanes that read at once, two rows of four
//   pieces, hit different banks. Rows of fp8 weights are 4 pieces and need none of that.
// Registers: a segment's sums and the totals, 64 floats each per thread with 128x128, else 32.
// Tensor cores: rows of x are A, weights B. An fp8 scale is constant over a tile (two with gate and up) and a segment.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_device.cuh"

namespace mla::cuda {

constexpr int kStageK = 64;
constexpr int kRowTilesAtATime = 8;

template <class Weight, int kTileRows, int kTileColumns>
struct TileShape {
  using W = Weight;
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kWarpsDown = kRows == 32 ? 1 : 2;  // along rows of x
  static constexpr int kWarpsAcross = kColumns / 32;      // along rows of w
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  static constexpr int kBlocks = kRows == 128 ? 1 : kRows == 64 ? 3 : 2;
  static constexpr int kStages = kRows == 128 ? 3 : 4;
  static constexpr int kDown = kRows / kWarpsDown / 16;  // 16-row pieces of a warp
  static constexpr int kAcross = 4;                      // 8-column pieces of a warp
  static constexpr int kXBytes = kRows * kStageK * 2;
  static constexpr int kWBytes = kColumns * kStageK * static_cast<int>(sizeof(W));
  static constexpr int kSharedBytes = kStages * (kXBytes + kWBytes);
  static constexpr int kXPieces = kXBytes / 16 / kThreads;  // of a thread, per stage
  static constexpr int kWPieces = kWBytes / 16 / kThreads;
  static constexpr int kWRowPieces = kStageK * static_cast<int>(sizeof(W)) / 16;
};

template <class S>
struct TileWalk {
  const Product& p;
  int row_tiles, column_tiles, per_group;

  __device__ int64_t count() const { return static_cast<int64_t>(row_tiles) * column_tiles; }

  /// Tile `index`: its rows, and its first row of w.
  __device__ RowTile at(int64_t index, int64_t& n0) const {
    const int64_t band = static_cast<int64_t>(kRowTilesAtATime) * column_tiles;
    const int first = static_cast<int>(index / band) * kRowTilesAtATime;
    const int height = min(kRowTilesAtATime, row_tiles - first);
    const int within = static_cast<int>(index % band);
    n0 = static_cast<int64_t>(within / height) * S::kColumns;
    const int row_tile = first + within % height;
    return p.offsets == nullptr ? even_tile(row_tile, per_group, S::kRows, p.rows) : uneven_tile(p, row_tile, S::kRows);
  }
};

/// What a thread copies of each stage.
template <class S>
struct TileLoader {
  using W = typename S::W;
  const Bf16* x[S::kXPieces];  // null where there is no row
  const W* w;                  // row n0 + its first row
  int w_rows;                  // rows of w from there on
  int step;                    // next 64 k to ask for

  __device__ void aim(const Product& p, RowTile tile, int64_t n0) {
    const int piece = threadIdx.x % 8, row = threadIdx.x / 8;
#pragma unroll
    for (int j = 0; j < S::kXPieces; ++j) {
      const int r = row + j * (S::kThreads / 8);
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

  __device__ void load(const Product& p, uint32_t stage) {
    const int64_t k0 = static_cast<int64_t>(step) * kStageK;
    const int piece = threadIdx.x % 8, row = threadIdx.x / 8;
    const bool x_inside = k0 + piece * 8 < p.k;
#pragma unroll
    for (int j = 0; j < S::kXPieces; ++j) {
      const int r = row + j * (S::kThreads / 8);
      const bool valid = x_inside && x[j] != nullptr;
      const uint32_t at = stage + r * 128 + (piece ^ (r % 2 * 5)) * 16;
      cp_async16(at, valid ? static_cast<const void*>(x[j] + k0) : p.x, valid);
    }
    const int w_piece = threadIdx.x % S::kWRowPieces;
    const bool w_inside = k0 + w_piece * Chunk<W>::kLoad < p.k;
#pragma unroll
    for (int j = 0; j < S::kWPieces; ++j) {
      constexpr int kRows = S::kThreads / S::kWRowPieces;
      const int r = threadIdx.x / S::kWRowPieces + j * kRows;
      const bool valid = w_inside && j * kRows < w_rows;
      const int place = S::kScaled ? w_piece : w_piece ^ (r % 2 * 5);
      cp_async16(stage + S::kXBytes + (r * S::kWRowPieces + place) * 16,
                 valid ? static_cast<const void*>(w + j * kRows * p.k + k0) : p.w, valid);
    }
    ++step;
  }
};

/// acc += the stage's 64 k.
template <class S>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, int warp_row, int warp_column, int lane,
                                               float (&acc)[S::kDown][4][4]) {
  const int g = lane / 4, q = lane % 4, odd = g % 2 * 5;
  const unsigned char* const x = stage + (warp_row + g) * 128;
  const unsigned char* const w = stage + S::kXBytes + (warp_column + g) * (S::kWRowPieces * 16);
  if constexpr (!S::kScaled) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int place = ((4 * c + q) ^ odd) * 16;
      uint4 b[S::kAcross];
#pragma unroll
      for (int j = 0; j < S::kAcross; ++j) b[j] = load16(w + j * 8 * 128 + place);
#pragma unroll
      for (int i = 0; i < S::kDown; ++i) {
        const uint4 low = load16(x + i * 16 * 128 + place), high = load16(x + (i * 16 + 8) * 128 + place);
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) mma_bf16(acc[i][j], {low.x, high.x, low.y, high.y}, {b[j].x, b[j].y});
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) mma_bf16(acc[i][j], {low.z, high.z, low.w, high.w}, {b[j].z, b[j].w});
      }
    }
  } else {
    uint32_t b[4][S::kAcross][2];
#pragma unroll
    for (int j = 0; j < S::kAcross; ++j) {
      const uint4 codes = load16(w + j * 8 * 64 + q * 16);
      f8_to_bf16(codes.x, b[0][j][0], b[0][j][1]);
      f8_to_bf16(codes.y, b[1][j][0], b[1][j][1]);
      f8_to_bf16(codes.z, b[2][j][0], b[2][j][1]);
      f8_to_bf16(codes.w, b[3][j][0], b[3][j][1]);
    }
#pragma unroll
    for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int place = ((2 * q + h) ^ odd) * 16;
        const uint4 low = load16(x + i * 16 * 128 + place), high = load16(x + (i * 16 + 8) * 128 + place);
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) mma_bf16(acc[i][j], {low.x, high.x, low.y, high.y}, b[2 * h][j]);
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) mma_bf16(acc[i][j], {low.z, high.z, low.w, high.w}, b[2 * h + 1][j]);
      }
    }
  }
}

/// Two neighbouring results at an even place.
__device__ __forceinline__ void put_pair(const Product& p, int64_t at, float a, float b) {
  if (p.residual != nullptr) {
    const uint32_t r = *reinterpret_cast<const uint32_t*>(static_cast<const Bf16*>(p.residual) + at);
    a += bf16_low(r);
    b += bf16_high(r);
  }
  if (p.y_dtype == DType::kF32) {
    *reinterpret_cast<float2*>(static_cast<float*>(p.y) + at) = make_float2(a, b);
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(p.y) + at) = pack_bf16(a, b);
  }
}

template <class S>
__device__ __forceinline__ void emit_tile(const Product& p, RowTile tile, int64_t n0, int warp_row, int warp_column,
                                          int lane, bool pairs, const float (&total)[S::kDown][4][4]) {
  const int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_row + i * 16 + half * 8 + g;
      if (r >= tile.count) continue;
      const int64_t row = tile.group * p.y_group + (tile.row0 + r) * p.y_row;
      const int v = 2 * half;
      if (p.gated) {
#pragma unroll
        for (int j = 0; j < S::kAcross; j += 2) {
          const int64_t n = n0 + warp_column + j * 8;
          if (n >= p.n) continue;
          const float a = gate_up(total[i][j][v], total[i][j + 1][v]);
          const float b = gate_up(total[i][j][v + 1], total[i][j + 1][v + 1]);
          const int64_t at = row + n / 2 + 2 * q;
          if (pairs) {
            put_pair(p, at, a, b);
          } else {
            put(p, at, a);
            put(p, at + 1, b);
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) {
          const int64_t n = n0 + warp_column + j * 8 + 2 * q;
          if (pairs && n < p.n) {
            put_pair(p, row + n, total[i][j][v], total[i][j][v + 1]);
          } else {
            if (n < p.n) put(p, row + n, total[i][j][v]);
            if (n + 1 < p.n) put(p, row + n + 1, total[i][j][v + 1]);
          }
        }
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) product_tile_kernel(const __grid_constant__ Product p) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kStageBytes = S::kXBytes + S::kWBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp % S::kWarpsDown * (S::kRows / S::kWarpsDown), warp_column = warp / S::kWarpsDown * 32;

  pdl_wait();
  TileWalk<S> walk{p, 0, static_cast<int>((p.n + S::kColumns - 1) / S::kColumns),
                   static_cast<int>((p.rows + S::kRows - 1) / S::kRows)};
  walk.row_tiles = p.offsets == nullptr ? walk.per_group * static_cast<int>(p.groups) : count_tiles(p, S::kRows);
  const int64_t tiles = walk.count();
  const int steps = static_cast<int>((p.k + kStageK - 1) / kStageK);
  const int segments = (steps + 1) / 2;
  const bool pairs = p.y_row % 2 == 0 && p.y_group % 2 == 0 && p.n % 2 == 0 &&
                     (reinterpret_cast<uintptr_t>(p.y) & 7) == 0 && (reinterpret_cast<uintptr_t>(p.residual) & 3) == 0;

  // The loader runs kStages - 1 stages ahead, into the next tile if need be.
  TileLoader<S> loader;
  int64_t loading = blockIdx.x;
  const auto aim = [&] {
    if (loading >= tiles) return;
    int64_t n0;
    const RowTile tile = walk.at(loading, n0);
    loader.aim(p, tile, n0);
  };
  const auto load = [&](int stage) {
    if (loading < tiles) {
      loader.load(p, shared_address(shared + stage * kStageBytes));
      if (loader.step == steps) {
        loading += gridDim.x;
        aim();
      }
    }
    cp_async_commit();
  };
  aim();
#pragma unroll 1
  for (int stage = 0; stage < S::kStages - 1; ++stage) load(stage);

  int stage = 0;
#pragma unroll 1
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    int64_t n0;
    const RowTile tile = walk.at(index, n0);
    const float *low_scale = nullptr, *high_scale = nullptr;  // of even and odd 8-column pieces
    if constexpr (S::kScaled) {
      const int64_t first = (p.gated ? n0 / 2 : n0) / kSegment;
      low_scale = high_scale = p.scale + tile.group * p.scale_group + first * segments;
      if (p.gated) high_scale += div_up<int64_t>(p.n / 2, kSegment) * segments;
    }
    float total[S::kDown][4][4] = {}, acc[S::kDown][4][4] = {};
#pragma unroll 1
    for (int segment = 0; segment < segments; ++segment) {
      float low = 1, high = 1;
      if constexpr (S::kScaled) low = low_scale[segment], high = high_scale[segment];
#pragma unroll 1
      for (int step = 2 * segment; step < min(2 * segment + 2, steps); ++step) {
        cp_async_wait<S::kStages - 2>();
        // This stage has arrived for everyone, and nobody reads the one before any more: it is loaded next.
        __syncthreads();
        load(stage == 0 ? S::kStages - 1 : stage - 1);
        multiply_stage<S>(shared + stage * kStageBytes, warp_row, warp_column, lane, acc);
        stage = stage == S::kStages - 1 ? 0 : stage + 1;
      }
#pragma unroll
      for (int i = 0; i < S::kDown; ++i) {
#pragma unroll
        for (int j = 0; j < S::kAcross; ++j) {
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            total[i][j][v] = S::kScaled ? fmaf(j % 2 == 0 ? low : high, acc[i][j][v], total[i][j][v])
                                        : total[i][j][v] + acc[i][j][v];
            acc[i][j][v] = 0;
          }
        }
      }
    }
    if (index + gridDim.x >= tiles) pdl_launch_dependents();
    emit_tile<S>(p, tile, n0, warp_row, warp_column, lane, pairs, total);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class S>
cudaError_t launch_tile(const Product& p, int multiprocessors, cudaStream_t stream) {
  int64_t row_tiles = p.groups * div_up<int64_t>(p.rows, S::kRows);
  if (p.offsets != nullptr) row_tiles = p.rows / S::kRows + (p.groups < p.rows ? p.groups : p.rows);
  const int64_t tiles = row_tiles * div_up<int64_t>(p.n, S::kColumns);
  const int64_t resident = static_cast<int64_t>(S::kBlocks) * multiprocessors;
  return launch_pdl(product_tile_kernel<S>, dim3(static_cast<unsigned>(tiles < resident ? tiles : resident)),
                    dim3(S::kThreads), S::kSharedBytes, stream, p);
}

template <class W>
cudaError_t launch_product_tile(const Product& p, int tile_rows, int multiprocessors, cudaStream_t stream) {
  switch (tile_rows) {
    case 32: return launch_tile<TileShape<W, 32, 128>>(p, multiprocessors, stream);
    case 64: return launch_tile<TileShape<W, 64, 64>>(p, multiprocessors, stream);
    default: return launch_tile<TileShape<W, 128, 128>>(p, multiprocessors, stream);
  }
}

template <class W>
cudaError_t load_product_tile(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_tile_kernel<TileShape<W, 32, 128>>);
  if (error == cudaSuccess) error = load(product_tile_kernel<TileShape<W, 64, 64>>);
  if (error == cudaSuccess) error = load(product_tile_kernel<TileShape<W, 128, 128>>);
  return error;
}

}  // namespace mla::cuda
