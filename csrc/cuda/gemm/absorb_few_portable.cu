// absorb_few_portable.cu - queryAbsorb of up to 8 rows: out[t, h] = [q_nope[t, h] * w_uk[h] ; rope(q_rope[t, h])].
//
// Formula, order of sums and so bits as absorb_portable.cu's tensor core kernel, but the weights wait in registers,
// where they are before pdl_wait() returns: a warp has 32 columns of a head's w_uk, all k. Columns are the 16 rows of A
// (which columns: those that one 8-byte load brings, two for each of two operands), rows of q the 8 columns of B. q
// comes straight from L2. Grid: (columns / 128, heads): few blocks, so that multiprocessors stay free for the kernel
// behind, which takes whole ones. Block: 4 warps. Limits: 16-byte rows as there, n <= 128 and a multiple of 16. Test:
// test/gpu/matrix.test.ts.
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/absorb.h"
#include "cuda/gemm/absorb_device.cuh"
#include "cuda/gemm/load_kernel.cuh"

namespace mla::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpColumns = 32;
constexpr int kColumns = kThreads / 32 * kWarpColumns;
constexpr int kRows = 8;
constexpr int kSteps = 8;  // of 16 k
/// With so few the kernel behind may start before this one has waited. Its cache is not settled then, and it asks for
/// keys late. A step of V2-Lite, 4096 tokens of context, H200, 2026-11, us, late / eager: 1 row 2100 / 2079, 2 rows
/// 2803 / 2775, 4 rows 3970 / 3960, 8 rows 5762 / 5777.
constexpr int kEagerRows = 4;

__global__ void __launch_bounds__(kThreads)
    absorb_few_kernel(const __grid_constant__ Absorb p, bool weights_settled, bool eager) {
  const int tid = threadIdx.x, lane = tid % 32, g = lane / 4, q = lane % 4;
  const int h = blockIdx.y, column = blockIdx.x * kColumns + tid / 32 * kWarpColumns + g * 4;
  const int rows = static_cast<int>(p.rows);
  const Bf16* const w = static_cast<const Bf16*>(p.w_uk) + static_cast<int64_t>(h) * p.n * p.c + column;
  if (eager) pdl_launch_dependents();
  if (!weights_settled) pdl_wait();
  // Rows k, k + 1 become pairs of k for each of four columns.
  uint32_t a[kSteps][2][4];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = s * 16 + half * 8 + 2 * q;
      uint2 first = make_uint2(0, 0), second = first;
      if (k < p.n && column < p.c) {
        first = __ldcg(reinterpret_cast<const uint2*>(w + static_cast<int64_t>(k) * p.c));
        second = __ldcg(reinterpret_cast<const uint2*>(w + static_cast<int64_t>(k + 1) * p.c));
      }
      a[s][0][2 * half] = __byte_perm(first.x, second.x, 0x5410);
      a[s][0][2 * half + 1] = __byte_perm(first.x, second.x, 0x7632);
      a[s][1][2 * half] = __byte_perm(first.y, second.y, 0x5410);
      a[s][1][2 * half + 1] = __byte_perm(first.y, second.y, 0x7632);
    }
  }
  if (weights_settled) pdl_wait();
  if (!eager) pdl_launch_dependents();
  bool exists = g < rows;
  const Bf16* const from =
      static_cast<const Bf16*>(p.q) + (static_cast<int64_t>(g) * p.heads + h) * (p.n + p.r) + 2 * q;
  uint32_t b[kSteps][2];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = s * 16 + half * 8;
      b[s][half] = exists && k + 2 * q < p.n ? __ldcg(reinterpret_cast<const uint32_t*>(from + k)) : 0;
    }
  }
  if (exists) {
    const int position = p.positions[g];
    exists = position >= 0 && position < p.position_end;
  }
  // The rotated part meanwhile, shared by the blocks of this head.
  const int half = p.r / 2;
  for (int i = blockIdx.x * kThreads + tid; i < rows * half; i += gridDim.x * kThreads)
    rotate<Bf16>(p, i / half, h, i % half);
  float acc[2][4] = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (!exists) b[s][0] = b[s][1] = 0;
    mma_bf16(acc[0], a[s][0], b[s]);
    mma_bf16(acc[1], a[s][1], b[s]);
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int t = 2 * q + j;
    if (t >= rows || column >= p.c) continue;
    Bf16* const out = static_cast<Bf16*>(p.out) + (static_cast<int64_t>(t) * p.heads + h) * (p.c + p.r) + column;
    *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16(0.0f + acc[0][j], 0.0f + acc[0][2 + j]),
                                                pack_bf16(0.0f + acc[1][j], 0.0f + acc[1][2 + j]));
  }
}

}  // namespace

bool absorbs_few(const Absorb& p) { return p.rows <= kRows && p.n % 16 == 0 && p.n <= kSteps * 16; }

cudaError_t launch_absorb_few(const Absorb& p, bool weights_settled, cudaStream_t stream) {
  const dim3 grid(div_up(p.c, kColumns), p.heads);
  const bool eager = p.rows <= kEagerRows;
  return eager ? launch_eager(absorb_few_kernel, grid, dim3(kThreads), 1, 0, stream, p, weights_settled, eager)
               : launch_pdl(absorb_few_kernel, grid, dim3(kThreads), 0, stream, p, weights_settled, eager);
}

cudaError_t load_absorb_few(int shared_bytes_per_block) {
  return load_into_context(absorb_few_kernel, shared_bytes_per_block);
}

}  // namespace mla::cuda
