// prefill_latent.cc - cached rows of several sequences into packed rows. Test: test/cpu/reference-decode.test.ts.
#include "cpu/kernels.h"
#include "cpu/kernels/attention_checks.h"
#include "cpu/kernels/cache_row.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// Row `slot` of the cache as latent [c] and rope [r].
template <class To>
void load_row(const View& cache, int64_t slot, const Fp8Row& at, To* latent, To* rope) {
  if (cache.dtype == DType::kF8E4M3) {
    load_fp8_row(cache.as<uint8_t>() + slot * cache.dim(2), at, latent, rope);
    return;
  }
  visit_float(cache.dtype, [&](auto tag) {
    const auto* const row = cache.as<decltype(tag)>() + slot * (at.c + at.r);
    copy_elements(row, at.c, latent);
    copy_elements(row + at.c, at.r, rope);
  });
}

Status check_ranges(const LoadLatentParams& p) {
  MLA_RETURN_IF_ERROR(check_starts("loadLatent", "k_start", p.k_start, p.latent.dim(0)));
  const int32_t* k_start = p.k_start.as<int32_t>();
  const int32_t* k_pos = p.k_pos.as<int32_t>();
  const int64_t table_tokens = p.block_table.dim(1) * kPageTokens;
  for (int64_t b = 0; b + 1 < p.k_start.dim(0); ++b) {
    const int64_t n = k_start[b + 1] - k_start[b];
    if (n == 0) continue;
    if (k_pos[b] < 0 || k_pos[b] + n > table_tokens) {
      return invalid_value("loadLatent", "k_pos", b, k_pos[b], 0, table_tokens - n);
    }
    const int64_t first = k_pos[b] / kPageTokens, last = (k_pos[b] + n - 1) / kPageTokens + 1;
    MLA_RETURN_IF_ERROR(check_pages("loadLatent", p.block_table, b, first, last, p.cache.dim(0)));
  }
  return Status::Ok();
}

}  // namespace

/// Rows before k_start[0] belong to no sequence either and are zero too.
Status loadLatent(const LoadLatentParams& p, Context& ctx) {
  constexpr int64_t kGrainElements = 1 << 15;
  MLA_RETURN_IF_ERROR(check_ranges(p));
  const int64_t rows = p.latent.dim(0), c = p.latent.dim(1), r = p.rope.dim(1);
  const int64_t sequences = p.k_start.dim(0) - 1;
  const int32_t* k_start = p.k_start.as<int32_t>();
  visit_float(p.latent.dtype, [&](auto tag) {
    using To = decltype(tag);
    ctx.pool->parallel_for(rows, kGrainElements / (c + r + 1) + 1, [&](int64_t begin, int64_t end, int) {
      int64_t b = 0;
      for (int64_t row = begin; row < end; ++row) {
        To* latent = p.latent.as<To>() + row * c;
        To* rope_part = p.rope.as<To>() + row * r;
        while (b < sequences && row >= k_start[b + 1]) ++b;
        if (b == sequences || row < k_start[b]) {
          std::memset(latent, 0, sizeof(To) * static_cast<size_t>(c));
          std::memset(rope_part, 0, sizeof(To) * static_cast<size_t>(r));
          continue;
        }
        const int64_t position = p.k_pos.as<int32_t>()[b] + (row - k_start[b]);
        const int64_t page = p.block_table.as<int32_t>()[b * p.block_table.dim(1) + position / kPageTokens];
        load_row(p.cache, page * kPageTokens + position % kPageTokens, {c, r}, latent, rope_part);
      }
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
