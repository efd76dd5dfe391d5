// product_split.h - what the host decides for products on Hopper whose k blocks share (product_split.cuh).
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

/// How a product is cut into blocks, and what one keeps in shared memory.
struct SplitPlan {
  int split = 0;         // blocks, a cluster, that share the k of a tile: 2, 4 or 8
  int tokens = 0;        // rows of x of a tile, an N that the kernel has
  int token_tiles = 0;   // of each group
  int weight_tiles = 0;  // of each group
  int stages = 0;        // of 64 k, with fp8 weights 128
  int bytes = 0;         // of shared memory
  bool settled = false;  // w may be read before pdl_wait()
};

/// Is it a product for this kernel?
bool splits(const Product& p, const Traits& traits);

cudaError_t launch_product_split(const Product& p, const Launch& launch);

cudaError_t load_product_split(int shared_bytes_per_block);

// ---- the kernels, each in its own file ----------------------------------------------------------------------------

constexpr int kSplitWeights = 128;     // rows of w of a tile
constexpr int kSplitStages = 16;       // at most
constexpr int kSplitFewTokens = 128;   // of a tile, at most: kernels of which two blocks fit a multiprocessor,
constexpr int kSplitMostTokens = 256;  // and those of one

cudaError_t launch_split_bf16(const Product& p, const SplitPlan& plan, cudaStream_t stream);
cudaError_t launch_split_f8(const Product& p, const SplitPlan& plan, cudaStream_t stream);
cudaError_t load_split_bf16(int shared_bytes_per_block);
cudaError_t load_split_f8(int shared_bytes_per_block);

}  // namespace mla::cuda
