// gpu_facts.h - what kernels and sizes depend on, read from a GPU's properties.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/launch.h"
#include "ops/backend.h"

namespace mla::cuda {

GpuFacts facts_of(const cudaDeviceProp& properties);
Traits traits_of(const GpuFacts& gpu);

}  // namespace mla::cuda
