// fill_random.cu - normal random numbers for weights of named shapes, the same bits as on the CPU (common/philox.h).
//
//   out[i] = round(mean + stddev * z_i), z_i from Philox4x32-10 with key seed and counter i
//
// A thread for 8 neighbouring elements, blocks of 256. Bound by arithmetic: about 150 instructions an element.
// Positions in 64 bits, up to 2^42 elements. Test: test/gpu/rows.test.ts.
#include "common/checked.h"
#include "common/philox.h"
#include "cuda/device/pdl.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/launch.h"
#include "cuda/quant/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ __launch_bounds__(kThreads) void fill_random_kernel(T* out, int64_t n, uint64_t seed, float mean,
                                                               float stddev, bool vector) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kChunk;
  if (at >= n) return;
  float v[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const uint64_t counter = static_cast<uint64_t>(at) + static_cast<uint64_t>(i);
    const PhiloxWords words =
        philox4x32_10(seed, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0);
    v[i] = fmaf(stddev, philox_normal(words.w[0], words.w[1]), mean);
  }
  store_chunk(out, at, n, vector, v);
}

template <class T>
Status fill(const FillRandomParams& p, const Launch& launch) {
  const int64_t n = p.out.numel();
  const dim3 grid(static_cast<unsigned>(ceil_div(n, kThreads * kChunk)));
  return cuda_status(launch_pdl(fill_random_kernel<T>, grid, dim3(kThreads), 0, launch.stream, p.out.as<T>(), n,
                                static_cast<uint64_t>(p.seed), p.mean, p.stddev, aligned16(p.out.data)),
                     "fill_random_kernel");
}

}  // namespace

Status fillRandom(const FillRandomParams& p, const Launch& launch) noexcept {
  if (p.out.numel() == 0) return Status::Ok();
  return p.out.dtype == DType::kBF16 ? fill<Bf16>(p, launch) : fill<float>(p, launch);
}

Status load_fill_random_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(fill_random_kernel<Bf16>, "fill_random_kernel"));
  return load_kernel(fill_random_kernel<float>, "fill_random_kernel");
}

}  // namespace mla::cuda
