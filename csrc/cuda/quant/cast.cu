// cast.cu - elementwise conversion between f32, bf16 and f16, round to nearest even.
//
// A thread for 8 neighbouring elements, blocks of 256; 16-byte accesses where both tensors are aligned to that.
// Bandwidth-bound; positions in 64 bits, up to 2^42 elements. f16 beyond 65504 is infinite, subnormals are kept, NaN
// stays NaN. Test: test/gpu/rows.test.ts.
#include "common/checked.h"
#include "cuda/device/pdl.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/launch.h"
#include "cuda/quant/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

struct CastArgs {
  const void* x;
  void* out;
  int64_t n;
  bool vector;
};

template <class From, class To>
__global__ __launch_bounds__(kThreads) void cast_kernel(CastArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kChunk;
  if (at >= a.n) return;
  float v[kChunk];
  load_chunk(static_cast<const From*>(a.x), at, a.n, a.vector, v);
  store_chunk(static_cast<To*>(a.out), at, a.n, a.vector, v);
}

using Kernel = void (*)(CastArgs);

template <class From>
Kernel kernel_to(DType to) {
  if (to == DType::kF16) return cast_kernel<From, F16>;
  return to == DType::kBF16 ? cast_kernel<From, Bf16> : cast_kernel<From, float>;
}

Kernel kernel_of(DType from, DType to) {
  if (from == DType::kF16) return kernel_to<F16>(to);
  return from == DType::kBF16 ? kernel_to<Bf16>(to) : kernel_to<float>(to);
}

}  // namespace

Status cast(const CastParams& p, const Launch& launch) noexcept {
  CastArgs args;
  args.x = p.x.data;
  args.out = p.out.data;
  args.n = p.x.numel();
  args.vector = aligned16(args.x) && aligned16(args.out);
  if (args.n == 0) return Status::Ok();
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n, kThreads * kChunk)));
  return cuda_status(launch_pdl(kernel_of(p.x.dtype, p.out.dtype), grid, dim3(kThreads), 0, launch.stream, args),
                     "cast_kernel");
}

Status load_cast_kernels() {
  for (const DType from : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
      MLA_RETURN_IF_ERROR(load_kernel(kernel_of(from, to), "cast_kernel"));
    }
  }
  return Status::Ok();
}

}  // namespace mla::cuda
