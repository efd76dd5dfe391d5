// resident_f8_sm90.cu - resident_kernel.cuh for fp8 weights and a cache of either type.
#include "cuda/resident/resident_kernel.cuh"

namespace mla::cuda {

cudaError_t launch_resident_f8(const Resident& p, int multiprocessors, cudaStream_t stream) {
  return p.fp8_cache ? launch_resident<F8E4M3, F8E4M3>(p, multiprocessors, stream)
                     : launch_resident<F8E4M3, Bf16>(p, multiprocessors, stream);
}

cudaError_t load_resident_f8() {
  const cudaError_t error = load_resident<F8E4M3, F8E4M3>();
  return error == cudaSuccess ? load_resident<F8E4M3, Bf16>() : error;
}

}  // namespace mla::cuda
