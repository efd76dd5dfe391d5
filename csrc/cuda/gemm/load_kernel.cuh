// load_kernel.cuh - brings a kernel into the GPU's context, with all the shared memory that a block may have.
#pragma once
#include <cuda_runtime.h>

namespace mla::cuda {

template <class Kernel>
cudaError_t load_into_context(Kernel* kernel, int shared_bytes_per_block) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              shared_bytes_per_block - static_cast<int>(attributes.sharedSizeBytes));
}

}  // namespace mla::cuda
