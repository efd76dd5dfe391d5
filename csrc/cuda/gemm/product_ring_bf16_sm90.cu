// product_ring_bf16_sm90.cu - the products of product_ring.cuh with bf16 weights.
#include "cuda/gemm/product_ring.cuh"

namespace mla::cuda {

cudaError_t launch_ring_bf16(const Product& p, const Combine* c, const RingLaunch& launch) {
  return launch_ring<Bf16>(p, c, launch);
}

cudaError_t load_ring_bf16(int shared_bytes_per_block) { return load_ring<Bf16>(shared_bytes_per_block); }

}  // namespace mla::cuda
