// pdl_cluster.cuh - launch_pdl for kernels whose blocks work in clusters (Hopper).
#pragma once
#include "cuda/device/pdl.cuh"

namespace mla::cuda {

/// `cluster` neighbouring blocks form a cluster; the grid is a multiple of it.
template <class... Parameters, class... Arguments>
cudaError_t launch_pdl_cluster(void (*kernel)(Parameters...), int cluster, dim3 grid, dim3 block, size_t shared_bytes,
                               cudaStream_t stream, Arguments&&... arguments) {
  return launch_clusters(kernel, grid, block, cluster, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace mla::cuda
