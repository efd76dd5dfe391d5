// latent.cc - latentCompress: norm, the fused down-projection, norms of the latents, RoPE on the shared key, append to
// the cache. Test: test/cpu/matrix-latent.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels/cache_row.h"
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// out = rmsNorm(x) as a product operand: rounded to the activations' type, held in float32.
template <class X, class W>
void normed_operand(const X* x, const W* weight, float eps, int64_t n, float* out) {
  norm_row(x, weight, rms_factor(x, n, eps), n, out);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int rest = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    if (rest == kLanes) {
      store(out + i, round_vec<X>(load(out + i)));
    } else {
      store_tail(out + i, round_vec<X>(load_tail(out + i, rest)), rest);
    }
  }
}

Status check_rows(const LatentCompressParams& p) {
  const int32_t* const positions = p.positions.as<const int32_t>();
  const int32_t* const slots = p.slots.as<const int32_t>();
  const int64_t table = p.cos_sin.dim(0), cache = p.cache.dim(0) * kPageTokens;
  for (int64_t t = 0; t < p.x.dim(0); ++t) {
    if (positions[t] < 0) continue;
    if (positions[t] >= table) return invalid_value("latentCompress", "positions", t, positions[t], -1, table - 1);
    if (slots[t] >= cache) return invalid_value("latentCompress", "slots", t, slots[t], -1, cache - 1);
  }
  return Status::Ok();
}

/// y [Nq + c + r] of one row -> its q and its cache row. The latter is made in y first.
template <class X>
void finish_row(const LatentCompressParams& p, float* y, int64_t t) {
  const int64_t nq = p.q.dim(1), c = p.latent_norm.dim(0), r = 2 * p.cos_sin.dim(1);
  const int64_t position = p.positions.as<const int32_t>()[t], slot = p.slots.as<const int32_t>()[t];
  X* const q = p.q.as<X>() + t * nq;
  if (position < 0) {
    for (int64_t i = 0; i < nq; ++i) convert(0.0f, q + i);
    return;
  }
  if (p.q_norm.present()) {
    visit_float(p.q_norm.dtype, [&](auto tag) {
      using W = decltype(tag);
      norm_row(y, p.q_norm.as<const W>(), rms_factor(y, nq, p.latent_eps), nq, q);
    });
  } else {
    narrow(y, nq, q);
  }
  if (slot < 0) return;
  float* const row = y + nq;
  visit_float(p.latent_norm.dtype, [&](auto tag) {
    using W = decltype(tag);
    norm_row(row, p.latent_norm.as<const W>(), rms_factor(row, c, p.latent_eps), c, row);
  });
  rope_row(row + c, p.cos_sin.as<const float>() + position * r, r, row + c);
  if (p.cache.dtype == DType::kF8E4M3) {
    store_fp8_row(row, {c, r}, p.cache.as<uint8_t>() + slot * p.cache.dim(2));
  } else {
    visit_float(p.cache.dtype, [&](auto tag) { narrow(row, c + r, p.cache.as<decltype(tag)>() + slot * (c + r)); });
  }
}

}  // namespace

Status latentCompress(const LatentCompressParams& p, Context& ctx) {
  MLA_RETURN_IF_ERROR(check_rows(p));
  const int64_t rows = p.x.dim(0), d = p.x.dim(1), n = p.weight.dim(0);
  const int32_t* const positions = p.positions.as<const int32_t>();
  const Weights weights = weights_of(p.weight, p.weight_scale, 0, false, p.x.dtype);
  float* const y =
      reinterpret_cast<float*>(ctx.workspace.as<char>() + plan_product_scratch(rows, d).bytes * ctx.pool->threads());
  visit_float(p.x.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const x = p.x.as<const X>();
    for (int64_t row0 = 0; row0 < rows; row0 += kLatentRows) {
      const int64_t count = rows - row0 < kLatentRows ? rows - row0 : kLatentRows;
      run_products(
          ctx, EvenBlocks{1, count}, rows, d, 0, n, [&](int64_t) { return weights; },
          [&](const RowBlock& b, int r, bool fresh, float* to) -> const float* {
            if (!fresh) return to;
            const int64_t t = row0 + b.row0 + r;
            if (positions[t] < 0) {
              std::memset(to, 0, sizeof(float) * static_cast<size_t>(d));
              return to;
            }
            visit_float(p.norm.dtype, [&](auto tag) {
              using W = decltype(tag);
              normed_operand(x + t * d, p.norm.as<const W>(), p.eps, d, to);
            });
            if (p.fp8_activations) round_fp8_operand(to, d);
            return to;
          },
          [&](const RowBlock& b, int64_t col, int cols, const float* part) {
            for (int r = 0; r < b.rows; ++r) narrow(part + r * kColBlock, cols, y + (b.row0 + r) * n + col);
          });
      ctx.pool->parallel_for(count, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) finish_row<X>(p, y + i * n, row0 + i);
      });
    }
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
