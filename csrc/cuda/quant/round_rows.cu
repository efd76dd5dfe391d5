// round_rows.cu - rows as fp8 activations: out = q * 2^e, q an e4m3 and 2^e the scale of a row's 128 columns
// (row_scale_bits() of ops/fp8_row.h), in the type of x, where that is exact.
//
// 16 threads for each 128 columns, 8 columns a thread; blocks of 256. Exponents and comparisons of bits, one product
// before the rounding and one after, both exact but for what is rounded to: the bits are those of the CPU. x is read
// once and out written once; they may be the same memory. Bandwidth-bound. Test: test/gpu/matrix.test.ts.
#include "cuda/quant/round_rows.h"

#include <algorithm>

#include "common/checked.h"
#include "cuda/device/fp8_chunk.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/gemm/product_e4m3.h"
#include "cuda/quant/kernels.h"
#include "cuda/quant/quantize_rows.h"
#include "ops/fp8_row.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadsPerScale = kRowScaleChannels / kChunk;

struct RoundArgs {
  const void* x;  // [rows, k], rows x_row elements apart
  void* out;      // [rows, k]
  int64_t rows, k, x_row;
  bool vector;
};

template <class Act>
__global__ __launch_bounds__(kThreads) void round_rows_kernel(RoundArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t scales = (a.k + kRowScaleChannels - 1) / kRowScaleChannels;
  const int64_t scale_index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kThreadsPerScale;
  const int64_t row = scale_index / scales;
  const bool exists = row < a.rows;
  const int64_t at = scale_index % scales * kRowScaleChannels + threadIdx.x % kThreadsPerScale * kChunk;
  float v[kChunk] = {};
  if (exists) load_chunk(static_cast<const Act*>(a.x) + row * a.x_row, at, a.k, a.vector, v);
  round_fp8_chunk(kFullWarp, v);
  if (exists) store_chunk(static_cast<Act*>(a.out) + row * a.k, at, a.k, a.vector, v);
}

auto* kernel_of(DType act) { return act == DType::kBF16 ? round_rows_kernel<Bf16> : round_rows_kernel<float>; }

/// Rows of x, which the rows of y name by their order or are.
int64_t operand_rows(const Product& p) { return p.order == nullptr ? p.rows : p.x_rows; }

/// Rows as e4m3 at `to`, in the order of y's.
Status quantize(Product* p, void* to, const Launch& launch) {
  const E4m3Rows rows{p->rows, p->k};
  MLA_RETURN_IF_ERROR(cuda_status(launch_quantize_rows(*p, to, launch.stream), "quantize_rows_kernel"));
  p->x = to;
  p->x_dtype = DType::kF8E4M3;
  p->x_row = p->k;
  p->x_exponents = static_cast<const uint8_t*>(to) + rows.exponents_at();
  p->x_exponents_row = rows.exponents_row();
  p->order = nullptr;
  p->fp8_x = false;
  return Status::Ok();
}

}  // namespace

int64_t rounded_rows_bytes(const Product& p, const Traits& traits) {
  if (!p.fp8_x) return 0;
  const int64_t plain = operand_rows(p) * p.k * dtype_bytes(p.x_dtype);
  return round_up(multiplies_with_e4m3(p, traits) ? std::max(plain, E4m3Rows{p.rows, p.k}.bytes()) : plain, 256);
}

Status round_rows(Product* p, void* to, const Launch& launch) {
  if (!p->fp8_x) return Status::Ok();
  if (multiplies_with_e4m3(*p, *launch.traits)) return quantize(p, to, launch);
  RoundArgs args;
  args.x = p->x;
  args.out = to;
  args.rows = operand_rows(*p);
  args.k = p->k;
  args.x_row = p->x_row;
  args.vector = p->k % kChunk == 0 && p->x_row % kChunk == 0 && aligned16(p->x) && aligned16(to);
  p->x = to;
  p->x_row = p->k;
  p->fp8_x = false;
  const int64_t threads = args.rows * ceil_div(args.k, int64_t{kRowScaleChannels}) * kThreadsPerScale;
  if (threads == 0) return Status::Ok();
  const dim3 grid(static_cast<unsigned>(ceil_div(threads, int64_t{kThreads})));
  return cuda_status(launch_pdl(kernel_of(p->x_dtype), grid, dim3(kThreads), 0, launch.stream, args),
                     "round_rows_kernel");
}

Status load_round_rows_kernels() {
  MLA_RETURN_IF_ERROR(cuda_status(load_quantize_rows(), "quantize_rows_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(kernel_of(DType::kBF16), "round_rows_kernel"));
  return load_kernel(kernel_of(DType::kF32), "round_rows_kernel");
}

}  // namespace mla::cuda
