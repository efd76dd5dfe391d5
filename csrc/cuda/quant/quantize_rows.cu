// quantize_rows.cu - rows of bf16 as e4m3: codes = x / 2^e rounded to nearest even, 2^e the smallest power of two that
// brings the largest of 128 neighbours to 448 or below (row_scale_bits; docs/numerics.md). A block with a number that
// is not finite is codes of NaN.
//
// A warp has a row, a lane 8 of each 256 k, so 16 lanes share an exponent. Rows in the order of the experts: block b
// has part b / groups of the rows of group b % groups, as in gather_pairs.cu, so that x comes from L2 but for the first
// time; rows past the last expert's end are not written, a pair that does not exist gives zeros. Bandwidth-bound.
// Test: test/gpu/matrix-experts.test.ts.
#include "cuda/quant/quantize_rows.h"

#include "cuda/device/fp8_chunk.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/product_device.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;

/// 8 elements of a block of 128, which 16 neighbouring lanes hold, as codes; and the scale's bits.
__device__ __forceinline__ uint2 quantize8(uint4 v, uint32_t& scale) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  uint32_t largest = 0;  // magnitudes of two bf16 as integers: their order is that of the numbers
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = __vmaxu2(largest, words[i] & 0x7fff7fff);
#pragma unroll
  for (int lanes = 1; lanes < 16; lanes *= 2) largest = __vmaxu2(largest, __shfl_xor_sync(kFullWarp, largest, lanes));
  scale = row_scale_bits(max(largest >> 16, largest & 0xffff) << 16);
  const float by = __uint_as_float(row_inverse_bits(scale));
  uint32_t codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = pack_e4m3(bf16_low(words[i]) * by, bf16_high(words[i]) * by);
  if (scale == kRowNoScale) return make_uint2(0x7f7f7f7f, 0x7f7f7f7f);
  return make_uint2(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

__global__ void __launch_bounds__(32 * kWarps)
    quantize_rows_kernel(const __grid_constant__ Product p, int64_t rows, int parts, unsigned char* codes,
                         uint8_t* all_exponents, int64_t exponents_row) {
  pdl_wait();
  pdl_launch_dependents();
  const int lane = threadIdx.x % 32;
  int64_t begin, end;
  if (parts == 0) {
    begin = int64_t{blockIdx.x} * kWarps;
    end = min(begin + kWarps, rows);
  } else {
    const int groups = static_cast<int>(p.groups), part = blockIdx.x / groups;
    const GroupRows group(p, blockIdx.x % groups);
    const int64_t count = group.end - group.begin;
    begin = group.begin + count * part / parts;
    end = group.begin + count * (part + 1) / parts;
  }
  for (int64_t row = begin + threadIdx.x / 32; row < end; row += kWarps) {
    const int64_t from = parts == 0 ? row : operand_row(p, row);
    const Bf16* const x = static_cast<const Bf16*>(p.x) + from * p.x_row;
    unsigned char* const to = codes + row * p.k;
    uint8_t* const exponents = all_exponents + row * exponents_row;
    constexpr int kAtOnce = 8;
    for (int64_t k0 = lane * 8; k0 < div_up<int64_t>(p.k, 256) * 256; k0 += kAtOnce * 256) {
      uint4 v[kAtOnce];
      load_pieces(x, k0, p.k, from >= 0, v);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t k = k0 + i * 256;
        if (k - lane * 8 >= p.k) break;
        uint32_t scale;
        const uint2 eight = quantize8(v[i], scale);
        if (k >= p.k) continue;
        *reinterpret_cast<uint2*>(to + k) = eight;
        if (lane % 16 == 0) exponents[k / kSegment] = static_cast<uint8_t>(scale >> 23);
      }
    }
  }
}

}  // namespace

cudaError_t launch_quantize_rows(const Product& p, int64_t rows, bool ordered, void* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const int64_t parts = ordered ? div_up<int64_t>(div_up(rows, p.groups), kWarps) : 0;
  const E4m3Rows to{rows, p.k};
  const auto codes = static_cast<unsigned char*>(out);
  const int64_t blocks = ordered ? parts * p.groups : div_up<int64_t>(rows, kWarps);
  return launch_pdl(quantize_rows_kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), 0, stream, p, rows,
                    static_cast<int>(parts), codes, codes + to.exponents_at(), to.exponents_row());
}

cudaError_t load_quantize_rows() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, quantize_rows_kernel);
}

}  // namespace mla::cuda
