// product_split_bf16_sm90.cu - the products of product_split.cuh with bf16 weights.
#include "cuda/gemm/product_split.cuh"

namespace mla::cuda {

cudaError_t launch_split_bf16(const Product& p, const SplitPlan& plan, cudaStream_t stream) {
  return launch_split<Bf16>(p, plan, stream);
}

cudaError_t load_split_bf16(int shared_bytes_per_block) {
  return load_into_context(product_split_kernel<Bf16>, shared_bytes_per_block);
}

}  // namespace mla::cuda
