// load.cc - brings the expert kernels into the GPU's context. The products are the gemm family's.
#include "cuda/launch.h"
#include "cuda/moe/combine.h"
#include "cuda/moe/gather_pairs.h"
#include "cuda/moe/router.h"

namespace mla::cuda {

Status load_moe_kernels(const Traits& traits) {
  MLA_RETURN_IF_ERROR(cuda_status(load_combine_kernels(), "loading moeDown kernels"));
  MLA_RETURN_IF_ERROR(cuda_status(load_gather_pairs(), "loading moeGateUp kernels"));
  return load_router_kernels(traits);
}

}  // namespace mla::cuda
