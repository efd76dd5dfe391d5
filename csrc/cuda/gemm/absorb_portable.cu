// absorb_portable.cu - out[t, h] = [q_nope[t, h] * w_uk[h] ; rope(q_rope[t, h])].
//
// Tensor core kernel (bf16 rows and weights that can be read by 16 bytes, n <= kMaxNope): a block takes one head, 64
//   columns and up to 64 rows; grid (columns / 64, heads, rows / 64), 4 warps of 16 columns each. All weights of the
//   block are asked for at once, before pdl_wait() where they are settled. w_uk has its columns next to each other, so
//   the B operand comes through transposed ldmatrix. Sums: as everywhere, segments of 128 k from zero, added in
//   ascending order; the kernel and so the bits are the same for every number of rows. Shared memory: weights [n, 64],
//   rows of 128 bytes with piece j at j ^ (row % 8); rows of q, 16 bytes apart from a multiple of 128.
// Up to 8 rows: absorb_few_portable.cu, the same bits.
// Everything else: product_fma_portable.cu for the product, absorb_rope_kernel for the rotation, a thread per pair.
// Test: test/gpu/matrix.test.ts.
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/absorb.h"
#include "cuda/gemm/absorb_device.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_device.cuh"

namespace mla::cuda {
namespace {

constexpr int kColumns = 64;
constexpr int kRows = 64;
constexpr int kThreads = 128;
constexpr int kMaxNope = 256;

__host__ __device__ int depth(int n) { return div_up(n, 16) * 16; }
__host__ __device__ int row_bytes(int n) { return depth(n) * 2 + 16; }
int shared_bytes(int n) { return depth(n) * kColumns * 2 + kRows * row_bytes(n); }

__global__ void __launch_bounds__(kThreads) absorb_bf16_kernel(const __grid_constant__ Absorb p, bool weights_settled) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int column0 = blockIdx.x * kColumns, h = blockIdx.y;
  const int64_t t0 = static_cast<int64_t>(blockIdx.z) * kRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(kRows), p.rows - t0));
  const Bf16* const w = static_cast<const Bf16*>(p.w_uk) + static_cast<int64_t>(h) * p.n * p.c + column0;
  const int deep = depth(p.n);
  if (!weights_settled) pdl_wait();
  for (int i = tid; i < deep * 8; i += kThreads) {
    const int k = i / 8, piece = i % 8;
    const bool valid = k < p.n && column0 + piece * 8 < p.c;
    cp_async16(shared_address(shared + k * 128 + (piece ^ k % 8) * 16),
               valid ? static_cast<const void*>(w + static_cast<int64_t>(k) * p.c + piece * 8) : p.w_uk, valid);
  }
  if (weights_settled) pdl_wait();
  unsigned char* const rows = shared + deep * 128;
  const int stride = row_bytes(p.n), pieces = deep / 8;
  for (int i = tid; i < div_up(count, 16) * 16 * pieces; i += kThreads) {
    const int r = i / pieces, piece = i % pieces;
    bool valid = r < count && piece * 8 < p.n;
    if (valid) {
      const int position = p.positions[t0 + r];
      valid = position >= 0 && position < p.position_end;
    }
    const Bf16* const from = static_cast<const Bf16*>(p.q) + ((t0 + r) * p.heads + h) * (p.n + p.r) + piece * 8;
    cp_async16(shared_address(rows + r * stride + piece * 16), valid ? static_cast<const void*>(from) : p.q, valid);
  }
  cp_async_commit();
  pdl_launch_dependents();
  // The rotated part meanwhile, shared by the blocks of this head and these rows.
  const int half = p.r / 2;
  for (int i = blockIdx.x * kThreads + tid; i < count * half; i += gridDim.x * kThreads)
    rotate<Bf16>(p, t0 + i / half, h, i % half);
  cp_async_wait<0>();
  __syncthreads();

  const int m = lane / 8;  // which of ldmatrix's four matrices this lane gives a row of
  const uint32_t x_address = shared_address(rows + (m % 2 * 8 + lane % 8) * stride + m / 2 * 16);
  const uint32_t w_address =
      shared_address(shared + (m % 2 * 8 + lane % 8) * 128 + ((warp * 2 + m / 2) ^ lane % 8) * 16);
  float total[kRows / 16][2][4] = {}, acc[kRows / 16][2][4] = {};
  for (int k0 = 0; k0 < deep; k0 += 16) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, w_address + k0 * 128);
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      if (i * 16 >= count) break;
      uint32_t a[4];
      ldmatrix_x4(a, x_address + i * 16 * stride + k0 * 2);
      mma_bf16(acc[i][0], a, {b[0], b[1]});
      mma_bf16(acc[i][1], a, {b[2], b[3]});
    }
    if ((k0 + 16) % kSegment != 0 && k0 + 16 < deep) continue;
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          total[i][j][v] += acc[i][j][v];
          acc[i][j][v] = 0;
        }
      }
    }
  }
  const int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
    for (int v = 0; v < 4; v += 2) {
      const int r = i * 16 + v / 2 * 8 + g;
      if (r >= count) continue;
      Bf16* const out = static_cast<Bf16*>(p.out) + ((t0 + r) * p.heads + h) * (p.c + p.r);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = column0 + warp * 16 + j * 8 + 2 * q;
        if (column < p.c) *reinterpret_cast<uint32_t*>(out + column) = pack_bf16(total[i][j][v], total[i][j][v + 1]);
      }
    }
  }
}

__global__ void __launch_bounds__(256) absorb_rope_kernel(const __grid_constant__ Absorb p) {
  pdl_wait();
  const int half = p.r / 2;
  const int64_t pairs = p.rows * p.heads * half;
  for (int64_t i = blockIdx.x * int64_t{256} + threadIdx.x; i < pairs; i += gridDim.x * int64_t{256}) {
    const int64_t row = i / half;
    const int64_t t = row / p.heads;
    const int h = static_cast<int>(row % p.heads), pair = static_cast<int>(i % half);
    if (p.act == DType::kF32) {
      rotate<float>(p, t, h, pair);
    } else {
      rotate<Bf16>(p, t, h, pair);
    }
  }
  pdl_launch_dependents();
}

bool fits(const Absorb& p, int shared_bytes_per_block) {
  return p.act == DType::kBF16 && p.weight == DType::kBF16 && p.n % 8 == 0 && p.r % 8 == 0 && p.c % 8 == 0 &&
         p.n <= kMaxNope && aligned16(p.q) && aligned16(p.w_uk) && aligned16(p.out) &&
         shared_bytes(p.n) <= shared_bytes_per_block;
}

}  // namespace

cudaError_t launch_absorb(const Absorb& p, bool weights_settled, int shared_bytes_per_block, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (fits(p, shared_bytes_per_block)) {
    if (absorbs_few(p)) return launch_absorb_few(p, weights_settled, stream);
    const dim3 grid(div_up(p.c, kColumns), p.heads, static_cast<unsigned>(div_up<int64_t>(p.rows, kRows)));
    return launch_pdl(absorb_bf16_kernel, grid, dim3(kThreads), shared_bytes(p.n), stream, p, weights_settled);
  }
  Product product;
  product.rows = p.rows;
  product.n = p.c;
  product.k = p.n;
  product.groups = p.heads;
  product.x = p.q;
  product.x_dtype = product.y_dtype = p.act;
  product.x_group = p.n + p.r;
  product.x_row = p.heads * product.x_group;
  product.w = p.w_uk;
  product.w_dtype = p.weight;
  product.w_group = static_cast<int64_t>(p.n) * p.c;
  product.w_transposed = true;
  product.y = p.out;
  product.y_group = p.c + p.r;
  product.y_row = p.heads * product.y_group;
  product.positions = p.positions;
  product.position_end = p.position_end;
  const cudaError_t error = launch_product_fma(product, stream);
  if (error != cudaSuccess || p.r == 0) return error;
  const int64_t blocks = div_up<int64_t>(p.rows * p.heads * (p.r / 2), 256);
  return launch_pdl(absorb_rope_kernel, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)), dim3(256), 0,
                    stream, p);
}

cudaError_t load_absorb_kernels(int shared_bytes_per_block) {
  cudaError_t error = load_into_context(absorb_bf16_kernel, shared_bytes_per_block);
  if (error == cudaSuccess) error = load_absorb_few(shared_bytes_per_block);
  return error != cudaSuccess ? error : load_into_context(absorb_rope_kernel, shared_bytes_per_block);
}

}  // namespace mla::cuda
