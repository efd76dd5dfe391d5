// probe.cu - see probe.h.
#include "cuda/runtime/probe.h"

#include <cuda_runtime_api.h>

namespace mla::cuda {

namespace {

/// 13020 is CUDA 13.2.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

Status probe(int index) {
  int driver = 0;
  // 0 without a driver. cudaGetDeviceCount alone could not tell "no driver" from "too old": both are error 35.
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return Status::Error(Code::kNoDevice, "no NVIDIA driver was found; install one, or use the device cpu");
  }
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return Status::Error(Code::kDriverTooOld, "the NVIDIA driver supports CUDA " + version_text(driver) +
                                                  "; this build needs a driver for CUDA " +
                                                  version_text(CUDART_VERSION / 1000 * 1000) + " (580 or newer)");
  }
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0)) {
    return Status::Error(Code::kNoDevice, "the NVIDIA driver reports no GPU; use the device cpu");
  }
  if (result != cudaSuccess) {
    return Status::Error(Code::kDeviceUnusable, std::string("CUDA cannot use the GPU: ") + cudaGetErrorString(result));
  }
  if (index >= count) {
    return Status::Error(Code::kNoDevice, "there is no GPU " + std::to_string(index) + "; the driver reports " +
                                              std::to_string(count) + " (0 to " + std::to_string(count - 1) + ")");
  }
  return Status::Ok();
}

}  // namespace mla::cuda
