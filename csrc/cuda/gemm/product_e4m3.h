// product_e4m3.h - what the host decides for products of e4m3 by e4m3 on Hopper (product_e4m3_sm90.cu).
#pragma once
#include "cuda/gemm/product.h"
#include "cuda/gemm/product_wgmma.h"

namespace mla::cuda {

constexpr int kE4m3Rows = 128;     // of x, of a tile
constexpr int kE4m3Weights = 256;  // rows of w, of a tile

/// Is it a product for this kernel, once its x, which is bf16 now, is in e4m3? Strides and addresses of y may be 0 yet.
bool multiplies_with_e4m3(const Product& p, const Traits& traits);

/// p.x is e4m3 with p.x_exponents. y is bf16, float32 or, if gated, e4m3 with p.y_exponents.
cudaError_t launch_product_e4m3(const Product& p, const Launch& launch);
cudaError_t load_product_e4m3(int shared_bytes_per_block);

// ---- the kernel ---------------------------------------------------------------------------------------------------

/// counter: 0 before and after, of this stream alone.
cudaError_t launch_e4m3(const Product& p, const WgmmaPlan& plan, int multiprocessors, unsigned* counter,
                        cudaStream_t stream);
cudaError_t load_e4m3(int shared_bytes_per_block);

}  // namespace mla::cuda
