// product_held.h - what the host decides for the products whose weights wait in shared memory (product_held.cuh).
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

constexpr int kHeldItemRows = 16;  // weight rows of a block
constexpr int kHeldSegments = 16;  // of a block at most, a warp each
constexpr int kHeldThreads = kHeldSegments * 32;
constexpr int kHeldRows = 8;           // of x
constexpr int kHeldPieceBytes = 1024;  // of a weight row in one piece
constexpr int kHeldPitch = 1088;       // in shared memory: spreads a quarter-warp's loads over all banks

/// Of the weights in a block's shared memory.
constexpr int64_t held_bytes(const Product& p) {
  return (p.k * dtype_bytes(p.w_dtype) + kHeldPieceBytes - 1) / kHeldPieceBytes * kHeldItemRows * kHeldPitch;
}

/// Can the kernel take this product, and does the GPU hold all of its weights?
bool holds_weights(const Product& p, const Traits& traits);

cudaError_t launch_product_held(const Product& p, const Launch& launch);

// ---- the kernels, each in its own file ----------------------------------------------------------------------------

cudaError_t launch_held_bf16(const Product& p, bool weights_settled, cudaStream_t stream);
cudaError_t launch_held_f8(const Product& p, bool weights_settled, cudaStream_t stream);
cudaError_t load_held_bf16(int shared_bytes_per_block);
cudaError_t load_held_f8(int shared_bytes_per_block);

}  // namespace mla::cuda
