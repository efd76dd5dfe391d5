// load_kernels.cc - brings all attention kernels into the GPU's context.
#include "cuda/attention/kernels.h"
#include "cuda/attention/merge_expand.h"

namespace mla::cuda {

Status load_attention_kernels(const Traits& traits) {
  MLA_RETURN_IF_ERROR(load_decode_plan_kernels());
  MLA_RETURN_IF_ERROR(load_decode_portable_kernels(traits));
  if (traits.hopper) {
    MLA_RETURN_IF_ERROR(load_decode_few_512_kernels());
    MLA_RETURN_IF_ERROR(load_decode_few_256_kernels());
    MLA_RETURN_IF_ERROR(load_decode_few_fp8_kernels());
    MLA_RETURN_IF_ERROR(load_decode_wide_kernels());
    MLA_RETURN_IF_ERROR(load_decode_wide_merge_kernels());
    MLA_RETURN_IF_ERROR(load_merge_expand_kernels());
  }
  MLA_RETURN_IF_ERROR(load_decode_fma_kernels(traits));
  MLA_RETURN_IF_ERROR(load_decode_merge_kernels());
  MLA_RETURN_IF_ERROR(load_prefill_sm90_kernels(traits));
  MLA_RETURN_IF_ERROR(load_prefill_portable_kernels(traits));
  MLA_RETURN_IF_ERROR(load_prefill_fma_kernels(traits));
  MLA_RETURN_IF_ERROR(load_mha_decode_kernels());
  MLA_RETURN_IF_ERROR(load_load_latent_kernels());
  return load_merge_attention_kernels();
}

}  // namespace mla::cuda
