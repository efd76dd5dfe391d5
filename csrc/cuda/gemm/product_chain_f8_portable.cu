// product_chain_f8_portable.cu - the products of many rows of product_chain.cuh with f8 weights.
#include "cuda/gemm/product_chain.cuh"

namespace mla::cuda {

cudaError_t launch_product_chain_f8(const Product& p, const Traits& traits, cudaStream_t stream) {
  return launch_chain<Chain<F8E4M3>>(p, traits, stream);
}

cudaError_t load_product_chain_f8(int shared_bytes_per_block) {
  return load_into_context(product_chain_kernel<Chain<F8E4M3>>, shared_bytes_per_block);
}

}  // namespace mla::cuda
