// product_tile_device.cuh - what the kernels of tiles share (product_tile.cuh, product_chain.cuh): which tiles there
// are, in which order, and how a lane writes eight results. S: a shape, with kRows of x and kColumns of w.
#pragma once
#include "cuda/gemm/product_device.cuh"

namespace mla::cuda {

constexpr int kRowTilesAtATime = 8;

/// A tile: rows of one group by kColumns rows of its w.
struct Tile {
  RowTile rows;
  int column;  // in tiles
};

/// Tiles of kRows rows that all groups have together. Called by whole warps.
template <class S>
__device__ __forceinline__ int count_row_tiles(const Product& p) {
  return p.offsets == nullptr ? static_cast<int>((p.rows + S::kRows - 1) / S::kRows * p.groups)
                              : count_tiles(p, S::kRows);
}

/// The tile that a block takes in its turn; false behind the last one. Called by whole warps.
template <class S>
__device__ __forceinline__ bool tile_of(const Product& p, int row_tiles, int turn, Tile& tile) {
  const int column_tiles = static_cast<int>((p.n + S::kColumns - 1) / S::kColumns);
  const int index = static_cast<int>(blockIdx.x) + turn * static_cast<int>(gridDim.x);
  if (index >= row_tiles * column_tiles) return false;
  const int band = kRowTilesAtATime * column_tiles;
  const int first = index / band * kRowTilesAtATime, within = index % band;
  const int height = min(kRowTilesAtATime, row_tiles - first);
  tile.column = within / height;
  const int row_tile = first + within % height;
  tile.rows = p.offsets == nullptr
                  ? even_tile(row_tile, static_cast<int>((p.rows + S::kRows - 1) / S::kRows), S::kRows, p.rows)
                  : uneven_tile(p, row_tile, S::kRows);
  return true;
}

/// May results (and the residual) be accessed by 16 bytes?
__device__ __forceinline__ bool wide_results(const Product& p) {
  const int width = p.y_dtype == DType::kF32 ? 4 : 8;
  return p.y_row % width == 0 && p.y_group % width == 0 && aligned16(p.y) &&
         (p.residual == nullptr || (p.y_row % 8 == 0 && p.y_group % 8 == 0 && aligned16(p.residual)));
}

/// Eight neighbouring results of a row, of which `count` exist.
__device__ __forceinline__ void put8(const Product& p, int64_t at, float (&v)[8], int64_t count, bool wide) {
  if (count < 8 || !wide) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) put(p, at + i, v[i]);
    return;
  }
  if (p.residual != nullptr) {
    float add[8];
    load8(static_cast<const Bf16*>(p.residual) + at, add);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += add[i];
  }
  if (p.y_dtype == DType::kF32) {
    store8(static_cast<float*>(p.y) + at, v);
  } else {
    store8(static_cast<Bf16*>(p.y) + at, v);
  }
}

/// Blocks of a product: as many as fit, or one for each tile that there can be.
template <class S>
unsigned tile_blocks(const Product& p, const Traits& traits) {
  int64_t row_tiles = p.groups * div_up<int64_t>(p.rows, S::kRows);
  if (p.offsets != nullptr) row_tiles = p.rows / S::kRows + (p.groups < p.rows ? p.groups : p.rows);
  const int64_t tiles = row_tiles * div_up<int64_t>(p.n, S::kColumns);
  // A block and a multiprocessor have 1 KB more than a block may ask for.
  const int64_t fitting = (traits.shared_bytes_per_block + 1024) / (S::kSharedBytes + 1024);
  const int64_t resident = traits.multiprocessors * (fitting < S::kBlocks ? fitting : S::kBlocks);
  return static_cast<unsigned>(tiles < resident ? tiles : resident);
}

}  // namespace mla::cuda
