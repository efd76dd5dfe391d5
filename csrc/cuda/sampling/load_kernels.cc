// load_kernels.cc - brings all kernels of this folder into the GPU's context.
#include "cuda/sampling/kernels.h"

namespace mla::cuda {

Status load_sampling_kernels(const Traits& traits) {
  (void)traits;
  MLA_RETURN_IF_ERROR(load_sample_kernels());
  return load_advance_kernels();
}

}  // namespace mla::cuda
