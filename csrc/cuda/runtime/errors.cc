// errors.cc - what CUDA's error codes mean for us.
#include <string>

#include "cuda/launch.h"

namespace mla::cuda {

namespace {

/// After these the context is gone: NVIDIA documents that the process must be replaced.
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorContextIsDestroyed: return true;
    default: return false;
  }
}

}  // namespace

Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return Status::Ok();
  cudaGetLastError();  // a code that is not sticky must not be found by the next call
  std::string text = std::string(what) + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")";
  if (is_sticky(error)) return Status::Error(Code::kDeviceLost, std::move(text));
  if (error == cudaErrorMemoryAllocation) return Status::Error(Code::kOutOfDeviceMemory, std::move(text));
  return Status::Error(Code::kBackend, std::move(text));
}

}  // namespace mla::cuda
