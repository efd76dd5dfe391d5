// absorb.h - queryAbsorb's kernels: per head q_nope * w_uk and the rotated part of the query.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"

namespace mla::cuda {

struct Absorb {
  int64_t rows = 0;
  int heads = 0, n = 0, c = 0, r = 0;
  const void* q = nullptr;             // [rows, heads, n + r] act
  DType act = DType::kBF16;            // f32 | bf16
  const void* w_uk = nullptr;          // [heads, n, c]
  DType weight = DType::kBF16;         // f32 | bf16
  const int32_t* positions = nullptr;  // [rows]; outside of [0, position_end): padding, zeros
  int64_t position_end = 0;
  const float* cos_sin = nullptr;  // [position_end, r / 2, 2]
  void* out = nullptr;             // [rows, heads, c + r] act
};

/// Zero rows launch nothing. weights_settled: w_uk may be read before pdl_wait().
cudaError_t launch_absorb(const Absorb& p, bool weights_settled, int shared_bytes_per_block, cudaStream_t stream);
/// Up to 8 rows of bf16 (absorb_few_portable.cu), where the tensor core kernel fits.
bool absorbs_few(const Absorb& p);
cudaError_t launch_absorb_few(const Absorb& p, bool weights_settled, cudaStream_t stream);
cudaError_t load_absorb_few(int shared_bytes_per_block);
cudaError_t load_absorb_kernels(int shared_bytes_per_block);

}  // namespace mla::cuda
