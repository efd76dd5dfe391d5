// latent_few.h - latentCompress of up to 8 rows on Hopper (latent_few_sm90.cu).
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

struct LatentFew {
  Product product;  // x, w; with the norm in it for up to kLatentNormedRows rows. y: f32 scratch [rows, c + r]
  const void* latent_norm = nullptr;  // [c]
  bool latent_norm_bf16 = false;
  float latent_eps = 0;
  const int32_t* positions = nullptr;  // [rows]
  const int32_t* slots = nullptr;      // [rows]
  const float* cos_sin = nullptr;      // [table, r]
  void* q = nullptr;                   // [rows, nq] bf16
  void* cache = nullptr;               // [cache_slots, c + r], or rows of bytes
  DType cache_dtype = DType::kBF16;
  int64_t nq = 0, c = 0, r = 0, table = 0, cache_slots = 0;
};

/// Rows that every block norms for itself; more of them have been normed before.
constexpr int64_t kLatentNormedRows = 2;

/// Can the kernel take them? Pointers of the product's operands, shapes and types are set.
bool latent_few_fits(const LatentFew& p, const Traits& traits);

cudaError_t launch_latent_few(const LatentFew& p, const Launch& launch);
cudaError_t load_latent_few(int shared_bytes_per_block);

}  // namespace mla::cuda
