// product.h - the one matrix product behind gemm, swiglu, valueExpand, logProbs and the grouped expert products, and
// what chooses a kernel for it. Operations of other families use it through launch_product() as well.
//
//   y[r, j] = sum_k x[r, k] * w[j, k] (+ residual[r, j])            plain
//   y[r, i] = silu(x[r] . gate row i) * (x[r] . up row i)           gated: w has 8 gate rows, 8 up rows and so on
//
// Groups: either `groups` products of `rows` rows each (heads of an attention), or, with `offsets`, products whose row
// counts are device data (experts): group e has the rows offsets[e]..offsets[e + 1] of y, row i of which belongs to row
// order[i] / per_row of x (row i itself without order). Offsets that do not ascend or pass `rows` are cut to what does;
// an x row that does not exist counts as zeros.
//
// Order of sums, the same in all kernels that a deterministic model takes, so that a row's bits do not depend on how
// many rows there are (kernels of many rows that others take have orders of their own: product_chain.cuh and, on
// Hopper, of more than 16 rows, product_split.cuh, product_wgmma.cuh): k is cut into segments of 128; a segment is a
// chain of m16n8k16 products that starts from zero; segments are added to the float32 total in ascending order, with
// fp8 weights as total = fma(scale, segment, total). Which k share one step of the chain: with bf16 weights step s (0,
// 1) of each 32 k takes 8q + 4s + 0..3 for q = 0..3; with fp8 weights step s (0..3) of each 64 k takes 16q + 4s + 0..3.
// Float32 activations, rows that are no multiple of 16 bytes and float32 weights take the plain kernel: one chain of
// fused multiply-adds with ascending k.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"
#include "cuda/launch.h"
#include "cuda/norm/norm.h"

namespace mla::cuda {

constexpr int kSegment = 128;  // k whose products are one chain; the width of an fp8 scale block

struct Product {
  // sizes
  int64_t rows = 0;  // of each group; with offsets: of y, all groups together
  int64_t n = 0;     // rows of each w; a multiple of 16 if gated
  int64_t k = 0;
  int64_t groups = 1;
  bool gated = false;

  // operands; strides in elements
  const void* x = nullptr;  // bf16 | f32; f8e4m3 where product_e4m3.h says so
  DType x_dtype = DType::kBF16;
  int64_t x_row = 0;  // between rows
  int64_t x_group = 0;
  const uint8_t* x_exponents = nullptr;  // x of f8e4m3: a power of two, plus 127, for each 128 k of a row
  int64_t x_exponents_row = 0;           // bytes between rows, a multiple of 4
  HeldNorm norm;                         // of x, before anything else; only where holds_norm()
  bool fp8_x = false;       // x enters as fp8 activations; quant/round_rows.h makes rows that enter as they are
  const void* w = nullptr;  // [groups][n, k], rows k elements long
  DType w_dtype = DType::kBF16;
  int64_t w_group = 0;
  const float* scale = nullptr;  // f8e4m3: [groups][ceil(n/128), ceil(k/128)]; gated [groups][2, ceil(n/2/128), ..]
  int64_t scale_group = 0;

  // results, n (gated n / 2) columns
  void* y = nullptr;  // x's type, or f32; f8e4m3 where product_e4m3.h says so
  DType y_dtype = DType::kBF16;
  int64_t y_row = 0;
  int64_t y_group = 0;
  uint8_t* y_exponents = nullptr;  // y of f8e4m3, as x_exponents
  int64_t y_exponents_row = 0;
  const void* residual = nullptr;  // of x's type, laid out as y; may be y; may be null

  // groups of unequal size; null for equal ones
  const int32_t* offsets = nullptr;  // [groups + 1]
  const int32_t* order = nullptr;    // [rows]; may be null
  int64_t per_row = 1;
  int64_t x_rows = 0;  // how many rows x has, with order
  int64_t always = 0;  // the last groups: a kernel may fetch their weights before it knows who has rows; a hint

  // Plain kernel only: w lies the other way round, w[j, k] at k * n + j; rows with positions outside of
  // [0, position_end) give zeros.
  bool w_transposed = false;
  const int32_t* positions = nullptr;  // [rows]; may be null
  int64_t position_end = 0;
};

/// What each row contributes to a token of moeDown: out[t] = residual[t] + sum_j weights[t, j] * y[slots[t, j]].
struct Combine {
  int64_t tokens = 0;
  int64_t per_token = 0;
  int64_t n = 0;                   // columns
  const int32_t* slots = nullptr;  // [tokens, per_token]; outside of [0, last offset): nothing
  const float* weights = nullptr;  // [tokens, per_token]
  const void* residual = nullptr;  // [tokens, n] act; may be null or out
  void* out = nullptr;             // [tokens, n] act
  int64_t out_row = 0;             // elements between rows of out and residual
  DType dtype = DType::kBF16;      // act
};

/// Enqueues the product with the kernel that fits. Zero rows launch nothing.
cudaError_t launch_product(const Product& p, const Launch& launch);

/// Is there a kernel that norms x (bf16, no groups) before it multiplies?
bool holds_norm(const Product& p, const Traits& traits);

/// x [rows, k], w [n, k], y [rows, n or n / 2].
Product dense_product(View x, View w, View w_scale, bool gated, View y);

/// Is there one kernel for the product with its weighted sum (Hopper, few rows)? If so launch_combine() enqueues it;
/// p.y is not used then. c may lack its pointers.
bool combines(const Product& p, const Combine& c, const Traits& traits);
cudaError_t launch_combine(const Product& p, const Combine& c, const Launch& launch);

/// Can the tensor core kernels take these operands?
bool fits_tensor_cores(const Product& p);

/// May all of the weights be read before pdl_wait()?
bool weights_settled(const Product& p, const Launch& launch);

// ---- the kernels, each in its own file ----------------------------------------------------------------------------

/// Few rows of equal groups with few weights: tiles of 8 * row_tiles rows (1, 2 or 4), weights streamed past them.
cudaError_t launch_product_stream_bf16(const Product& p, int row_tiles, int multiprocessors, cudaStream_t stream);
cudaError_t launch_product_stream_f8(const Product& p, int row_tiles, int multiprocessors, cudaStream_t stream);

/// Tiles of 16, 32, 64 or 128 rows of x.
cudaError_t launch_product_tile_bf16(const Product& p, int tile_rows, const Traits& traits, cudaStream_t stream);
cudaError_t launch_product_tile_f8(const Product& p, int tile_rows, const Traits& traits, cudaStream_t stream);

/// Tiles of 128 rows of x by 256 of w; another order of sums.
constexpr int kChainColumns = 256;
cudaError_t launch_product_chain_bf16(const Product& p, const Traits& traits, cudaStream_t stream);
cudaError_t launch_product_chain_f8(const Product& p, const Traits& traits, cudaStream_t stream);

/// Any types, any sizes; float32 fused multiply-adds.
cudaError_t launch_product_fma(const Product& p, cudaStream_t stream);

/// All of them, into the GPU's context.
cudaError_t load_product_kernels(const Traits& traits);
cudaError_t load_product_stream_bf16(int shared_bytes_per_block);
cudaError_t load_product_stream_f8(int shared_bytes_per_block);
cudaError_t load_product_tile_bf16(int shared_bytes_per_block);
cudaError_t load_product_tile_f8(int shared_bytes_per_block);
cudaError_t load_product_chain_bf16(int shared_bytes_per_block);
cudaError_t load_product_chain_f8(int shared_bytes_per_block);
cudaError_t load_product_fma();

}  // namespace mla::cuda
