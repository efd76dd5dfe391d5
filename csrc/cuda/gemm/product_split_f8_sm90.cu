// product_split_f8_sm90.cu - the products of product_split.cuh with fp8 weights.
#include "cuda/gemm/product_split.cuh"

namespace mla::cuda {

cudaError_t launch_split_f8(const Product& p, const SplitPlan& plan, cudaStream_t stream) {
  return launch_split<F8E4M3, kSplitFewTokens>(p, plan, stream);
}

cudaError_t load_split_f8(int shared_bytes_per_block) {
  return load_into_context(product_split_kernel<F8E4M3, kSplitFewTokens>, shared_bytes_per_block);
}

}  // namespace mla::cuda
