// rope.cc - rotary position embedding in place, on adjacent pairs. Test: test/cpu/reference-rows.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

Status rope(const RopeParams& p, Context& ctx) {
  constexpr int64_t kGrainElements = 8192;
  const int64_t rows = p.q.dim(0), heads = p.q.dim(1), width = p.q.dim(2);
  const int64_t table = p.cos_sin.dim(0), r = p.cos_sin.dim(1) * 2;
  const int32_t* positions = p.positions.as<int32_t>();
  for (int64_t t = 0; t < rows; ++t) {
    if (positions[t] >= table) return invalid_value("rope", "positions", t, positions[t], -1, table - 1);
  }
  if (heads * r == 0) return Status::Ok();
  visit_float(p.q.dtype, [&](auto tag) {
    using Act = decltype(tag);
    ctx.pool->parallel_for(rows, kGrainElements / (heads * r) + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        if (positions[t] < 0) continue;
        const float* angles = p.cos_sin.as<float>() + positions[t] * r;
        for (int64_t h = 0; h < heads; ++h) {
          Act* x = p.q.as<Act>() + (t * heads + h) * width + (width - r);
          rope_row(x, angles, r, x);
        }
      }
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
