// norm.h - RMS norm of rows, as other operations use it too.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

/// out = rmsNorm(x), or with delta: x += delta (rounded), out = rmsNorm(x). With positions, a row whose position is
/// negative reads nothing and gives zeros.
struct NormRows {
  View x;          // [T, d] act; written if delta is given
  View delta;      // [T, d] act; may be absent
  View weight;     // [d] f32 | bf16
  View positions;  // [T] i32; may be absent
  View out;        // [T, d] act
  float eps = 0;
};

/// RMS norm of a few rows as part of another kernel (hold_normed.cuh).
struct HeldNorm {
  const void* weight = nullptr;  // [d]; null: no norm
  bool weight_bf16 = false;
  float eps = 0;
  int threads = 0;                     // norm_threads(d)
  const int32_t* positions = nullptr;  // [rows]; a negative one: zeros. May be null
};

/// Loaded by load_norm_kernels().
Status launch_norm_rows(const NormRows& p, const Launch& launch);

}  // namespace mla::cuda
