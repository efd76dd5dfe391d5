// random.cc - normal random numbers for weights of named shapes. Test: test/cpu/reference-convert.test.ts.
#include "cpu/kernels.h"
#include "cpu/kernels/random_lanes.h"

namespace mla::cpu::MLA_CPU_ISA {

Status fillRandom(const FillRandomParams& p, Context& ctx) {
  constexpr int64_t kGrainElements = 1 << 14;  // a multiple of kLanes
  const uint64_t key = static_cast<uint64_t>(p.seed);
  visit_float(p.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    T* out = p.out.as<T>();
    ctx.pool->parallel_for(p.out.numel(), kGrainElements, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += kLanes) {
        const F x = scale_normals(normal_lanes(key, static_cast<uint64_t>(i)), p.mean, p.stddev);
        if (i + kLanes <= end) {
          store(out + i, x);
        } else {
          store_tail(out + i, x, static_cast<int>(end - i));
        }
      }
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
