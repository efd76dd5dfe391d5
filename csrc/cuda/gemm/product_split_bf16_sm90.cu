// product_split_bf16_sm90.cu - the products of product_split.cuh with bf16 weights.
#include "cuda/gemm/product_split.cuh"

namespace mla::cuda {

cudaError_t launch_split_bf16(const Product& p, const SplitPlan& plan, cudaStream_t stream) {
  return plan.tokens > kSplitFewTokens || plan.token_tiles > 1 ? launch_split<Bf16, kSplitMostTokens>(p, plan, stream)
                                                               : launch_split<Bf16, kSplitFewTokens>(p, plan, stream);
}

cudaError_t load_split_bf16(int shared_bytes_per_block) {
  const cudaError_t error = load_into_context(product_split_kernel<Bf16, kSplitFewTokens>, shared_bytes_per_block);
  return error == cudaSuccess ? load_into_context(product_split_kernel<Bf16, kSplitMostTokens>, shared_bytes_per_block)
                              : error;
}

}  // namespace mla::cuda
