// product.cc - the tiles of product.h: R rows of x times C rows of w, all R * C accumulators in registers.
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

// 24 accumulators, 4 weights and one row fit the 32 registers of AVX-512; 12, 4 and a memory operand fit 16.
#if defined(MLA_SIMD_512)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
static_assert(kRowBlock % kTileRows == 0);

// Eight rows of w give a single row of x enough independent chains to hide the latency of the additions.
constexpr int kSingleRowColumns = 8;
struct F32Rounded {
  float value;
};

template <class W>
struct Columns {
  const W* w[kSingleRowColumns];
  const float* scale[kSingleRowColumns];
};

template <class W>
MLA_INLINE F load_weight(const W* p, F) {
  return load(p);
}
MLA_INLINE F load_weight(const F32Rounded* p, F) { return round_vec<Bf16>(load(&p->value)); }
MLA_INLINE F load_weight(const F8E4M3* p, F scale) { return load(p) * scale; }

template <class W>
MLA_INLINE F load_weight_tail(const W* p, F, int n) {
  return load_tail(p, n);
}
MLA_INLINE F load_weight_tail(const F32Rounded* p, F, int n) { return round_vec<Bf16>(load_tail(&p->value, n)); }
MLA_INLINE F load_weight_tail(const F8E4M3* p, F scale, int n) { return load_tail(p, n) * scale; }

/// Continues (or starts) the accumulators of R x C outputs over k in [begin, end).
template <int R, int C, class W>
void tile(const float* const* x, const Columns<W>& columns, int64_t begin, int64_t end, bool start, F* acc_memory) {
  constexpr bool kScaled = __is_same(W, F8E4M3);
  F acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = start ? zero() : acc_memory[r * C + c];
  }
  int64_t k = begin;
  while (k < end) {
    int64_t stop = end;
    F scale[C] = {};
    if constexpr (kScaled) {
      const int64_t block = k / kScaleBlock;
      if ((block + 1) * kScaleBlock < stop) stop = (block + 1) * kScaleBlock;
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) scale[c] = set1(columns.scale[c][block]);
    }
    for (; k + kLanes <= stop; k += kLanes) {
      F w[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) w[c] = load_weight(columns.w[c] + k, scale[c]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F v = load(x[r] + k);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = fma(v, w[c], acc[r][c]);
      }
    }
    if (k < stop) {
      const int rest = static_cast<int>(stop - k);
      for (int c = 0; c < C; ++c) {
        const F w = load_weight_tail(columns.w[c] + k, scale[c], rest);
        for (int r = 0; r < R; ++r) acc[r][c] = fma(load_tail(x[r] + k, rest), w, acc[r][c]);
      }
      k = stop;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc_memory[r * C + c] = acc[r][c];
  }
}

template <class W>
void tile_rows(int rows, const float* const* x, const Columns<W>& w, int64_t begin, int64_t end, bool start, F* acc) {
  switch (rows) {
    case 1: return tile<1, kPanel>(x, w, begin, end, start, acc);
    case 2: return tile<2, kPanel>(x, w, begin, end, start, acc);
    case 3: return tile<3, kPanel>(x, w, begin, end, start, acc);
#if defined(MLA_SIMD_512)
    case 4: return tile<4, kPanel>(x, w, begin, end, start, acc);
    case 5: return tile<5, kPanel>(x, w, begin, end, start, acc);
    case 6: return tile<6, kPanel>(x, w, begin, end, start, acc);
#endif
  }
}

/// The same for packed operands, rows of whole vectors kDepthBlock apart. A function of its own because the compiler
/// keeps all accumulators in registers from the first instruction to the last only in so plain a loop (6 x 4 tile on an
/// EPYC of family 26, 2026-11: 264 instead of 208 GFLOP/s).
template <int R>
void packed_tile(const float* x, const float* w, int64_t depth, bool start, F* acc_memory) {
  F acc[R][kPanel];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kPanel; ++c) acc[r][c] = start ? zero() : acc_memory[r * kPanel + c];
  }
  for (int64_t k = 0; k < depth; k += kLanes) {
    F v[kPanel];
#pragma GCC unroll 8
    for (int c = 0; c < kPanel; ++c) v[c] = load(w + c * kDepthBlock + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = load(x + r * kDepthBlock + k);
#pragma GCC unroll 8
      for (int c = 0; c < kPanel; ++c) acc[r][c] = fma(a, v[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kPanel; ++c) acc_memory[r * kPanel + c] = acc[r][c];
  }
}

void packed_tile_rows(int rows, const float* x, const float* w, int64_t depth, bool start, F* acc) {
  switch (rows) {
    case 1: return packed_tile<1>(x, w, depth, start, acc);
    case 2: return packed_tile<2>(x, w, depth, start, acc);
    case 3: return packed_tile<3>(x, w, depth, start, acc);
#if defined(MLA_SIMD_512)
    case 4: return packed_tile<4>(x, w, depth, start, acc);
    case 5: return packed_tile<5>(x, w, depth, start, acc);
    case 6: return packed_tile<6>(x, w, depth, start, acc);
#endif
  }
}

/// Sums the lanes of a tile of C columns into y; `cols` of them count.
template <int C>
MLA_INLINE void finish(const F* acc, int rows, int cols, float* y) {
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < C && c < cols; c += 4) {
      const F* a = acc + r * C + c;
      const F4 sums = hsum4(a[0], a[1], a[2], a[3]);
      for (int i = 0; i < 4 && c + i < cols; ++i) y[r * kColBlock + c + i] = sums[i];
    }
  }
}

/// `count` columns from `first` on; those past `last` repeat it, and their results are dropped.
template <class W>
Columns<W> columns_at(const Weights& weights, int64_t first, int count, int64_t last) {
  Columns<W> out;
  for (int c = 0; c < count; ++c) {
    const int64_t i = first + c < last ? first + c : last;
    out.w[c] = static_cast<const W*>(weights.row(i));
    out.scale[c] = weights.scale != nullptr ? weights.scale_row(i) : nullptr;
  }
  return out;
}

/// Rows cut into tiles of nearly equal height.
struct RowTiles {
  int rows;
  int count;
  explicit RowTiles(int n) : rows(n), count((n + kTileRows - 1) / kTileRows) {}
  int begin(int i) const { return rows * i / count; }
};

template <class W>
void multiply_few_as(const Weights& weights, int64_t col0, int cols, const float* const* x, int rows, F* acc,
                     float* y) {
  const int64_t last = col0 + cols - 1;
  if (rows == 1) {
    for (int c = 0; c < cols; c += kSingleRowColumns) {
      const Columns<W> w = columns_at<W>(weights, col0 + c, kSingleRowColumns, last);
      tile<1, kSingleRowColumns>(x, w, 0, weights.k, true, acc);
      finish<kSingleRowColumns>(acc, 1, cols - c, y + c);
    }
    return;
  }
  const RowTiles tiles(rows);
  for (int c = 0; c < cols; c += kPanel) {
    const Columns<W> w = columns_at<W>(weights, col0 + c, kPanel, last);
    for (int i = 0; i < tiles.count; ++i) {
      const int r = tiles.begin(i), n = tiles.begin(i + 1) - r;
      tile_rows(n, x + r, w, 0, weights.k, true, acc);
      finish<kPanel>(acc, n, cols - c, y + r * kColBlock + c);
    }
  }
}

/// k in [begin, end) of one panel, widened to float32 rows of kDepthBlock; the last vector is filled with zeros.
template <class W>
void pack_panel(const Columns<W>& columns, int64_t begin, int64_t end, float* panel) {
  for (int c = 0; c < kPanel; ++c) {
    float* out = panel + c * kDepthBlock - begin;
    int64_t k = begin;
    while (k < end) {
      int64_t stop = end;
      F scale = zero();
      if constexpr (__is_same(W, F8E4M3)) {
        const int64_t block = k / kScaleBlock;
        if ((block + 1) * kScaleBlock < stop) stop = (block + 1) * kScaleBlock;
        scale = set1(columns.scale[c][block]);
      }
      for (; k + kLanes <= stop; k += kLanes) store(out + k, load_weight(columns.w[c] + k, scale));
      if (k < stop) {
        store(out + k, load_weight_tail(columns.w[c] + k, scale, static_cast<int>(stop - k)));
        k = stop;
      }
    }
  }
}

template <class W>
void multiply_many_as(const Weights& weights, int64_t col0, int cols, const float* x, int rows, float* panels, F* acc,
                      float* y) {
  const RowTiles tiles(rows);
  for (int64_t begin = 0; begin == 0 || begin < weights.k; begin += kDepthBlock) {
    const bool last = weights.k - begin <= kDepthBlock;
    const int64_t depth = last ? weights.k - begin : kDepthBlock;
    const int64_t vectors = (depth + kLanes - 1) / kLanes * kLanes;
    for (int c = 0; c < cols; c += kPanel) {
      pack_panel(columns_at<W>(weights, col0 + c, kPanel, col0 + cols - 1), begin, begin + depth,
                 panels + c * kDepthBlock);
    }
    // A tile of x stays in the first-level cache while all panels pass by.
    for (int i = 0; i < tiles.count; ++i) {
      const int r = tiles.begin(i), n = tiles.begin(i + 1) - r;
      for (int c = 0; c < cols; c += kPanel) {
        F* const a = acc + c * rows + r * kPanel;
        packed_tile_rows(n, x + begin * rows + r * kDepthBlock, panels + c * kDepthBlock, vectors, begin == 0, a);
        if (last) finish<kPanel>(a, n, cols - c, y + r * kColBlock + c);
      }
    }
  }
}

}  // namespace

void multiply_few(const Weights& w, int64_t col0, int cols, const float* const* x, int rows, F* acc, float* y) {
  if (w.dtype == DType::kBF16) return multiply_few_as<Bf16>(w, col0, cols, x, rows, acc, y);
  if (w.dtype == DType::kF8E4M3) return multiply_few_as<F8E4M3>(w, col0, cols, x, rows, acc, y);
  if (w.round_to_bf16) return multiply_few_as<F32Rounded>(w, col0, cols, x, rows, acc, y);
  multiply_few_as<float>(w, col0, cols, x, rows, acc, y);
}

void multiply_many(const Weights& w, int64_t col0, int cols, const float* x, int rows, float* panels, F* acc,
                   float* y) {
  if (w.dtype == DType::kBF16) return multiply_many_as<Bf16>(w, col0, cols, x, rows, panels, acc, y);
  if (w.dtype == DType::kF8E4M3) return multiply_many_as<F8E4M3>(w, col0, cols, x, rows, panels, acc, y);
  if (w.round_to_bf16) return multiply_many_as<F32Rounded>(w, col0, cols, x, rows, panels, acc, y);
  multiply_many_as<float>(w, col0, cols, x, rows, panels, acc, y);
}

void pack_row(const float* row, int64_t k, int r, int rows, float* x) {
  for (int64_t begin = 0; begin < k; begin += kDepthBlock) {
    const int64_t depth = k - begin < kDepthBlock ? k - begin : kDepthBlock;
    float* const to = x + begin * rows + r * kDepthBlock;
    int64_t i = 0;
    for (; i + kLanes <= depth; i += kLanes) store(to + i, load(row + begin + i));
    if (i < depth) store(to + i, load_tail(row + begin + i, static_cast<int>(depth - i)));
  }
}

}  // namespace mla::cpu::MLA_CPU_ISA
