// product_chain_bf16_portable.cu - the products of many rows of product_chain.cuh with bf16 weights.
#include "cuda/gemm/product_chain.cuh"

namespace mla::cuda {

cudaError_t launch_product_chain_bf16(const Product& p, const Traits& traits, cudaStream_t stream) {
  return launch_chain<Chain<Bf16>>(p, traits, stream);
}

cudaError_t load_product_chain_bf16(int shared_bytes_per_block) {
  return load_into_context(product_chain_kernel<Chain<Bf16>>, shared_bytes_per_block);
}

}  // namespace mla::cuda
