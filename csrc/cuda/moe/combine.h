// combine.h - the weighted sum over each token's rows of expert outputs, where it is a kernel of its own.
#pragma once
#include "cuda/gemm/product.h"

namespace mla::cuda {

/// out[t, j] = residual[t, j] + sum over i ascending of weights[t, i] * parts[slots[t, i], j] for c.n columns; parts
/// [parts_rows, c.n] act; slots outside of [0, *used) add nothing.
cudaError_t launch_combine_parts(const Combine& c, const void* parts, const int32_t* used, int64_t parts_rows,
                                 cudaStream_t stream);
cudaError_t load_combine_kernels();

}  // namespace mla::cuda
