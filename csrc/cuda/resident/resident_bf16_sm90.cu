// resident_bf16_sm90.cu - resident_kernel.cuh for bf16 weights and a bf16 cache.
#include "cuda/resident/resident_kernel.cuh"

namespace mla::cuda {

cudaError_t launch_resident_bf16(const Resident& p, int multiprocessors, cudaStream_t stream) {
  return p.fp8_cache ? cudaErrorNotSupported : launch_resident<Bf16, Bf16>(p, multiprocessors, stream);
}

cudaError_t load_resident_bf16() { return load_resident<Bf16, Bf16>(); }

}  // namespace mla::cuda
