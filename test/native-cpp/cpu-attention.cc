// cpu-attention.cc - attention, routing, sampling and conversions of every instruction set this processor has, against
// the best one, which the jest tests compare with float64. Attention may differ by float32 rounding; whatever is
// defined bit by bit (choices of tokens and experts, random numbers, stored formats, copies) must be the same
// everywhere.
#include "support.h"

namespace mla::cpu {
namespace baseline {
const KernelTable& table();
}
#if defined(__x86_64__)
namespace avx2 {
const KernelTable& table();
}
namespace avx512 {
const KernelTable& table();
}
#endif
}  // namespace mla::cpu

namespace {

const DType kActs[] = {DType::kF32, DType::kBF16};

Tensor ints(std::initializer_list<int64_t> values) {
  Tensor t(DType::kI32, {static_cast<int64_t>(values.size())});
  return t.ints([&](int64_t i) { return values.begin()[i]; });
}

Tensor count_up(int64_t n) {
  return Tensor(DType::kI32, {n}).ints([](int64_t i) { return i; });
}

/// Runs one operation with the best table and with `other`. Floats of an output may differ by `tolerance` of the
/// output's root mean square plus one rounding; tolerance 0 asks for equal bytes.
template <class P>
void both(const std::string& what, Status (*best)(const P&, Context&), Status (*other)(const P&, Context&), const P& p,
          std::initializer_list<Tensor*> outputs, double tolerance) {
  Machine machine(2);
  const auto run = [&](Status (*f)(const P&, Context&)) {
    for (Tensor* t : outputs) t->poison();
    const Status s = machine.run(f, p);
    if (!s.ok()) fail(what + ": " + s.text);
    for (Tensor* t : outputs) {
      if (!t->guard_intact()) fail(what + " wrote behind an output");
    }
  };
  run(best);
  std::vector<Tensor> expected;
  for (Tensor* t : outputs) expected.push_back(*t);
  run(other);
  size_t index = 0;
  for (Tensor* t : outputs) {
    const Tensor& e = expected[index++];
    const int64_t n = t->view.numel();
    ++comparisons;
    if (tolerance == 0) {
      if (!t->same_bytes(e)) fail(what + ": other bytes in output " + std::to_string(index));
      continue;
    }
    double norm = 0;
    int64_t finite = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (std::isfinite(e.at(i))) norm += e.at(i) * e.at(i), ++finite;
    }
    norm = std::sqrt(norm / static_cast<double>(finite > 0 ? finite : 1)) + 1e-30;
    for (int64_t i = 0; i < n; ++i) {
      const double ulp = t->view.dtype == DType::kBF16 ? std::fabs(e.at(i)) * 0x1p-7 : 0;
      const bool same = e.at(i) == t->at(i) || std::fabs(e.at(i) - t->at(i)) <= tolerance * norm + ulp;
      if (same) continue;
      fail(what + ": value " + std::to_string(i) + " is " + std::to_string(t->at(i)) + ", expected " +
           std::to_string(e.at(i)));
      break;
    }
  }
}

/// Twice a bf16 rounding of every probability, or float32 noise.
double noise(DType act) { return act == DType::kBF16 ? 0x1p-7 : 4e-6; }

void test_decode(const std::string& isa, const KernelTable& best, const KernelTable& t, DType act, DType stored,
                 int64_t heads, int64_t c, int64_t r) {
  const int64_t width = c + r, pages = 9;
  Tensor q = Tensor(act, {14, heads, width}).random();
  Tensor cache(stored, {pages, kPageTokens, width});
  cache.random(3);
  Tensor table(DType::kI32, {4, 5}), plan(DType::kI32, {4}), out(act, {14, heads, c}), lse(DType::kF32, {14, heads});
  table.ints([](int64_t i) { return i == 0 || i == 5 || i == 15 ? 8 - i / 5 : i < 5 ? i : 2147480000; });
  Tensor starts = ints({1, 5, 6, 6, 13}), lengths = ints({290, 64, 0, 33});
  const MlaDecodeParams p{.q = q.view,
                          .q_start = starts.view,
                          .cache = cache.view,
                          .block_table = table.view,
                          .lengths = lengths.view,
                          .plan = plan.view,
                          .out = out.view,
                          .lse = lse.view,
                          .scale = 0.1f};
  both(isa + " mlaDecode", best.mlaDecode, t.mlaDecode, p, {&out, &lse}, noise(act));
}

void test_prefill(const std::string& isa, const KernelTable& best, const KernelTable& t, DType act, int64_t heads,
                  int64_t n, int64_t r, int64_t v) {
  const int64_t rows = 150, keys = 260;
  Tensor q = Tensor(act, {rows, heads, n + r}).random(), k_nope = Tensor(act, {keys, heads, n}).random();
  Tensor k_rope = Tensor(act, {keys, r}).random(), value = Tensor(act, {keys, heads, v}).random();
  Tensor q_start = ints({0, 129, 129, 148}), k_start = ints({0, 200, 201, 256});
  Tensor q_pos = ints({71, 4, 3}), k_pos = ints({0, 0, 2});
  Tensor out(DType::kF32, {rows, heads * v}), lse(DType::kF32, {rows, heads});
  const MlaPrefillParams p{.q = q.view,
                           .k_nope = k_nope.view,
                           .k_rope = k_rope.view,
                           .value = value.view,
                           .q_start = q_start.view,
                           .k_start = k_start.view,
                           .q_pos = q_pos.view,
                           .k_pos = k_pos.view,
                           .out = out.view,
                           .lse = lse.view,
                           .scale = 0.3f};
  both(isa + " mlaPrefill", best.mlaPrefill, t.mlaPrefill, p, {&out, &lse}, noise(act));

  Tensor a = Tensor(act, {rows, heads * v}).random(), b = Tensor(DType::kF32, {rows, heads * v}).random();
  Tensor lse_a = Tensor(DType::kF32, {rows, heads}).random(5), lse_b = Tensor(DType::kF32, {rows, heads}).random(5);
  Tensor merged(act, {rows, heads * v});
  const MergeAttentionParams m{
      .a = a.view, .lse_a = lse_a.view, .b = b.view, .lse_b = lse_b.view, .out = merged.view, .lse = lse.view};
  both(isa + " mergeAttention", best.mergeAttention, t.mergeAttention, m, {&merged, &lse}, 4e-6);
}

void test_route(const std::string& isa, const KernelTable& best, const KernelTable& t, DType act, int64_t experts,
                bool sigmoid) {
  const int64_t rows = 37, d = 75, k = 5, shared = 1;
  Tensor x = Tensor(act, {rows, d}).random(), norm = Tensor(act, {d}).random(0.1f, 1);
  Tensor gate = Tensor(DType::kF32, {experts, d}).random(0.3f), bias = Tensor(DType::kF32, {experts}).random(0.2f);
  Tensor positions = count_up(rows), normed(act, {rows, d}), ids(DType::kI32, {rows, k + shared});
  Tensor weights(DType::kF32, {rows, k + shared}), offsets(DType::kI32, {experts + shared + 1});
  Tensor order(DType::kI32, {rows * (k + shared)}), slots(DType::kI32, {rows, k + shared});
  MoeRouteParams p{.x = x.view,
                   .norm = norm.view,
                   .gate = gate.view,
                   .bias = bias.view,
                   .positions = positions.view,
                   .normed = normed.view,
                   .ids = ids.view,
                   .weights = weights.view,
                   .offsets = offsets.view,
                   .order = order.view,
                   .slots = slots.view,
                   .eps = 1e-6f,
                   .scale = 2.5f};
  p.top_k = k;
  p.shared = shared;
  p.n_group = 4;
  p.topk_group = 2;
  p.expert_end = experts;
  p.sigmoid = p.group_top2 = p.norm_topk = sigmoid;
  both(isa + " moeRoute weights", best.moeRoute, t.moeRoute, p, {&normed, &weights}, 4e-6);
  // bf16 rows may fall on the other side of a rounding and so, rarely, route otherwise.
  if (act == DType::kF32) both(isa + " moeRoute", best.moeRoute, t.moeRoute, p, {&ids, &offsets, &order, &slots}, 0);
}

void test_sample(const std::string& isa, const KernelTable& best, const KernelTable& t, int64_t width) {
  const float kinds[][4] = {{0, 0, 1, 0},    {1, 0, 1, 0},     {0.7f, 0, 1, 0},  {2, 30, 1, 0},
                            {1, 0, 0.9f, 0}, {3, 0, 0.99f, 0}, {1, 0, 1, 0.05f}, {1.3f, 50, 0.8f, 0.02f}};
  const int64_t rows = 64;
  Tensor logits = Tensor(DType::kF32, {rows, width}).random(6), settings(DType::kF32, {rows, kSamplingColumns});
  Tensor seeds(DType::kI64, {rows}), positions = count_up(rows), ids(DType::kI32, {rows}),
                                     counts(DType::kI32, {rows, width});
  for (int64_t b = 0; b < rows; ++b) {
    float* s = settings.view.as<float>() + b * kSamplingColumns;
    for (int i = 0; i < 4; ++i) s[i] = kinds[b % 8][i];
    s[4] = 1.2f, s[5] = 0.1f, s[6] = 0.05f, s[7] = 0;
    seeds.view.as<int64_t>()[b] = b * 0x123456789ll - 77;
  }
  counts.ints([](int64_t i) { return i % 11 == 0 ? i % 3 : 0; });
  SampleParams p;
  p.logits = logits.view;
  p.settings = settings.view;
  p.seeds = seeds.view;
  p.positions = positions.view;
  p.counts = counts.view;
  p.ids = ids.view;
  p.vocab = width;
  both(isa + " sample", best.sample, t.sample, p, {&ids}, 0);
  p.counts = View{};
  both(isa + " sample", best.sample, t.sample, p, {&ids}, 0);
}

void test_exact(const std::string& isa, const KernelTable& best, const KernelTable& t) {
  const DType floats[] = {DType::kF32, DType::kBF16, DType::kF16};
  // Any bits, but no NaN in any of the types: which NaN comes out is the processor's choice.
  Tensor patterns(DType::kF32, {70001});
  for (int64_t i = 0; i < 2 * 70001; ++i) {
    uint16_t half = static_cast<uint16_t>(rng());
    if ((half & 0x7c00) == 0x7c00) half &= 0xbfff;
    patterns.view.as<uint16_t>()[i] = half;
  }
  for (DType from : floats) {
    for (DType to : floats) {
      Tensor out(to, {70001});
      View x = patterns.view;
      x.dtype = from;
      both(isa + " cast", best.cast, t.cast, CastParams{.x = x, .out = out.view}, {&out}, 0);
    }
  }
  for (DType act : kActs) {
    Tensor filled(act, {3, 1001});
    const FillRandomParams fill{.out = filled.view, .seed = -5, .mean = 0.5f, .stddev = 3};
    both(isa + " fillRandom", best.fillRandom, t.fillRandom, fill, {&filled}, 0);
    Tensor q(DType::kF8E4M3, {3, 1001}), scale(DType::kF32, {1, 8}), back(act, {3, 1001});
    for (bool pow2 : {false, true}) {
      const QuantizeParams quantize{.x = filled.view, .q = q.view, .scale = scale.view, .pow2 = pow2};
      both(isa + " quantize", best.quantize, t.quantize, quantize, {&q, &scale}, 0);
    }
    const DequantizeParams dequantize{.q = q.view, .scale = scale.view, .out = back.view};
    both(isa + " dequantize", best.dequantize, t.dequantize, dequantize, {&back}, 0);

    Tensor ids = ints({4, -1, 0, 2}), rows(act, {4, 37}), table = Tensor(DType::kBF16, {5, 37}).random();
    const GatherRowsParams gather{.table = table.view, .ids = ids.view, .out = rows.view};
    both(isa + " gatherRows", best.gatherRows, t.gatherRows, gather, {&rows}, 0);
    Tensor weight = Tensor(DType::kF32, {37}).random(), normed(act, {4, 37});
    const RmsNormParams norm{.x = rows.view, .weight = weight.view, .out = normed.view, .eps = 1e-6f};
    both(isa + " rmsNorm", best.rmsNorm, t.rmsNorm, norm, {&normed}, 4e-6);
  }
}

void test_all(const std::string& isa, const KernelTable& t) {
  const KernelTable& best = kernel_table();
  for (DType act : kActs) {
    for (DType stored : kActs) {
      for (int64_t heads : {1, 2, 3, 7, 16}) test_decode(isa, best, t, act, stored, heads, 40, 6);
      test_decode(isa, best, t, act, stored, 4, 128, 32);
    }
    for (int64_t heads : {1, 3}) {
      test_prefill(isa, best, t, act, heads, 33, 6, 21);
      test_prefill(isa, best, t, act, heads, 128, 64, 128);
    }
    for (bool sigmoid : {false, true}) {
      test_route(isa, best, t, act, 20, sigmoid);
      test_route(isa, best, t, act, 64, sigmoid);
    }
  }
  for (int64_t width : {9, 70, 4096, 20000}) test_sample(isa, best, t, width);
  test_exact(isa, best, t);
}

}  // namespace

int main() {
  test_all("baseline", baseline::table());
#if defined(__x86_64__)
  if (std::string(kernel_table().name) == "avx512") test_all("avx2", avx2::table());
#endif
  // The best table against itself: nothing may depend on what an output or the workspace held before.
  test_all(kernel_table().name, kernel_table());
  std::printf("%lld comparisons, %d failures\n", static_cast<long long>(comparisons), failures);
  return failures == 0 ? 0 : 1;
}
