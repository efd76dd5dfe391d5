// rope.cu - rotates the last r channels of each head by pairs, in place.
//
//   (x0, x1) -> (x0 * cos - x1 * sin, x0 * sin + x1 * cos), angle (positions[t], pair), in float32, rounded once
//
// Grid: a thread per 8 channels of a head (4 pairs, 16 bytes of bf16), or per pair where r or the head's width is no
// multiple of 8. Bandwidth-bound: reads and writes the rotated channels once, the angles mostly from cache. Rows whose
// position is outside of the table stay as they are. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/launch.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeArgs {
  void* q;                   // [T, H, width]
  const int32_t* positions;  // [T]
  const float* cos_sin;      // [table, r/2, 2]
  int64_t units;             // T * H * r / kChannels
  int heads;
  int width;
  int r;
  int table;
};

__device__ __forceinline__ void rotate(float& x0, float& x1, float cos, float sin) {
  const float a = x0, b = x1;
  x0 = a * cos - b * sin;
  x1 = a * sin + b * cos;
}

template <int kChannels, class Act>
__global__ __launch_bounds__(kThreads) void rope_kernel(RopeArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (unit >= a.units) return;
  const int per_head = a.r / kChannels;
  const int64_t head = unit / per_head;
  const int channel = static_cast<int>(unit - head * per_head) * kChannels;
  const int position = a.positions[head / a.heads];
  if (position < 0 || position >= a.table) return;
  Act* x = static_cast<Act*>(a.q) + head * a.width + a.width - a.r + channel;
  const float* angles = a.cos_sin + int64_t{position} * a.r + channel;
  if constexpr (kChannels == 8) {
    float v[8], w[8];
    load8(x, v);
    load8(angles, w);
#pragma unroll
    for (int i = 0; i < 8; i += 2) rotate(v[i], v[i + 1], w[i], w[i + 1]);
    store8(x, v);
  } else {
    float x0 = to_float(x[0]), x1 = to_float(x[1]);
    rotate(x0, x1, angles[0], angles[1]);
    x[0] = from_float<Act>(x0);
    x[1] = from_float<Act>(x1);
  }
}

template <int kChannels, class Act>
Status launch_one(RopeArgs args, const Launch& launch) {
  args.units = args.units * args.r / kChannels;
  const dim3 grid(static_cast<unsigned>(div_up<int64_t>(args.units, kThreads)));
  return cuda_status(launch_pdl(rope_kernel<kChannels, Act>, grid, dim3(kThreads), 0, launch.stream, args),
                     "rope_kernel");
}

}  // namespace

Status rope(const RopeParams& p, const Launch& launch) noexcept {
  RopeArgs args;
  args.q = p.q.data;
  args.positions = p.positions.as<int32_t>();
  args.cos_sin = p.cos_sin.as<float>();
  args.units = p.q.dim(0) * p.q.dim(1);
  args.heads = static_cast<int>(p.q.dim(1));
  args.width = static_cast<int>(p.q.dim(2));
  args.table = static_cast<int>(p.cos_sin.dim(0));
  args.r = static_cast<int>(p.cos_sin.dim(1) * 2);
  if (args.units == 0 || args.r == 0) return Status::Ok();
  const bool vector = args.r % 8 == 0 && args.width % 8 == 0 && aligned16(args.q) && aligned16(args.cos_sin);
  if (p.q.dtype == DType::kBF16) return vector ? launch_one<8, Bf16>(args, launch) : launch_one<2, Bf16>(args, launch);
  return vector ? launch_one<8, float>(args, launch) : launch_one<2, float>(args, launch);
}

Status load_rope_kernels(const Traits&) {
  MLA_RETURN_IF_ERROR((load_kernel(rope_kernel<8, Bf16>, "rope_kernel")));
  MLA_RETURN_IF_ERROR((load_kernel(rope_kernel<2, Bf16>, "rope_kernel")));
  MLA_RETURN_IF_ERROR((load_kernel(rope_kernel<8, float>, "rope_kernel")));
  return load_kernel(rope_kernel<2, float>, "rope_kernel");
}

}  // namespace mla::cuda
