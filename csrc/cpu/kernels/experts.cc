// experts.cc - grouped products over the experts' rows: moeGateUp and moeDown. Test: test/cpu/matrix-experts.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// The row blocks of all experts that have rows, listed in scratch memory.
struct ExpertBlocks {
  RowBlock* list;
  int64_t length = 0;

  int64_t count() const { return length; }
  RowBlock at(int64_t i) const { return list[i]; }
};
static_assert(sizeof(RowBlock) == 3 * 8);

/// Checks that offsets ascend from 0 to at most `pairs`, then lists the blocks.
Status list_blocks(const char* op, View offsets, int64_t pairs, ExpertBlocks* out) {
  const int32_t* const at = offsets.as<const int32_t>();
  const int64_t experts = offsets.dim(0) - 1;
  if (at[0] != 0) return invalid_value(op, "offsets", 0, at[0], 0, 0);
  for (int64_t e = 0; e < experts; ++e) {
    if (at[e + 1] < at[e] || at[e + 1] > pairs) return invalid_value(op, "offsets", e + 1, at[e + 1], at[e], pairs);
  }
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t row = at[e]; row < at[e + 1]; row += kRowBlock) {
      const int64_t rows = at[e + 1] - row;
      out->list[out->length++] = {e, row, static_cast<int>(rows < kRowBlock ? rows : kRowBlock)};
    }
  }
  return Status::Ok();
}

template <class T>
void add_scaled(const T* x, float weight, int64_t n, float* sum) {
  const F w = set1(weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(sum + i, fma(w, load(x + i), load(sum + i)));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_tail(sum + i, fma(w, load_tail(x + i, rest), load_tail(sum + i, rest)), rest);
  }
}

}  // namespace

Status moeGateUp(const MoeGateUpParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), k = p.x.dim(1), pairs = p.order.dim(0), n = p.w.dim(1);
  if (pairs == 0 || rows == 0) return Status::Ok();
  const int64_t per_row = pairs / rows;
  ExpertBlocks blocks{reinterpret_cast<RowBlock*>(ctx.workspace.as<char>() +
                                                  plan_product_scratch(pairs, k).bytes * ctx.pool->threads())};
  MLA_RETURN_IF_ERROR(list_blocks("moeGateUp", p.offsets, pairs, &blocks));
  const int32_t* const order = p.order.as<const int32_t>();
  const int64_t used = p.offsets.as<const int32_t>()[p.offsets.dim(0) - 1];
  for (int64_t i = 0; i < used; ++i) {
    if (order[i] < 0 || order[i] >= rows * per_row)
      return invalid_value("moeGateUp", "order", i, order[i], 0, rows * per_row - 1);
  }
  visit_float(p.x.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const x = p.x.as<const X>();
    X* const h = p.h.as<X>();
    run_products(
        ctx, blocks, pairs, k, 0, n, [&](int64_t e) { return weights_of(p.w, p.w_scale, e, true, p.x.dtype); },
        [&](const RowBlock& b, int r, bool fresh, float* to) {
          return operand_row(x + order[b.row0 + r] / per_row * k, k, p.fp8_activations, fresh, to);
        },
        [&](const RowBlock& b, int64_t col, int cols, const float* part) {
          for (int r = 0; r < b.rows; ++r)
            emit_gate_up(part + r * kColBlock, cols, h + (b.row0 + r) * (n / 2) + col / 2);
        });
  });
  return Status::Ok();
}

Status moeDown(const MoeDownParams& p, Context& ctx) {
  const int64_t rows = p.out.dim(0), d = p.out.dim(1), pairs = p.h.dim(0), k = p.h.dim(1);
  const int64_t per_row = p.slots.dim(1);
  if (rows == 0 || d == 0) return Status::Ok();
  char* const after = ctx.workspace.as<char>() + plan_product_scratch(pairs, k).bytes * ctx.pool->threads();
  ExpertBlocks blocks{reinterpret_cast<RowBlock*>(after)};
  MLA_RETURN_IF_ERROR(list_blocks("moeDown", p.offsets, pairs, &blocks));
  const int32_t* const slots = p.slots.as<const int32_t>();
  const int64_t used = p.offsets.as<const int32_t>()[p.offsets.dim(0) - 1];
  for (int64_t i = 0; i < rows * per_row; ++i) {
    if (slots[i] >= used) return invalid_value("moeDown", "slots", i, slots[i], -1, used - 1);
  }
  const float* const weights = p.weights.as<const float>();
  // [pairs, columns] act: what each expert gives, before rows gather it in the order of their own list.
  char* const parts_memory = after + expert_blocks_bytes(pairs, p.offsets.dim(0) - 1);
  const int64_t columns = moe_down_columns(pairs, d);
  visit_float(p.h.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const h = p.h.as<const X>();
    const X* const residual = p.residual.present() ? p.residual.as<const X>() : nullptr;
    X* const out = p.out.as<X>();
    X* const parts = reinterpret_cast<X*>(parts_memory);
    for (int64_t col0 = 0; col0 < d; col0 += columns) {
      const int64_t width = d - col0 < columns ? d - col0 : columns;
      run_products(
          ctx, blocks, pairs, k, col0, col0 + width,
          [&](int64_t e) { return weights_of(p.w, p.w_scale, e, false, p.h.dtype); },
          [&](const RowBlock& b, int r, bool fresh, float* to) {
            return operand_row(h + (b.row0 + r) * k, k, p.fp8_activations, fresh, to);
          },
          [&](const RowBlock& b, int64_t col, int cols, const float* part) {
            for (int r = 0; r < b.rows; ++r)
              narrow(part + r * kColBlock, cols, parts + (b.row0 + r) * columns + col - col0);
          });
      // Rows times pieces of columns, so that one row is shared by all threads as well.
      constexpr int64_t kPiece = 512;
      const int64_t pieces = ceil_div(width, kPiece);
      ctx.pool->parallel_for(rows * pieces, 8, [&](int64_t begin, int64_t end, int) {
        float sum[kPiece];
        for (int64_t i = begin; i < end; ++i) {
          const int64_t t = i / pieces, c = i % pieces * kPiece;
          const int64_t n = width - c < kPiece ? width - c : kPiece;
          for (int64_t j = 0; j < n; ++j) sum[j] = 0;
          for (int64_t j = 0; j < per_row; ++j) {
            const int64_t slot = slots[t * per_row + j];
            if (slot >= 0) add_scaled(parts + slot * columns + c, weights[t * per_row + j], n, sum);
          }
          const int64_t at = t * d + col0 + c;
          emit_row(sum, residual == nullptr ? residual : residual + at, n, out + at);
        }
      });
    }
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
