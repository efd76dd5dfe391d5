// check_sampling.cc - from logits to the next step.
#include <algorithm>

#include "ops/checker.h"
#include "ops/checks.h"

namespace mla {

Status check_arguments(const SampleParams& p) {
  Checker checker("sample");
  Dim B = rows("B"), V{"V"}, columns = exactly(kSamplingColumns);
  checker.tensor("logits", p.logits, kF32, {&B, &V})
      .tensor("settings", p.settings, kF32, {&B, &columns})
      .tensor("seeds", p.seeds, dtypes({DType::kI64}), {&B})
      .tensor("positions", p.positions, kI32, {&B})
      .optional("counts", p.counts, kI32, {&B, &V})
      .optional("bias", p.bias, kF32, {&B, &V})
      .tensor("ids", p.ids, kI32, {&B})
      .optional("logprobs", p.logprobs, kF32, {&B});
  if (checker.ok()) {
    Dim words = blocks(V, 32);
    checker.optional("mask", p.mask, dtypes({DType::kU32}), {&B, &words}).in_range("vocab", p.vocab, 1, V.value);
  }
  return checker.finish(p);
}

Status check_arguments(const LogProbsParams& p) {
  Checker checker("logProbs");
  Dim R = rows("R"), d{"d"}, V{"V"}, K{"K"};
  checker.tensor("x", p.x, kFloats, {&R, &d})
      .tensor("head", p.head, kFloats, {&V, &d})
      .tensor("targets", p.targets, kI32, {&R})
      .tensor("logprobs", p.logprobs, kF32, {&R})
      .optional("top_ids", p.top_ids, kI32, {&R, &K})
      .optional("top_logprobs", p.top_logprobs, kF32, {&R, &K})
      .require(p.top_ids.present() == p.top_logprobs.present(),
               "top_ids and top_logprobs must be given together or not at all.");
  if (checker.ok() && K.bound()) {
    checker.in_range("K (columns of top_ids)", K.value, 1, std::min(V.value, kMaxTopLogprobs));
  }
  return checker.finish(p);
}

Status check_arguments(const AdvanceParams& p) {
  Dim B = rows("B"), max_pages = rows("max_pages"), n = rows("n"), V{"V"};
  return Checker("advance")
      .tensor("sampled", p.sampled, kI32, {&B})
      .tensor("block_table", p.block_table, kI32, {&B, &max_pages})
      .tensor("stop_ids", p.stop_ids, kI32, {&B, &n})
      .tensor("limits", p.limits, kI32, {&B})
      .tensor("ids", p.ids, kI32, {&B})
      .tensor("positions", p.positions, kI32, {&B})
      .tensor("lengths", p.lengths, kI32, {&B})
      .tensor("slots", p.slots, kI32, {&B})
      .tensor("finished", p.finished, kI32, {&B})
      .optional("counts", p.counts, kI32, {&B, &V})
      .may_alias("sampled", "ids")
      .finish(p);
}

}  // namespace mla
