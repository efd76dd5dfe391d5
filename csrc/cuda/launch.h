// launch.h - the CUDA kernels' side of the seam: one launcher per operation, wherever its kernels live.
//
// A launcher enqueues on launch.stream and returns; it never allocates, synchronises or reads the environment, so it
// can run inside stream capture. Zero rows are Ok and launch nothing. Arguments have been checked by check(op). Device
// data (ids, slots, tables, offsets) may hold nonsense: kernels treat what is out of range as padding and never touch
// memory outside of their tensors.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "common/status.h"
#include "ops/ops.h"

namespace mla::cuda {

/// What launchers need to know of the GPU.
struct Traits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // with opt-in
  bool hopper = false;             // sm_90: the _sm90 kernels run
  bool deterministic = false;      // one order of sums whatever else is in the step: gemm/product.h, mla_decode.cc
};

/// What latentCompress writes of its cache: the rows with these numbers. Both present, or neither.
struct Appended {
  View cache, slots;
};

/// Counters that blocks of one kernel may arrive at.
constexpr int kCounters = 32;

/// Where and how an operation is enqueued.
struct Launch {
  cudaStream_t stream = nullptr;
  View workspace;  // u8; at least <verb>_workspace bytes
  const Traits* traits = nullptr;
  std::span<const View> fresh = {};  // what may not be complete when the operation's first kernel starts
  uint32_t* counters = nullptr;      // kCounters of them, of this stream or graph alone; every kernel leaves zeros
  Appended appended = {};            // of `fresh`, if it has a whole cache of which only these rows have been written

  /// May the operation's first kernel read this tensor before pdl_wait()? See pdl.cuh.
  bool settled(const View& view) const noexcept;
};

#define MLA_CUDA_LAUNCHER(Name, verb) Status verb(const Name##Params& p, const Launch& launch) noexcept;
MLA_OPS(MLA_CUDA_LAUNCHER)
#undef MLA_CUDA_LAUNCHER

/// Scratch bytes of the operations that need any; shapes only, data pointers may be null.
int64_t workspace(const LatentCompressParams& p, const Traits& traits);
int64_t workspace(const MlaDecodeParams& p, const Traits& traits);
int64_t workspace(const MhaDecodeParams& p, const Traits& traits);
int64_t workspace(const GemmParams& p, const Traits& traits);
int64_t workspace(const SwigluParams& p, const Traits& traits);
int64_t workspace(const MoeRouteParams& p, const Traits& traits);
int64_t workspace(const MoeGateUpParams& p, const Traits& traits);
int64_t workspace(const MoeDownParams& p, const Traits& traits);
int64_t workspace(const SampleParams& p, const Traits& traits);
int64_t workspace(const LogProbsParams& p, const Traits& traits);
template <class Params>
int64_t workspace(const Params&, const Traits&) {
  return 0;
}

/// Elements of decodePlan's plan.
int64_t decode_plan_ints(int64_t max_sequences, int64_t heads, const Traits& traits);

/// Loads every kernel of a family into the GPU's context, so that no lazy load happens inside a capture. One per
/// family folder; each calls load_kernel() for all its kernels.
Status load_attention_kernels(const Traits& traits);
Status load_gemm_kernels(const Traits& traits);
Status load_latent_kernels(const Traits& traits);
Status load_memory_kernels(const Traits& traits);
Status load_moe_kernels(const Traits& traits);
Status load_norm_kernels(const Traits& traits);
Status load_quant_kernels(const Traits& traits);
Status load_rope_kernels(const Traits& traits);
Status load_sampling_kernels(const Traits& traits);

/// Ok, or what a CUDA call failed with: `what` names the call. Sticky faults become kDeviceLost.
Status cuda_status(cudaError_t error, const char* what);

/// The status of the kernel launched last; to be returned by every launcher.
inline Status launched(const char* kernel) { return cuda_status(cudaGetLastError(), kernel); }

/// Brings one kernel into the context and raises its shared memory limit.
template <class Kernel>
Status load_kernel(Kernel* kernel, const char* name, int shared_bytes = 0) {
  cudaFuncAttributes attributes;
  MLA_RETURN_IF_ERROR(cuda_status(cudaFuncGetAttributes(&attributes, kernel), name));
  if (shared_bytes <= 48 * 1024) return Status::Ok();
  return cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
}

}  // namespace mla::cuda
