// workspace.cc - the scratch memory of each CPU operation. The layouts inside are those of the *_plan.h files and of
// kernels/attention_workspace.h, which the kernels use as well.
#include <algorithm>
#include <variant>

#include "common/checked.h"
#include "cpu/kernels.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/product_plan.h"

namespace mla::cpu {
namespace {

int64_t product(int64_t rows, int64_t k, int threads) { return plan_product_scratch(rows, k).bytes * threads; }

/// Operations that are not named below need none.
template <class P>
int64_t scratch(const P&, int) {
  return 0;
}

int64_t scratch(const GemmParams& p, int threads) { return product(p.x.dim(0), p.x.dim(1), threads); }

int64_t scratch(const SwigluParams& p, int threads) { return product(p.x.dim(0), p.x.dim(1), threads); }

int64_t scratch(const ValueExpandParams& p, int threads) { return product(p.u.dim(0), p.u.dim(2), threads); }

int64_t scratch(const QueryAbsorbParams& p, int threads) { return plan_absorb_scratch(p.w_uk.dim(1)) * threads; }

int64_t scratch(const LatentCompressParams& p, int threads) {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1), n = p.weight.dim(0);
  return product(rows, d, threads) + align_scratch(std::min(rows, kLatentRows) * n * 4);
}

int64_t scratch(const MoeGateUpParams& p, int threads) {
  const int64_t pairs = p.order.dim(0);
  return product(pairs, p.x.dim(1), threads) + expert_blocks_bytes(pairs, p.offsets.dim(0) - 1);
}

int64_t scratch(const MoeDownParams& p, int threads) {
  const int64_t pairs = p.h.dim(0), d = p.out.dim(1);
  return product(pairs, p.h.dim(1), threads) + expert_blocks_bytes(pairs, p.offsets.dim(0) - 1) +
         align_scratch(pairs * moe_down_columns(pairs, d) * dtype_bytes(p.h.dtype));
}

int64_t scratch(const LogProbsParams& p, int threads) {
  const int64_t rows = p.x.dim(0);
  return product(rows, p.x.dim(1), threads) + align_scratch(std::min(rows, kLogitRows) * p.head.dim(0) * 4);
}

int64_t scratch(const MlaDecodeParams& p, int threads) { return mla_decode_workspace(p, threads); }

int64_t scratch(const MhaDecodeParams& p, int threads) {
  return align_scratch(threads * pad_to(p.cache.dim(3) - p.q.dim(2), kPadFloats) * 4);
}

int64_t scratch(const MlaPrefillParams& p, int threads) { return mla_prefill_workspace(p, threads); }

int64_t scratch(const MoeRouteParams& p, int threads) { return moe_route_workspace(p, threads); }

int64_t scratch(const SampleParams& p, int threads) { return sample_workspace(p, threads); }

}  // namespace

int64_t workspace_bytes(const Op& op, int threads) {
  return std::visit([threads](const auto& p) { return scratch(p, threads); }, op);
}

// Attention on the CPU plans its own splits as it goes, so the tensor that CUDA needs is only a placeholder.
int64_t decode_plan_ints(int64_t, int64_t, int) { return 8; }

}  // namespace mla::cpu
