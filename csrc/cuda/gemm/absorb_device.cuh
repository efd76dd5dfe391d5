// absorb_device.cuh - what queryAbsorb's kernels share.
#pragma once
#include "cuda/device/numeric.cuh"
#include "cuda/gemm/absorb.h"

namespace mla::cuda {

/// Rotates pair i of row t, head h. Not fused, as the formula is written.
template <class T>
__device__ __forceinline__ void rotate(const Absorb& p, int64_t t, int h, int i) {
  const int64_t position = p.positions[t];
  float a = 0, b = 0;
  if (position >= 0 && position < p.position_end) {
    const T* const from = static_cast<const T*>(p.q) + (t * p.heads + h) * (p.n + p.r) + p.n + 2 * i;
    const float* const angle = p.cos_sin + position * p.r + 2 * i;
    const float x = to_float(from[0]), y = to_float(from[1]), cosine = angle[0], sine = angle[1];
    a = __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine));
    b = __fadd_rn(__fmul_rn(x, sine), __fmul_rn(y, cosine));
  }
  T* const to = static_cast<T*>(p.out) + (t * p.heads + h) * (p.c + p.r) + p.c + 2 * i;
  to[0] = from_float<T>(a);
  to[1] = from_float<T>(b);
}

}  // namespace mla::cuda
