// check_attention.cc - everything between the residual stream and the attention output.
#include "ops/checker.h"
#include "ops/checks.h"

namespace mla {

namespace {

/// Half the rotated channels of a head, from a [positions, r/2, 2] table.
struct CosSin {
  Dim positions{"positions"};
  Dim half{"r/2"};
  Dim two = exactly(2);

  void check(Checker& checker, const View& view) { checker.tensor("cos_sin", view, kF32, {&positions, &half, &two}); }
  /// r. Only after check() has passed.
  Dim channels() const { return product(half, exactly(2)); }
};

}  // namespace

Status check_arguments(const LatentCompressParams& p) {
  Checker checker("latentCompress");
  Dim T = rows("T"), d{"d"}, c{"c"}, Nq{"Nq"};
  Type act{kFloats};
  CosSin angles;
  checker.tensor("x", p.x, act, {&T, &d})
      .tensor("norm", p.norm, kFloats, {&d})
      .tensor("latent_norm", p.latent_norm, kFloats, {&c})
      .tensor("q", p.q, act, {&T, &Nq})
      .optional("q_norm", p.q_norm, kFloats, {&Nq})
      .tensor("positions", p.positions, kI32, {&T})
      .tensor("slots", p.slots, kI32, {&T});
  angles.check(checker, p.cos_sin);
  if (checker.ok()) {
    Dim L = sum(c, angles.channels());
    Dim N = sum(Nq, L);
    Dim n_blocks = blocks(N, kScaleBlock), d_blocks = blocks(d, kScaleBlock);
    checker.cache(p.cache, L, c)
        .tensor("weight", p.weight, kWeights, {&N, &d})
        .scales("weight_scale", p.weight_scale, "weight", p.weight, {&n_blocks, &d_blocks});
  }
  return checker.fp8_activations(p.fp8_activations, "weight", p.weight)
      .finite("eps", p.eps)
      .finite("latent_eps", p.latent_eps)
      .finish(p);
}

Status check_arguments(const RopeParams& p) {
  Checker checker("rope");
  Dim T = rows("T"), H{"H"}, head{"n + r"};
  CosSin angles;
  checker.tensor("q", p.q, kFloats, {&T, &H, &head}).tensor("positions", p.positions, kI32, {&T});
  angles.check(checker, p.cos_sin);
  if (checker.ok()) {
    checker.require(
        angles.channels().value <= head.value,
        "cos_sin is " + describe(p.cos_sin) + ", more channels than a head of q has, which is " + describe(p.q) + ".");
  }
  return checker.finish(p);
}

Status check_arguments(const QueryAbsorbParams& p) {
  Checker checker("queryAbsorb");
  Dim T = rows("T"), H{"H"}, n{"n"}, c{"c"};
  Type act{kFloats};
  CosSin angles;
  checker.tensor("w_uk", p.w_uk, kFloats, {&H, &n, &c});
  angles.check(checker, p.cos_sin);
  if (checker.ok()) {
    Dim head = sum(n, angles.channels());
    Dim L = sum(c, angles.channels());
    checker.tensor("q", p.q, act, {&T, &H, &head})
        .tensor("positions", p.positions, kI32, {&T})
        .tensor("out", p.out, act, {&T, &H, &L});
  }
  return checker.finish(p);
}

Status check_arguments(const DecodePlanParams& p) {
  Checker checker("decodePlan");
  Dim B = rows("B"), N = rows("N");
  checker.tensor("lengths", p.lengths, kI32, {&B});
  if (checker.ok()) {
    Dim starts = sum(B, 1);
    checker.tensor("q_start", p.q_start, kI32, {&starts});
  }
  return checker.tensor("plan", p.plan, kI32, {&N}).in_range("heads", p.heads, 1, kMaxHeads).finish(p);
}

Status check_arguments(const MlaDecodeParams& p) {
  Checker checker("mlaDecode");
  Dim T = rows("T"), H{"H"}, L{"c + r"}, c{"c"}, B = rows("B"), max_pages = rows("max_pages"), N = rows("N");
  Type act{kFloats};
  checker.tensor("q", p.q, act, {&T, &H, &L})
      .tensor("lengths", p.lengths, kI32, {&B})
      .tensor("block_table", p.block_table, kI32, {&B, &max_pages})
      .tensor("plan", p.plan, kI32, {&N})
      .tensor("out", p.out, act, {&T, &H, &c})
      .tensor("lse", p.lse, kF32, {&T, &H});
  if (checker.ok()) {
    Dim starts = sum(B, 1);
    checker.tensor("q_start", p.q_start, kI32, {&starts})
        .require(c.value <= L.value,
                 "out is " + describe(p.out) + ", wider than a cache row, which is " + std::to_string(L.value) + ".")
        .cache(p.cache, L, c)
        .in_range("H", H.value, 1, kMaxHeads);
  }
  return checker.finite("scale", p.scale).finish(p);
}

Status check_arguments(const MhaDecodeParams& p) {
  Checker checker("mhaDecode");
  Dim B = rows("B"), H{"H"}, head{"n + r"}, width{"n + r + v"}, pages{"pages"}, page = exactly(kPageTokens);
  Dim max_pages = rows("max_pages");
  Type act{kFloats};
  checker.tensor("q", p.q, act, {&B, &H, &head})
      .tensor("cache", p.cache, act, {&pages, &page, &H, &width})
      .tensor("lengths", p.lengths, kI32, {&B})
      .tensor("block_table", p.block_table, kI32, {&B, &max_pages});
  if (checker.ok()) {
    Dim values{.name = "v", .value = width.value - head.value, .reasons = width.reasons};
    Dim out = product(H, values);
    checker
        .require(width.value > head.value, "cache is " + describe(p.cache) +
                                               ", whose rows have no value behind a key of " +
                                               std::to_string(head.value) + ".")
        .tensor("out", p.out, act, {&B, &out})
        .in_range("H", H.value, 1, kMaxHeads);
  }
  return checker.finite("scale", p.scale).finish(p);
}

Status check_arguments(const ValueExpandParams& p) {
  Checker checker("valueExpand");
  Dim T = rows("T"), H{"H"}, v{"v"}, c{"c"};
  Type act{kFloats};
  checker.tensor("u", p.u, act, {&T, &H, &c}).tensor("w_uv", p.w_uv, kFloats, {&H, &v, &c});
  if (checker.ok()) {
    Dim width = product(H, v);
    checker.tensor("out", p.out, act, {&T, &width});
  }
  return checker.finish(p);
}

Status check_arguments(const LoadLatentParams& p) {
  Checker checker("loadLatent");
  Dim S = rows("S"), c{"c"}, r{"r"}, B = rows("B"), max_pages = rows("max_pages");
  Type act{kFloats};
  checker.tensor("latent", p.latent, act, {&S, &c})
      .tensor("rope", p.rope, act, {&S, &r})
      .tensor("k_pos", p.k_pos, kI32, {&B})
      .tensor("block_table", p.block_table, kI32, {&B, &max_pages});
  if (checker.ok()) {
    Dim L = sum(c, r), starts = sum(B, 1);
    checker.cache(p.cache, L, c).tensor("k_start", p.k_start, kI32, {&starts});
  }
  return checker.finish(p);
}

Status check_arguments(const MlaPrefillParams& p) {
  Checker checker("mlaPrefill");
  Dim T = rows("T"), S = rows("S"), H{"H"}, n{"n"}, r{"r"}, v{"v"}, B = rows("B");
  Type act{kFloats};
  checker.tensor("k_nope", p.k_nope, act, {&S, &H, &n})
      .tensor("k_rope", p.k_rope, act, {&S, &r})
      .tensor("value", p.value, act, {&S, &H, &v})
      .tensor("q_pos", p.q_pos, kI32, {&B})
      .tensor("k_pos", p.k_pos, kI32, {&B});
  if (checker.ok()) {
    Dim head = sum(n, r), width = product(H, v), starts = sum(B, 1);
    checker.tensor("q", p.q, act, {&T, &H, &head})
        .tensor("q_start", p.q_start, kI32, {&starts})
        .tensor("k_start", p.k_start, kI32, {&starts})
        .tensor("out", p.out, act.allowed | kF32, {&T, &width})
        .tensor("lse", p.lse, kF32, {&T, &H})
        .in_range("H", H.value, 1, kMaxHeads);
  }
  return checker.finite("scale", p.scale).finish(p);
}

Status check_arguments(const MergeAttentionParams& p) {
  Checker checker("mergeAttention");
  Dim T = rows("T"), width{"H * v"}, H{"H"};
  checker.tensor("a", p.a, kFloats, {&T, &width})
      .tensor("lse_a", p.lse_a, kF32, {&T, &H})
      .tensor("b", p.b, kFloats, {&T, &width})
      .tensor("lse_b", p.lse_b, kF32, {&T, &H})
      .tensor("out", p.out, kFloats, {&T, &width})
      .tensor("lse", p.lse, kF32, {&T, &H});
  if (checker.ok()) {
    checker.require(width.value % H.value == 0, "a is " + describe(p.a) + ", whose columns are not a multiple of the " +
                                                    std::to_string(H.value) + " heads of lse_a.");
  }
  return checker.may_alias("a", "out").may_alias("lse_a", "lse").finish(p);
}

}  // namespace mla
