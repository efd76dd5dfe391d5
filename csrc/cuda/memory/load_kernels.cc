// load_kernels.cc - brings all kernels of this folder into the GPU's context.
#include "cuda/memory/kernels.h"

namespace mla::cuda {

Status load_memory_kernels(const Traits& traits) {
  (void)traits;
  MLA_RETURN_IF_ERROR(load_gather_kernels());
  MLA_RETURN_IF_ERROR(load_copy_kernels());
  return load_checksum_kernels();
}

}  // namespace mla::cuda
