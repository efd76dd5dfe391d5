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
// From here on widening a panel once costs less than widening its values again in every tile.
constexpr int kPackRows = 2 * kTileRows + 1;

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
void multiply_direct(const Weights& weights, int64_t col0, int cols, const float* const* x, int rows, F* acc,
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

template <class W>
void pack(const Columns<W>& columns, int64_t begin, int64_t end, float* panel) {
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
        const int rest = static_cast<int>(stop - k);
        store_tail(out + k, load_weight_tail(columns.w[c] + k, scale, rest), rest);
        k = stop;
      }
    }
  }
}

template <class W>
void multiply_packed(const Weights& weights, int64_t col0, int cols, const float* const* x, int rows, float* panel,
                     F* acc, float* y) {
  const int64_t last = col0 + cols - 1;
  const RowTiles tiles(rows);
  for (int64_t begin = 0; begin == 0 || begin < weights.k; begin += kDepthBlock) {
    const int64_t end = weights.k - begin < kDepthBlock ? weights.k : begin + kDepthBlock;
    for (int c = 0; c < cols; c += kPanel) {
      pack(columns_at<W>(weights, col0 + c, kPanel, last), begin, end, panel);
      Columns<float> w;
      for (int i = 0; i < kPanel; ++i) w.w[i] = panel + i * kDepthBlock - begin;
      for (int i = 0; i < tiles.count; ++i) {
        const int r = tiles.begin(i), n = tiles.begin(i + 1) - r;
        F* const a = acc + static_cast<int64_t>(c) * rows + static_cast<int64_t>(r) * kPanel;
        tile_rows(n, x + r, w, begin, end, begin == 0, a);
        if (end == weights.k) finish<kPanel>(a, n, cols - c, y + r * kColBlock + c);
      }
    }
  }
}

template <class W>
void multiply_as(const Weights& w, int64_t col0, int cols, const float* const* x, int rows, float* panel, F* acc,
                 float* y) {
  if (rows < kPackRows) return multiply_direct<W>(w, col0, cols, x, rows, acc, y);
  multiply_packed<W>(w, col0, cols, x, rows, panel, acc, y);
}

}  // namespace

void multiply(const Weights& w, int64_t col0, int cols, const float* const* x, int rows, float* panel, F* acc,
              float* y) {
  switch (w.dtype) {
    case DType::kBF16: return multiply_as<Bf16>(w, col0, cols, x, rows, panel, acc, y);
    case DType::kF8E4M3: return multiply_as<F8E4M3>(w, col0, cols, x, rows, panel, acc, y);
    default: break;
  }
  if (w.round_to_bf16) return multiply_as<F32Rounded>(w, col0, cols, x, rows, panel, acc, y);
  multiply_as<float>(w, col0, cols, x, rows, panel, acc, y);
}

}  // namespace mla::cpu::MLA_CPU_ISA
