// experts.cc - the launchers of the grouped expert products: moeGateUp and moeDown. Test:
// test/gpu/matrix-experts.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/gemm/product_wgmma.h"
#include "cuda/launch.h"
#include "cuda/moe/combine.h"
#include "cuda/moe/gather_pairs.h"
#include "cuda/quant/round_rows.h"

namespace mla::cuda {

namespace {

Product grouped(View x, View w, View w_scale, View offsets) {
  Product p;
  p.n = w.dim(1);
  p.k = p.x_row = w.dim(2);
  p.groups = w.dim(0);
  p.x = x.data;
  p.x_dtype = x.dtype;
  p.w = w.data;
  p.w_dtype = w.dtype;
  p.w_group = p.n * p.k;
  if (w_scale.present()) {
    p.scale = w_scale.as<const float>();
    p.scale_group = w_scale.numel() / p.groups;
  }
  p.offsets = offsets.as<const int32_t>();
  return p;
}

/// Columns of the expert outputs that moeDown keeps at a time, in whole scale blocks. Few enough to stay in the GPU's
/// cache between the product that writes and the sum that reads them; but where a product takes little time, reading h
/// again for each part costs more than passing the parts through memory.
int64_t part_columns(int64_t pairs, int64_t d, DType act, const Traits& traits) {
  const int64_t part_bytes = int64_t{traits.hopper ? 256 : 32} << 20;
  const int64_t most = part_bytes / dtype_bytes(act) / std::max<int64_t>(pairs, 1) / kScaleBlock * kScaleBlock;
  const int64_t parts = ceil_div(d, std::max<int64_t>(most, kScaleBlock));
  return std::min(d, round_up(ceil_div(d, parts), kScaleBlock));
}

Product gate_up(const MoeGateUpParams& p) {
  Product product = grouped(p.x, p.w, p.w_scale, p.offsets);
  product.rows = p.order.dim(0);
  product.gated = true;
  product.y = p.h.data;
  product.y_dtype = p.h.dtype;
  product.y_row = p.h.dim(1);
  product.order = p.order.as<const int32_t>();
  product.x_rows = p.x.dim(0);
  product.per_row = product.rows / std::max<int64_t>(product.x_rows, 1);
  product.always = p.shared;
  product.fp8_x = p.fp8_activations;
  return product;
}

Product down(const MoeDownParams& p) {
  Product product = grouped(p.h, p.w, p.w_scale, p.offsets);
  product.rows = p.h.dim(0);
  product.fp8_x = p.fp8_activations;
  return product;
}

}  // namespace

int64_t workspace(const MoeGateUpParams& p, const Traits& traits) {
  const Product product = gate_up(p);
  const int64_t gathered = gathers_first(product, traits) ? product.rows * product.k * dtype_bytes(product.x_dtype) : 0;
  return rounded_rows_bytes(product, traits) + gathered;
}

int64_t workspace(const MoeDownParams& p, const Traits& traits) {
  const int64_t pairs = p.h.dim(0);
  return rounded_rows_bytes(down(p), traits) +
         pairs * part_columns(pairs, p.out.dim(1), p.out.dtype, traits) * dtype_bytes(p.out.dtype);
}

Status moeGateUp(const MoeGateUpParams& p, const Launch& launch) noexcept {
  if (p.x.dim(0) == 0 || p.order.dim(0) == 0) return Status::Ok();
  Product product = gate_up(p);
  void* const rows = launch.workspace.as<char>() + rounded_rows_bytes(product, *launch.traits);
  MLA_RETURN_IF_ERROR(round_rows(&product, launch.workspace.data, launch));
  if (gathers_first(product, *launch.traits)) {
    MLA_RETURN_IF_ERROR(cuda_status(launch_gather_pairs(product, rows, launch.stream), "moeGateUp"));
    product.x = rows;
    product.x_row = product.k;
    product.order = nullptr;
  }
  return cuda_status(launch_product(product, launch), "moeGateUp");
}

Status moeDown(const MoeDownParams& p, const Launch& launch) noexcept {
  const int64_t tokens = p.out.dim(0), d = p.out.dim(1), pairs = p.h.dim(0);
  if (tokens == 0) return Status::Ok();
  Product product = down(p);
  void* const parts = launch.workspace.as<char>() + rounded_rows_bytes(product, *launch.traits);
  MLA_RETURN_IF_ERROR(round_rows(&product, launch.workspace.data, launch));
  Combine combine;
  combine.tokens = tokens;
  combine.per_token = p.slots.dim(1);
  combine.n = combine.out_row = d;
  combine.slots = p.slots.as<const int32_t>();
  combine.weights = p.weights.as<const float>();
  combine.residual = p.residual.present() ? p.residual.data : nullptr;
  combine.out = p.out.data;
  combine.dtype = p.out.dtype;
  if (combines(product, combine, *launch.traits))
    return cuda_status(launch_combine(product, combine, launch), "moeDown");

  const int64_t columns = part_columns(pairs, d, p.out.dtype, *launch.traits), act_bytes = dtype_bytes(p.out.dtype);
  product.y = parts;
  product.y_dtype = p.out.dtype;
  for (int64_t column = 0; column < d; column += columns) {
    product.n = product.y_row = combine.n = std::min(columns, d - column);
    product.w = static_cast<const char*>(p.w.data) + column * product.k * dtype_bytes(p.w.dtype);
    if (p.w_scale.present())
      product.scale = p.w_scale.as<const float>() + column / kScaleBlock * ceil_div(product.k, kScaleBlock);
    combine.out = static_cast<char*>(p.out.data) + column * act_bytes;
    if (p.residual.present()) combine.residual = static_cast<const char*>(p.residual.data) + column * act_bytes;
    MLA_RETURN_IF_ERROR(cuda_status(launch_product(product, launch), "moeDown"));
    MLA_RETURN_IF_ERROR(cuda_status(
        launch_combine_parts(combine, parts, product.offsets + product.groups, pairs, launch.stream), "moeDown"));
  }
  return Status::Ok();
}

}  // namespace mla::cuda
