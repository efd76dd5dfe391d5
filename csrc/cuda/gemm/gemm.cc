// gemm.cc - the launchers of the dense products: gemm, swiglu, queryAbsorb, valueExpand. Test: test/gpu/matrix.test.ts.
#include "common/checked.h"
#include "cuda/gemm/absorb.h"
#include "cuda/gemm/expand.h"
#include "cuda/gemm/log_probs.h"
#include "cuda/gemm/product.h"
#include "cuda/launch.h"
#include "cuda/quant/round_rows.h"

namespace mla::cuda {

Product dense_product(View x, View w, View w_scale, bool gated, View y) {
  Product p;
  p.rows = x.dim(0);
  p.n = w.dim(0);
  p.k = p.x_row = x.dim(1);
  p.gated = gated;
  p.x = x.data;
  p.x_dtype = x.dtype;
  p.w = w.data;
  p.w_dtype = w.dtype;
  p.scale = w_scale.present() ? w_scale.as<const float>() : nullptr;
  p.y = y.data;
  p.y_dtype = y.dtype;
  p.y_row = y.dim(1);
  return p;
}

namespace {

Product product_of(const GemmParams& p) {
  Product product = dense_product(p.x, p.w, p.w_scale, false, p.y);
  product.residual = p.residual.present() ? p.residual.data : nullptr;
  product.fp8_x = p.fp8_activations;
  return product;
}

Product product_of(const SwigluParams& p) {
  Product product = dense_product(p.x, p.w, p.w_scale, true, p.out);
  product.fp8_x = p.fp8_activations;
  return product;
}

Status run(Product product, const Launch& launch, const char* what) {
  MLA_RETURN_IF_ERROR(round_rows(&product, launch.workspace.data, launch));
  return cuda_status(launch_product(product, launch), what);
}

}  // namespace

Product expand_product(const ValueExpandParams& p) {
  Product product;
  product.rows = p.u.dim(0);
  product.groups = p.u.dim(1);
  product.k = product.x_group = p.u.dim(2);
  product.n = product.y_group = p.w_uv.dim(1);
  product.x = p.u.data;
  product.x_dtype = p.u.dtype;
  product.x_row = product.groups * product.k;
  product.w = p.w_uv.data;
  product.w_dtype = p.w_uv.dtype;
  product.w_group = product.n * product.k;
  product.y = p.out.data;
  product.y_dtype = p.out.dtype;
  product.y_row = product.groups * product.n;
  return product;
}

Status gemm(const GemmParams& p, const Launch& launch) noexcept { return run(product_of(p), launch, "gemm"); }

Status swiglu(const SwigluParams& p, const Launch& launch) noexcept { return run(product_of(p), launch, "swiglu"); }

Status valueExpand(const ValueExpandParams& p, const Launch& launch) noexcept {
  return cuda_status(launch_product(expand_product(p), launch), "valueExpand");
}

Status queryAbsorb(const QueryAbsorbParams& p, const Launch& launch) noexcept {
  Absorb absorb;
  absorb.rows = p.q.dim(0);
  absorb.heads = static_cast<int>(p.q.dim(1));
  absorb.n = static_cast<int>(p.w_uk.dim(1));
  absorb.c = static_cast<int>(p.w_uk.dim(2));
  absorb.r = static_cast<int>(p.q.dim(2)) - absorb.n;
  absorb.q = p.q.data;
  absorb.act = p.q.dtype;
  absorb.w_uk = p.w_uk.data;
  absorb.weight = p.w_uk.dtype;
  absorb.positions = p.positions.as<const int32_t>();
  absorb.position_end = p.cos_sin.dim(0);
  absorb.cos_sin = p.cos_sin.as<const float>();
  absorb.out = p.out.data;
  return cuda_status(
      launch_absorb(absorb, launch.settled(p.w_uk), launch.traits->shared_bytes_per_block, launch.stream),
      "queryAbsorb");
}

int64_t workspace(const GemmParams& p, const Traits& traits) { return rounded_rows_bytes(product_of(p), traits); }
int64_t workspace(const SwigluParams& p, const Traits& traits) { return rounded_rows_bytes(product_of(p), traits); }

Status load_gemm_kernels(const Traits& traits) {
  MLA_RETURN_IF_ERROR(cuda_status(load_product_kernels(traits), "loading product kernels"));
  MLA_RETURN_IF_ERROR(cuda_status(load_absorb_kernels(traits.shared_bytes_per_block), "loading queryAbsorb kernels"));
  return cuda_status(load_log_probs_kernels(), "loading logProbs kernels");
}

}  // namespace mla::cuda
