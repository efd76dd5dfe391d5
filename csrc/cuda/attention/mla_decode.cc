// mla_decode.cc - absorbed attention over the paged cache: which kernels run, and their workspace.
//
// On Hopper up to 48 query rows a sequence take the kernel for few rows (few_plan.h), more the kernel for tiles of 64
// rows (wide_plan.h), which has a merge kernel of its own; elsewhere the tensor core kernel takes the work items of the
// plan (decode_plan.h). Then the merge kernel, which also writes the rows that none of them covers. Where types,
// dimensions, or beginnings that are no multiple of 16 bytes do not fit those: by plain arithmetic.
//
// Deterministic: which kernel takes a row and how its keys are summed up depends on types and dimensions alone. On
// Hopper the kernel for tiles of 64 rows takes any number of rows, in fixed parts of the keys (wide_plan.h); where that
// one does not fit, and elsewhere, every sequence is one split of the other kernels. Test: test/gpu/attention.test.ts,
// test/gpu/decode-company.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/attention/decode_plan.h"
#include "cuda/attention/few_plan.h"
#include "cuda/attention/kernels.h"
#include "cuda/attention/merge_expand.h"
#include "cuda/attention/wide_plan.h"

namespace mla::cuda {
namespace {

constexpr int64_t kAlign = 256;
constexpr int kFewRows = 48;  // with 64 rows the output leaves no registers, and reading keys twice is faster

bool aligned(const View& view) { return reinterpret_cast<uintptr_t>(view.data) % 16 == 0; }

struct Shape {
  int64_t slots, row_tile, c;
  int64_t element = 4;  // bytes, in a partial result

  explicit Shape(const MlaDecodeParams& p, const Traits& traits) {
    const int64_t rows = p.q.dim(0) * p.q.dim(1), sequences = p.lengths.dim(0);
    row_tile = decode_row_tile(p.q.dim(1));
    c = p.out.dim(2);
    const int64_t row_tiles = decode_max_row_tiles(rows, sequences, p.q.dim(1), row_tile);
    // No more partial results than row tiles have splits, and no more splits than tiles of keys.
    const int64_t most = row_tiles * p.block_table.dim(1) * (kPageTokens / kPlanKeys);
    slots = traits.deterministic ? 0 : decode_max_slots(traits.multiprocessors, row_tiles);
    if (slots > most) slots = most;
  }
  Shape(int64_t slots, int64_t row_tile, int64_t c, int64_t element = 4)
      : slots(slots), row_tile(row_tile), c(c), element(element) {}

  /// Of the Hopper kernel for few rows, with tiles of so many.
  static Shape few(int row_tile, const MlaDecodeParams& p, const Traits& traits) {
    return {few_slots(traits.multiprocessors), row_tile, p.out.dim(2)};
  }

  /// Of the Hopper kernel for more rows. With fixed parts: no more than row tiles have of them, and where they have
  /// several, one slot for each block besides.
  static Shape wide(const MlaDecodeParams& p, const Traits& traits) {
    const int64_t heads = p.q.dim(1), tiles = wide_tiles(heads);
    int64_t slots = wide_slots(traits, heads);
    if (traits.deterministic) {
      const int64_t parts = fixed_part(static_cast<int>(std::max<int64_t>(p.block_table.dim(1), 1) - 1)) + 1;
      const int64_t row_tiles = decode_max_row_tiles(p.q.dim(0) * heads, p.lengths.dim(0), heads, kWideRows * tiles);
      slots = parts == 1 ? 0 : std::min(slots, parts * row_tiles * tiles) + wide_workers(traits, heads) * tiles;
    }
    return {slots, kWideRows, p.out.dim(2), traits.deterministic ? 4 : 2};
  }

  int64_t out_bytes() const { return round_up(slots * row_tile * c * element, kAlign); }
  int64_t max_sum_bytes() const { return round_up(slots * row_tile * 2 * 4, kAlign); }
  int64_t bytes() const { return out_bytes() + max_sum_bytes(); }
};

bool few_types_fit(const MlaDecodeParams& p, const Traits& traits) {
  const int64_t c = p.out.dim(2);
  return traits.hopper && !traits.deterministic && p.q.dtype == DType::kBF16 &&
         (p.cache.dtype == DType::kBF16 || p.cache.dtype == DType::kF8E4M3) && (c == 512 || c == 256) &&
         p.q.dim(2) - c == 64;
}

bool wide_types_fit(const MlaDecodeParams& p, const Traits& traits) {
  return traits.hopper && p.q.dtype == DType::kBF16 && p.cache.dtype == DType::kBF16 && p.out.dim(2) == 512 &&
         p.q.dim(2) == 512 + 64;
}

/// Both operations where `expand` is given.
Status decode(const MlaDecodeParams& p, const ValueExpandParams* expand, const Launch& launch);

}  // namespace

bool decode_wide_fits(const MlaDecodeParams& p, const Traits& traits) {
  return wide_types_fit(p, traits) && p.cache.dim(0) > 0 && p.scale > 0 && aligned(p.q) && aligned(p.cache) &&
         aligned(p.out);
}

bool decode_few_fits(const MlaDecodeParams& p, const Traits& traits) {
  return few_types_fit(p, traits) && few_row_tile(p.q.dim(0), p.lengths.dim(0), p.q.dim(1)) <= kFewRows &&
         aligned(p.q) && aligned(p.cache) && aligned(p.out);
}

int decode_few_rows(const MlaDecodeParams& p) {
  const int rows = few_row_tile(p.q.dim(0), p.lengths.dim(0), p.q.dim(1));
  if (rows > 32) return kFewRows;
  if (p.cache.dtype == DType::kF8E4M3) return rows;
  if (p.out.dim(2) == 512) return rows;
  return rows <= 16 ? 16 : 32;
}

int64_t workspace(const MlaDecodeParams& p, const Traits& traits) {
  const Shape shape(p, traits);
  int64_t bytes = shape.bytes();
  // Whatever the number of rows: fewer of them may run on the Hopper kernel where more do not, and a workspace planned
  // for the most rows must serve all.
  if (few_types_fit(p, traits)) bytes = std::max(bytes, Shape::few(kFewRows, p, traits).bytes());
  if (wide_types_fit(p, traits)) bytes = std::max(bytes, Shape::wide(p, traits).bytes());
  return bytes + kAlign;  // the tensor may begin anywhere
}

Status mlaDecode(const MlaDecodeParams& p, const Launch& launch) noexcept { return decode(p, nullptr, launch); }

Status decode_expand(const MlaDecodeParams& p, const ValueExpandParams& e, const Launch& launch) noexcept {
  return decode(p, &e, launch);
}

namespace {

Status decode(const MlaDecodeParams& p, const ValueExpandParams* expand, const Launch& launch) {
  if (p.q.dim(0) == 0) return Status::Ok();
  MLA_RETURN_IF_ERROR(check_plan_size("mlaDecode", p.plan, p.lengths.dim(0), *launch.traits));
  const bool few = p.lengths.dim(0) > 0 && decode_few_fits(p, *launch.traits);
  const bool wide = p.lengths.dim(0) > 0 && !few && decode_wide_fits(p, *launch.traits);
  const Shape shape = few    ? Shape::few(decode_few_rows(p), p, *launch.traits)
                      : wide ? Shape::wide(p, *launch.traits)
                             : Shape(p, *launch.traits);
  DecodePartials partials;
  const auto base = round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(launch.workspace.data)), kAlign);
  partials.out = reinterpret_cast<float*>(base);
  partials.max_sum = reinterpret_cast<float*>(base + shape.out_bytes());
  partials.slots = static_cast<int>(shape.slots);
  partials.row_tile = static_cast<int>(shape.row_tile);
  if (few) {
    partials.few_plan = true;
    partials.plan_at = few_plan_offset(p.lengths.dim(0));
    MLA_RETURN_IF_ERROR(p.cache.dtype == DType::kF8E4M3 ? launch_decode_few_fp8(p, partials, launch)
                        : shape.c == 512                ? launch_decode_few_512(p, partials, launch)
                                                        : launch_decode_few_256(p, partials, launch));
    if (expand != nullptr) return launch_merge_expand(p, partials, *expand, launch);
  } else if (wide) {
    partials.plan_at = wide_plan_offset(p.lengths.dim(0), launch.traits->multiprocessors);
    partials.fixed_parts = launch.traits->deterministic;
    MLA_RETURN_IF_ERROR(launch_decode_wide(p, partials, launch));
    return launch_decode_wide_merge(p, partials, launch);
  } else if (p.lengths.dim(0) > 0) {
    if (decode_portable_fits(p, *launch.traits)) {
      MLA_RETURN_IF_ERROR(launch_decode_portable(p, partials, launch));
    } else {
      MLA_RETURN_IF_ERROR(launch_decode_fma(p, partials, launch));
    }
  }
  return launch_decode_merge(p, partials, launch);
}

}  // namespace

}  // namespace mla::cuda
