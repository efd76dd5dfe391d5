// product_wgmma_bf16_sm90.cu - the products of product_wgmma.cuh with bf16 weights.
#include "cuda/gemm/product_wgmma.cuh"

namespace mla::cuda {

cudaError_t launch_wgmma_bf16(const Product& p, const WgmmaPlan& plan, int multiprocessors, uint32_t* counter,
                              cudaStream_t stream) {
  const auto launch = [&](auto shape) {
    return launch_wgmma<decltype(shape)>(p, plan, multiprocessors, counter, stream);
  };
  if (p.order != nullptr)
    return plan.most_tokens == 64 ? launch(WgmmaShape<Bf16, 64, true, 1>{}) : launch(WgmmaShape<Bf16, 128, true, 1>{});
  switch (plan.most_tokens) {
    case 64: return launch(WgmmaShape<Bf16, 64, false, 1>{});
    case 128: return launch(WgmmaShape<Bf16, 128, false, 1>{});
    case 160: return launch(WgmmaShape<Bf16, 160, false, 2>{});
    case 208: return launch(WgmmaShape<Bf16, 208, false, 2>{});
    default:
      return plan.cluster == 1 ? launch(WgmmaShape<Bf16, 256, false, 1>{}) : launch(WgmmaShape<Bf16, 256, false, 2>{});
  }
}

cudaError_t load_wgmma_bf16(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_wgmma_kernel<WgmmaShape<Bf16, 64, true, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 128, true, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 256, false, 2>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 160, false, 2>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 208, false, 2>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 64, false, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 128, false, 1>>);
  if (error == cudaSuccess) error = load(product_wgmma_kernel<WgmmaShape<Bf16, 256, false, 1>>);
  return error;
}

}  // namespace mla::cuda
