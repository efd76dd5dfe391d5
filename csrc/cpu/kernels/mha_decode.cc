// mha_decode.cc - plain multi-head attention of one row per sequence over per-head keys and values. Test:
// test/cpu/mha-decode.test.ts.
//
// A piece of work is one head of one sequence: its keys page by page, with a running maximum, so that a result depends
// on nothing but the row. Probabilities are rounded to the activations' type relative to the maximum so far.
#include "cpu/kernels.h"
#include "cpu/kernels/attention_checks.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// sum[0, n) = sum * keep + weight * x
template <class T>
void add_scaled(const T* x, float weight, int64_t n, float* sum) {
  const F w = set1(weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sum + i, fma(load(x + i), w, load(sum + i)));
  // The sums are padded to whole vectors, the values are not.
  if (i < n) store(sum + i, fma(load_tail(x + i, static_cast<int>(n - i)), w, load(sum + i)));
}

/// One head of one sequence; `sum` has room for v floats, padded.
template <class T>
void attend_head(const MhaDecodeParams& p, int64_t b, int64_t h, float* sum) {
  const int64_t heads = p.q.dim(1), head = p.q.dim(2), width = p.cache.dim(3), v = width - head;
  const int64_t length = p.lengths.as<int32_t>()[b];
  const int32_t* table = p.block_table.as<int32_t>() + b * p.block_table.dim(1);
  const T* q = p.q.as<T>() + (b * heads + h) * head;
  std::memset(sum, 0, sizeof(float) * static_cast<size_t>(pad_to(v, kPadFloats)));
  float largest = -__builtin_inff(), total = 0;
  for (int64_t first = 0; first < length; first += kPageTokens) {
    const int64_t keys = length - first < kPageTokens ? length - first : kPageTokens;
    const T* rows =
        p.cache.as<T>() + (static_cast<int64_t>(table[first / kPageTokens]) * kPageTokens * heads + h) * width;
    float scores[kPageTokens];
    float most = largest;
    for (int64_t j = 0; j < keys; ++j) {
      scores[j] = p.scale * dot(q, rows + j * heads * width, head);
      if (scores[j] > most) most = scores[j];
    }
    if (first > 0) {
      const float keep = exp1(largest - most);
      total *= keep;
      for (int64_t i = 0; i < v; i += kLanes) store(sum + i, load(sum + i) * set1(keep));
    }
    largest = most;
    for (int64_t j = 0; j < keys; ++j) {
      const float weight = exp1(scores[j] - largest);
      total += weight;
      add_scaled(rows + j * heads * width + head, round_to<T>(weight), v, sum);
    }
  }
  const float inverse = length == 0 ? 0.0f : 1.0f / total;
  for (int64_t i = 0; i < v; i += kLanes) store(sum + i, load(sum + i) * set1(inverse));
  narrow(sum, v, p.out.as<T>() + (b * heads + h) * v);
}

Status check_lengths(const MhaDecodeParams& p) {
  const int64_t most = p.block_table.dim(1) * kPageTokens;
  for (int64_t b = 0; b < p.lengths.dim(0); ++b) {
    const int64_t n = p.lengths.as<int32_t>()[b];
    if (n < 0 || n > most) return invalid_value("mhaDecode", "lengths", b, n, 0, most);
    const int64_t pages = (n + kPageTokens - 1) / kPageTokens;
    MLA_RETURN_IF_ERROR(check_pages("mhaDecode", p.block_table, b, 0, pages, p.cache.dim(0)));
  }
  return Status::Ok();
}

}  // namespace

Status mhaDecode(const MhaDecodeParams& p, Context& ctx) {
  MLA_RETURN_IF_ERROR(check_lengths(p));
  const int64_t heads = p.q.dim(1), v = p.cache.dim(3) - p.q.dim(2);
  const int64_t floats = pad_to(v, kPadFloats);
  Carver carver{ctx.workspace.as<uint8_t>()};
  float* sums = carver.take<float>(ctx.pool->threads() * floats);
  visit_float(p.q.dtype, [&](auto tag) {
    ctx.pool->parallel_for(p.q.dim(0) * heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) attend_head<decltype(tag)>(p, i / heads, i % heads, sums + worker * floats);
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
