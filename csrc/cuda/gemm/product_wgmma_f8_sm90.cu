// product_wgmma_f8_sm90.cu - the products of product_wgmma.cuh with fp8 weights.
#include "cuda/gemm/product_wgmma.cuh"

namespace mla::cuda {

cudaError_t launch_wgmma_f8(const Product& p, const WgmmaPlan& plan, int multiprocessors, uint32_t* counter,
                            cudaStream_t stream) {
  const auto launch = [&](auto shape) {
    return launch_wgmma<decltype(shape)>(p, plan, multiprocessors, counter, stream);
  };
  if (p.order != nullptr) return launch(WgmmaShape<F8E4M3, 64, true, 1>{});
  switch (plan.most_tokens) {
    case 64: return launch(WgmmaShape<F8E4M3, 64, false, 1>{});
    case 128: return launch(WgmmaShape<F8E4M3, 128, false, 1>{});
    default: return launch(WgmmaShape<F8E4M3, 256, false, 1>{});
  }
}

cudaError_t load_wgmma_f8(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_wgmma_kernel<WgmmaShape<F8E4M3, 64, true, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<F8E4M3, 64, false, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<F8E4M3, 128, false, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<F8E4M3, 256, false, 1>>);
  return error;
}

}  // namespace mla::cuda
