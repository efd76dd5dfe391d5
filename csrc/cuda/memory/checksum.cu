// checksum.cu - sums of 32-bit words: whether memory holds what it should, and how fast it can be read.
//
//   sums[i] = sum of the words of part i of x, modulo 2^64
//
// Grid (parts), block 1024: integer sums do not depend on their order. 16-byte loads, eight in flight per thread; reads
// each byte once. Bandwidth-bound. Test: test/gpu/rows.test.ts.
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/launch.h"
#include "cuda/memory/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kInFlight = 8;

__device__ __forceinline__ uint64_t words_of(uint4 v) { return uint64_t{v.x} + v.y + v.z + v.w; }

__global__ __launch_bounds__(kThreads) void checksum_kernel(const uint32_t* x, int64_t words, int64_t* sums) {
  __shared__ unsigned long long s_sums[kThreads / 32];
  pdl_wait();
  pdl_launch_dependents();
  const int64_t parts = gridDim.x;
  const int64_t begin = words * blockIdx.x / parts, end = words * (blockIdx.x + 1) / parts;
  unsigned long long sum = 0;
  // Single words up to the first multiple of 16 bytes, then eights of sixteen bytes, then the rest.
  const int64_t skip = (4 - static_cast<int64_t>(reinterpret_cast<uintptr_t>(x + begin) / 4 % 4)) % 4;
  const int64_t first = begin + skip < end ? begin + skip : end;
  for (int64_t i = begin + threadIdx.x; i < first; i += kThreads) sum += x[i];
  const int64_t quads = (end - first) / 4;
  const uint4* const quad = reinterpret_cast<const uint4*>(x + first);
  int64_t at = threadIdx.x;
  for (; at + (kInFlight - 1) * kThreads < quads; at += kInFlight * kThreads) {
    uint4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) v[j] = load16(quad + at + j * kThreads);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) sum += words_of(v[j]);
  }
  for (; at < quads; at += kThreads) sum += words_of(load16(quad + at));
  for (int64_t i = first + quads * 4 + threadIdx.x; i < end; i += kThreads) sum += x[i];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kFullWarp, sum, i);
  if (threadIdx.x % 32 == 0) s_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) sum += s_sums[w];
  sums[blockIdx.x] = static_cast<int64_t>(sum);
}

}  // namespace

Status checksum(const ChecksumParams& p, const Launch& launch) noexcept {
  const dim3 grid(static_cast<unsigned>(p.sums.dim(0)));
  return cuda_status(launch_pdl(checksum_kernel, grid, dim3(kThreads), 0, launch.stream, p.x.as<const uint32_t>(),
                                p.x.bytes() / 4, p.sums.as<int64_t>()),
                     "checksum_kernel");
}

Status load_checksum_kernels() { return load_kernel(checksum_kernel, "checksum_kernel"); }

}  // namespace mla::cuda
