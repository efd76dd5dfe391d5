// gemm.cc - dense products: gemm and swiglu. Test: test/cpu/matrix-gemm.test.ts.
#include "cpu/kernels/product.h"

namespace mla::cpu::MLA_CPU_ISA {

Status gemm(const GemmParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), k = p.x.dim(1), n = p.w.dim(0);
  const Weights w = weights_of(p.w, p.w_scale, 0, false, p.x.dtype);
  visit_float(p.x.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const x = p.x.as<const X>();
    const X* const residual = p.residual.present() ? p.residual.as<const X>() : nullptr;
    visit_float(p.y.dtype, [&](auto result) {
      using Y = decltype(result);
      Y* const y = p.y.as<Y>();
      run_products(
          ctx, EvenBlocks{1, rows}, rows, k, 0, n, [&](int64_t) { return w; },
          [&](const RowBlock& b, int r, bool fresh, float* to) {
            return operand_row(x + (b.row0 + r) * k, k, p.fp8_activations, fresh, to);
          },
          [&](const RowBlock& b, int64_t col, int cols, const float* part) {
            for (int r = 0; r < b.rows; ++r) {
              const int64_t at = (b.row0 + r) * n + col;
              emit_row(part + r * kColBlock, residual == nullptr ? residual : residual + at, cols, y + at);
            }
          });
    });
  });
  return Status::Ok();
}

Status swiglu(const SwigluParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), k = p.x.dim(1), n = p.w.dim(0);
  const Weights w = weights_of(p.w, p.w_scale, 0, true, p.x.dtype);
  visit_float(p.x.dtype, [&](auto act) {
    using X = decltype(act);
    const X* const x = p.x.as<const X>();
    X* const out = p.out.as<X>();
    run_products(
        ctx, EvenBlocks{1, rows}, rows, k, 0, n, [&](int64_t) { return w; },
        [&](const RowBlock& b, int r, bool fresh, float* to) {
          return operand_row(x + (b.row0 + r) * k, k, p.fp8_activations, fresh, to);
        },
        [&](const RowBlock& b, int64_t col, int cols, const float* part) {
          for (int r = 0; r < b.rows; ++r)
            emit_gate_up(part + r * kColBlock, cols, out + (b.row0 + r) * (n / 2) + col / 2);
        });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
