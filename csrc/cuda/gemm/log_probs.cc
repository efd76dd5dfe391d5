// log_probs.cc - logProbs: the head's logits for some rows at a time, in the workspace. Test: test/gpu/matrix.test.ts.
#include "cuda/gemm/log_probs.h"

#include <algorithm>

#include "cuda/gemm/product.h"
#include "cuda/launch.h"

namespace mla::cuda {

namespace {

/// Rows of logits at a time: a row of the product's tiles, 52 MB with 102,400 ids.
constexpr int64_t kLogitRows = 128;

}  // namespace

int64_t workspace(const LogProbsParams& p, const Traits&) {
  return std::min(p.x.dim(0), kLogitRows) * p.head.dim(0) * static_cast<int64_t>(sizeof(float));
}

Status logProbs(const LogProbsParams& p, const Launch& launch) noexcept {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1), vocab = p.head.dim(0);
  LogitRows part;
  part.vocab = vocab;
  part.top = p.top_ids.present() ? static_cast<int>(p.top_ids.dim(1)) : 0;
  part.logits = launch.workspace.as<float>();
  Product head;
  head.n = vocab;
  head.k = head.x_row = d;
  head.x_dtype = p.x.dtype;
  head.w = p.head.data;
  head.w_dtype = p.head.dtype;
  head.y = launch.workspace.data;
  head.y_dtype = DType::kF32;
  head.y_row = vocab;
  // Every part has the same number of rows but the last, whose bits do not depend on it.
  for (int64_t row0 = 0; row0 < rows; row0 += kLogitRows) {
    head.rows = part.rows = std::min(kLogitRows, rows - row0);
    head.x = static_cast<const char*>(p.x.data) + row0 * d * dtype_bytes(p.x.dtype);
    MLA_RETURN_IF_ERROR(cuda_status(launch_product(head, launch), "logProbs"));
    part.targets = p.targets.as<const int32_t>() + row0;
    part.logprobs = p.logprobs.as<float>() + row0;
    if (part.top > 0) {
      part.top_ids = p.top_ids.as<int32_t>() + row0 * part.top;
      part.top_logprobs = p.top_logprobs.as<float>() + row0 * part.top;
    }
    MLA_RETURN_IF_ERROR(cuda_status(launch_logit_rows(part, launch.stream), "logProbs"));
  }
  return Status::Ok();
}

}  // namespace mla::cuda
