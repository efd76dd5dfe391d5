// norm_rows.cu - RMS norm of rows, alone and behind a residual addition.
//
//   x = round(x + delta), where delta is given;  out = round(x * rsqrt(mean(x^2) + eps) * weight)
//
// Grid T, block min(512, d / 8) threads, 128 bytes of shared memory. Sums in float32, in an order that depends on d
// alone; each output is rounded once. Accesses of 16 bytes, or of single elements where rows are not aligned to that.
// Bandwidth-bound: x is read once (d <= 8192) and out written once. Limit: T < 2^31. Test: test/gpu/rows.test.ts.
#include "cuda/norm/norm.h"

#include "cuda/device/pdl.cuh"
#include "cuda/norm/norm_row.cuh"

namespace mla::cuda {
namespace {

struct NormArgs {
  void* x;                   // [T, d]; written if delta is given
  const void* delta;         // [T, d], may be null
  const void* weight;        // [d]
  const int32_t* positions;  // [T], may be null
  void* out;                 // [T, d]
  int64_t d;
  float eps;
  bool weight_bf16;
  bool vector;
};

template <class Act>
__global__ __launch_bounds__(kNormMaxThreads) void norm_rows_kernel(NormArgs a) {
  __shared__ float s_sums[32];
  pdl_wait();
  pdl_launch_dependents();
  const int64_t row = blockIdx.x;
  Act* const x = static_cast<Act*>(a.x) + row * a.d;
  Act* const out = static_cast<Act*>(a.out) + row * a.d;
  if (a.positions != nullptr && a.positions[row] < 0) {
    const float zeros[kChunk] = {};
    for (int64_t at = int64_t{threadIdx.x} * kChunk; at < a.d; at += int64_t{blockDim.x} * kChunk) {
      store_chunk(out, at, a.d, a.vector, zeros);
    }
    return;
  }
  const Act* const delta = a.delta == nullptr ? nullptr : static_cast<const Act*>(a.delta) + row * a.d;
  norm_row(
      a.d, a.eps, s_sums,
      [&](int64_t at, float(&v)[kChunk], bool again) {
        load_chunk(x, at, a.d, a.vector, v);
        if (delta == nullptr || again) return;
        float more[kChunk];
        load_chunk(delta, at, a.d, a.vector, more);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] = to_float(from_float<Act>(v[i] + more[i]));
        store_chunk(x, at, a.d, a.vector, v);
      },
      [&](int64_t at, float(&v)[kChunk]) { load_weight_chunk(a.weight, a.weight_bf16, at, a.d, a.vector, v); },
      [&](int64_t at, const float(&v)[kChunk]) { store_chunk(out, at, a.d, a.vector, v); });
}

}  // namespace

Status launch_norm_rows(const NormRows& p, const Launch& launch) {
  const int64_t rows = p.x.dim(0), d = p.x.dim(1);
  if (rows == 0 || d == 0) return Status::Ok();
  NormArgs args;
  args.x = p.x.data;
  args.delta = p.delta.present() ? p.delta.data : nullptr;
  args.weight = p.weight.data;
  args.positions = p.positions.present() ? p.positions.as<const int32_t>() : nullptr;
  args.out = p.out.data;
  args.d = d;
  args.eps = p.eps;
  args.weight_bf16 = p.weight.dtype == DType::kBF16;
  args.vector =
      d % kChunk == 0 && aligned16(args.x) && aligned16(args.delta) && aligned16(args.weight) && aligned16(args.out);
  auto* const kernel = p.x.dtype == DType::kBF16 ? norm_rows_kernel<Bf16> : norm_rows_kernel<float>;
  return cuda_status(
      launch_pdl(kernel, dim3(static_cast<unsigned>(rows)), dim3(norm_threads(d)), 0, launch.stream, args),
      "norm_rows_kernel");
}

Status rmsNorm(const RmsNormParams& p, const Launch& launch) noexcept {
  NormRows norm;
  norm.x = p.x;
  norm.weight = p.weight;
  norm.out = p.out;
  norm.eps = p.eps;
  return launch_norm_rows(norm, launch);
}

Status addRmsNorm(const AddRmsNormParams& p, const Launch& launch) noexcept {
  NormRows norm;
  norm.x = p.x;
  norm.delta = p.delta;
  norm.weight = p.weight;
  norm.out = p.out;
  norm.eps = p.eps;
  return launch_norm_rows(norm, launch);
}

Status load_norm_kernels(const Traits& traits) {
  (void)traits;
  MLA_RETURN_IF_ERROR(load_kernel(norm_rows_kernel<Bf16>, "norm_rows_kernel"));
  return load_kernel(norm_rows_kernel<float>, "norm_rows_kernel");
}

}  // namespace mla::cuda
