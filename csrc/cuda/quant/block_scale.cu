// block_scale.cu - e4m3 with one float32 scale per 128x128 block, both ways.
//
//   quantize    scale = max|x| / 448 over the finite elements of a block, at least 2^-126, 1 for a block of zeros;
//               with pow2 rounded up to a power of two; q = sat(x / scale). Infinities saturate, NaN stays NaN.
//   dequantize  out = round(q * scale); scales are f32, or f8e8m0 powers of two
//
// A block of 256 threads for each 128x128 block: a warp takes every eighth row, a lane 4 neighbouring columns. quantize
// reads its block twice, the second time from L2. Divisions and products are IEEE, so the bits are those of the CPU.
// Bandwidth-bound. Test: test/gpu/rows.test.ts.
#include "common/checked.h"
#include "cuda/device/pdl.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/launch.h"
#include "cuda/quant/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 4;  // of a lane
static_assert(32 * kColumns == kScaleBlock);

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[kColumns];
};

struct ScaleArgs {
  const void* from;  // [rows, columns]
  void* to;          // [rows, columns]
  void* scale;       // [ceil(rows / 128), ceil(columns / 128)]
  int64_t rows, columns;
  bool pow2;       // quantize
  bool exponents;  // dequantize: scales are f8e8m0
  bool vector;
};

/// The part of a 128x128 block that a lane handles: rows first_row, + kWarps, ... and kColumns columns.
struct Part {
  int64_t first_row, end_row, column;
};

__device__ __forceinline__ Part part_of(const ScaleArgs& a) {
  const int64_t across = (a.columns + kScaleBlock - 1) / kScaleBlock;
  const int64_t row0 = blockIdx.x / across * kScaleBlock;
  Part part;
  part.first_row = row0 + threadIdx.x / 32;
  part.end_row = row0 + kScaleBlock < a.rows ? row0 + kScaleBlock : a.rows;
  part.column = blockIdx.x % across * kScaleBlock + threadIdx.x % 32 * kColumns;
  return part;
}

template <class T>
__device__ __forceinline__ void load4(const T* row, int64_t at, int64_t n, bool vector, float (&v)[kColumns]) {
  if (vector && at + kColumns <= n) {
    const Four<T> raw = *reinterpret_cast<const Four<T>*>(row + at);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) v[i] = to_float(raw.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) v[i] = at + i < n ? to_float(row[at + i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void store4(T* row, int64_t at, int64_t n, bool vector, const float (&v)[kColumns]) {
  if (vector && at + kColumns <= n) {
    Four<T> raw;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) raw.v[i] = from_float<T>(v[i]);
    *reinterpret_cast<Four<T>*>(row + at) = raw;
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (at + i < n) row[at + i] = from_float<T>(v[i]);
  }
}

__device__ __forceinline__ float block_scale(float top, bool pow2) {
  if (top == 0) return 1.0f;
  const float scale = top / 448.0f;
  if (scale < 0x1p-126f) return 0x1p-126f;
  if (!pow2) return scale;
  return __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0xff800000u);
}

template <class T>
__global__ __launch_bounds__(kThreads) void quantize_kernel(ScaleArgs a) {
  __shared__ float s_top[kWarps];
  pdl_wait();
  pdl_launch_dependents();
  const Part part = part_of(a);
  const T* const x = static_cast<const T*>(a.from);
  float top = 0;
  for (int64_t row = part.first_row; row < part.end_row; row += kWarps) {
    float v[kColumns];
    load4(x + row * a.columns, part.column, a.columns, a.vector, v);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float size = fabsf(v[i]);
      if (size < INFINITY) top = fmaxf(top, size);
    }
  }
  top = block_max<kThreads>(top, s_top);
  const float scale = block_scale(top, a.pow2);
  if (threadIdx.x == 0) static_cast<float*>(a.scale)[blockIdx.x] = scale;
  for (int64_t row = part.first_row; row < part.end_row; row += kWarps) {
    float v[kColumns];
    load4(x + row * a.columns, part.column, a.columns, a.vector, v);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) v[i] = v[i] / scale;
    store4(static_cast<F8E4M3*>(a.to) + row * a.columns, part.column, a.columns, a.vector, v);
  }
}

__device__ __forceinline__ float exponent_scale(uint8_t bits) {
  if (bits == 255) return __uint_as_float(0x7fc00000u);
  return bits == 0 ? 0x1p-127f : __uint_as_float(static_cast<uint32_t>(bits) << 23);
}

template <class T>
__global__ __launch_bounds__(kThreads) void dequantize_kernel(ScaleArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const Part part = part_of(a);
  const float scale = a.exponents ? exponent_scale(static_cast<const uint8_t*>(a.scale)[blockIdx.x])
                                  : static_cast<const float*>(a.scale)[blockIdx.x];
  for (int64_t row = part.first_row; row < part.end_row; row += kWarps) {
    float v[kColumns];
    load4(static_cast<const F8E4M3*>(a.from) + row * a.columns, part.column, a.columns, a.vector, v);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) v[i] *= scale;
    store4(static_cast<T*>(a.to) + row * a.columns, part.column, a.columns, a.vector, v);
  }
}

ScaleArgs scale_args(const View& from, const View& to, const View& scale) {
  ScaleArgs args{};
  args.from = from.data;
  args.to = to.data;
  args.scale = scale.data;
  args.rows = from.dim(0);
  args.columns = from.dim(1);
  args.vector = args.columns % kColumns == 0 && aligned16(from.data) && aligned16(to.data);
  return args;
}

dim3 grid_of(const ScaleArgs& args) {
  return dim3(static_cast<unsigned>(ceil_div(args.rows, kScaleBlock) * ceil_div(args.columns, kScaleBlock)));
}

}  // namespace

Status quantize(const QuantizeParams& p, const Launch& launch) noexcept {
  ScaleArgs args = scale_args(p.x, p.q, p.scale);
  args.pow2 = p.pow2;
  if (args.rows == 0 || args.columns == 0) return Status::Ok();
  auto* const kernel = p.x.dtype == DType::kBF16 ? quantize_kernel<Bf16> : quantize_kernel<float>;
  return cuda_status(launch_pdl(kernel, grid_of(args), dim3(kThreads), 0, launch.stream, args), "quantize_kernel");
}

Status dequantize(const DequantizeParams& p, const Launch& launch) noexcept {
  ScaleArgs args = scale_args(p.q, p.out, p.scale);
  args.exponents = p.scale.dtype == DType::kF8E8M0;
  if (args.rows == 0 || args.columns == 0) return Status::Ok();
  auto* const kernel = p.out.dtype == DType::kBF16 ? dequantize_kernel<Bf16> : dequantize_kernel<float>;
  return cuda_status(launch_pdl(kernel, grid_of(args), dim3(kThreads), 0, launch.stream, args), "dequantize_kernel");
}

Status load_block_scale_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(quantize_kernel<Bf16>, "quantize_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(quantize_kernel<float>, "quantize_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(dequantize_kernel<Bf16>, "dequantize_kernel"));
  return load_kernel(dequantize_kernel<float>, "dequantize_kernel");
}

}  // namespace mla::cuda
