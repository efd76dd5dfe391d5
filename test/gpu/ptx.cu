// ptx.cu - the wrappers of csrc/cuda/ptx against plain loops, on the GPU: tiles and their swizzle, matrix products in
// every operand form, multicast and remote arrivals in a cluster, contiguous copies, stores of matrices.
// Built as the target test-ptx; prints one line a check and exits with 1 if one failed.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"

using namespace mla;
using namespace mla::cuda;

namespace {

int failures = 0;

void verdict(const char* what, double error, double bound) {
  const bool ok = error <= bound;  // NaN is not
  if (!ok) ++failures;
  std::printf("%-44s error %.2e, at most %.0e: %s\n", what, error, bound, ok ? "ok" : "FAILED");
}

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* device(const std::vector<T>& host) {
  T* out = nullptr;
  must(cudaMalloc(&out, host.size() * sizeof(T)), "cudaMalloc");
  must(cudaMemcpy(out, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return out;
}

template <class T>
std::vector<T> host(const T* from, size_t n) {
  std::vector<T> out(n);
  must(cudaMemcpy(out.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return out;
}

uint32_t state = 1;
float noise() {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1;
}

std::vector<__nv_bfloat16> noise_bf16(size_t n) {
  std::vector<__nv_bfloat16> out(n);
  for (auto& x : out) x = __float2bfloat16(noise());
  return out;
}

__device__ uint32_t align_tile(const void* p) {
  return (static_cast<uint32_t>(__cvta_generic_to_shared(p)) + 1023) & ~1023u;
}

/// Where D's register i of this thread stands.
__device__ int d_row(int i) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + (i / 2 % 2) * 8; }
__device__ int d_column(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2; }

constexpr int kK = 64;

/// D[64 x N] = A * B over 64 of k, bf16. A is [64, k], or transposed [k, 64]; B is [N, k], or transposed [k, N].
template <int N, Major kA, Major kB, bool kRegisters>
__global__ void product_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                               const __nv_bfloat16* a, float* d_out) {
  extern __shared__ char shared[];
  __shared__ uint64_t s_barrier;
  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&s_barrier));
  const uint32_t s_a = align_tile(shared), s_b = s_a + 8192;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(barrier, 8192 + N * kK * 2);
    tile_load(s_a, &a_map, barrier, 0, 0);
    if constexpr (kB == Major::kK) {
      tile_load(s_b, &b_map, barrier, 0, 0);
    } else {  // tiles of 64 columns, one behind the other
      for (int n = 0; n < N; n += 64) tile_load(s_b + n / 64 * 8192, &b_map, barrier, n, 0);
    }
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  float d[N / 2] = {};
  wgmma_fence();
  for (int k = 0; k < kK; k += 16) {
    const uint64_t b_tile = kB == Major::kK ? wgmma_tile(s_b + k * 2, 16, 1024) : wgmma_tile(s_b + k * 128, 8192, 1024);
    if constexpr (kRegisters) {
      uint32_t r[4];
      for (int i = 0; i < 4; ++i) {
        const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i % 2 * 8;
        r[i] = *reinterpret_cast<const uint32_t*>(a + row * kK + k + i / 2 * 8 + threadIdx.x % 4 * 2);
      }
      Wgmma<N>::template bf16<kB>(d, r, b_tile, k > 0);
      wgmma_commit();
      wgmma_wait<0>();
      keep(d);
      wgmma_fence();
    } else {
      const uint64_t a_tile =
          kA == Major::kK ? wgmma_tile(s_a + k * 2, 16, 1024) : wgmma_tile(s_a + k * 128, 8192, 1024);
      Wgmma<N>::template bf16<kA, kB>(d, a_tile, b_tile, k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  keep(d);
  for (int i = 0; i < N / 2; ++i) d_out[d_row(i) * N + d_column(i)] = d[i];
}

template <int N, Major kA, Major kB, bool kRegisters>
void check_product(const char* what) {
  const auto a = noise_bf16(64 * kK), b = noise_bf16(N * kK);
  __nv_bfloat16 *a_device = device(a), *b_device = device(b);
  float* d_device = device(std::vector<float>(64 * N, NAN));
  CUtensorMap a_map, b_map;
  const bool tb = kB == Major::kTransposed;
  const int64_t b_dims[2] = {tb ? N : kK, tb ? kK : N}, b_stride[1] = {b_dims[0]};
  const int b_box[2] = {64, tb ? kK : N};
  const int64_t a_dims[2] = {64, 64}, a_stride[1] = {64};
  const int a_box[2] = {64, 64};
  const Status made_a = make_tensor_map(a_device, DType::kBF16, a_dims, a_stride, a_box, Swizzle::k128, &a_map);
  const Status made_b = make_tensor_map(b_device, DType::kBF16, b_dims, b_stride, b_box, Swizzle::k128, &b_map);
  if (!made_a.ok() || !made_b.ok()) return verdict(what, NAN, 0);
  const auto kernel = product_kernel<N, kA, kB, kRegisters>;
  const int bytes = 1024 + 8192 + N * kK * 2;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attribute");
  kernel<<<1, 128, bytes>>>(a_map, b_map, a_device, d_device);
  must(cudaDeviceSynchronize(), what);
  const auto d = host(d_device, 64 * N);
  double worst = 0;
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = 0;
      for (int k = 0; k < kK; ++k) {
        const auto x = kA == Major::kK ? a[m * kK + k] : a[k * 64 + m];
        const auto y = kB == Major::kK ? b[n * kK + k] : b[k * N + n];
        sum += static_cast<double>(__bfloat162float(x)) * __bfloat162float(y);
      }
      const double error = std::fabs(sum - d[m * N + n]);
      if (!(error <= worst)) worst = error;
    }
  }
  verdict(what, worst, 1e-4);
}

template <int N>
__global__ void e4m3_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                            float* d_out) {
  extern __shared__ char shared[];
  __shared__ uint64_t s_barrier;
  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&s_barrier));
  const uint32_t s_a = align_tile(shared), s_b = s_a + 8192;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(barrier, 8192 + N * 128);
    tile_load(s_a, &a_map, barrier, 0, 0);
    tile_load(s_b, &b_map, barrier, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  float d[N / 2] = {};
  wgmma_fence();
  for (int k = 0; k < 128; k += 32)
    Wgmma<N>::e4m3(d, wgmma_tile(s_a + k, 16, 1024), wgmma_tile(s_b + k, 16, 1024), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  keep(d);
  for (int i = 0; i < N / 2; ++i) d_out[d_row(i) * N + d_column(i)] = d[i];
}

template <int N>
void check_e4m3(const char* what) {
  std::vector<__nv_fp8_e4m3> a(64 * 128), b(N * 128);
  for (auto* v : {&a, &b}) {
    for (auto& x : *v) x = __nv_fp8_e4m3(noise());
  }
  auto *a_device = device(a), *b_device = device(b);
  float* d_device = device(std::vector<float>(64 * N, NAN));
  CUtensorMap a_map, b_map;
  const int64_t a_dims[2] = {128, 64}, b_dims[2] = {128, N}, stride[1] = {128};
  const int a_box[2] = {128, 64}, b_box[2] = {128, N};
  const Status made_a = make_tensor_map(a_device, DType::kF8E4M3, a_dims, stride, a_box, Swizzle::k128, &a_map);
  const Status made_b = make_tensor_map(b_device, DType::kF8E4M3, b_dims, stride, b_box, Swizzle::k128, &b_map);
  if (!made_a.ok() || !made_b.ok()) return verdict(what, NAN, 0);
  e4m3_kernel<N><<<1, 128, 1024 + 8192 + N * 128>>>(a_map, b_map, d_device);
  must(cudaDeviceSynchronize(), what);
  const auto d = host(d_device, 64 * N);
  double worst = 0;
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < N; ++n) {
      double sum = 0;
      for (int k = 0; k < 128; ++k) sum += double{float(a[m * 128 + k])} * double{float(b[n * 128 + k])};
      const double error = std::fabs(sum - d[m * N + n]);
      if (!(error <= worst)) worst = error;
    }
  }
  verdict(what, worst, 2e-2);  // the sums have about 14 bits
}

/// Block 0 of two loads a tile for both; each block writes what it got, and block 1 tells block 0 that it has read.
__global__ void __cluster_dims__(2) multicast_kernel(const __grid_constant__ CUtensorMap map, float* out) {
  extern __shared__ char shared[];
  __shared__ uint64_t s_full, s_read;
  const uint32_t full = static_cast<uint32_t>(__cvta_generic_to_shared(&s_full));
  const uint32_t read = static_cast<uint32_t>(__cvta_generic_to_shared(&s_read));
  const uint32_t tile = align_tile(shared), rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(read, 2);
    mbarrier_fence_init();
    mbarrier_arrive_expect(full, 4096);
  }
  cluster_sync();
  if (rank == 0 && threadIdx.x == 0) tile_load_multicast(tile, &map, full, 0, 0, uint16_t{3});
  mbarrier_wait(full, 0);
  const char* const from = shared + (tile - static_cast<uint32_t>(__cvta_generic_to_shared(shared)));
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) out[rank * 1024 + i] = reinterpret_cast<const float*>(from)[i];
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_arrive_cluster(read, 0);
  if (rank == 0) mbarrier_wait(read, 0);
  // The other block's shared memory, read directly.
  if (rank == 1 && threadIdx.x == 0) {
    const float4 v = cluster_load4(cluster_address(tile, 0) + 16);
    out[2048] = v.x;
  }
  cluster_sync();
}

void check_multicast() {
  std::vector<float> a(1024);
  for (auto& x : a) x = noise();
  float *a_device = device(a), *out = device(std::vector<float>(2049, NAN));
  CUtensorMap map;
  const int64_t dims[2] = {32, 32}, stride[1] = {32};
  const int box[2] = {32, 32};
  if (!make_tensor_map(a_device, DType::kF32, dims, stride, box, Swizzle::kNone, &map).ok())
    return verdict("multicast", NAN, 0);
  multicast_kernel<<<2, 64, 1024 + 4096>>>(map, out);
  must(cudaDeviceSynchronize(), "multicast");
  const auto d = host(out, 2049);
  double worst = std::fabs(d[2048] - a[4]);
  for (int i = 0; i < 2048; ++i) {
    const double error = std::fabs(d[i] - a[i % 1024]);
    if (!(error <= worst)) worst = error;
  }
  verdict("multicast, remote arrival, remote load", worst, 0);
}

/// A contiguous copy, then a matrix stored by stmatrix (transposed or not) and a tile stored by the copy engine.
__global__ void copy_kernel(const float* from, const __grid_constant__ CUtensorMap map, float* out,
                            uint16_t* matrices) {
  __shared__ __align__(1024) float s_data[1024];
  __shared__ __align__(16) uint16_t s_matrices[2][256];
  __shared__ uint64_t s_barrier;
  const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&s_barrier));
  const uint32_t data = static_cast<uint32_t>(__cvta_generic_to_shared(s_data));
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
  }
  __syncwarp();
  if (elect_lane()) {
    bulk_prefetch_l2(from, 4096);
    mbarrier_arrive_expect(barrier, 4096);
    bulk_load(data, from, 4096, barrier);
  }
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < 1024; i += 32) {
    out[i] = s_data[i];
    s_data[i] = -s_data[i];
  }
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    tile_store(&map, data, 0, 0);
    bulk_commit();
    bulk_wait_read<0>();
  }
  uint32_t r[4];
  for (int m = 0; m < 4; ++m) {
    const uint32_t at = m * 64 + threadIdx.x / 4 * 8 + threadIdx.x % 4 * 2;
    r[m] = at | (at + 1) << 16;
  }
  stmatrix_x4(static_cast<uint32_t>(__cvta_generic_to_shared(&s_matrices[0][threadIdx.x * 8])), r);
  stmatrix_x4_trans(static_cast<uint32_t>(__cvta_generic_to_shared(&s_matrices[1][threadIdx.x * 8])), r);
  __syncwarp();
  for (int i = threadIdx.x; i < 512; i += 32) matrices[i] = s_matrices[i / 256][i % 256];
}

void check_copies() {
  std::vector<float> a(1024);
  for (auto& x : a) x = noise();
  float *from = device(a), *out = device(std::vector<float>(1024, NAN)), *tile = device(std::vector<float>(1024, NAN));
  uint16_t* matrices = device(std::vector<uint16_t>(512, 0xFFFF));
  CUtensorMap map;
  const int64_t dims[2] = {32, 32}, stride[1] = {32};
  const int box[2] = {32, 32};
  if (!make_tensor_map(tile, DType::kF32, dims, stride, box, Swizzle::kNone, &map).ok())
    return verdict("copies", NAN, 0);
  copy_kernel<<<1, 32>>>(from, map, out, matrices);
  must(cudaDeviceSynchronize(), "copies");
  const auto d = host(out, 1024), t = host(tile, 1024);
  double worst = 0, worst_tile = 0, worst_matrix = 0;
  for (int i = 0; i < 1024; ++i) {
    if (!(std::fabs(d[i] - a[i]) <= worst)) worst = std::fabs(d[i] - a[i]);
    if (!(std::fabs(t[i] + a[i]) <= worst_tile)) worst_tile = std::fabs(t[i] + a[i]);
  }
  const auto m = host(matrices, 512);
  for (int i = 0; i < 256; ++i) {
    const int matrix = i / 64, row = i / 8 % 8, column = i % 8;
    if (m[i] != i) worst_matrix = 1;
    if (m[256 + i] != matrix * 64 + column * 8 + row) worst_matrix = 1;
  }
  verdict("contiguous copy", worst, 0);
  verdict("tile store", worst_tile, 0);
  verdict("stmatrix, plain and transposed", worst_matrix, 0);
}

}  // namespace

int main() {
  constexpr Major kT = Major::kTransposed, kPlain = Major::kK;
  check_product<8, kPlain, kPlain, false>("bf16 n8, K-major");
  check_product<16, kPlain, kPlain, false>("bf16 n16, K-major");
  check_product<40, kPlain, kPlain, false>("bf16 n40, K-major");
  check_product<64, kT, kPlain, false>("bf16 n64, A transposed");
  check_product<16, kT, kPlain, false>("bf16 n16, A transposed");
  check_product<128, kPlain, kT, false>("bf16 n128, B transposed");
  check_product<64, kT, kT, false>("bf16 n64, both transposed");
  check_product<256, kPlain, kPlain, false>("bf16 n256, K-major");
  check_product<128, kPlain, kPlain, true>("bf16 n128, A in registers");
  check_product<256, kPlain, kT, true>("bf16 n256, A in registers, B transposed");
  check_product<192, kPlain, kPlain, true>("bf16 n192, A in registers");
  check_e4m3<8>("e4m3 n8");
  check_e4m3<64>("e4m3 n64");
  check_e4m3<128>("e4m3 n128");
  check_multicast();
  check_copies();
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
