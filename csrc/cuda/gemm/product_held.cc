// product_held.cc - when products of few rows on Hopper take the kernel whose weights wait in shared memory.
#include "cuda/gemm/product_held.h"

#include <algorithm>

#include "common/checked.h"

namespace mla::cuda {

namespace {

/// Of a multiprocessor; of a block, besides weights: sums, what latentCompress has beside them, 1 KB that is not ours.
constexpr int64_t kSharedBytes = 228 * 1024;
constexpr int64_t kBlockBytes = 28 * 1024;
/// Of a multiprocessor, with 64 registers a thread.
constexpr int64_t kWarps = 32;

}  // namespace

bool holds_weights(const Product& p, const Traits& traits) {
  const int64_t segments = ceil_div(p.k, int64_t{kSegment});
  return traits.hopper && fits_tensor_cores(p) && p.rows <= kHeldRows && p.offsets == nullptr && !p.gated &&
         p.norm.weight == nullptr && segments <= kHeldSegments &&
         ceil_div(p.n, int64_t{kHeldItemRows}) * p.groups <=
             traits.multiprocessors * std::min(kWarps / segments, kSharedBytes / (kBlockBytes + held_bytes(p)));
}

cudaError_t launch_product_held(const Product& p, const Launch& launch) {
  const bool settled = weights_settled(p, launch);
  return p.w_dtype == DType::kF8E4M3 ? launch_held_f8(p, settled, launch.stream)
                                     : launch_held_bf16(p, settled, launch.stream);
}

}  // namespace mla::cuda
