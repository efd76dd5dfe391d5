// softmax.cuh - the few numbers that every softmax of this folder needs. Scores are kept in powers of two: a score
// times log2(e), so that e^s is one instruction.
#pragma once

namespace mla::cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

/// 2^x within 2 units of the last place, denormal results 0; 0 for -inf.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// What to subtract from scores whose maximum is `largest`: -inf stands for "no key yet", and -inf - -inf is NaN.
__device__ __forceinline__ float softmax_shift(float largest) { return largest == -INFINITY ? 0.0f : largest; }

/// lse of a row whose powers of two, relative to `largest`, add up to `sum`; -inf without keys.
__device__ __forceinline__ float natural_lse(float largest, float sum) {
  return sum == 0 ? -INFINITY : (largest + log2f(sum)) * kLn2;
}

/// The factor that makes probabilities of powers of two; a row without keys becomes zero.
__device__ __forceinline__ float inverse_sum(float sum) { return sum == 0 ? 0.0f : 1.0f / sum; }

}  // namespace mla::cuda
