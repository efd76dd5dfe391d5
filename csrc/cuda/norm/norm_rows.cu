// norm_rows.cu - RMS norm of rows, alone and behind a residual addition.
//
//   x = round(x + delta), where delta is given;  out = round(x * rsqrt(mean(x^2) + eps) * weight)
//
// Grid T, block min(512, d / 8) threads or half as many, 128 bytes of shared memory. Sums in float32, in an order that
// depends on d alone; each output is rounded once. Accesses of 16 bytes (norm_wide_kernel, d <= 8192), or of single
// elements where rows are not aligned to that; the same bits. Bandwidth-bound: x is read once (d <= 8192) and out
// written once. Limit: T < 2^31. Test: test/gpu/rows.test.ts.
#include "cuda/norm/norm.h"

#include <type_traits>

#include "cuda/device/pdl.cuh"
#include "cuda/norm/norm_row.cuh"

namespace mla::cuda {
namespace {

/// Threads of the order of sums that one thread of norm_wide_kernel stands for. H200, 2026-11, 4096 rows of 7168 and
/// 2048 channels: 32.3 and 11.6 us by 1, 29.9 and 11.5 by 2. With a delta 2 are slower: 2.3 and 1.7 us for 64 rows.
constexpr int stands_for(bool bf16) { return bf16 ? 2 : 1; }

struct NormArgs {
  void* x;                   // [T, d]; written if delta is given
  const void* delta;         // [T, d], may be null
  const void* weight;        // [d]
  const int32_t* positions;  // [T], may be null
  void* out;                 // [T, d]
  int64_t d;
  float eps;
  int threads;  // of the order of sums
  bool weight_bf16;
  bool vector;
  bool settled;  // the weight may be read before pdl_wait()
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

/// All loads of a thread, at most two chunks for each of the kFor threads of the order of sums that it stands for, are
/// under way at once: the branches of the kernel above make each wait for the one before. Blocks: as have the
/// registers.
template <class Act, class Weight, int kFor = stands_for(sizeof(Act) == 2)>
__global__ __launch_bounds__(kNormMaxThreads / kFor, kFor == 1             ? 2
                                                     : sizeof(Weight) == 2 ? 4
                                                                           : 3) void norm_wide_kernel(NormArgs a) {
  constexpr int kHeld = 2 * kFor, kMostWarps = kNormMaxThreads / 32;
  __shared__ __align__(16) float s_sums[kMostWarps];
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, d = static_cast<int>(a.d);
  const auto place = [&](int h) {
    const int thread = static_cast<int>(threadIdx.x + h % kFor * blockDim.x);
    return thread < a.threads ? (thread + h / kFor * a.threads) * kChunk : d;
  };
  Act* const x = static_cast<Act*>(a.x) + row * d;
  Eight<Act> held[kHeld];
  Eight<Weight> weight[kHeld];
  const auto load = [&](const Act* from, auto& to) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
      to[h] = place(h) < d ? *reinterpret_cast<const Eight<Act>*>(from + place(h)) : Eight<Act>{};
  };
  if (!a.settled) pdl_wait();
#pragma unroll
  for (int h = 0; h < kHeld; ++h)  // the first one where there is none
    weight[h] =
        *reinterpret_cast<const Eight<Weight>*>(static_cast<const Weight*>(a.weight) + (place(h) < d ? place(h) : 0));
  pdl_wait();
  pdl_launch_dependents();
  const bool padding = a.positions != nullptr && a.positions[row] < 0;
  load(x, held);
  float sums[kFor] = {};
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {  // zeros where there is none
    float v[kChunk];
    unpack(held[h], v);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sums[h % kFor] = fmaf(v[i], v[i], sums[h % kFor]);
  }
#pragma unroll
  for (int t = 0; t < kFor; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane == 0) s_sums[t * warps + warp] = sum;
  }
  __syncthreads();
  float sum = s_sums[0];
#pragma unroll
  for (int i = 1; i < kMostWarps; ++i) sum += i < kFor * warps ? s_sums[i] : 0.0f;
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(d) + a.eps);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (place(h) >= d) continue;
    float v[kChunk], w[kChunk];
    unpack(held[h], v);
    unpack(weight[h], w);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = padding ? 0.0f : v[i] * factor * w[i];
    *reinterpret_cast<Eight<Act>*>(static_cast<Act*>(a.out) + row * d + place(h)) = packed<Act>(v);
  }
}

/// The same behind a residual addition.
template <class Act, class Weight>
__global__ __launch_bounds__(kNormMaxThreads, 2) void add_norm_wide_kernel(NormArgs a) {
  __shared__ float s_sums[32];
  const int64_t row = blockIdx.x, first = int64_t{threadIdx.x} * kChunk, second = first + int64_t{blockDim.x} * kChunk;
  const int64_t at[2] = {first < a.d ? first : 0, second < a.d ? second : 0};
  const bool exists[2] = {first < a.d, second < a.d};
  Act* const x = static_cast<Act*>(a.x) + row * a.d;
  Eight<Act> held[2], delta[2];
  Eight<Weight> weight[2];
  const auto load = [&](const auto* from, auto(&to)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
      to[h] = *reinterpret_cast<const std::remove_reference_t<decltype(to[h])>*>(from + at[h]);
  };
  if (!a.settled) pdl_wait();
  load(static_cast<const Weight*>(a.weight), weight);
  pdl_wait();
  pdl_launch_dependents();
  const bool padding = a.positions != nullptr && a.positions[row] < 0;
  load(x, held);
  load(static_cast<const Act*>(a.delta) + row * a.d, delta);
  float sum = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!exists[h]) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) held[h].v[i] = from_float<Act>(to_float(held[h].v[i]) + to_float(delta[h].v[i]));
    if (!padding) *reinterpret_cast<Eight<Act>*>(x + at[h]) = held[h];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(held[h].v[i]), to_float(held[h].v[i]), sum);
  }
  sum = block_sum_of(sum, s_sums);
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(a.d) + a.eps);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!exists[h]) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      held[h].v[i] = from_float<Act>(padding ? 0.0f : to_float(held[h].v[i]) * factor * to_float(weight[h].v[i]));
    *reinterpret_cast<Eight<Act>*>(static_cast<Act*>(a.out) + row * a.d + at[h]) = held[h];
  }
}

using NormKernel = void (*)(NormArgs);

template <class Act, class Weight>
NormKernel wide_kernel_of(bool delta) {
  return delta ? add_norm_wide_kernel<Act, Weight> : norm_wide_kernel<Act, Weight>;
}

template <class Act>
NormKernel kernel_of(bool wide, bool weight_bf16, bool delta) {
  if (!wide) return norm_rows_kernel<Act>;
  return weight_bf16 ? wide_kernel_of<Act, Bf16>(delta) : wide_kernel_of<Act, float>(delta);
}

NormKernel kernel_of(DType act, bool wide, bool weight_bf16, bool delta) {
  return act == DType::kBF16 ? kernel_of<Bf16>(wide, weight_bf16, delta) : kernel_of<float>(wide, weight_bf16, delta);
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
  args.threads = norm_threads(d);
  args.eps = p.eps;
  args.weight_bf16 = p.weight.dtype == DType::kBF16;
  args.vector =
      d % kChunk == 0 && aligned16(args.x) && aligned16(args.delta) && aligned16(args.weight) && aligned16(args.out);
  args.settled = launch.settled(p.weight);
  const bool wide = args.vector && d <= 2 * kChunk * args.threads;
  const auto kernel = kernel_of(p.x.dtype, wide, args.weight_bf16, args.delta != nullptr);
  const int of = wide && args.delta == nullptr ? stands_for(p.x.dtype == DType::kBF16) : 1;
  const int threads = div_up(args.threads, 32 * of) * 32;
  return cuda_status(launch_pdl(kernel, dim3(static_cast<unsigned>(rows)), dim3(threads), 0, launch.stream, args),
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
  for (const DType act : {DType::kBF16, DType::kF32}) {
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of(act, false, false, false), "norm_rows_kernel"));
    for (const bool weight_bf16 : {false, true}) {
      for (const bool delta : {false, true})
        MLA_RETURN_IF_ERROR(load_kernel(kernel_of(act, true, weight_bf16, delta), "norm_rows_kernel"));
    }
  }
  return Status::Ok();
}

}  // namespace mla::cuda
