// rows.cc - rows of a table by number. Test: test/cpu/reference-rows.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kGrainElements = 16384;  // less is not worth waking another thread

template <class T, class O>
void copy_row(const T* from, int64_t n, O* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_tail(to + i, load_tail(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

}  // namespace

Status gatherRows(const GatherRowsParams& p, Context& ctx) {
  const int64_t rows = p.out.dim(0), d = p.out.dim(1), entries = p.table.dim(0);
  const int32_t* ids = p.ids.as<int32_t>();
  for (int64_t t = 0; t < rows; ++t) {
    if (ids[t] >= entries) return invalid_value("gatherRows", "ids", t, ids[t], -1, entries - 1);
  }
  if (d == 0) return Status::Ok();
  visit_float(p.table.dtype, [&](auto from_tag) {
    visit_float(p.out.dtype, [&](auto to_tag) {
      using From = decltype(from_tag);
      using To = decltype(to_tag);
      ctx.pool->parallel_for(rows, kGrainElements / d + 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
          To* out = p.out.as<To>() + t * d;
          if (ids[t] < 0) {
            std::memset(out, 0, sizeof(To) * static_cast<size_t>(d));
          } else {
            copy_row(p.table.as<From>() + ids[t] * d, d, out);
          }
        }
      });
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
