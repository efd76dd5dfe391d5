// gpu_facts.cc - see gpu_facts.h.
#include "cuda/runtime/gpu_facts.h"

#include "cuda/runtime/probe.h"

namespace mla {
namespace cuda {

GpuFacts facts_of(const cudaDeviceProp& properties) {
  GpuFacts out;
  out.name = properties.name;
  out.major = properties.major;
  out.minor = properties.minor;
  out.multiprocessors = properties.multiProcessorCount;
  out.shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  out.memory_total = static_cast<int64_t>(properties.totalGlobalMem);
  return out;
}

Traits traits_of(const GpuFacts& gpu) {
  Traits out;
  out.multiprocessors = gpu.multiprocessors;
  out.shared_bytes_per_block = gpu.shared_bytes_per_block;
  out.hopper = gpu.major == 9 && gpu.minor == 0;
  return out;
}

}  // namespace cuda

GpuSurvey survey_gpus() {
  GpuSurvey out;
  out.runtime_cuda = CUDART_VERSION;
  out.status = cuda::probe(0);
  if (cudaDriverGetVersion(&out.driver_cuda) != cudaSuccess) out.driver_cuda = 0;
  int count = 0;
  if (out.status.ok() && cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) == cudaSuccess) out.gpus.push_back(cuda::facts_of(properties));
  }
  cudaGetLastError();
  return out;
}

}  // namespace mla
