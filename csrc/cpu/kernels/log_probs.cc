// log_probs.cc - logProbs: the head's logits for a block of rows at a time, reduced at once to the target's
// log-probability and the K most likely ids. Test: test/cpu/matrix-log-probs.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// log(sum(exp(x))).
float log_sum_exp(const float* x, int64_t n) {
  F best = set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = vmax(best, load(x + i));
  float high = hmax(best);
  for (; i < n; ++i) high = x[i] > high ? x[i] : high;
  F sum = zero();
  for (i = 0; i + kLanes <= n; i += kLanes) sum = sum + exp(load(x + i) - set1(high));
  float total = hsum(sum);
  for (; i < n; ++i) total += exp1(x[i] - high);
  return high + static_cast<float>(__builtin_log(static_cast<double>(total)));
}

/// The k largest, falling, ties to the lowest id. Slots that no number filled have id -1.
void top_k(const float* x, int64_t n, int64_t k, int32_t* ids, float* values) {
  int64_t held = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held == k && !(x[i] > values[k - 1])) continue;
    if (x[i] != x[i]) continue;
    int64_t at = held < k ? held++ : k - 1;
    for (; at > 0 && x[i] > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = x[i];
    ids[at] = static_cast<int32_t>(i);
  }
  for (; held < k; ++held) {
    ids[held] = -1;
    values[held] = -__builtin_inff();
  }
}

}  // namespace

Status logProbs(const LogProbsParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1), vocab = p.head.dim(0);
  const int64_t top = p.top_ids.present() ? p.top_ids.dim(1) : 0;
  const int32_t* const targets = p.targets.as<const int32_t>();
  for (int64_t t = 0; t < rows; ++t) {
    if (targets[t] >= vocab) return invalid_value("logProbs", "targets", t, targets[t], -1, vocab - 1);
  }
  if (top > vocab) return invalid_value("logProbs", "top_ids.shape", 1, top, 0, vocab);
  const Weights weights = weights_of(p.head, View{}, 0, false, p.x.dtype);
  float* const logits =
      reinterpret_cast<float*>(ctx.workspace.as<char>() + plan_product_scratch(rows, d).bytes * ctx.pool->threads());
  visit_float(p.x.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const x = p.x.as<const X>();
    for (int64_t row0 = 0; row0 < rows; row0 += kLogitRows) {
      const int64_t count = rows - row0 < kLogitRows ? rows - row0 : kLogitRows;
      run_products(
          ctx, EvenBlocks{1, count}, rows, d, 0, vocab, [&](int64_t) { return weights; },
          [&](const RowBlock& b, int r, bool fresh, float* to) {
            return operand_row(x + (row0 + b.row0 + r) * d, d, fresh, to);
          },
          [&](const RowBlock& b, int64_t col, int cols, const float* part) {
            for (int r = 0; r < b.rows; ++r) narrow(part + r * kColBlock, cols, logits + (b.row0 + r) * vocab + col);
          });
      ctx.pool->parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const float* const row = logits + i * vocab;
          const int64_t t = row0 + i;
          const float total = log_sum_exp(row, vocab);
          p.logprobs.as<float>()[t] = targets[t] < 0 ? 0.0f : row[targets[t]] - total;
          if (top == 0) continue;
          float* const values = p.top_logprobs.as<float>() + t * top;
          top_k(row, vocab, top, p.top_ids.as<int32_t>() + t * top, values);
          for (int64_t j = 0; j < top; ++j) values[j] -= total;
        }
      });
    }
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
