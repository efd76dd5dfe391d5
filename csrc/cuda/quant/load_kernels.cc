// load_kernels.cc - brings all kernels of this folder into the GPU's context.
#include "cuda/quant/kernels.h"

namespace mla::cuda {

Status load_quant_kernels(const Traits& traits) {
  (void)traits;
  MLA_RETURN_IF_ERROR(load_cast_kernels());
  MLA_RETURN_IF_ERROR(load_block_scale_kernels());
  MLA_RETURN_IF_ERROR(load_round_rows_kernels());
  return load_fill_random_kernels();
}

}  // namespace mla::cuda
