// expand.h - valueExpand as a product.
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

/// A group for each head.
Product expand_product(const ValueExpandParams& p);

}  // namespace mla::cuda
