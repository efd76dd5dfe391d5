// gather_pairs.cu - rows of x in the order of the experts: out[i] = x[order[i] / per_row].
//
// Grid: a warp for each row, 8 a block; 8 loads of 16 bytes a lane under way. Rows past the last expert's end are not
// written; a pair that does not exist gives zeros. Bandwidth-bound. Test: test/gpu/matrix-experts.test.ts.
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/moe/gather_pairs.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(32 * kWarps) gather_pairs_kernel(const __grid_constant__ Product p, Bf16* out) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (row >= p.rows || row >= p.offsets[p.groups]) return;
  const int64_t from = operand_row(p, row);
  const Bf16* const x = static_cast<const Bf16*>(p.x) + from * p.x_row;
  Bf16* const to = out + row * p.k;
  constexpr int kAtOnce = 8;
  for (int64_t k0 = threadIdx.x % 32 * 8; k0 < p.k; k0 += kAtOnce * 256) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      if (from >= 0 && k0 + i * 256 < p.k) v[i] = load16(x + k0 + i * 256);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (k0 + i * 256 < p.k) store16(to + k0 + i * 256, v[i]);
  }
}

}  // namespace

cudaError_t launch_gather_pairs(const Product& p, void* out, cudaStream_t stream) {
  return launch_pdl(gather_pairs_kernel, dim3(static_cast<unsigned>(div_up<int64_t>(p.rows, kWarps))),
                    dim3(32 * kWarps), 0, stream, p, static_cast<Bf16*>(out));
}

cudaError_t load_gather_pairs() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, gather_pairs_kernel);
}

}  // namespace mla::cuda
