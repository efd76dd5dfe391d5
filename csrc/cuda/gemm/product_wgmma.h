// product_wgmma.h - what the host decides for the products of many rows on Hopper (product_wgmma.cuh).
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

constexpr int kWgmmaWeights = 128;  // rows of w of a tile

/// How a product is cut into tiles.
struct WgmmaPlan {
  int most_tokens = 0;   // of a tile, for which the kernel is made: 64, 128, 160 or 208 (bf16 weights) or 256
  int cluster = 1;       // blocks that share their tokens: 1, or 2 with bf16 weights
  int tile_tokens = 0;   // equal groups: tokens of a tile, a multiple of 8
  int token_tiles = 0;   // equal groups: of each group
  int weight_tiles = 0;  // of a group, in tiles of the cluster
  int box_tokens = 0;    // that the copy engine brings at a time, a multiple of 8
  bool settled = false;  // w may be read before pdl_wait()
  bool once = false;     // each weight is read by one block only
};

/// Is it a product for these kernels?
bool multiplies_with_wgmma(const Product& p, const Traits& traits);

/// What a product of equal groups takes here, roughly, in microseconds without the launch.
double wgmma_us(const Product& p, const Traits& traits);

/// For a product whose rows `order` names (its pointers may be null yet): should they be brought into that order first?
/// The copy engine then loads whole boxes of them, which pays from here on: what cp.async can bring keeps the matrix
/// units waiting.
bool gathers_first(const Product& p, const Traits& traits);

cudaError_t launch_product_wgmma(const Product& p, const Launch& launch);
cudaError_t load_product_wgmma(int shared_bytes_per_block);

// ---- the kernels, each in its own file ----------------------------------------------------------------------------

cudaError_t launch_wgmma_bf16(const Product& p, const WgmmaPlan& plan, int multiprocessors, uint32_t* counter,
                              cudaStream_t stream);
cudaError_t launch_wgmma_f8(const Product& p, const WgmmaPlan& plan, int multiprocessors, uint32_t* counter,
                            cudaStream_t stream);
cudaError_t load_wgmma_bf16(int shared_bytes_per_block);
cudaError_t load_wgmma_f8(int shared_bytes_per_block);

}  // namespace mla::cuda
