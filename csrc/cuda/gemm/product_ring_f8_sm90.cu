// product_ring_f8_sm90.cu - the products of product_ring.cuh with fp8 weights.
#include "cuda/gemm/product_ring.cuh"

namespace mla::cuda {

cudaError_t launch_ring_f8(const Product& p, const Combine* c, const RingLaunch& launch) {
  return launch_ring<F8E4M3>(p, c, launch);
}

cudaError_t load_ring_f8(int shared_bytes_per_block) { return load_ring<F8E4M3>(shared_bytes_per_block); }

}  // namespace mla::cuda
