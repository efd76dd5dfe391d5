// product_ring.h - what the host decides for the products of few rows on Hopper (product_ring.cuh).
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

constexpr int kItemRows = 16;         // weight rows of an item
constexpr int kPieceRowBytes = 1024;  // of a weight row in one piece, as a rule
constexpr int kPieceRowPad = 64;      // behind it in shared memory
constexpr int kMaxStages = 6;
constexpr int kStepSegments = 8;    // segments whose sums wait in shared memory together, as a rule
constexpr int kWholeSegments = 12;  // fp8 rows of up to so many are one piece, and a step, if shared memory allows

/// How one launch uses a block's shared memory, and what it may read before pdl_wait().
struct RingPlan {
  int stages = 0;
  int piece_row_bytes = kPieceRowBytes;
  int x_pitch = 0;  // bytes between rows of x in shared memory; 0: x stays where it is
  int x_rows = 0;
  int per_group = 1;     // tiles of each of even groups
  int capacity = 0;      // tiles of uneven groups that the list has room for
  int always = 0;        // always-on groups whose weights are known before the lists
  int early_pieces = 2;  // of a block, under way at a time before pdl_wait()
  bool weights_settled = false;
  bool lists_settled = false;
  int sums = 0, x = 0, norm_sums = 0, tiles = 0, operand_rows = 0, parts = 0, slots = 0, weights = 0,
      bytes = 0;  // offsets, size
};

/// Can the kernel take this product? c: with the weighted sum.
bool rings(const Product& p, const Combine* c, const Traits& traits);

cudaError_t launch_product_ring(const Product& p, const Launch& launch);
cudaError_t launch_combine_ring(const Product& p, const Combine& c, const Launch& launch);

// ---- the kernels, each in its own file ----------------------------------------------------------------------------

struct RingLaunch {
  RingPlan plan;
  int row_tiles = 1;  // 1 or 2
  int blocks = 0;
  cudaStream_t stream = nullptr;
};
cudaError_t launch_ring_bf16(const Product& p, const Combine* c, const RingLaunch& launch);
cudaError_t launch_ring_f8(const Product& p, const Combine* c, const RingLaunch& launch);
cudaError_t load_ring_bf16(int shared_bytes_per_block);
cudaError_t load_ring_f8(int shared_bytes_per_block);

}  // namespace mla::cuda
