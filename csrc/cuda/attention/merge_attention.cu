// merge_attention.cu - merges two partial attentions over disjoint keys by their log-sum-exp.
//
//   lse = log(e^lse_a + e^lse_b);  out = a * e^(lse_a - lse) + b * e^(lse_b - lse), in float32, rounded once
//
// Grid: a warp per (token, head), 8 a block; a lane takes 4 neighbouring channels, 16 bytes of float32 (elements one by
// one where v is no multiple of 4). A warp owns its pair, so that out and lse may be a and lse_a. A side without keys
// (lse = -inf) is not read: it may hold anything. Bandwidth-bound. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/kernels.h"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;

struct MergeArgs {
  const void* a;       // [T, H * v]
  const float* lse_a;  // [T, H]
  const void* b;
  const float* lse_b;
  void* out;
  float* lse;
  int64_t pairs;  // T * H
  int v;
  bool a_bf16, b_bf16, out_bf16;
  bool vector;  // four channels at a time
};

__device__ __forceinline__ float4 load_channels(const void* from, bool bf16, int64_t at, bool vector) {
  if (bf16) {
    const Bf16* p = static_cast<const Bf16*>(from) + at;
    if (!vector) return make_float4(to_float(*p), 0, 0, 0);
    const uint2 raw = *reinterpret_cast<const uint2*>(p);
    return make_float4(bf16_low(raw.x), bf16_high(raw.x), bf16_low(raw.y), bf16_high(raw.y));
  }
  const float* p = static_cast<const float*>(from) + at;
  return vector ? *reinterpret_cast<const float4*>(p) : make_float4(*p, 0, 0, 0);
}

__device__ __forceinline__ void store_channels(void* to, bool bf16, int64_t at, float4 x, bool vector) {
  if (bf16) {
    Bf16* p = static_cast<Bf16*>(to) + at;
    if (vector) {
      *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    } else {
      *p = from_float<Bf16>(x.x);
    }
    return;
  }
  float* p = static_cast<float*>(to) + at;
  if (vector) {
    *reinterpret_cast<float4*>(p) = x;
  } else {
    *p = x.x;
  }
}

__global__ __launch_bounds__(32 * kWarps) void merge_attention_kernel(MergeArgs m) {
  pdl_wait();
  pdl_launch_dependents();
  const int lane = threadIdx.x % 32;
  const int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (pair >= m.pairs) return;
  const float lse_a = m.lse_a[pair], lse_b = m.lse_b[pair];
  const bool has_a = lse_a != -INFINITY, has_b = lse_b != -INFINITY;
  float weight_a = has_a ? 1 : 0, weight_b = has_b ? 1 : 0, lse = has_a ? lse_a : lse_b;
  if (has_a && has_b) {
    const float largest = fmaxf(lse_a, lse_b);
    const float ea = expf(lse_a - largest), eb = expf(lse_b - largest), sum = ea + eb;
    weight_a = ea / sum;
    weight_b = eb / sum;
    lse = largest + logf(sum);
  }
  const int step = m.vector ? 4 : 1;
  for (int i = lane * step; i < m.v; i += 32 * step) {
    const int64_t at = pair * m.v + i;
    float4 x = make_float4(0, 0, 0, 0), y = x;
    if (has_a) x = load_channels(m.a, m.a_bf16, at, m.vector);
    if (has_b) y = load_channels(m.b, m.b_bf16, at, m.vector);
    x.x = fmaf(x.x, weight_a, y.x * weight_b);
    x.y = fmaf(x.y, weight_a, y.y * weight_b);
    x.z = fmaf(x.z, weight_a, y.z * weight_b);
    x.w = fmaf(x.w, weight_a, y.w * weight_b);
    store_channels(m.out, m.out_bf16, at, x, m.vector);
  }
  __syncwarp();  // all lanes have read lse_a, which may be lse
  if (lane == 0) m.lse[pair] = lse;
}

}  // namespace

Status mergeAttention(const MergeAttentionParams& p, const Launch& launch) noexcept {
  MergeArgs args;
  args.pairs = p.lse.numel();
  if (args.pairs == 0) return Status::Ok();
  args.a = p.a.data;
  args.lse_a = p.lse_a.as<float>();
  args.b = p.b.data;
  args.lse_b = p.lse_b.as<float>();
  args.out = p.out.data;
  args.lse = p.lse.as<float>();
  args.v = static_cast<int>(p.out.numel() / args.pairs);
  args.a_bf16 = p.a.dtype == DType::kBF16;
  args.b_bf16 = p.b.dtype == DType::kBF16;
  args.out_bf16 = p.out.dtype == DType::kBF16;
  args.vector = args.v % 4 == 0 && aligned16(args.a) && aligned16(args.b) && aligned16(args.out);
  const dim3 grid(static_cast<unsigned>(div_up<int64_t>(args.pairs, kWarps)));
  return cuda_status(launch_pdl(merge_attention_kernel, grid, dim3(32 * kWarps), 0, launch.stream, args),
                     "merge_attention_kernel");
}

Status load_merge_attention_kernels() { return load_kernel(merge_attention_kernel, "merge_attention_kernel"); }

}  // namespace mla::cuda
