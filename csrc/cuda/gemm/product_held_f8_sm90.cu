// product_held_f8_sm90.cu - the products of product_held.cuh with fp8 weights.
#include "cuda/gemm/product_held.cuh"

namespace mla::cuda {

cudaError_t launch_held_f8(const Product& p, bool weights_settled, cudaStream_t stream) {
  return launch_held<F8E4M3>(p, weights_settled, stream);
}

cudaError_t load_held_f8(int shared_bytes_per_block) {
  return load_into_context(product_held_kernel<F8E4M3>, shared_bytes_per_block);
}

}  // namespace mla::cuda
