// product.cc - the tiles of product.h: R rows of x times C rows of w, all R * C accumulators in registers.
// Test: test/native-cpp/cpu-matrix.cc, for each instruction set.
//
// Tried without gain: software prefetch of the weights of a single row, 1 KiB or one group of columns ahead.
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

/// Float32 weights beside bf16 activations, rounded as they are read.
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

/// f8e4m3 columns without NaN whose scales can take the factor 2^120 of load_f8_bits(): one product per value instead
/// of two, and no look at each value. The result has the same bits: both factors are exact, the product rounds once.
struct PlainF8 {
  F8E4M3 value;
};
MLA_INLINE F load_weight(const PlainF8* p, F scale) { return load_f8_bits(&p->value) * scale; }
MLA_INLINE F load_weight_tail(const PlainF8* p, F scale, int n) {
  F8E4M3 x[kLanes] = {};
  std::memcpy(x, p, static_cast<size_t>(n));
  return load_f8_bits(x) * scale;
}

constexpr float kPlainScaleLimit = 128;  // times 2^120 and 448 it is still finite

template <class W>
constexpr bool kIsScaled = __is_same(W, F8E4M3) || __is_same(W, PlainF8);

/// Whether C columns of k values are plain.
template <int C>
bool is_plain(const Columns<F8E4M3>& columns, int64_t k) {
  U found = {};
  for (int c = 0; c < C; ++c) {
    const F8E4M3* const p = columns.w[c];
    int64_t i = 0;
    for (; i + kLanes * 4 <= k; i += kLanes * 4) {
      U bytes;
      std::memcpy(&bytes, p + i, sizeof bytes);
      found |= (bytes & 0x7f7f7f7fu) + 0x01010101u;  // the top bit of a byte is set where all lower bits were
    }
    for (; i < k; ++i) {
      if ((p[i].bits & 0x7f) == 0x7f) return false;
    }
    for (int64_t block = 0; block * kScaleBlock < k; ++block) {
      if (!(__builtin_fabsf(columns.scale[c][block]) < kPlainScaleLimit)) return false;
    }
  }
  return !any_bits(found & 0x80808080u);
}

/// Sums R x C outputs over all of k, lane by lane.
template <int R, int C, class W>
void tile(const float* const* x, const Columns<W>& columns, int64_t depth, F* acc_memory) {
  F acc[R][C] = {};
  const int64_t whole = depth - depth % kLanes;
  int64_t k = 0;
  F scale[C] = {};
  while (k < whole) {
    int64_t stop = whole;
    if constexpr (kIsScaled<W>) {
      const int64_t block = k / kScaleBlock;
      if ((block + 1) * kScaleBlock < stop) stop = (block + 1) * kScaleBlock;
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) scale[c] = set1(columns.scale[c][block]);
      if constexpr (__is_same(W, PlainF8)) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) scale[c] = scale[c] * set1(0x1p120f);
      }
    }
    for (; k < stop; k += kLanes) {
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
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc_memory[r * C + c] = acc[r][c];
  }
  if (whole == depth) return;
  // The tail works on the memory, so that the loop above is plain enough to keep all accumulators in registers.
  const int rest = static_cast<int>(depth - whole);
  for (int c = 0; c < C; ++c) {
    F s = zero();
    if constexpr (kIsScaled<W>) s = set1(columns.scale[c][whole / kScaleBlock]);
    if constexpr (__is_same(W, PlainF8)) s = s * set1(0x1p120f);
    const F w = load_weight_tail(columns.w[c] + whole, s, rest);
    for (int r = 0; r < R; ++r) acc_memory[r * C + c] = fma(load_tail(x[r] + whole, rest), w, acc_memory[r * C + c]);
  }
}

template <class W>
void tile_rows(int rows, const float* const* x, const Columns<W>& w, int64_t depth, F* acc) {
  switch (rows) {
    case 1: return tile<1, kPanel>(x, w, depth, acc);
    case 2: return tile<2, kPanel>(x, w, depth, acc);
    case 3: return tile<3, kPanel>(x, w, depth, acc);
#if defined(MLA_SIMD_512)
    case 4: return tile<4, kPanel>(x, w, depth, acc);
    case 5: return tile<5, kPanel>(x, w, depth, acc);
    case 6: return tile<6, kPanel>(x, w, depth, acc);
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

/// One row of x times kSingleRowColumns columns, or several times kPanel.
template <class W>
void few_rows(const Columns<W>& w, int64_t depth, int cols, const float* const* x, int rows, F* acc, float* y) {
  if (rows == 1) {
    tile<1, kSingleRowColumns>(x, w, depth, acc);
    return finish<kSingleRowColumns>(acc, 1, cols, y);
  }
  const RowTiles tiles(rows);
  for (int i = 0; i < tiles.count; ++i) {
    const int r = tiles.begin(i), n = tiles.begin(i + 1) - r;
    tile_rows(n, x + r, w, depth, acc);
    finish<kPanel>(acc, n, cols, y + r * kColBlock);
  }
}

template <class W>
void multiply_few_as(const Weights& weights, int64_t col0, int cols, const float* const* x, int rows, F* acc,
                     float* y) {
  const int step = rows == 1 ? kSingleRowColumns : kPanel;
  for (int c = 0; c < cols; c += step) {
    const Columns<W> w = columns_at<W>(weights, col0 + c, step, col0 + cols - 1);
    if constexpr (__is_same(W, F8E4M3)) {
      if (rows == 1 ? is_plain<kSingleRowColumns>(w, weights.k) : is_plain<kPanel>(w, weights.k)) {
        Columns<PlainF8> plain;
        for (int i = 0; i < step; ++i) {
          plain.w[i] = reinterpret_cast<const PlainF8*>(w.w[i]);
          plain.scale[i] = w.scale[i];
        }
        few_rows(plain, weights.k, cols - c, x, rows, acc, y + c);
        continue;
      }
    }
    few_rows(w, weights.k, cols - c, x, rows, acc, y + c);
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
