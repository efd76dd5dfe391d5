// mla_prefill_fma.cu - causal attention over up-projected keys with plain float32 arithmetic (fma_attention.cuh): for
// float32 activations, exact as the CPU's, and for head dimensions that the tensor core kernel does not have.
//
// Grid: query tiles of 16 rows (prefill_tile.cuh) x heads. Block 256. Shared memory: 128 * (n + r + 1) + 64 * v bytes
// and 1 KB. Limits: v <= 512, and n + r as far as shared memory reaches. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/fma_attention.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/prefill_tile.cuh"
#include "cuda/device/pdl.cuh"

namespace mla::cuda {
namespace {

constexpr int kStaticBytes = 256;  // room for the kernel's own shared variables

template <class Act>
__global__ __launch_bounds__(kFmaThreads, 2) void mla_prefill_fma_kernel(PrefillArgs a) {
  extern __shared__ float s_memory[];
  __shared__ int s_segment;
  __shared__ float s_sum[kFmaRows];
  const int width = a.n + a.r, tid = threadIdx.x, my_row = tid / kFmaKeys, head = blockIdx.y;
  const FmaMemory m(s_memory, width);
  pdl_wait();
  pdl_launch_dependents();
  PrefillTile tile;
  if (!find_prefill_tile(a, blockIdx.x, kFmaRows, &s_segment, &tile)) return;
  const int64_t heads = a.heads;

  fma_load_rows<Act>(static_cast<const Act*>(a.q) + (tile.row * heads + head) * width, heads * width, width, tile.rows,
                     kFmaRows, m.q, width + 1);
  FmaState state;
  for (int j = 0; j < tile.keys; j += kFmaKeys) {
    const int64_t key = int64_t{tile.key} + j;
    const int keys = min(tile.keys - j, kFmaKeys);
    fma_load_rows<Act>(static_cast<const Act*>(a.k_nope) + (key * heads + head) * a.n, heads * a.n, a.n, keys, kFmaKeys,
                       m.k, width + 1);
    fma_load_rows<Act>(static_cast<const Act*>(a.k_rope) + key * a.r, a.r, a.r, keys, kFmaKeys, m.k + a.n, width + 1);
    fma_load_rows<Act>(static_cast<const Act*>(a.value) + (key * heads + head) * a.v, heads * a.v, a.v, keys, kFmaKeys,
                       m.v, a.v);
    __syncthreads();
    const int visible = my_row < tile.rows ? min(my_row + tile.shift + 1 - j, keys) : 0;
    fma_attend<Act>(m, width, m.v, a.v, a.v, visible, a.scale_log2, &state);
    __syncthreads();
  }
  const float sum = fma_row_sum(state.sum);
  if (tid % kFmaKeys == 0) {
    s_sum[my_row] = sum;
    if (my_row < tile.rows) a.lse[(tile.row + my_row) * heads + head] = natural_lse(state.largest, sum);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kFmaColumns; ++i) {
    const int column = i * kFmaThreads + tid;
    if (column >= a.v) continue;
#pragma unroll
    for (int r = 0; r < kFmaRows; ++r) {
      if (r >= tile.rows) continue;
      const int64_t at = ((tile.row + r) * heads + head) * a.v + column;
      const float x = state.out[i][r] * inverse_sum(s_sum[r]);
      if (a.out_is_f32) {
        static_cast<float*>(a.out)[at] = x;
      } else {
        store1(static_cast<Bf16*>(a.out), at, x);
      }
    }
  }
}

int64_t shared_bytes(const MlaPrefillParams& p) { return FmaMemory::bytes(p.q.dim(2), p.value.dim(2)); }

template <class Act>
Status launch_one(const MlaPrefillParams& p, const Launch& launch) {
  const dim3 grid(prefill_tiles(p, kFmaRows), static_cast<unsigned>(p.q.dim(1)));
  return cuda_status(launch_pdl(mla_prefill_fma_kernel<Act>, grid, dim3(kFmaThreads),
                                static_cast<size_t>(shared_bytes(p)), launch.stream, make_prefill_args(p)),
                     "mla_prefill_fma_kernel");
}

}  // namespace

Status launch_prefill_fma(const MlaPrefillParams& p, const Launch& launch) {
  const int64_t v = p.value.dim(2), limit = launch.traits->shared_bytes_per_block - kStaticBytes;
  if (v > kFmaMaxValues || shared_bytes(p) > limit) {
    return Status::Error(Code::kUnsupported,
                         "mlaPrefill: heads of " + std::to_string(p.q.dim(2)) + " and values of " + std::to_string(v) +
                             " are more than this GPU's kernels take: values of " + std::to_string(kFmaMaxValues) +
                             ", " + std::to_string(limit) + " bytes of shared memory. Use the CPU backend.");
  }
  return p.q.dtype == DType::kBF16 ? launch_one<Bf16>(p, launch) : launch_one<float>(p, launch);
}

Status load_prefill_fma_kernels(const Traits& traits) {
  const int bytes = traits.shared_bytes_per_block - kStaticBytes;
  MLA_RETURN_IF_ERROR(load_kernel(mla_prefill_fma_kernel<float>, "mla_prefill_fma_kernel", bytes));
  return load_kernel(mla_prefill_fma_kernel<Bf16>, "mla_prefill_fma_kernel", bytes);
}

}  // namespace mla::cuda
