// prefill.cc - causal multi-head attention of packed queries over one chunk of up-projected keys. Test:
// test/cpu/reference-prefill.test.ts.
//
// One piece of work is a tile of kPrefillQueries query rows of one sequence and head. It walks over tiles of
// kPrefillKeys keys with the running maximum and sum of an online softmax. Everything is kept with queries along the
// vector, in panels of kPanel queries, so that both products have the form
//   c[m][queries] = sum over k of a[m][k] * b[k][queries]      (scores: a = keys, b = queries; output: a = values^T,
// b = probabilities), and maxima, sums and factors of the softmax need nothing across lanes.
//
// Tiles are counted from the first row of a sequence and from the first key of its chunk, so that a row's bits do not
// depend on other sequences or on the number of threads.
#include "cpu/kernels.h"
#include "cpu/kernels/attention_checks.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kPanels = kPrefillQueries / kPanel;

#if defined(MLA_SIMD_512)
constexpr int kRows = 12;  // rows of a register tile; with two vectors each they fill most of the registers
#else
constexpr int kRows = 6;
#endif

/// The matrix a of a product: element (m, k) stands at data[m * row + k * column].
struct Matrix {
  const float* data;
  int64_t row, column;
};

/// c[m][0, kVectors vectors) = c * factor + sum over k of a(m, k) * b[k]; without a factor c starts at zero.
template <int kM, int kVectors>
MLA_INLINE void product_tile(Matrix a, int64_t m, int64_t depth, const float* b, const float* factor, float* c) {
  F sum[kM][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = factor == nullptr ? zero() : load(c + (m + i) * kPanel + v * kLanes) * load(factor + v * kLanes);
    }
  }
  const float* from = a.data + m * a.row;
  for (int64_t k = 0; k < depth; ++k) {
    F lane[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) lane[v] = load(b + k * kPanel + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const F x = set1(from[i * a.row + k * a.column]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(x, lane[v], sum[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + (m + i) * kPanel + v * kLanes, sum[i][v]);
  }
}

template <int kVectors>
void product_panel(Matrix a, int64_t rows, int64_t depth, const float* b, const float* factor, float* c) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) product_tile<kRows, kVectors>(a, m, depth, b, factor, c);
  for (; m + 4 <= rows; m += 4) product_tile<4, kVectors>(a, m, depth, b, factor, c);
  for (; m < rows; ++m) product_tile<1, kVectors>(a, m, depth, b, factor, c);
}

/// A panel whose second vector holds no query is done in half the time.
void product(Matrix a, int64_t rows, int64_t depth, const float* b, const float* factor, float* c, int64_t queries) {
  if (queries > kLanes) {
    product_panel<2>(a, rows, depth, b, factor, c);
  } else {
    product_panel<1>(a, rows, depth, b, factor, c);
  }
}

/// Scratch of one thread. Arrays along queries are cut into panels: [panel][row][kPanel].
struct Tile {
  float* queries;                 // [panels][width][kPanel]
  float* keys;                    // [kPrefillKeys][width]
  float* values;                  // [kPrefillKeys][v]
  float* out;                     // [panels][v][kPanel]
  float* scores;                  // [kPrefillKeys][kPanel], of one panel at a time
  float *largest, *sum, *factor;  // [kPrefillQueries]
};

Tile cut_scratch(float* worker, int64_t width, int64_t v) {
  Tile t;
  t.queries = worker;
  t.out = t.queries + kPrefillQueries * width;
  t.scores = t.out + kPrefillQueries * v;
  t.largest = t.scores + kPrefillKeys * kPrefillQueries;
  t.sum = t.largest + kPrefillQueries;
  t.factor = t.sum + kPrefillQueries;
  t.keys = t.factor + kPrefillQueries;
  t.values = t.keys + kPrefillKeys * width;
  return t;
}

/// Which rows a piece of work covers.
struct Piece {
  int64_t head;
  int64_t row, rows;  // query rows of q
  int64_t key, keys;  // key rows of this sequence
  int64_t shift;      // query i of the tile sees keys j <= i + shift
};

/// to[column][i] = from[i][column] for 4 x 4 elements.
MLA_INLINE void transpose4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  F4 r[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], from + i * from_stride, sizeof(F4));
  const F4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const F4 c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  const F4 t[4] = {__builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7),
                   __builtin_shufflevector(b, d, 0, 1, 4, 5), __builtin_shufflevector(b, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &t[i], sizeof(F4));
}

void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to, int64_t to_stride) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    for (int64_t j = 0; j < whole_columns; j += 4) {
      transpose4(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

/// Queries of the piece into panels; lanes without a query are zero. Uses t.keys for the rows as floats.
template <class Act>
void load_queries(const MlaPrefillParams& p, const Piece& piece, const Tile& t) {
  const int64_t heads = p.q.dim(1), width = p.q.dim(2);
  for (int64_t i = 0; i < piece.rows; ++i) {
    widen(p.q.as<Act>() + ((piece.row + i) * heads + piece.head) * width, width, t.keys + i * width);
  }
  for (int64_t first = 0; first < piece.rows; first += kPanel) {
    const int64_t n = piece.rows - first < kPanel ? piece.rows - first : kPanel;
    float* panel = t.queries + first * width;
    if (n < kPanel) std::memset(panel, 0, sizeof(float) * static_cast<size_t>(kPanel * width));
    transpose(t.keys + first * width, n, width, width, panel, kPanel);
  }
}

template <class Act>
void load_keys(const MlaPrefillParams& p, const Piece& piece, int64_t j, int64_t n, const Tile& t) {
  const int64_t heads = p.k_nope.dim(1), nope = p.k_nope.dim(2), r = p.k_rope.dim(1), v = p.value.dim(2);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = piece.key + j + i;
    float* key = t.keys + i * (nope + r);
    widen(p.k_nope.as<Act>() + (row * heads + piece.head) * nope, nope, key);
    widen(p.k_rope.as<Act>() + row * r, r, key + nope);
    widen(p.value.as<Act>() + (row * heads + piece.head) * v, v, t.values + i * v);
  }
}

/// Scores of keys j .. j + n to probabilities relative to the running maximum, for one vector of queries from `lane`
/// of the tile on. What a query must not see becomes exactly zero, whatever its score is.
template <class Act>
void softmax_step(const Piece& piece, int64_t j, int64_t n, float scale, int64_t lane, float* scores, const Tile& t) {
  const F none = set1(-__builtin_inff());
  const bool all_visible = j + n - 1 <= lane + piece.shift;
  I limit;  // the last key of this tile that each query sees
  for (int i = 0; i < kLanes; ++i) {
    const int64_t last = lane + i + piece.shift - j;
    limit[i] = static_cast<int32_t>(last < -1 ? -1 : last < n ? last : n);
  }
  F m = load(t.largest + lane);
  const F before = m;
  for (int64_t k = 0; k < n; ++k) {
    F s = load(scores + k * kPanel) * set1(scale);
    if (!all_visible) s = set1_i(static_cast<int32_t>(k)) <= limit ? s : none;
    store(scores + k * kPanel, s);
    m = vmax(s, m);
  }
  // A query without any key so far keeps -inf as its maximum; zero in its place keeps NaN out of the differences.
  const F shift = m == none ? zero() : m;
  F l = zero();
  for (int64_t k = 0; k < n; ++k) {
    const F e = exp(load(scores + k * kPanel) - shift);
    l += e;
    store(scores + k * kPanel, round_vec<Act>(e));
  }
  const F factor = exp(before - shift);
  store(t.largest + lane, m);
  store(t.sum + lane, fma(load(t.sum + lane), factor, l));
  store(t.factor + lane, factor);
}

bool all_finite(const float* x, int64_t n) {
  const F inf = set1(__builtin_inff());
  I bad = I{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) bad |= ~(vabs(load(x + i)) < inf);
  if (i < n) bad |= ~(vabs(load_tail(x + i, static_cast<int>(n - i))) < inf);
  int32_t any = 0;
  for (int j = 0; j < kLanes; ++j) any |= bad[j];
  return any == 0;
}

/// The second product where a value that some query must not see is not finite: 0 * NaN would reach that query. Takes
/// each query's own keys only, with the operations of product_tile.
void accumulate_visible(const Piece& piece, int64_t j, int64_t n, int64_t first, int64_t queries, int64_t v, float* out,
                        const Tile& t) {
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t last = first + i + piece.shift - j;
    const int64_t visible = last + 1 < n ? last + 1 : n;
    for (int64_t c = 0; c < v; ++c) {
      F sum = set1(out[c * kPanel + i] * t.factor[first + i]);
      for (int64_t k = 0; k < visible; ++k) {
        sum = fma(set1(t.values[k * v + c]), set1(t.scores[k * kPanel + i]), sum);
      }
      out[c * kPanel + i] = sum[0];
    }
  }
}

template <class Out>
void store_rows(const MlaPrefillParams& p, const Piece& piece, const Tile& t) {
  const int64_t heads = p.q.dim(1), v = p.value.dim(2);
  for (int64_t first = 0; first < piece.rows; first += kPanel) {
    const int64_t n = piece.rows - first < kPanel ? piece.rows - first : kPanel;
    float* panel = t.out + first * v;
    float inverse[kPanel];
    for (int64_t i = 0; i < kPanel; ++i) {
      const float l = t.sum[first + i];
      inverse[i] = l > 0 || l != l ? 1.0f / l : 0.0f;  // no key seen: zeros
    }
    for (int64_t c = 0; c < v; ++c) {
      for (int64_t i = 0; i < kPanel; i += kLanes) {
        store(panel + c * kPanel + i, load(panel + c * kPanel + i) * load(inverse + i));
      }
    }
    transpose(panel, v, n, kPanel, t.values, v);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = (piece.row + first + i) * heads + piece.head;
      narrow(t.values + i * v, v, p.out.as<Out>() + row * v);
      const float l = t.sum[first + i];
      p.lse.as<float>()[row] = t.largest[first + i] + __builtin_logf(l);  // -inf + log(0) where no key was seen
    }
  }
}

template <class Act>
void run_piece(const MlaPrefillParams& p, const Piece& piece, const Tile& t) {
  const int64_t width = p.q.dim(2), v = p.value.dim(2);
  load_queries<Act>(p, piece, t);
  std::memset(t.out, 0, sizeof(float) * static_cast<size_t>(kPrefillQueries * v));
  for (int64_t i = 0; i < kPrefillQueries; ++i) {
    t.largest[i] = -__builtin_inff();
    t.sum[i] = 0;
  }
  const int64_t seen = piece.rows - 1 + piece.shift + 1;
  const int64_t keys = seen < piece.keys ? seen : piece.keys;
  for (int64_t j = 0; j < keys; j += kPrefillKeys) {
    const int64_t n = keys - j < kPrefillKeys ? keys - j : kPrefillKeys;
    load_keys<Act>(p, piece, j, n, t);
    const bool diagonal = j + n - 1 > piece.shift;
    const bool careful = diagonal && !all_finite(t.values, n * v);
    for (int64_t first = 0; first < piece.rows; first += kPanel) {
      const int64_t queries = piece.rows - first < kPanel ? piece.rows - first : kPanel;
      const int64_t last = first + queries - 1 + piece.shift - j;  // the last key that any query of the panel sees
      if (last < 0) continue;
      const int64_t m = last + 1 < n ? last + 1 : n;
      float* out = t.out + first * v;
      product({t.keys, width, 1}, m, width, t.queries + first * width, nullptr, t.scores, queries);
      for (int64_t lane = 0; lane < queries; lane += kLanes) {
        softmax_step<Act>(piece, j, m, p.scale, first + lane, t.scores + lane, t);
      }
      if (careful) {
        accumulate_visible(piece, j, m, first, queries, v, out, t);
      } else {
        product({t.values, 1, v}, v, m, t.scores, t.factor + first, out, queries);
      }
    }
  }
  visit_float(p.out.dtype, [&](auto tag) { store_rows<decltype(tag)>(p, piece, t); });
}

Status check_rows(const MlaPrefillParams& p) {
  MLA_RETURN_IF_ERROR(check_starts("mlaPrefill", "q_start", p.q_start, p.q.dim(0)));
  return check_starts("mlaPrefill", "k_start", p.k_start, p.k_nope.dim(0));
}

/// The rows of piece `index`: sequences one after another, their last tiles (the longest work) first.
Piece find_piece(const MlaPrefillParams& p, const int64_t* tile_start, int64_t index) {
  const int64_t heads = p.q.dim(1);
  const int32_t* q_start = p.q_start.as<int32_t>();
  const int32_t* k_start = p.k_start.as<int32_t>();
  int64_t b = 0;
  while (index >= tile_start[b + 1] * heads) ++b;
  const int64_t tile = tile_start[b + 1] - 1 - (index / heads - tile_start[b]) - tile_start[b];
  Piece piece;
  piece.head = index % heads;
  piece.row = q_start[b] + tile * kPrefillQueries;
  piece.rows = q_start[b + 1] - piece.row < kPrefillQueries ? q_start[b + 1] - piece.row : kPrefillQueries;
  piece.key = k_start[b];
  piece.keys = k_start[b + 1] - k_start[b];
  piece.shift = int64_t{p.q_pos.as<int32_t>()[b]} + tile * kPrefillQueries - p.k_pos.as<int32_t>()[b];
  return piece;
}

}  // namespace

Status mlaPrefill(const MlaPrefillParams& p, Context& ctx) {
  MLA_RETURN_IF_ERROR(check_rows(p));
  const int64_t heads = p.q.dim(1), width = p.q.dim(2), v = p.value.dim(2), sequences = p.q_start.dim(0) - 1;
  const int32_t* q_start = p.q_start.as<int32_t>();
  Carver carver{ctx.workspace.as<uint8_t>()};
  const PrefillScratch s = prefill_scratch(p, ctx.pool->threads(), &carver);
  s.tile_start[0] = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    s.tile_start[b + 1] = s.tile_start[b] + (q_start[b + 1] - q_start[b] + kPrefillQueries - 1) / kPrefillQueries;
  }
  visit_float(p.out.dtype, [&](auto tag) {
    auto* out = p.out.as<decltype(tag)>();
    clear_rows(out, heads * v, p.lse.as<float>(), heads, 0, q_start[0]);
    clear_rows(out, heads * v, p.lse.as<float>(), heads, q_start[sequences], p.q.dim(0));
  });
  visit_float(p.q.dtype, [&](auto tag) {
    using Act = decltype(tag);
    ctx.pool->parallel_for(s.tile_start[sequences] * heads, 1, [&](int64_t begin, int64_t end, int worker) {
      const Tile t = cut_scratch(s.worker + worker * s.worker_floats, width, v);
      for (int64_t i = begin; i < end; ++i) run_piece<Act>(p, find_piece(p, s.tile_start, i), t);
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
