// quantize_rows.h - rows of bf16 as e4m3 with a power of two for each 128 k, for products of e4m3 by e4m3.
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

/// Where such rows lie: codes [rows, k], then an exponent plus 127 for each 128 k (255: not a number), a row's padded
/// to a multiple of 4; then, where the order of y's rows is another than that of x's, an int32 for each.
struct E4m3Rows {
  int64_t rows, k;

  int64_t exponents_row() const { return (k + 511) / 512 * 4; }
  int64_t exponents_at() const { return (rows * k + 127) / 128 * 128; }
  int64_t slots_at() const { return exponents_at() + rows * exponents_row(); }
  int64_t bytes() const { return slots_at() + rows * 4; }
};

/// The rows of p.x (bf16; p.k and p.x_row multiples of 8, addresses of 16), or those that p.order names, as
/// E4m3Rows{p.rows, p.k} at `out`.
cudaError_t launch_quantize_rows(const Product& p, void* out, cudaStream_t stream);
cudaError_t load_quantize_rows();

}  // namespace mla::cuda
