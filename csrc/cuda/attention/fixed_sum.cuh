// fixed_sum.cuh - how the sums of fixed parts (wide_plan.h) are added up, one after the other: in registers where one
// block has all parts, or by a merge kernel. Both have to come to the same bits.
#pragma once
#include "cuda/attention/softmax.cuh"

namespace mla::cuda {

/// How two sums over keys, each relative to its own maximum, become one: what each is multiplied by. The arithmetic of
/// `added` is spelt out, so that it gives the same bits wherever it stands: some kernels add fixed parts up one after
/// the other, others leave them to a merge.
struct SumWeights {
  float largest, before, next;

  __device__ SumWeights(float largest_before, float largest_next) : largest(fmaxf(largest_before, largest_next)) {
    const float shift = softmax_shift(largest);
    before = exp2f(largest_before - shift);
    next = exp2f(largest_next - shift);
  }
  /// A next sum over no key that counts changes nothing, not even the sign of a zero.
  __device__ float added(float x, float y) const {
    const float kept = __fmul_rn(x, before);
    return next == 0 ? kept : fmaf(y, next, kept);
  }
  /// y = added(x, y) in y's own register, where the compiler would need as many again and spill.
  __device__ void add_in_place(float x, float& y) const {
    asm volatile(
        "{\n"
        ".reg .f32 kept;\n"
        ".reg .pred none;\n"
        "mul.rn.f32 kept, %1, %2;\n"
        "setp.eq.f32 none, %3, 0f00000000;\n"
        "@none mov.f32 %0, kept;\n"
        "@!none fma.rn.f32 %0, %0, %3, kept;\n"
        "}\n"
        : "+f"(y)
        : "f"(x), "f"(before), "f"(next));
  }
};

}  // namespace mla::cuda
