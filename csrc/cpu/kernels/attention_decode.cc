// attention_decode.cc - absorbed attention over the paged cache. Test: test/cpu/reference-decode.test.ts.
//
// The keys of a row are cut into splits of kDecodeSplit tokens. A piece of work is one split against up to kDecodeRows
// query rows of a sequence, all heads together, so that a cache row is loaded once for all of them. It leaves, per row
// and head, the maximum m of the scores, the sum l of e^(s - m), and u = sum of p * row with p = e^(s - m) rounded to
// the activations' type. The splits of a row are then merged in ascending order. Splits are counted from the row's
// first token, and each number is one chain of operations that does not depend on how the work was divided: a row has
// the same bits alone or in a batch, on any number of threads.
//
// Work goes in waves that fill the partial results of the workspace. Only keys that a row sees are ever read.
#include "cpu/kernels.h"
#include "cpu/kernels/attention_checks.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/kernels/cache_row.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kTile = kPageTokens;  // keys that lie one after another
constexpr int64_t kTiles = kDecodeSplit / kTile;

#if defined(MLA_SIMD_512)
constexpr int kSums = 16;  // accumulators of a register tile
#else
constexpr int kSums = 8;
#endif

/// Keys of a split: rows of `width` floats, `tile[i]` being where its i-th page begins.
struct Keys {
  const float* tile[kTiles];
  int64_t stride;
};

MLA_INLINE const float* key_row(const Keys& keys, int64_t j) { return keys.tile[j / kTile] + j % kTile * keys.stride; }

/// scores[h][j] = scale * q[h] . key[j] for kHeads heads and keys [0, n).
template <int kHeads>
void score_tile(const float* q, int64_t q_stride, const Keys& keys, int64_t width, int64_t n, float scale,
                float* scores) {
  constexpr int kKeys = kSums / kHeads < 4 ? 4 : kSums / kHeads;
  for (int64_t j = 0; j < n; j += kKeys) {
    // Past the end the last key is taken again and its sums are dropped.
    const float* k[kKeys];
#pragma GCC unroll 16
    for (int i = 0; i < kKeys; ++i) k[i] = key_row(keys, j + i < n ? j + i : n - 1);
    F sum[kHeads][kKeys];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) sum[h][i] = zero();
    }
    for (int64_t d = 0; d < width; d += kLanes) {
      F a[kHeads];
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) a[h] = load(q + h * q_stride + d);
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) {
        const F b = load(k[i] + d);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) sum[h][i] = fma(a[h], b, sum[h][i]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; i += 4) {
        const F4 s = hsum4(sum[h][i], sum[h][i + 1], sum[h][i + 2], sum[h][i + 3]) * scale;
        float* to = scores + h * kDecodeSplit + j + i;
        if (j + i + 4 <= n) {
          std::memcpy(to, &s, sizeof s);
        } else {
          for (int x = 0; j + i + x < n; ++x) to[x] = s[x];
        }
      }
    }
  }
}

/// Scores of one head to probabilities relative to their maximum, rounded to Act.
template <class Act>
void softmax_row(float* scores, int64_t n, float* largest, float* sum) {
  const float inf = __builtin_inff();
  for (int64_t j = n; j % kLanes != 0; ++j) scores[j] = -inf;
  F m = set1(-inf);
  for (int64_t j = 0; j < n; j += kLanes) m = vmax(m, load(scores + j));
  *largest = hmax(m);
  F l = zero();
  for (int64_t j = 0; j < n; j += kLanes) {
    const F p = exp(load(scores + j) - set1(*largest));
    l += p;
    store(scores + j, round_vec<Act>(p));
  }
  *sum = hsum(l);
}

/// out[h][0, kVectors vectors) = sum over j of p[h][j] * key[j], for kHeads heads.
template <int kHeads, int kVectors>
void value_tile(const float* p, const Keys& keys, int64_t column, int64_t n, float* out, int64_t out_stride) {
  F sum[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) sum[h][i] = zero();
  }
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const float* key = keys.tile[begin / kTile] + column;
    const int64_t end = begin + kTile < n ? begin + kTile : n;
    for (int64_t j = begin; j < end; ++j, key += keys.stride) {
      F row[kVectors];
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) row[i] = load(key + i * kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const F w = set1(p[h * kDecodeSplit + j]);
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) sum[h][i] = fma(w, row[i], sum[h][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) store(out + h * out_stride + column + i * kLanes, sum[h][i]);
  }
}

template <int kHeads>
void value_columns(const float* p, const Keys& keys, int64_t width, int64_t n, float* out) {
  constexpr int kVectors = kSums / kHeads;
  int64_t column = 0;
  for (; column + kVectors * kLanes <= width; column += kVectors * kLanes) {
    value_tile<kHeads, kVectors>(p, keys, column, n, out, width);
  }
  for (; column < width; column += kLanes) value_tile<kHeads, 1>(p, keys, column, n, out, width);
}

/// One split of one query row.
template <class Act, int kHeads>
void attend_heads(const float* q, const Keys& keys, const DecodeScratch& s, int64_t n, float scale, float* scores,
                  float* u, float* largest, float* sum) {
  score_tile<kHeads>(q, s.width, keys, s.width, n, scale, scores);
  for (int h = 0; h < kHeads; ++h) softmax_row<Act>(scores + h * kDecodeSplit, n, largest + h, sum + h);
  value_columns<kHeads>(scores, keys, s.out_width, n, u);
}

template <class Act>
void attend(const float* q, int64_t heads, const Keys& keys, const DecodeScratch& s, int64_t n, float scale,
            float* scores, float* slot) {
  float* largest = slot + heads * s.out_width;
  float* sum = largest + heads;
  int64_t h = 0;
  for (; h + 4 <= heads; h += 4) {
    attend_heads<Act, 4>(q + h * s.width, keys, s, n, scale, scores, slot + h * s.out_width, largest + h, sum + h);
  }
  for (; h + 2 <= heads; h += 2) {
    attend_heads<Act, 2>(q + h * s.width, keys, s, n, scale, scores, slot + h * s.out_width, largest + h, sum + h);
  }
  for (; h < heads; ++h) {
    attend_heads<Act, 1>(q + h * s.width, keys, s, n, scale, scores, slot + h * s.out_width, largest + h, sum + h);
  }
}

/// Rows of n elements to rows of `width` floats, rounded to Act, zeros behind.
template <class Act, class T>
void widen_rows(const T* from, int64_t rows, int64_t n, int64_t width, float* to) {
  for (int64_t j = 0; j < rows; ++j, from += n, to += width) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i, round_vec<Act>(load(from + i)));
    if (i < n) store(to + i, round_vec<Act>(load_tail(from + i, static_cast<int>(n - i))));
    for (i = pad_to(n, kLanes); i < width; i += kLanes) store(to + i, zero());
  }
}

/// Rows [slot, slot + rows) of the cache as rows of `width` floats, rounded to Act, zeros behind.
template <class Act>
void widen_keys(const MlaDecodeParams& p, int64_t slot, int64_t rows, int64_t width, float* to) {
  const int64_t c = p.out.dim(2), n = p.q.dim(2);
  if (p.cache.dtype != DType::kF8E4M3) {
    visit_float(p.cache.dtype,
                [&](auto tag) { widen_rows<Act>(p.cache.as<decltype(tag)>() + slot * n, rows, n, width, to); });
    return;
  }
  const uint8_t* row = p.cache.as<uint8_t>() + slot * p.cache.dim(2);
  for (int64_t j = 0; j < rows; ++j, row += p.cache.dim(2), to += width) {
    load_fp8_row(row, {c, n - c}, to, to + c);
    std::memset(to + n, 0, sizeof(float) * static_cast<size_t>(width - n));
  }
}

/// The keys of one split. Where the cache holds padded floats already they are read in place.
template <class Act>
Keys load_keys(const MlaDecodeParams& p, const DecodeScratch& s, const DecodeItem& item, int64_t n, float* buffer) {
  const bool in_place = p.cache.dtype == DType::kF32 && sizeof(Act) == sizeof(float) && p.q.dim(2) == s.width &&
                        p.out.dim(2) == s.out_width;
  const int32_t* pages = p.block_table.as<int32_t>() + item.sequence * p.block_table.dim(1) + item.split * kTiles;
  Keys keys{};
  keys.stride = s.width;
  for (int64_t t = 0; t * kTile < n; ++t) {
    const int64_t slot = static_cast<int64_t>(pages[t]) * kPageTokens;
    if (in_place) {
      keys.tile[t] = p.cache.as<const float>() + slot * s.width;
    } else {
      float* to = buffer + t * kTile * s.width;
      widen_keys<Act>(p, slot, n - t * kTile < kTile ? n - t * kTile : kTile, s.width, to);
      keys.tile[t] = to;
    }
  }
  return keys;
}

/// How many keys query row `row` of sequence b sees: those up to its own position.
int64_t visible_keys(const MlaDecodeParams& p, int64_t b, int64_t row) {
  const int64_t n = p.lengths.as<int32_t>()[b] - (p.q_start.as<int32_t>()[b + 1] - 1 - row);
  return n < 0 ? 0 : n;
}

int64_t split_count(int64_t keys) { return (keys + kDecodeSplit - 1) / kDecodeSplit; }

template <class Act>
void run_item(const MlaDecodeParams& p, const DecodeScratch& s, const DecodeItem& item, float* worker) {
  const int64_t heads = p.q.dim(1), width = p.q.dim(2);
  const DecodeRow* rows = s.rows + item.row;
  float* q_buffer = worker;
  float* key_buffer = q_buffer + heads * s.width;
  float* scores = key_buffer + kDecodeSplit * s.width;
  const auto keys_of = [&](int64_t i) {
    const int64_t n = rows[i].keys - item.split * kDecodeSplit;
    return n < kDecodeSplit ? n : kDecodeSplit;
  };
  const Keys keys = load_keys<Act>(p, s, item, keys_of(item.rows - 1), key_buffer);  // the last row sees most
  for (int64_t i = 0; i < item.rows; ++i) {
    if (keys_of(i) <= 0) continue;
    const Act* q = p.q.as<Act>() + rows[i].row * heads * width;
    const float* q_rows = q_buffer;
    if (sizeof(Act) == sizeof(float) && width == s.width) {
      q_rows = reinterpret_cast<const float*>(q);
    } else {
      widen_rows<Act>(q, heads, width, s.width, q_buffer);
    }
    float* slot = s.partial + (rows[i].slot + item.split) * s.slot_floats;
    attend<Act>(q_rows, heads, keys, s, keys_of(i), p.scale, scores, slot);
  }
}

/// Merges the splits of one head of one row.
template <class Act>
void merge_head(const MlaDecodeParams& p, const DecodeScratch& s, const DecodeRow& row, int64_t h) {
  const int64_t heads = p.q.dim(1), c = p.out.dim(2);
  float* first = s.partial + row.slot * s.slot_floats;
  float* u = first + h * s.out_width;
  float m = first[heads * s.out_width + h], l = first[heads * s.out_width + heads + h];
  for (int64_t split = 1; split < row.splits; ++split) {
    const float* other = first + split * s.slot_floats;
    const float* v = other + h * s.out_width;
    const float other_m = other[heads * s.out_width + h], other_l = other[heads * s.out_width + heads + h];
    const float largest = other_m > m ? other_m : m;
    const float keep = exp1(m - largest), add = exp1(other_m - largest);
    for (int64_t i = 0; i < s.out_width; i += kLanes) {
      store(u + i, fma(load(v + i), set1(add), load(u + i) * set1(keep)));
    }
    m = largest;
    l = l * keep + other_l * add;
  }
  Act* out = p.out.as<Act>() + (row.row * heads + h) * c;
  const F inverse = set1(1.0f / l);
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) store(out + i, load(u + i) * inverse);
  if (i < c) store_tail(out + i, load(u + i) * inverse, static_cast<int>(c - i));
  p.lse.as<float>()[row.row * heads + h] = m + __builtin_logf(l);
}

/// The rows and items that are run together.
struct Wave {
  int64_t items = 0, rows = 0, slots = 0;
};

template <class Act>
void run_wave(const MlaDecodeParams& p, const DecodeScratch& s, Wave* wave, ThreadPool& pool) {
  const int64_t heads = p.q.dim(1);
  pool.parallel_for(wave->items, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) run_item<Act>(p, s, s.items[i], s.worker + worker * s.worker_floats);
  });
  const int64_t grain = 16384 / (heads * s.out_width) + 1;
  pool.parallel_for(wave->rows * heads, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) merge_head<Act>(p, s, s.rows[i / heads], i % heads);
  });
  *wave = Wave{};
}

/// Adds up to kDecodeRows rows of sequence b from `row` on, as far as slots are left; returns how many.
int64_t add_rows(const MlaDecodeParams& p, const DecodeScratch& s, int64_t b, int64_t row, Wave* wave) {
  const int64_t end = p.q_start.as<int32_t>()[b + 1], first = wave->rows;
  int64_t n = 0, splits = 0;
  for (; n < kDecodeRows && row + n < end; ++n) {
    const int64_t keys = visible_keys(p, b, row + n), more = split_count(keys);
    if (wave->slots + more > s.slots) break;
    s.rows[wave->rows++] = {static_cast<int32_t>(row + n), static_cast<int32_t>(more),
                            static_cast<int32_t>(wave->slots), static_cast<int32_t>(keys)};
    wave->slots += more;
    splits = more;
  }
  for (int64_t split = 0; split < splits; ++split) {
    s.items[wave->items++] = {static_cast<int32_t>(b), static_cast<int32_t>(split), static_cast<int32_t>(n),
                              static_cast<int32_t>(first)};
  }
  return n;
}

template <class Act>
void decode(const MlaDecodeParams& p, const DecodeScratch& s, ThreadPool& pool) {
  const int64_t total = p.q.dim(0), heads = p.q.dim(1), width = heads * p.out.dim(2);
  const int32_t* q_start = p.q_start.as<int32_t>();
  const int64_t sequences = p.lengths.dim(0);
  Act* out = p.out.as<Act>();
  float* lse = p.lse.as<float>();
  clear_rows(out, width, lse, heads, 0, q_start[0]);
  Wave wave;
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t row = q_start[b]; row < q_start[b + 1];) {
      if (visible_keys(p, b, row) == 0) {
        clear_rows(out, width, lse, heads, row, row + 1);
        ++row;
        continue;
      }
      const int64_t added = add_rows(p, s, b, row, &wave);
      if (added == 0) run_wave<Act>(p, s, &wave, pool);  // an empty wave has room for any row
      row += added;
    }
  }
  run_wave<Act>(p, s, &wave, pool);
  clear_rows(out, width, lse, heads, q_start[sequences], total);
}

Status check_lengths(const MlaDecodeParams& p) {
  MLA_RETURN_IF_ERROR(check_starts("mlaDecode", "q_start", p.q_start, p.q.dim(0)));
  const int64_t most = p.block_table.dim(1) * kPageTokens;
  const int32_t* q_start = p.q_start.as<int32_t>();
  for (int64_t b = 0; b < p.lengths.dim(0); ++b) {
    const int64_t n = p.lengths.as<int32_t>()[b];
    if (q_start[b] == q_start[b + 1]) continue;
    if (n < 0 || n > most) return invalid_value("mlaDecode", "lengths", b, n, 0, most);
    const int64_t pages = (n + kPageTokens - 1) / kPageTokens;
    MLA_RETURN_IF_ERROR(check_pages("mlaDecode", p.block_table, b, 0, pages, p.cache.dim(0)));
  }
  return Status::Ok();
}

}  // namespace

/// The CPU divides its work by lengths alone and needs no plan; the tensor is filled so that it holds nothing old.
Status decodePlan(const DecodePlanParams& p, Context& ctx) {
  (void)ctx;
  MLA_RETURN_IF_ERROR(check_starts("decodePlan", "q_start", p.q_start, INT32_MAX));
  for (int64_t b = 0; b < p.lengths.dim(0); ++b) {
    const int32_t n = p.lengths.as<int32_t>()[b];
    if (n < 0) return invalid_value("decodePlan", "lengths", b, n, 0, INT32_MAX);
  }
  std::memset(p.plan.data, 0, static_cast<size_t>(p.plan.bytes()));
  return Status::Ok();
}

/// A row before the first token of its sequence (more query rows than the length has) sees no key.
Status mlaDecode(const MlaDecodeParams& p, Context& ctx) {
  MLA_RETURN_IF_ERROR(check_lengths(p));
  Carver carver{ctx.workspace.as<uint8_t>()};
  const DecodeScratch s = decode_scratch(p, ctx.pool->threads(), &carver);
  visit_float(p.q.dtype, [&](auto tag) { decode<decltype(tag)>(p, s, *ctx.pool); });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
