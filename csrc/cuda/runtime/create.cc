// create.cc - makes the CUDA backend, or says why there is none.
#include "cuda/runtime/probe.h"
#include "ops/backend.h"

namespace mla {

Status create_cuda_backend(int index, std::unique_ptr<Backend>*) {
  MLA_RETURN_IF_ERROR(cuda::probe(index));
  return Status::Error(Code::kUnsupported, "this build has no CUDA operations yet; use the device cpu");
}

}  // namespace mla
