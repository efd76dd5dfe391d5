// mla_decode.cc - absorbed attention over the paged cache: which kernels run, and their workspace.
//
// Work items of the plan (decode_plan.h) by the tensor core kernel where dimensions and types fit it and tensors begin
// at multiples of 16 bytes, else by the plain one; then the merge kernel, which also writes the rows that no item
// covers. Test: test/gpu/attention.test.ts.
#include "common/checked.h"
#include "cuda/attention/decode_plan.h"
#include "cuda/attention/kernels.h"

namespace mla::cuda {
namespace {

constexpr int64_t kAlign = 256;

struct Shape {
  int64_t slots, row_tile, c;

  explicit Shape(const MlaDecodeParams& p, const Traits& traits) {
    const int64_t rows = p.q.dim(0) * p.q.dim(1), sequences = p.lengths.dim(0);
    row_tile = decode_row_tile(p.q.dim(1));
    c = p.out.dim(2);
    const int64_t row_tiles = decode_max_row_tiles(rows, sequences, p.q.dim(1));
    // No more partial results than row tiles have splits, and no more splits than tiles of keys.
    const int64_t most = row_tiles * p.block_table.dim(1) * (kPageTokens / kPlanKeys);
    slots = decode_max_slots(traits.multiprocessors, row_tiles);
    if (slots > most) slots = most;
  }
  int64_t out_bytes() const { return round_up(slots * row_tile * c * 4, kAlign); }
  int64_t max_sum_bytes() const { return round_up(slots * row_tile * 2 * 4, kAlign); }
};

}  // namespace

int64_t workspace(const MlaDecodeParams& p, const Traits& traits) {
  const Shape shape(p, traits);
  return shape.out_bytes() + shape.max_sum_bytes() + kAlign;  // the tensor may begin anywhere
}

Status mlaDecode(const MlaDecodeParams& p, const Launch& launch) noexcept {
  if (p.q.dim(0) == 0) return Status::Ok();
  MLA_RETURN_IF_ERROR(check_plan_size("mlaDecode", p.plan, p.lengths.dim(0)));
  const Shape shape(p, *launch.traits);
  DecodePartials partials;
  const auto base = round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(launch.workspace.data)), kAlign);
  partials.out = reinterpret_cast<float*>(base);
  partials.max_sum = reinterpret_cast<float*>(base + shape.out_bytes());
  partials.slots = static_cast<int>(shape.slots);
  if (p.lengths.dim(0) > 0) {
    if (decode_portable_fits(p, *launch.traits)) {
      MLA_RETURN_IF_ERROR(launch_decode_portable(p, partials, launch));
    } else {
      MLA_RETURN_IF_ERROR(launch_decode_fma(p, partials, launch));
    }
  }
  return launch_decode_merge(p, partials, launch);
}

}  // namespace mla::cuda
