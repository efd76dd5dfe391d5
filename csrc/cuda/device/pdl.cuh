// pdl.cuh - programmatic dependent launch: a kernel may start while the one before it in the stream is still running.
//
// Device side, in every kernel of the library (the chain holds only if none leaves it out):
//   pdl_wait()               before the first access to memory that an earlier kernel writes, or that an earlier kernel
//                            still reads and this one writes. All threads call it. After it, everything that earlier
//                            kernels wrote is visible.
//   pdl_launch_dependents()  the next kernel's blocks may start as soon as all blocks of this one have called it or
//                            ended; it orders nothing. Call it after pdl_wait(), when the block's loads are under way;
//                            a kernel launched by launch_eager calls it at once.
// Before pdl_wait() a kernel may only compute, set up shared memory, prefetch into L2 (prefetch_l2), and read what the
// launcher found settled (Launch::settled: weights as a rule, lengths and tables of a decode step). Below sm_90 all
// compile to nothing.
//
// What is settled: let C be the last kernel before this one that is not eager. This one starts when all blocks of the
// kernel before it have triggered, so have started; if that one is eager the same holds for the one before it, and so
// on back to C, whose blocks trigger after their wait. So everything before C is complete; C and what follows it may be
// running.
//
// Host side: launch_pdl(kernel, grid, block, shared_bytes, stream, arguments...) -> cudaError_t; a launcher returns
//   cuda_status(launch_pdl(...), "<kernel name>"). launch_clusters takes blocks a cluster behind the block size, of
//   which the grid is a multiple (sm_90 and newer). launch_eager is for short kernels, behind which the launch of the
//   next one would not hide; what the next one reads early delays what this one is waiting for, so only where measured.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "cuda/device/launches.h"

namespace mla::cuda {

__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void pdl_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, int cluster, size_t shared_bytes,
                            cudaStream_t stream, Arguments&&... arguments) {
  note_launch(reinterpret_cast<const void*>(kernel));
  late_trigger = true;
  // Older GPUs refuse the attributes.
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = serial_launches ? 0 : 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = major < 9 ? 0 : cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

template <class... Parameters, class... Arguments>
cudaError_t launch_pdl(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                       Arguments&&... arguments) {
  return launch_clusters(kernel, grid, block, 1, shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

/// As launch_clusters, for a kernel that calls pdl_launch_dependents() before pdl_wait().
template <class... Parameters, class... Arguments>
cudaError_t launch_eager(void (*kernel)(Parameters...), dim3 grid, dim3 block, int cluster, size_t shared_bytes,
                         cudaStream_t stream, Arguments&&... arguments) {
  const bool before = late_trigger;
  const cudaError_t error =
      launch_clusters(kernel, grid, block, cluster, shared_bytes, stream, std::forward<Arguments>(arguments)...);
  late_trigger = before;
  return error;
}

}  // namespace mla::cuda
