// product_held_bf16_sm90.cu - the products of product_held.cuh with bf16 weights.
#include "cuda/gemm/product_held.cuh"

namespace mla::cuda {

cudaError_t launch_held_bf16(const Product& p, bool weights_settled, cudaStream_t stream) {
  return launch_held<Bf16>(p, weights_settled, stream);
}

cudaError_t load_held_bf16(int shared_bytes_per_block) {
  return load_into_context(product_held_kernel<Bf16>, shared_bytes_per_block);
}

}  // namespace mla::cuda
