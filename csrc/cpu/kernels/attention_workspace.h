// attention_workspace.h - how much scratch memory attention, routing and sampling need, and how they divide it.
//
// Plain code, the same for every instruction set: workspace.cc adds these numbers up and the kernels cut the memory by
// them. Vectors are padded to 16 floats, the widest of all.
#pragma once
#include <cstdint>

#include "ops/ops.h"

#define MLA_PLAN_FN static inline __attribute__((always_inline))

namespace mla::cpu {

constexpr int64_t kPadFloats = 16;
constexpr int64_t kAlignBytes = 64;

MLA_PLAN_FN int64_t pad_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Hands out pieces of a workspace one after another, each aligned to a cache line. With a null base it only counts.
struct Carver {
  uint8_t* base = nullptr;
  int64_t used = 0;

  template <class T>
  __attribute__((always_inline)) T* take(int64_t n) {
    T* p = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += pad_to(n * static_cast<int64_t>(sizeof(T)), kAlignBytes);
    return p;
  }
};

// ---- mlaDecode ----------------------------------------------------------------------------------------------------

/// Keys per partial result. Fixed, so that a row's bits depend on nothing but the row; two pages, so that the tile and
/// the products stay in the second-level cache.
constexpr int64_t kDecodeSplit = 128;
/// Query rows of one sequence that share the loading of keys.
constexpr int64_t kDecodeRows = 4;
/// Partial results that are kept before they are merged, unless one row alone needs more.
constexpr int64_t kDecodeSlots = 256;

/// One piece of work: split `split` of a sequence's keys against `rows` query rows, DecodeScratch::rows[row] and on.
struct DecodeItem {
  int32_t sequence, split, rows, row;
};

/// Query row `row` sees `keys` keys and has `splits` partial results from `slot` on.
struct DecodeRow {
  int32_t row, splits, slot, keys;
};

struct DecodeScratch {
  int64_t width;        // floats of a query or key row, padded
  int64_t out_width;    // floats of an output row, padded
  int64_t slot_floats;  // one partial result: H output rows, then H maxima, then H sums
  int64_t slots;
  float* partial;
  DecodeItem* items;
  DecodeRow* rows;
  float* worker;  // per thread: queries, keys, probabilities
  int64_t worker_floats;
};

MLA_PLAN_FN DecodeScratch decode_scratch(const MlaDecodeParams& p, int threads, Carver* carver) {
  DecodeScratch s;
  const int64_t rows = p.q.dim(0), heads = p.q.dim(1), c = p.out.dim(2);
  const int64_t max_splits = pad_to(p.block_table.dim(1) * kPageTokens, kDecodeSplit) / kDecodeSplit;
  const int64_t wanted = rows < kDecodeSlots ? rows * max_splits : kDecodeSlots;
  s.width = pad_to(p.q.dim(2), kPadFloats);
  s.out_width = pad_to(c, kPadFloats);
  s.slot_floats = pad_to(heads * (s.out_width + 2), kPadFloats);
  s.slots = wanted < kDecodeSlots ? wanted : kDecodeSlots;
  if (s.slots < max_splits) s.slots = max_splits;
  s.partial = carver->take<float>(s.slots * s.slot_floats);
  s.items = carver->take<DecodeItem>(s.slots);
  s.rows = carver->take<DecodeRow>(s.slots);
  s.worker_floats = pad_to(heads * s.width + kDecodeSplit * s.width + heads * kDecodeSplit, kPadFloats);
  s.worker = carver->take<float>(threads * s.worker_floats);
  return s;
}

MLA_PLAN_FN int64_t mla_decode_workspace(const MlaDecodeParams& p, int threads) {
  Carver count;
  decode_scratch(p, threads, &count);
  return count.used;
}

// ---- mlaPrefill ---------------------------------------------------------------------------------------------------

constexpr int64_t kPrefillQueries = 64;  // query rows of a tile
constexpr int64_t kPrefillKeys = 64;     // key rows of a tile

struct PrefillScratch {
  int64_t* tile_start;  // [B + 1] query tiles before each sequence
  float* worker;        // per thread, see prefill.cc
  int64_t worker_floats;
};

MLA_PLAN_FN PrefillScratch prefill_scratch(const MlaPrefillParams& p, int threads, Carver* carver) {
  PrefillScratch s;
  const int64_t width = p.q.dim(2), v = p.value.dim(2);
  s.tile_start = carver->take<int64_t>(p.q_start.dim(0));
  // queries, keys, values, output; scores; maxima, sums and factors of the queries
  s.worker_floats = pad_to((kPrefillQueries + kPrefillKeys) * (width + v) + kPrefillQueries * kPrefillKeys +
                               3 * kPrefillQueries + 4 * kPadFloats,
                           kPadFloats);
  s.worker = carver->take<float>(threads * s.worker_floats);
  return s;
}

MLA_PLAN_FN int64_t mla_prefill_workspace(const MlaPrefillParams& p, int threads) {
  Carver count;
  prefill_scratch(p, threads, &count);
  return count.used;
}

// ---- moeRoute -----------------------------------------------------------------------------------------------------

/// Router logits [T, E], then per row of E floats scratch for each thread.
struct RouteScratch {
  float* logits;
  float* choice;  // per thread [E]
};

MLA_PLAN_FN RouteScratch route_scratch(const MoeRouteParams& p, int threads, Carver* carver) {
  const int64_t rows = p.x.dim(0), experts = pad_to(p.gate.dim(0), kPadFloats);
  RouteScratch s;
  s.logits = carver->take<float>(rows * experts);
  s.choice = carver->take<float>(threads * 2 * experts);
  return s;
}

MLA_PLAN_FN int64_t moe_route_workspace(const MoeRouteParams& p, int threads) {
  Carver count;
  route_scratch(p, threads, &count);
  return count.used;
}

// ---- sample -------------------------------------------------------------------------------------------------------

/// Per thread: scaled logits, then candidates (logits, ids) and their weights.
struct SampleScratch {
  float* x;
  float* candidates;
  int32_t* ids;
  float* weights;
};

MLA_PLAN_FN SampleScratch sample_scratch(const SampleParams& p, int worker, Carver* carver) {
  const int64_t n = pad_to(p.logits.dim(1), 4 * kPadFloats);
  SampleScratch s{};
  for (int i = 0; i <= worker; ++i) {
    s.x = carver->take<float>(n);
    s.candidates = carver->take<float>(n);
    s.ids = carver->take<int32_t>(n);
    s.weights = carver->take<float>(n);
  }
  return s;
}

MLA_PLAN_FN int64_t sample_workspace(const SampleParams& p, int threads) {
  Carver count;
  sample_scratch(p, threads - 1, &count);
  return count.used;
}

}  // namespace mla::cpu
