// quantize_rows.cu - rows of bf16 as e4m3: codes = x / 2^e rounded to nearest even, 2^e the smallest power of two that
// brings the largest of 128 neighbours to 448 or below (row_scale_bits; docs/numerics.md). A block with a number that
// is not finite is codes of NaN.
//
// A warp has a row of x, a lane 8 of each 256 k, so 16 lanes share an exponent. The row is read and quantised once and
// written wherever its pairs stand in the order of the experts, which a small kernel in front finds; rows of pairs that
// do not exist are not written. Bandwidth-bound. Test: test/gpu/matrix-experts.test.ts.
#include "cuda/quant/quantize_rows.h"

#include "cuda/device/fp8_chunk.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_device.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kAtOnce = 8;  // pieces of 256 k

/// 8 elements of a block of 128, which 16 neighbouring lanes hold, as codes; and the scale's bits.
__device__ __forceinline__ uint2 quantize8(uint4 v, uint32_t& scale) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  uint32_t largest = 0;  // magnitudes of two bf16 as integers: their order is that of the numbers
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = __vmaxu2(largest, words[i] & 0x7fff7fff);
#pragma unroll
  for (int lanes = 1; lanes < 16; lanes *= 2) largest = __vmaxu2(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
  scale = row_scale_bits(max(largest >> 16, largest & 0xffff) << 16);
  return quantize_eight(v, scale);
}

/// slots[order[i]] = i for the rows that experts have. Where a pair stands nowhere its slot is what was there before.
__global__ void __launch_bounds__(kThreads) invert_order_kernel(const __grid_constant__ Product p, int32_t* slots) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= min(int64_t{p.offsets[p.groups]}, p.rows)) return;
  const int32_t pair = p.order[i];
  if (pair >= 0 && pair < p.x_rows * p.per_row) slots[pair] = static_cast<int32_t>(i);
}

/// Where the j-th pair of a row stands in the order; -1: nowhere.
__device__ __forceinline__ int64_t slot_of(const Product& p, const int32_t* slots, int64_t row, int64_t j) {
  if (slots == nullptr) return row;
  const int64_t pair = row * p.per_row + j, slot = slots[pair];
  return slot >= 0 && slot < p.rows && p.order[slot] == pair ? slot : -1;
}

__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(const __grid_constant__ Product p, int64_t x_rows, const int32_t* slots,
                         unsigned char* all_codes, uint8_t* all_exponents, int64_t exponents_row) {
  pdl_wait();
  pdl_launch_dependents();
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= x_rows) return;
  const Bf16* const x = static_cast<const Bf16*>(p.x) + row * p.x_row;
  const int64_t copies = slots == nullptr ? 1 : p.per_row;
  for (int64_t k0 = 0; k0 < p.k; k0 += kAtOnce * 256) {
    uint4 v[kAtOnce];
    load_pieces(x, k0 + lane * 8, p.k, true, v);
    uint2 codes[kAtOnce];
    uint32_t exponents[kAtOnce / 2] = {};  // of four blocks each
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      uint32_t scale;
      codes[i] = quantize8(v[i], scale);
      scale >>= 23;
      const uint32_t two = __shfl_sync(kFullWarp, scale, 0) | __shfl_sync(kFullWarp, scale, 16) << 8;
      exponents[i / 2] |= two << i % 2 * 16;
    }
    for (int64_t j = 0; j < copies; ++j) {
      const int64_t to = slot_of(p, slots, row, j);
      if (to < 0) continue;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t k = k0 + i * 256 + lane * 8;
        if (k < p.k) *reinterpret_cast<uint2*>(all_codes + to * p.k + k) = codes[i];
      }
#pragma unroll
      for (int i = 0; i < kAtOnce / 2; ++i)
        if (lane == i && k0 + i * 512 < p.k)
          *reinterpret_cast<uint32_t*>(all_exponents + to * exponents_row + k0 / kSegment + i * 4) = exponents[i];
    }
  }
}

}  // namespace

cudaError_t launch_quantize_rows(const Product& p, void* out, cudaStream_t stream) {
  const E4m3Rows to{p.rows, p.k};
  const auto codes = static_cast<unsigned char*>(out);
  const auto blocks = [](int64_t count, int64_t of) { return dim3(static_cast<unsigned>(div_up(count, of))); };
  int32_t* slots = nullptr;
  int64_t x_rows = p.rows;
  if (p.order != nullptr) {
    slots = reinterpret_cast<int32_t*>(codes + to.slots_at());
    x_rows = p.x_rows;
    const cudaError_t error =
        launch_pdl(invert_order_kernel, blocks(p.rows, kThreads), dim3(kThreads), 0, stream, p, slots);
    if (error != cudaSuccess) return error;
  }
  return launch_pdl(quantize_rows_kernel, blocks(x_rows, kWarps), dim3(kThreads), 0, stream, p, x_rows, slots, codes,
                    codes + to.exponents_at(), to.exponents_row());
}

cudaError_t load_quantize_rows() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, invert_order_kernel);
  return error != cudaSuccess ? error : cudaFuncGetAttributes(&attributes, quantize_rows_kernel);
}

}  // namespace mla::cuda
