// router.cc - the router of a mixture-of-experts layer and the grouping of rows by expert. The formula stands in
// ops/ops.h. Test: test/cpu/reference-router.test.ts.
//
// Router logits are float32 products of the normed row (as stored) and the gate as it is. Each of them is one chain of
// multiply-adds over d, the same for any number of rows, so that a row routes alike in every batch.
#include "cpu/kernels.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kGroup = 4;       // experts whose products are summed up together
constexpr int64_t kBlockRows = 32;  // rows and experts of one piece of work
constexpr int64_t kBlockExperts = 16;
constexpr int64_t kGrainProducts = 1 << 16;

/// Logits of kRows rows for up to kGroup experts.
template <int kRows, class Act, class Gate>
void logit_tile(const Act* x, const Gate* gate, int64_t d, int64_t experts, float* out, int64_t out_stride) {
  const Gate* g[kGroup];
  for (int64_t e = 0; e < kGroup; ++e) g[e] = gate + (e < experts ? e : experts - 1) * d;
  F sum[kRows][kGroup];
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) {
#pragma GCC unroll 4
    for (int e = 0; e < kGroup; ++e) sum[t][e] = zero();
  }
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    F w[kGroup];
#pragma GCC unroll 4
    for (int e = 0; e < kGroup; ++e) w[e] = load(g[e] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) {
      const F a = load(x + t * d + i);
#pragma GCC unroll 4
      for (int e = 0; e < kGroup; ++e) sum[t][e] = fma(a, w[e], sum[t][e]);
    }
  }
  if (i < d) {
    const int rest = static_cast<int>(d - i);
#pragma GCC unroll 4
    for (int t = 0; t < kRows; ++t) {
      const F a = load_tail(x + t * d + i, rest);
#pragma GCC unroll 4
      for (int e = 0; e < kGroup; ++e) sum[t][e] = fma(a, load_tail(g[e] + i, rest), sum[t][e]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kRows; ++t) {
    const F4 total = hsum4(sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
    for (int64_t e = 0; e < experts; ++e) out[t * out_stride + e] = total[e];
  }
}

template <class Act, class Gate>
void logit_block(const Act* x, int64_t rows, const Gate* gate, int64_t experts, int64_t d, float* out,
                 int64_t out_stride) {
  for (int64_t e = 0; e < experts; e += kGroup) {
    const int64_t n = experts - e < kGroup ? experts - e : kGroup;
    int64_t t = 0;
    for (; t + 4 <= rows; t += 4) {
      logit_tile<4>(x + t * d, gate + e * d, d, n, out + t * out_stride + e, out_stride);
    }
    for (; t < rows; ++t) logit_tile<1>(x + t * d, gate + e * d, d, n, out + t * out_stride + e, out_stride);
  }
}

/// Logits to scores, in place; x is padded to whole vectors.
void to_scores(float* x, int64_t n, bool sigmoid) {
  const int64_t padded = pad_to(n, kPadFloats);
  for (int64_t i = n; i < padded; ++i) x[i] = -__builtin_inff();
  if (sigmoid) {
    for (int64_t i = 0; i < n; i += kLanes) store(x + i, set1(1.0f) / (set1(1.0f) + exp(zero() - load(x + i))));
    return;
  }
  F largest = set1(-__builtin_inff());
  for (int64_t i = 0; i < n; i += kLanes) largest = vmax(largest, load(x + i));
  const F shift = set1(hmax(largest));
  F sum = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const F e = exp(load(x + i) - shift);
    store(x + i, e);
    sum += e;
  }
  const F total = set1(hsum(sum));
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, load(x + i) / total);
}

/// The largest value whose taken flag is 0, ties to the lowest index, and sets its flag. Some index even among NaN.
int64_t take_largest(const float* values, float* taken, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (taken[i] == 0 && (best < 0 || values[i] > values[best])) best = i;
  }
  taken[best] = 1;
  return best;
}

/// The score of one group: the maximum, or the sum of the two largest.
float group_score(const float* choice, int64_t n, bool top2) {
  float first = -__builtin_inff(), second = -__builtin_inff();
  for (int64_t i = 0; i < n; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return top2 && n > 1 ? first + second : first;
}

/// Chooses the experts of one row. `choice` and `taken` hold the padded number of experts each.
void choose(const MoeRouteParams& p, const float* scores, float* choice, float* taken, int32_t* ids, float* weights) {
  const int64_t experts = p.gate.dim(0);
  const float* bias = p.bias.present() ? p.bias.as<float>() : nullptr;
  for (int64_t e = 0; e < experts; ++e) choice[e] = bias == nullptr ? scores[e] : scores[e] + bias[e];
  if (p.n_group > 1) {
    const int64_t size = experts / p.n_group;
    for (int64_t g = 0; g < p.n_group; ++g) taken[g] = 0;
    for (int64_t kept = 0; kept < p.topk_group; ++kept) {
      int64_t best = -1;
      float best_score = 0;
      for (int64_t g = 0; g < p.n_group; ++g) {
        if (taken[g] != 0) continue;
        const float score = group_score(choice + g * size, size, p.group_top2);
        if (best < 0 || score > best_score) {
          best = g;
          best_score = score;
        }
      }
      taken[best] = 1;
    }
    for (int64_t g = 0; g < p.n_group; ++g) {
      if (taken[g] != 0) continue;
      for (int64_t i = g * size; i < (g + 1) * size; ++i) choice[i] = -__builtin_inff();
    }
  }
  for (int64_t e = 0; e < experts; ++e) taken[e] = 0;
  float sum = 0;
  for (int64_t j = 0; j < p.top_k; ++j) {
    const int64_t e = take_largest(choice, taken, experts);
    ids[j] = static_cast<int32_t>(e);
    weights[j] = scores[e];
    sum += scores[e];
  }
  for (int64_t j = 0; j < p.top_k; ++j) {
    if (p.norm_topk) weights[j] /= sum + 1e-20f;
    weights[j] *= p.scale;
  }
  for (int64_t j = 0; j < p.shared; ++j) {
    ids[p.top_k + j] = static_cast<int32_t>(experts + j);
    weights[p.top_k + j] = 1.0f;
  }
}

/// The group of an expert id on this device, or -1.
int64_t local_expert(const MoeRouteParams& p, int64_t id) {
  const int64_t experts = p.gate.dim(0);
  if (id >= experts) return p.expert_end - p.expert_begin + (id - experts);
  return id >= p.expert_begin && id < p.expert_end ? id - p.expert_begin : -1;
}

/// Counting sort of the pairs by expert; within an expert they keep their order.
void group_pairs(const MoeRouteParams& p) {
  const int64_t groups = p.offsets.dim(0) - 1, pairs = p.ids.numel();
  const int32_t* ids = p.ids.as<int32_t>();
  int32_t *offsets = p.offsets.as<int32_t>(), *order = p.order.as<int32_t>(), *slots = p.slots.as<int32_t>();
  for (int64_t g = 0; g <= groups; ++g) offsets[g] = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t g = ids[i] < 0 ? -1 : local_expert(p, ids[i]);
    if (g >= 0) ++offsets[g + 1];
  }
  for (int64_t g = 0; g < groups; ++g) offsets[g + 1] += offsets[g];
  for (int64_t i = offsets[groups]; i < pairs; ++i) order[i] = -1;
  // offsets[g] serves as the next free place of group g; afterwards it stands where group g + 1 begins.
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t g = ids[i] < 0 ? -1 : local_expert(p, ids[i]);
    slots[i] = g < 0 ? -1 : offsets[g]++;
    if (g >= 0) order[slots[i]] = static_cast<int32_t>(i);
  }
  for (int64_t g = groups; g > 0; --g) offsets[g] = offsets[g - 1];
  offsets[0] = 0;
}

template <class Act, class Norm>
void norm_all(const MoeRouteParams& p, ThreadPool& pool) {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1);
  pool.parallel_for(rows, 8192 / (d + 1) + 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      Act* out = p.normed.as<Act>() + t * d;
      if (p.positions.as<int32_t>()[t] < 0) {
        std::memset(out, 0, sizeof(Act) * static_cast<size_t>(d));
      } else {
        const Act* x = p.x.as<Act>() + t * d;
        norm_row(x, p.norm.as<Norm>(), rms_factor(x, d, p.eps), d, out);
      }
    }
  });
}

template <class Act, class Gate>
void logits_all(const MoeRouteParams& p, float* logits, ThreadPool& pool) {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1), experts = p.gate.dim(0), stride = pad_to(experts, kPadFloats);
  const int64_t row_blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t expert_blocks = (experts + kBlockExperts - 1) / kBlockExperts;
  const int64_t products = (rows < kBlockRows ? rows : kBlockRows) * kBlockExperts * d;
  pool.parallel_for(
      row_blocks * expert_blocks, kGrainProducts / (products + 1) + 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t t = i / expert_blocks * kBlockRows, e = i % expert_blocks * kBlockExperts;
          const int64_t n = rows - t < kBlockRows ? rows - t : kBlockRows;
          const int64_t m = experts - e < kBlockExperts ? experts - e : kBlockExperts;
          logit_block(p.normed.as<Act>() + t * d, n, p.gate.as<Gate>() + e * d, m, d, logits + t * stride + e, stride);
        }
      });
}

}  // namespace

Status moeRoute(const MoeRouteParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), experts = p.gate.dim(0), stride = pad_to(experts, kPadFloats);
  Carver carver{ctx.workspace.as<uint8_t>()};
  const RouteScratch scratch = route_scratch(p, ctx.pool->threads(), &carver);
  visit_float(p.x.dtype, [&](auto act_tag) {
    using Act = decltype(act_tag);
    visit_float(p.norm.dtype, [&](auto tag) { norm_all<Act, decltype(tag)>(p, *ctx.pool); });
    visit_float(p.gate.dtype, [&](auto tag) { logits_all<Act, decltype(tag)>(p, scratch.logits, *ctx.pool); });
  });
  const int64_t columns = p.top_k + p.shared;
  ctx.pool->parallel_for(rows, 16, [&](int64_t begin, int64_t end, int worker) {
    float* choice = scratch.choice + worker * 2 * stride;
    for (int64_t t = begin; t < end; ++t) {
      int32_t* ids = p.ids.as<int32_t>() + t * columns;
      float* weights = p.weights.as<float>() + t * columns;
      if (p.positions.as<int32_t>()[t] < 0) {
        for (int64_t j = 0; j < columns; ++j) {
          ids[j] = -1;
          weights[j] = 0;
        }
        continue;
      }
      float* scores = scratch.logits + t * stride;
      to_scores(scores, experts, p.sigmoid);
      choose(p, scores, choice, choice + stride, ids, weights);
    }
  });
  group_pairs(p);
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
