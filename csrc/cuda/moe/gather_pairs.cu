// gather_pairs.cu - rows of x in the order of the experts: out[i] = x[order[i] / per_row].
//
// Grid: block b has part b / groups of the rows of group b % groups, about 8 of them; a warp takes a row at a time, 8
// loads of 16 bytes a lane under way. The rows of a group ascend, so blocks that run together read the same part of x,
// which then comes from L2 for all but the first of them: V2-Lite, 16,384 tokens, 183 us by rows, 128 so (H200,
// 2026-11). Rows past the last expert's end are not written; a pair that does not exist gives zeros. Bandwidth-bound.
// Test: test/gpu/matrix-experts.test.ts.
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/moe/gather_pairs.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(32 * kWarps)
    gather_pairs_kernel(const __grid_constant__ Product p, int parts, Bf16* out) {
  pdl_wait();
  pdl_launch_dependents();
  const int group = blockIdx.x % static_cast<int>(p.groups), part = blockIdx.x / static_cast<int>(p.groups);
  const GroupRows rows(p, group);
  const int64_t count = rows.end - rows.begin;
  const int end = rows.begin + static_cast<int>(count * (part + 1) / parts);
  for (int row = rows.begin + static_cast<int>(count * part / parts) + threadIdx.x / 32; row < end; row += kWarps) {
    const int64_t from = operand_row(p, row);
    const Bf16* const x = static_cast<const Bf16*>(p.x) + from * p.x_row;
    Bf16* const to = out + row * p.k;
    constexpr int kAtOnce = 8;
    for (int64_t k0 = threadIdx.x % 32 * 8; k0 < p.k; k0 += kAtOnce * 256) {
      uint4 v[kAtOnce];
      load_pieces(x, k0, p.k, from >= 0, v);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (k0 + i * 256 < p.k) store16(to + k0 + i * 256, v[i]);
    }
  }
}

}  // namespace

cudaError_t launch_gather_pairs(const Product& p, void* out, cudaStream_t stream) {
  const int64_t parts = div_up<int64_t>(div_up(p.rows, p.groups), kWarps);
  return launch_pdl(gather_pairs_kernel, dim3(static_cast<unsigned>(parts * p.groups)), dim3(32 * kWarps), 0, stream, p,
                    static_cast<int>(parts), static_cast<Bf16*>(out));
}

cudaError_t load_gather_pairs() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, gather_pairs_kernel);
}

}  // namespace mla::cuda
