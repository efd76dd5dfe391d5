// check_products.cc - matrix products and experts.
#include <algorithm>

#include "ops/checker.h"
#include "ops/checks.h"

namespace mla {

namespace {

/// Fused gate/up weights are interleaved in blocks of rows, so the width is a multiple of a block.
void check_interleave(Checker& checker, const Dim& I) {
  checker.require(I.value % kGateUpBlock == 0, "the feed-forward width must be a multiple of " +
                                                   std::to_string(kGateUpBlock) + "; got " + std::to_string(I.value) +
                                                   ".");
}

}  // namespace

Status check_arguments(const GemmParams& p) {
  Checker checker("gemm");
  Dim T = rows("T"), N{"N"}, K{"K"};
  Type act{kFloats};
  checker.tensor("x", p.x, act, {&T, &K}).tensor("w", p.w, kWeights, {&N, &K});
  if (checker.ok()) {
    Dim n_blocks = blocks(N, kScaleBlock), k_blocks = blocks(K, kScaleBlock);
    checker.scales("w_scale", p.w_scale, "w", p.w, {&n_blocks, &k_blocks})
        .optional("residual", p.residual, act, {&T, &N})
        .tensor("y", p.y, act.allowed | kF32, {&T, &N});
  }
  return checker.fp8_activations(p.fp8_activations, "w", p.w).may_alias("residual", "y").finish(p);
}

Status check_arguments(const SwigluParams& p) {
  Checker checker("swiglu");
  Dim T = rows("T"), d{"d"}, I{"I"};
  Type act{kFloats};
  checker.tensor("x", p.x, act, {&T, &d}).tensor("out", p.out, act, {&T, &I});
  if (checker.ok()) {
    Dim two = exactly(2), w_rows = product(I, two);
    Dim i_blocks = blocks(I, kScaleBlock), d_blocks = blocks(d, kScaleBlock);
    checker.tensor("w", p.w, kWeights, {&w_rows, &d})
        .scales("w_scale", p.w_scale, "w", p.w, {&two, &i_blocks, &d_blocks});
    check_interleave(checker, I);
  }
  return checker.fp8_activations(p.fp8_activations, "w", p.w).finish(p);
}

Status check_arguments(const MoeRouteParams& p) {
  Checker checker("moeRoute");
  Dim T = rows("T"), d{"d"}, E{"E"};
  Type act{kFloats};
  checker.tensor("x", p.x, act, {&T, &d})
      .tensor("norm", p.norm, kFloats, {&d})
      .tensor("gate", p.gate, kFloats, {&E, &d})
      .optional("bias", p.bias, kF32, {&E})
      .tensor("positions", p.positions, kI32, {&T})
      .tensor("normed", p.normed, act, {&T, &d});
  if (checker.ok()) {
    checker.in_range("E (rows of gate)", E.value, 1, kMaxExperts)
        .in_range("top_k", p.top_k, 1, std::min(kMaxTopK, E.value))
        .in_range("shared", p.shared, 0, kMaxTopK)
        .in_range("n_group", p.n_group, 1, E.value);
  }
  if (checker.ok()) {
    checker
        .require(E.value % p.n_group == 0, "n_group must divide the " + std::to_string(E.value) + " experts; got " +
                                               std::to_string(p.n_group) + ".")
        .in_range("topk_group", p.topk_group, 1, p.n_group)
        .in_range("expert_begin", p.expert_begin, 0, E.value)
        .in_range("expert_end", p.expert_end, p.expert_begin, E.value);
  }
  if (checker.ok()) {
    const int64_t group = E.value / p.n_group;
    checker
        .require(p.top_k <= group * p.topk_group, "top_k must be at most " + std::to_string(group * p.topk_group) +
                                                      ", the experts of " + std::to_string(p.topk_group) +
                                                      " groups; got " + std::to_string(p.top_k) + ".")
        .require(!p.group_top2 || p.n_group == 1 || group >= 2, "group_top2 needs groups of at least 2 experts.");
    Dim columns = exactly(p.top_k + p.shared), pairs = product(T, columns);
    Dim starts = exactly(p.expert_end - p.expert_begin + p.shared + 1);
    checker.tensor("ids", p.ids, kI32, {&T, &columns})
        .tensor("weights", p.weights, kF32, {&T, &columns})
        .tensor("offsets", p.offsets, kI32, {&starts})
        .tensor("order", p.order, kI32, {&pairs})
        .tensor("slots", p.slots, kI32, {&T, &columns});
  }
  return checker.finite("eps", p.eps).finite("scale", p.scale).finish(p);
}

Status check_arguments(const MoeGateUpParams& p) {
  Checker checker("moeGateUp");
  Dim T = rows("T"), d{"d"}, P = rows("P"), I{"I"}, E{"E'"};
  Type act{kFloats};
  checker.tensor("x", p.x, act, {&T, &d}).tensor("h", p.h, act, {&P, &I}).tensor("order", p.order, kI32, {&P});
  if (checker.ok()) {
    Dim two = exactly(2), w_rows = product(I, two);
    Dim i_blocks = blocks(I, kScaleBlock), d_blocks = blocks(d, kScaleBlock);
    checker.tensor("w", p.w, kWeights, {&E, &w_rows, &d})
        .scales("w_scale", p.w_scale, "w", p.w, {&E, &two, &i_blocks, &d_blocks});
    check_interleave(checker, I);
  }
  if (checker.ok()) {
    Dim starts = sum(E, 1);
    checker.tensor("offsets", p.offsets, kI32, {&starts})
        .require(T.value == 0 ? P.value == 0 : P.value % T.value == 0,
                 "order must have a multiple of " + std::to_string(T.value) + " entries, one per row of x; got " +
                     describe(p.order) + ".")
        .require(p.shared >= 0 && p.shared <= E.value, "shared must be from 0 to the number of experts, " +
                                                           std::to_string(E.value) + "; got " +
                                                           std::to_string(p.shared) + ".");
  }
  return checker.fp8_activations(p.fp8_activations, "w", p.w).finish(p);
}

Status check_arguments(const MoeDownParams& p) {
  Checker checker("moeDown");
  Dim T = rows("T"), K{"K"}, d{"d"}, I{"I"}, E{"E'"};
  Type act{kFloats};
  checker.tensor("out", p.out, act, {&T, &d})
      .tensor("slots", p.slots, kI32, {&T, &K})
      .tensor("weights", p.weights, kF32, {&T, &K})
      .optional("residual", p.residual, act, {&T, &d});
  if (checker.ok()) {
    Dim pairs = product(T, K);
    checker.tensor("order", p.order, kI32, {&pairs}).tensor("h", p.h, act, {&pairs, &I});
  }
  if (checker.ok()) {
    Dim d_blocks = blocks(d, kScaleBlock), i_blocks = blocks(I, kScaleBlock);
    checker.tensor("w", p.w, kWeights, {&E, &d, &I}).scales("w_scale", p.w_scale, "w", p.w, {&E, &d_blocks, &i_blocks});
  }
  if (checker.ok()) {
    Dim starts = sum(E, 1);
    checker.tensor("offsets", p.offsets, kI32, {&starts});
  }
  return checker.fp8_activations(p.fp8_activations, "w", p.w).may_alias("residual", "out").finish(p);
}

}  // namespace mla
