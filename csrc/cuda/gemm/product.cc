#include "cuda/gemm/product.h"

#include <algorithm>
#include <cstdint>

#include "common/checked.h"
#include "cuda/gemm/product_e4m3.h"
#include "cuda/gemm/product_held.h"
#include "cuda/gemm/product_ring.h"
#include "cuda/gemm/product_split.h"
#include "cuda/gemm/product_wgmma.h"

namespace mla::cuda {

namespace {

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/// Rows a group has on average, rounded up.
int64_t mean_rows(const Product& p) { return p.offsets == nullptr ? p.rows : ceil_div(p.rows, p.groups); }

/// Rows of tiles: as few as hold a group's, but 128 only where that still gives every multiprocessor a tile.
int tile_rows(const Product& p, int multiprocessors) {
  const int64_t mean = mean_rows(p);
  if (mean <= (p.w_dtype == DType::kF8E4M3 ? 16 : 12)) return 16;
  if (mean <= 48) return 32;
  if (mean <= (p.offsets != nullptr ? 96 : 64)) return 64;
  const int64_t row_tiles = p.offsets == nullptr ? p.groups * ceil_div(p.rows, 128) : ceil_div(p.rows, 128);
  return row_tiles * ceil_div(p.n, 128) >= multiprocessors ? 128 : 64;
}

/// Are tiles of 128 by 256, in another order of sums, quicker than those of 128 by 128? One takes 7/5 of their time,
/// with fp8 weights 5/3 (k 2048, H200, 2026-11); what counts is how many a multiprocessor has one after the other.
bool chains(const Product& p, const Traits& traits) {
  if (traits.deterministic || mean_rows(p) <= 96 || p.k == 0) return false;
  // Pieces of x are counted with 32 bits, and the bytes of 64 rows of w.
  const int64_t x_rows = p.order == nullptr ? p.rows : p.x_rows;
  if ((x_rows * p.x_row + (p.offsets == nullptr ? p.groups * p.x_group : 0)) / 8 > INT32_MAX || p.k > 1 << 20)
    return false;
  const int64_t row_tiles =
      p.offsets == nullptr ? p.groups * ceil_div(p.rows, 128) : p.rows / 128 + std::min(p.groups, p.rows);
  const int64_t chained = ceil_div(row_tiles * ceil_div(p.n, kChainColumns), traits.multiprocessors);
  const int64_t others = ceil_div(row_tiles * ceil_div(p.n, 128), traits.multiprocessors);
  return p.w_dtype == DType::kF8E4M3 ? 8 * chained <= 5 * others : 4 * chained <= 3 * others;
}

/// So few tiles would leave most of the GPU idle; streaming the weights once for each 32 rows is quicker.
bool streams(const Product& p, int multiprocessors) {
  if (p.offsets != nullptr || p.rows > 96) return false;
  const int64_t width = p.rows <= 32 ? 128 : 64;  // of a tile
  return p.groups * ceil_div(p.rows, 64) * ceil_div(p.n, width) <= multiprocessors / 2;
}

/// Rows of a streaming tile in eights.
int stream_row_tiles(const Product& p) { return p.rows <= 8 ? 1 : p.rows <= 16 ? 2 : 4; }

}  // namespace

bool fits_tensor_cores(const Product& p) {
  const int64_t w_step = p.w_dtype == DType::kF8E4M3 ? 16 : 8;
  return p.x_dtype == DType::kBF16 && p.w_dtype != DType::kF32 && !p.w_transposed && p.positions == nullptr &&
         p.k % w_step == 0 && p.w_group % w_step == 0 && p.x_row % 8 == 0 && p.x_group % 8 == 0 && aligned(p.x) &&
         aligned(p.w);
}

bool weights_settled(const Product& p, const Launch& launch) {
  View weights;
  weights.data = const_cast<void*>(p.w);
  weights.dtype = p.w_dtype;
  weights.rank = 1;
  weights.shape[0] = (p.groups - 1) * p.w_group + p.n * p.k;
  return launch.settled(weights);
}

cudaError_t launch_product(const Product& p, const Launch& launch) {
  const int multiprocessors = launch.traits->multiprocessors;
  const cudaStream_t stream = launch.stream;
  if (p.rows == 0 || p.n == 0 || p.groups == 0) return cudaSuccess;
  if (p.fp8_x) return cudaErrorInvalidValue;
  if (p.x_dtype == DType::kF8E4M3) return launch_product_e4m3(p, launch);
  if (holds_weights(p, *launch.traits)) return launch_product_held(p, launch);
  if (rings(p, nullptr, *launch.traits)) return launch_product_ring(p, launch);
  if (p.norm.weight != nullptr) return cudaErrorInvalidValue;
  if (!fits_tensor_cores(p)) return launch_product_fma(p, stream);
  if (splits(p, *launch.traits)) return launch_product_split(p, launch);
  if (multiplies_with_wgmma(p, *launch.traits)) return launch_product_wgmma(p, launch);
  const bool f8 = p.w_dtype == DType::kF8E4M3;
  if (streams(p, multiprocessors)) {
    const int row_tiles = stream_row_tiles(p);
    return f8 ? launch_product_stream_f8(p, row_tiles, multiprocessors, stream)
              : launch_product_stream_bf16(p, row_tiles, multiprocessors, stream);
  }
  if (chains(p, *launch.traits)) {
    return f8 ? launch_product_chain_f8(p, *launch.traits, stream)
              : launch_product_chain_bf16(p, *launch.traits, stream);
  }
  const int height = tile_rows(p, multiprocessors);
  return f8 ? launch_product_tile_f8(p, height, *launch.traits, stream)
            : launch_product_tile_bf16(p, height, *launch.traits, stream);
}

bool combines(const Product& p, const Combine& c, const Traits& traits) { return rings(p, &c, traits); }

cudaError_t launch_combine(const Product& p, const Combine& c, const Launch& launch) {
  return launch_combine_ring(p, c, launch);
}

cudaError_t load_product_kernels(const Traits& traits) {
  const int shared_bytes_per_block = traits.shared_bytes_per_block;
  cudaError_t error = load_product_stream_bf16(shared_bytes_per_block);
  if (error == cudaSuccess) error = load_product_stream_f8(shared_bytes_per_block);
  if (error == cudaSuccess) error = load_product_tile_bf16(shared_bytes_per_block);
  if (error == cudaSuccess) error = load_product_tile_f8(shared_bytes_per_block);
  if (error == cudaSuccess) error = load_product_chain_bf16(shared_bytes_per_block);
  if (error == cudaSuccess) error = load_product_chain_f8(shared_bytes_per_block);
  if (traits.hopper) {
    if (error == cudaSuccess) error = load_held_bf16(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_held_f8(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_ring_bf16(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_ring_f8(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_product_split(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_product_wgmma(traits.shared_bytes_per_block);
    if (error == cudaSuccess) error = load_product_e4m3(traits.shared_bytes_per_block);
  }
  return error == cudaSuccess ? load_product_fma() : error;
}

}  // namespace mla::cuda
