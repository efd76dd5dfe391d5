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

/// Loaded by load_norm_kernels().
Status launch_norm_rows(const NormRows& p, const Launch& launch);

}  // namespace mla::cuda
