// round_rows.h - rows of a product's operand as fp8 activations, for kernels that take them as plain rows.
#pragma once
#include "cuda/gemm/product.h"
#include "cuda/launch.h"

namespace mla::cuda {

/// Bytes of workspace that the rounded rows of p.x take; 0 where they enter as they are.
int64_t rounded_rows_bytes(const Product& p, const Traits& traits);

/// Rounds p->x into `to`, in p->x_dtype, which holds the result exactly; p->x may be `to`. The product reads it from
/// there then. Does nothing where rows enter as they are.
Status round_rows(Product* p, void* to, const Launch& launch);

}  // namespace mla::cuda
