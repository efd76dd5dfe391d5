// pdl_cluster.cuh - launch_pdl for kernels whose blocks work in clusters (Hopper).
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace mla::cuda {

/// `cluster` neighbouring blocks form a cluster; the grid is a multiple of it.
template <class... Parameters, class... Arguments>
cudaError_t launch_pdl_cluster(void (*kernel)(Parameters...), int cluster, dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace mla::cuda
