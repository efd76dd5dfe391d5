// absorb.cc - the two per-head products of absorbed attention: queryAbsorb (q_nope * W_UK and RoPE) and valueExpand
// (u * W_UV^T). Test: test/cpu/matrix-absorb.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

#if defined(MLA_SIMD_512)
constexpr int kTileRows = kAbsorbRows;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTileVectors = 4;

/// R rows of x [n] times kTileVectors vectors of columns of w [n, stride]: lanes lie along the columns and i ascends,
/// for every number of rows. `Round`: float32 weights beside bf16 activations are rounded.
template <int R, bool Round, class W>
void absorb_tile(const float* const* x, const W* w, int64_t n, int64_t stride, float* const* out) {
  F acc[R][kTileVectors] = {};
  for (int64_t i = 0; i < n; ++i, w += stride) {
    F v[kTileVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) {
      v[j] = load(w + j * kLanes);
      if constexpr (Round) v[j] = round_vec<Bf16>(v[j]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const F a = set1(x[r][i]);
#pragma GCC unroll 4
      for (int j = 0; j < kTileVectors; ++j) acc[r][j] = fma(a, v[j], acc[r][j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kTileVectors; ++j) store(out[r] + j * kLanes, acc[r][j]);
  }
}

/// The columns that fill no tile, `cols` <= kLanes of them, one row at a time in the same order.
template <bool Round, class W>
void absorb_rest(const float* x, const W* w, int64_t n, int64_t stride, int cols, float* out) {
  F acc = zero();
  for (int64_t i = 0; i < n; ++i, w += stride) {
    F v = load_tail(w, cols);
    if (cols == kLanes) v = load(w);
    if constexpr (Round) v = round_vec<Bf16>(v);
    acc = fma(set1(x[i]), v, acc);
  }
  if (cols == kLanes) return store(out, acc);
  store_tail(out, acc, cols);
}

template <bool Round, class W>
void absorb_rows(int rows, const float* const* x, const W* w, int64_t n, int64_t stride, int64_t cols,
                 float* const* out) {
  constexpr int kTileColumns = kTileVectors * kLanes;
  int64_t c = 0;
  for (; c + kTileColumns <= cols; c += kTileColumns) {
    float* to[kAbsorbRows];
    for (int r = 0; r < rows; ++r) to[r] = out[r] + c;
    for (int r = 0; r < rows; r += kTileRows) {
      switch (rows - r < kTileRows ? rows - r : kTileRows) {
        case 1: absorb_tile<1, Round>(x + r, w + c, n, stride, to + r); break;
        case 2: absorb_tile<2, Round>(x + r, w + c, n, stride, to + r); break;
        case 3: absorb_tile<3, Round>(x + r, w + c, n, stride, to + r); break;
#if defined(MLA_SIMD_512)
        case 4: absorb_tile<4, Round>(x + r, w + c, n, stride, to + r); break;
        case 5: absorb_tile<5, Round>(x + r, w + c, n, stride, to + r); break;
        case 6: absorb_tile<6, Round>(x + r, w + c, n, stride, to + r); break;
#endif
      }
    }
  }
  for (; c < cols; c += kLanes) {
    const int rest = static_cast<int>(cols - c < kLanes ? cols - c : kLanes);
    for (int r = 0; r < rows; ++r) absorb_rest<Round>(x[r], w + c, n, stride, rest, out[r] + c);
  }
}

template <class W>
void absorb(bool round, int rows, const float* const* x, const W* w, int64_t n, int64_t stride, int64_t cols,
            float* const* out) {
  if constexpr (__is_same(W, float)) {
    if (round) return absorb_rows<true>(rows, x, w, n, stride, cols, out);
  }
  absorb_rows<false>(rows, x, w, n, stride, cols, out);
}

}  // namespace

Status queryAbsorb(const QueryAbsorbParams& p, Context& ctx) {
  const int64_t rows = p.q.dim(0), heads = p.q.dim(1), n = p.w_uk.dim(1), c = p.w_uk.dim(2), r = p.q.dim(2) - n;
  const int32_t* const positions = p.positions.as<const int32_t>();
  const int64_t table = p.cos_sin.dim(0);
  for (int64_t t = 0; t < rows; ++t) {
    if (positions[t] >= table) return invalid_value("queryAbsorb", "positions", t, positions[t], -1, table - 1);
  }
  // A task is one head, some rows and a strip of columns; strips make enough tasks for one row, and keep their part
  // of the weights in the cache for many.
  constexpr int64_t kStrip = 256;
  const int64_t strips = ceil_div(c, kStrip), row_blocks = ceil_div(rows, kRowBlock);
  const int64_t x_stride = align_scratch(n * 4) / 4;
  const bool round = p.q.dtype == DType::kBF16 && p.w_uk.dtype == DType::kF32;
  visit_float(p.q.dtype, [&](auto act) {
    visit_float(p.w_uk.dtype, [&](auto weight) {
      using X = decltype(act);
      using W = decltype(weight);
      ctx.pool->parallel_for(heads * row_blocks * strips, 1, [&](int64_t begin, int64_t end, int worker) {
        float* const scratch = ctx.workspace.as<float>() + worker * kAbsorbRows * x_stride;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t strip = task % strips, block = task / strips % row_blocks, head = task / strips / row_blocks;
          const int64_t col = strip * kStrip, cols = c - col < kStrip ? c - col : kStrip;
          const W* const w = p.w_uk.as<const W>() + head * n * c + col;
          const int64_t last = rows - block * kRowBlock < kRowBlock ? rows : (block + 1) * kRowBlock;
          const float* x[kAbsorbRows];
          X* to[kAbsorbRows];
          int count = 0;
          float parts[kAbsorbRows][kStrip];
          float* out[kAbsorbRows];
          for (int i = 0; i < kAbsorbRows; ++i) out[i] = parts[i];
          for (int64_t t = block * kRowBlock; t < last; ++t) {
            X* const result = p.out.as<X>() + (t * heads + head) * (c + r);
            const X* const q = p.q.as<const X>() + (t * heads + head) * (n + r);
            if (positions[t] < 0) {
              for (int64_t i = 0; i < cols; ++i) convert(0.0f, result + col + i);
            } else {
              x[count] = operand_row(q, n, true, scratch + count * x_stride);
              to[count++] = result + col;
            }
            if (strip == 0) {
              if (positions[t] < 0) {
                for (int64_t i = 0; i < r; ++i) convert(0.0f, result + c + i);
              } else {
                rope_row(q + n, p.cos_sin.as<const float>() + positions[t] * r, r, result + c);
              }
            }
            if (count == kAbsorbRows || (t + 1 == last && count > 0)) {
              absorb(round, count, x, w, n, c, cols, out);
              for (int i = 0; i < count; ++i) narrow(parts[i], cols, to[i]);
              count = 0;
            }
          }
        }
      });
    });
  });
  return Status::Ok();
}

Status valueExpand(const ValueExpandParams& p, Context& ctx) {
  const int64_t rows = p.u.dim(0), heads = p.u.dim(1), c = p.u.dim(2), v = p.w_uv.dim(1);
  visit_float(p.u.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const u = p.u.as<const X>();
    X* const out = p.out.as<X>();
    run_products(
        ctx, EvenBlocks{heads, rows}, rows, c, 0, v,
        [&](int64_t head) { return weights_of(p.w_uv, View{}, head, false, p.u.dtype); },
        [&](const RowBlock& b, int r, bool fresh, float* to) {
          return operand_row(u + ((b.row0 + r) * heads + b.group) * c, c, fresh, to);
        },
        [&](const RowBlock& b, int64_t col, int cols, const float* part) {
          for (int r = 0; r < b.rows; ++r)
            narrow(part + r * kColBlock, cols, out + ((b.row0 + r) * heads + b.group) * v + col);
        });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
