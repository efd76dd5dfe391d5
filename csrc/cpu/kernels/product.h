// product.h - the core of all products with weights stored as rows: y[r][c] = x[r] . w[c].
//
// Every output is one chain of vector accumulators along k, lane l adding the values l, l + kLanes, ... in ascending
// order, then one sum over the lanes. The chain is the same for one row and for many, in every tile shape and on any
// number of threads; so a row's bits do not depend on the rows beside it. Few rows read the weights where they are;
// many rows widen a panel of weights to float32 once and use it for all of them.
#pragma once
#include "common/checked.h"
#include "cpu/kernels.h"
#include "cpu/kernels/fp8_operand.h"
#include "cpu/kernels/simd.h"
#include "cpu/product_plan.h"

namespace mla::cpu::MLA_CPU_ISA {

/// A weight matrix [n, k] as the products read it.
struct Weights {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t n = 0;
  int64_t k = 0;
  bool round_to_bf16 = false;    // float32 weights beside bf16 activations: operands are rounded
  const float* scale = nullptr;  // f8e4m3: one per 128x128 block
  int64_t gate_rows = 0;         // > 0: rows are gate and up in turns of 8, and the scales of all gate rows stand first

  const void* row(int64_t i) const { return static_cast<const char*>(data) + i * k * dtype_bytes(dtype); }

  const float* scale_row(int64_t i) const {
    const int64_t blocks_k = ceil_div(k, kScaleBlock);
    if (gate_rows == 0) return scale + i / kScaleBlock * blocks_k;
    const int64_t within = i % (2 * kGateUpBlock);
    const int64_t channel = i / (2 * kGateUpBlock) * kGateUpBlock + within % kGateUpBlock;
    const int64_t first = within < kGateUpBlock ? 0 : ceil_div(gate_rows, kScaleBlock);
    return scale + (first + channel / kScaleBlock) * blocks_k;
  }
};

/// The weights of group g of a stack [groups, n, k].
static inline Weights weights_of(View w, View w_scale, int64_t g, bool gate_up, DType act) {
  Weights out;
  out.n = w.dim(w.rank - 2);
  out.k = w.dim(w.rank - 1);
  out.dtype = w.dtype;
  out.data = static_cast<const char*>(w.data) + g * out.n * out.k * dtype_bytes(w.dtype);
  out.round_to_bf16 = w.dtype == DType::kF32 && act == DType::kBF16;
  out.gate_rows = gate_up ? out.n / 2 : 0;
  if (w_scale.present()) {
    const int64_t blocks_n = gate_up ? 2 * ceil_div(out.gate_rows, kScaleBlock) : ceil_div(out.n, kScaleBlock);
    out.scale = w_scale.as<const float>() + g * blocks_n * ceil_div(out.k, kScaleBlock);
  }
  return out;
}

/// y[r * kColBlock + c] = x[r] . w[col0 + c] for cols <= kColBlock. acc is scratch as in ProductScratchPlan.
void multiply_few(const Weights& w, int64_t col0, int cols, const float* const* x, int rows, F* acc, float* y);

/// From this many rows on their operands are packed and multiplied by multiply_many(): widening weights once then costs
/// less than widening them again in every tile.
#if defined(MLA_SIMD_512)
constexpr int kManyRows = 13;
#else
constexpr int kManyRows = 7;
#endif

/// Row r of `rows` into the packed operand [k / kDepthBlock, rows, kDepthBlock]; the end is filled with zeros.
void pack_row(const float* row, int64_t k, int r, int rows, float* x);

/// The same for packed rows; panels is scratch as in ProductScratchPlan.
void multiply_many(const Weights& w, int64_t col0, int cols, const float* x, int rows, float* panels, F* acc, float* y);

/// Some rows of one group's operand.
struct RowBlock {
  int64_t group = 0;
  int64_t row0 = 0;
  int rows = 0;
};

/// All row blocks of `groups` groups with the same number of rows.
struct EvenBlocks {
  int64_t groups;
  int64_t rows;

  int64_t per_group() const { return ceil_div(rows, kRowBlock); }
  int64_t count() const { return groups * per_group(); }
  RowBlock at(int64_t i) const {
    const int64_t row0 = i % per_group() * kRowBlock;
    return {i / per_group(), row0, static_cast<int>(rows - row0 < kRowBlock ? rows - row0 : kRowBlock)};
  }
};

/// How many rows of w a task takes: less than a whole block when there would be too few tasks to share.
static inline int64_t columns_per_task(int64_t row_blocks, int64_t n, int threads) {
  int64_t columns = kColBlock;
  while (columns > 2 * kGateUpBlock && row_blocks * ceil_div(n, columns) < 8 * threads) columns /= 2;
  return columns;
}

/// Multiplies all row blocks with rows [col0, col1) of their weights.
///   weights(group) -> Weights
///   load(block, r, fresh, to) -> the float32 row r of the block, in place or written to `to` (only if `fresh`; if not
///     it is still there)
///   emit(block, col, cols, y): takes y[r * kColBlock + c], c in [0, cols), for columns col + c
template <class Blocks, class WeightsOf, class Load, class Emit>
static void run_products(Context& ctx, const Blocks& blocks, int64_t max_rows, int64_t k, int64_t col0, int64_t col1,
                         WeightsOf&& weights, Load&& load, Emit&& emit) {
  const int64_t count = blocks.count();
  if (count == 0 || col1 <= col0) return;
  const int threads = ctx.pool->threads();
  const ProductScratchPlan plan = plan_product_scratch(max_rows, k);
  char* const base = ctx.workspace.as<char>();
  for (int t = 0; t < threads; ++t) *reinterpret_cast<int64_t*>(base + t * plan.bytes + plan.state) = -1;

  const int64_t width = columns_per_task(count, col1 - col0, threads);
  const int64_t per_block = ceil_div(col1 - col0, width);
  ctx.pool->parallel_for(count * per_block, 1, [&](int64_t begin, int64_t end, int worker) {
    char* const scratch = base + worker * plan.bytes;
    int64_t* const loaded = reinterpret_cast<int64_t*>(scratch + plan.state);
    float* const x = reinterpret_cast<float*>(scratch + plan.x);
    F* const acc = reinterpret_cast<F*>(scratch + plan.acc);
    float* const y = reinterpret_cast<float*>(scratch + plan.y);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / per_block;
      const RowBlock block = blocks.at(index);
      const int64_t col = col0 + task % per_block * width;
      const int cols = static_cast<int>(col1 - col < width ? col1 - col : width);
      const bool fresh = *loaded != index;
      *loaded = index;
      if (block.rows < kManyRows) {
        const float* rows[kManyRows];
        for (int r = 0; r < block.rows; ++r) rows[r] = load(block, r, fresh, x + r * plan.stride);
        multiply_few(weights(block.group), col, cols, rows, block.rows, acc, y);
      } else {
        float* const row = reinterpret_cast<float*>(scratch + plan.row);
        for (int r = 0; fresh && r < block.rows; ++r) pack_row(load(block, r, true, row), k, r, block.rows, x);
        multiply_many(weights(block.group), col, cols, x, block.rows, reinterpret_cast<float*>(scratch + plan.panels),
                      acc, y);
      }
      emit(block, col, cols, static_cast<const float*>(y));
    }
  });
}

/// The row of an operand as float32: where it lies, or widened into `to` (only if `fresh`; it is still there if not).
MLA_INLINE const float* operand_row(const float* row, int64_t, bool, float*) { return row; }
MLA_INLINE const float* operand_row(const Bf16* row, int64_t k, bool fresh, float* to) {
  if (fresh) widen(row, k, to);
  return to;
}

/// The same, with `fp8` as fp8 activations.
template <class X>
MLA_INLINE const float* operand_row(const X* row, int64_t k, bool fp8, bool fresh, float* to) {
  if (!fp8) return operand_row(row, k, fresh, to);
  if (fresh) {
    widen(row, k, to);
    round_fp8_operand(to, k);
  }
  return to;
}

/// One row segment of a result: out = round(y + residual), residual may be null or out itself.
template <class O, class R>
static inline void emit_row(const float* y, const R* residual, int64_t n, O* out) {
  int64_t i = 0;
  if (residual == nullptr) return narrow(y, n, out);
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(y + i) + load(residual + i));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_tail(out + i, load_tail(y + i, rest) + load_tail(residual + i, rest), rest);
  }
}

/// cols gate and up values in turns of 8 -> cols / 2 outputs silu(gate) * up.
template <class O>
static inline void emit_gate_up(const float* y, int cols, O* out) {
  static_assert(kGateUpBlock == 8);
  for (int c = 0; c + 2 * kGateUpBlock <= cols; c += 2 * kGateUpBlock, out += kGateUpBlock) {
#if defined(MLA_SIMD_512)
    store_tail(out, silu(load_tail(y + c, 8)) * load_tail(y + c + 8, 8), 8);
#else
    for (int i = 0; i < kGateUpBlock; i += kLanes) store(out + i, silu(load(y + c + i)) * load(y + c + 8 + i));
#endif
  }
}

}  // namespace mla::cpu::MLA_CPU_ISA
