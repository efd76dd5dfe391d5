// attention_merge.cc - merges two partial attentions by their log-sum-exp. Test: test/cpu/reference-prefill.test.ts.
//
//   lse = log(e^lse_a + e^lse_b); out = a * e^(lse_a - lse) + b * e^(lse_b - lse)
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

template <class A, class B, class O>
void weighted_sum(const A* a, float weight_a, const B* b, float weight_b, int64_t n, O* out) {
  const F wa = set1(weight_a), wb = set1(weight_b);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, fma(load(a + i), wa, load(b + i) * wb));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_tail(out + i, fma(load_tail(a + i, rest), wa, load_tail(b + i, rest) * wb), rest);
  }
}

/// a may be out.
template <class A, class O>
void take(const A* a, int64_t n, O* out) {
  for (int64_t i = 0; i < n; ++i) convert(to_f32(a[i]), out + i);
}

/// A side without keys (lse -inf) is not read, so that it may hold anything.
template <class A, class B, class O>
void merge_row(const A* a, float lse_a, const B* b, float lse_b, int64_t n, O* out, float* lse) {
  const float inf = __builtin_inff();
  if (lse_a == -inf && lse_b == -inf) {
    std::memset(out, 0, sizeof(O) * static_cast<size_t>(n));
    *lse = -inf;
  } else if (lse_b == -inf) {
    take(a, n, out);
    *lse = lse_a;
  } else if (lse_a == -inf) {
    take(b, n, out);
    *lse = lse_b;
  } else {
    const float largest = lse_a > lse_b ? lse_a : lse_b;
    const float ea = exp1(lse_a - largest), eb = exp1(lse_b - largest), sum = ea + eb;
    weighted_sum(a, ea / sum, b, eb / sum, n, out);
    *lse = largest + __builtin_logf(sum);
  }
}

}  // namespace

Status mergeAttention(const MergeAttentionParams& p, Context& ctx) {
  constexpr int64_t kGrainElements = 8192;
  const int64_t pairs = p.lse.numel();
  if (pairs == 0) return Status::Ok();
  const int64_t v = p.out.numel() / pairs;
  visit_float(p.a.dtype, [&](auto a_tag) {
    visit_float(p.b.dtype, [&](auto b_tag) {
      visit_float(p.out.dtype, [&](auto out_tag) {
        const auto* a = p.a.as<decltype(a_tag)>();
        const auto* b = p.b.as<decltype(b_tag)>();
        auto* out = p.out.as<decltype(out_tag)>();
        ctx.pool->parallel_for(pairs, kGrainElements / (v + 1) + 1, [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) {
            merge_row(a + i * v, p.lse_a.as<float>()[i], b + i * v, p.lse_b.as<float>()[i], v, out + i * v,
                      p.lse.as<float>() + i);
          }
        });
      });
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
