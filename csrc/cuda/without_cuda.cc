// without_cuda.cc - stands in for the CUDA backend in a build without nvcc.
#include "ops/backend.h"

namespace mla {

Status create_cuda_backend(int, bool, std::unique_ptr<Backend>*) {
  return Status::Error(
      Code::kUnsupported,
      "this build has no CUDA kernels; build it where CUDA 13 (nvcc) is installed, or use the device cpu");
}

}  // namespace mla
