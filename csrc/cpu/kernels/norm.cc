// norm.cc - RMS norm, alone and behind a residual addition. Test: test/cpu/reference-rows.test.ts.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kGrainElements = 8192;  // less is not worth waking another thread

/// x += delta, rounded to T.
template <class T>
void add_row(T* x, const T* delta, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) + load(delta + i));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_tail(x + i, load_tail(x + i, rest) + load_tail(delta + i, rest), rest);
  }
}

/// delta may be absent.
void norm_rows(const View& x, const View& delta, const View& weight, const View& out, float eps, ThreadPool& pool) {
  const int64_t rows = x.dim(0), d = x.dim(1);
  if (d == 0) return;
  visit_float(x.dtype, [&](auto act_tag) {
    visit_float(weight.dtype, [&](auto weight_tag) {
      using Act = decltype(act_tag);
      using Weight = decltype(weight_tag);
      pool.parallel_for(rows, kGrainElements / d + 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          Act* row = x.as<Act>() + t * d;
          if (delta.present()) add_row(row, delta.as<Act>() + t * d, d);
          norm_row(row, weight.as<Weight>(), rms_factor(row, d, eps), d, out.as<Act>() + t * d);
        }
      });
    });
  });
}

}  // namespace

Status rmsNorm(const RmsNormParams& p, Context& ctx) {
  norm_rows(p.x, View{}, p.weight, p.out, p.eps, *ctx.pool);
  return Status::Ok();
}

Status addRmsNorm(const AddRmsNormParams& p, Context& ctx) {
  norm_rows(p.x, p.delta, p.weight, p.out, p.eps, *ctx.pool);
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
