// mla_prefill.cc - causal attention over up-projected keys: which kernel runs. On Hopper the warpgroup one, else the
// tensor core one, where dimensions and types fit them and tensors begin at multiples of 16 bytes; else the plain one.
// Test: test/gpu/attention.test.ts.
#include "cuda/attention/kernels.h"

namespace mla::cuda {

Status mlaPrefill(const MlaPrefillParams& p, const Launch& launch) noexcept {
  if (p.q.dim(0) == 0) return Status::Ok();
  if (prefill_sm90_fits(p, *launch.traits)) return launch_prefill_sm90(p, launch);
  return prefill_portable_fits(p, *launch.traits) ? launch_prefill_portable(p, launch) : launch_prefill_fma(p, launch);
}

}  // namespace mla::cuda
