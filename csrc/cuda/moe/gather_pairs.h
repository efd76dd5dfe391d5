// gather_pairs.h - brings the rows of an expert product into the order of its experts.
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

/// out [p.rows, p.k] bf16: the rows of x that p.order names. p.k and p.x_row are multiples of 8, all addresses of 16.
cudaError_t launch_gather_pairs(const Product& p, void* out, cudaStream_t stream);
cudaError_t load_gather_pairs();

}  // namespace mla::cuda
