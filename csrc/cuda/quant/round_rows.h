// round_rows.h - rows of a product's operand as fp8 activations: as plain rows, which hold them exactly, or as e4m3
// with exponents (quantize_rows.h) where a kernel multiplies those.
#pragma once
#include "cuda/gemm/product.h"
#include "cuda/launch.h"

namespace mla::cuda {

/// Bytes of workspace that the rounded rows of p.x take, whatever its addresses; 0 where they enter as they are.
int64_t rounded_rows_bytes(const Product& p, const Traits& traits);

/// Rounds p->x into `to`, which the product reads from then on. Plain rows are of p->x_dtype, and p->x may be `to`;
/// e4m3 are in the order of y's rows if p->order is given, which the product no longer needs. Does nothing where rows
/// enter as they are.
Status round_rows(Product* p, void* to, const Launch& launch);

}  // namespace mla::cuda
