// product_plan.h - how matrix products are cut into blocks, and the scratch memory that this takes. Shared by the
// kernels and by workspace_bytes(), so it depends on no instruction set.
#pragma once
#include <cstdint>

#include "common/float_types.h"

namespace mla::cpu {

constexpr int kRowBlock = 48;  // rows of x that one task multiplies; a multiple of every tile height
constexpr int kColBlock = 64;  // rows of w that one task multiplies at most; a multiple of 2 * kGateUpBlock
constexpr int kPanel = 4;      // rows of w in a tile
// Values of k between two visits to the accumulators. A tile of x and a panel of w, at most ten rows of this length,
// fit a first-level cache of 32 KiB. EPYC of family 26, 48 KiB, one thread, [48, 2048] x [1024, 2048], 2026-11: 205
// GFLOP/s with 384, 210 with 512, 216 with 768, 209 with 1024; the peak is 272.
constexpr int64_t kDepthBlock = 512;
constexpr int64_t kMaxLaneBytes = 64;  // of one accumulator
constexpr int64_t kScratchAlign = 64;

MLA_ALWAYS_INLINE int64_t align_scratch(int64_t bytes) { return (bytes + kScratchAlign - 1) & ~(kScratchAlign - 1); }

/// Where the parts of one worker's scratch begin, in bytes.
struct ProductScratchPlan {
  int64_t state;   // which rows x holds
  int64_t row;     // [k] f32: one row on its way into x
  int64_t x;       // [rows, k] f32: the operand rows, widened or normed; or [k / depth, rows, depth]
  int64_t panels;  // [kColBlock, depth] f32: widened weights
  int64_t acc;     // [kColBlock, rows] accumulators that outlive a depth block
  int64_t y;       // [rows, kColBlock] f32
  int64_t bytes;
  int64_t stride;  // floats between rows of x
};

/// For blocks of at most `rows` rows of k values.
MLA_ALWAYS_INLINE ProductScratchPlan plan_product_scratch(int64_t rows, int64_t k) {
  const int64_t r = rows < kRowBlock ? rows : kRowBlock;
  ProductScratchPlan p;
  p.stride = (k + kDepthBlock - 1) / kDepthBlock * kDepthBlock;
  p.state = 0;
  p.row = kScratchAlign;
  p.x = p.row + align_scratch(k * 4);
  p.panels = p.x + r * p.stride * 4;
  p.acc = p.panels + kColBlock * kDepthBlock * 4;
  p.y = p.acc + r * kColBlock * kMaxLaneBytes;
  p.bytes = p.y + r * kColBlock * 4;
  return p;
}

/// Rows that latentCompress keeps in float32 at a time, and rows of logits that logProbs does.
constexpr int64_t kLatentRows = 5 * kRowBlock;
constexpr int64_t kLogitRows = kRowBlock;

/// Columns of the expert outputs that moeDown keeps in float32 at a time: all of them unless there are many pairs.
MLA_ALWAYS_INLINE int64_t moe_down_columns(int64_t pairs, int64_t d) {
  constexpr int64_t kMaxFloats = int64_t{16} << 20;
  int64_t columns = d;
  if (pairs * d > kMaxFloats) columns = kMaxFloats / pairs / kColBlock * kColBlock;
  return columns < kColBlock ? (d < kColBlock ? d : kColBlock) : columns;
}

/// Row blocks of a grouped product of `pairs` rows over `experts` groups, at most, and the list of them.
MLA_ALWAYS_INLINE int64_t max_expert_blocks(int64_t pairs, int64_t experts) {
  return (experts < pairs ? experts : pairs) + pairs / kRowBlock;
}
MLA_ALWAYS_INLINE int64_t expert_blocks_bytes(int64_t pairs, int64_t experts) {
  return align_scratch(max_expert_blocks(pairs, experts) * 3 * 8);
}

/// One worker's scratch of queryAbsorb: kAbsorbRows rows of n values in float32.
constexpr int kAbsorbRows = 6;
MLA_ALWAYS_INLINE int64_t plan_absorb_scratch(int64_t n) { return kAbsorbRows * align_scratch(n * 4); }

}  // namespace mla::cpu
