// without_cuda.cc - stands in for the CUDA backend in a build without nvcc.
#include "ops/backend.h"

namespace mla {

namespace {

Status without_kernels() {
  return Status::Error(
      Code::kUnsupported,
      "this build has no CUDA kernels; build it where CUDA 13 (nvcc) is installed, or use the device cpu");
}

}  // namespace

Status create_cuda_backend(int, KernelChoice, std::unique_ptr<Backend>*) { return without_kernels(); }

std::vector<std::string> launched_cuda_kernels(bool) { return {}; }

Status create_cuda_planner(const GpuFacts&, std::unique_ptr<Planner>*) { return without_kernels(); }

GpuSurvey survey_gpus() {
  GpuSurvey out;
  out.status = without_kernels();
  return out;
}

}  // namespace mla
