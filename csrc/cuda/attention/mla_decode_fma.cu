// mla_decode_fma.cu - absorbed attention over the paged cache with plain float32 arithmetic (fma_attention.cuh): for
// float32 activations, exact as the CPU's, and for ranks that the tensor core kernel does not have.
//
// Grid and work items as in mla_decode_portable.cu. Block 256; a row tile of 32 rows is done 16 rows at a time.
// Shared memory: 128 * (c + r + 1) bytes and 1 KB. Limits: c <= 512, and c + r as far as shared memory reaches.
// Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/fma_attention.cuh"
#include "cuda/attention/fp8_rows.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/device/pdl.cuh"

namespace mla::cuda {
namespace {

constexpr int kStaticBytes = 256;  // room for the kernel's own shared variables

/// `keys` rows of the cache to shared memory, zeros up to a whole tile.
template <class Act, class Cache>
__device__ void load_keys(const Cache* from, const DecodeArgs& a, int keys, float* to) {
  const int width = a.c + a.r;
  fma_load_rows<Act>(from, width, width, keys, kFmaKeys, to, width + 1);
}

template <class Act>
__device__ void load_keys(const F8E4M3* from, const DecodeArgs& a, int keys, float* to) {
  const Fp8Row at{a.c, a.r};
  const int lane = threadIdx.x % 32, width = a.c + a.r;
  for (int key = threadIdx.x / 32; key < kFmaKeys; key += kFmaThreads / 32) {
    const F8E4M3* const row = from + key * at.bytes();
    const Bf16* const rope = reinterpret_cast<const Bf16*>(row + at.rope_at());
    for (int i = lane; i < width; i += 32) {
      float x = 0;
      if (key < keys) x = i < a.c ? load1_scaled(row, at, i) : to_float(rope[i - a.c]);
      to[key * (width + 1) + i] = x;  // exact in either type of activations
    }
  }
}

template <class Act, class Cache>
__global__ __launch_bounds__(kFmaThreads, 2) void mla_decode_fma_kernel(DecodeArgs a) {
  extern __shared__ float s_memory[];
  __shared__ int s_found[6];
  __shared__ float s_sum[kFmaRows];
  const int width = a.c + a.r, tid = threadIdx.x, my_row = tid / kFmaKeys;
  const FmaMemory m(s_memory, width);
  pdl_wait();
  pdl_launch_dependents();
  DecodeItem item;
  if (!find_decode_item(a, blockIdx.x, s_found, &item)) return;
  const int32_t* table = a.block_table + int64_t{item.sequence} * a.max_pages;
  const Cache* cache = static_cast<const Cache*>(a.cache);
  const int64_t key_elements = cache_row_elements<Cache>(a.c, a.r);

  for (int first = 0; first < item.rows; first += kFmaRows) {
    const int64_t row = int64_t{item.row} + first;
    const int rows = min(item.rows - first, kFmaRows);
    const int my_visible = visible_keys(item, first + my_row, a.heads);
    __syncthreads();  // the rows before are done with shared memory
    fma_load_rows<Act>(static_cast<const Act*>(a.q) + row * width, width, width, rows, kFmaRows, m.q, width + 1);
    FmaState state;
    for (int key = item.key_begin; key < item.key_end; key += kFmaKeys) {
      const int page = table[key / kPageTokens];
      const bool exists = page >= 0 && page < a.pages;
      const int keys = exists ? min(item.key_end - key, kFmaKeys) : 0;
      const int64_t from = exists ? int64_t{page} * kPageTokens + key % kPageTokens : 0;
      load_keys<Act>(cache + from * key_elements, a, keys, m.k);
      __syncthreads();
      fma_attend<Act>(m, width, m.k, width + 1, a.c, min(my_visible - key, keys), a.scale_log2, &state);
      __syncthreads();
    }
    const float sum = fma_row_sum(state.sum);
    const bool direct = item.slot < 0;
    if (tid % kFmaKeys == 0) {
      s_sum[my_row] = sum;
      if (!direct) {
        a.max_sum[int64_t{item.slot} * a.row_tile + first + my_row] = make_float2(state.largest, sum);
      } else if (my_row < rows) {
        a.lse[row + my_row] = natural_lse(state.largest, sum);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kFmaColumns; ++i) {
      const int column = i * kFmaThreads + tid;
      if (column >= a.c) continue;
#pragma unroll
      for (int r = 0; r < kFmaRows; ++r) {
        if (r >= rows) continue;
        const float x = state.out[i][r];
        if (direct) {
          store1(static_cast<Act*>(a.out), (row + r) * a.c + column, x * inverse_sum(s_sum[r]));
        } else {
          a.partial_out[(int64_t{item.slot} * a.row_tile + first + r) * a.c + column] = x;
        }
      }
    }
  }
}

int64_t shared_bytes(const MlaDecodeParams& p) { return FmaMemory::bytes(p.q.dim(2), 0); }

template <class Act, class Cache>
Status launch_one(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  const auto items = static_cast<unsigned>(decode_max_items(p, partials));
  return cuda_status(launch_pdl(mla_decode_fma_kernel<Act, Cache>, dim3(items), dim3(kFmaThreads),
                                static_cast<size_t>(shared_bytes(p)), launch.stream, args),
                     "mla_decode_fma_kernel");
}

template <class Act>
Status launch_cache(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  switch (p.cache.dtype) {
    case DType::kF8E4M3: return launch_one<Act, F8E4M3>(p, partials, launch);
    case DType::kBF16: return launch_one<Act, Bf16>(p, partials, launch);
    default: return launch_one<Act, float>(p, partials, launch);
  }
}

}  // namespace

Status launch_decode_fma(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const int64_t c = p.out.dim(2), limit = launch.traits->shared_bytes_per_block - kStaticBytes;
  if (c > kFmaMaxValues || shared_bytes(p) > limit) {
    return Status::Error(Code::kUnsupported, "mlaDecode: latent rank " + std::to_string(c) + " with cache rows of " +
                                                 std::to_string(p.q.dim(2)) +
                                                 " is more than this GPU's kernels take: rank " +
                                                 std::to_string(kFmaMaxValues) + ", " + std::to_string(limit) +
                                                 " bytes of shared memory. Use the CPU backend.");
  }
  return p.q.dtype == DType::kBF16 ? launch_cache<Bf16>(p, partials, launch) : launch_cache<float>(p, partials, launch);
}

Status load_decode_fma_kernels(const Traits& traits) {
  const int bytes = traits.shared_bytes_per_block - kStaticBytes;
  constexpr const char* kName = "mla_decode_fma_kernel";
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_fma_kernel<float, F8E4M3>, kName, bytes));
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_fma_kernel<Bf16, F8E4M3>, kName, bytes));
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_fma_kernel<float, float>, kName, bytes));
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_fma_kernel<float, Bf16>, kName, bytes));
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_fma_kernel<Bf16, float>, kName, bytes));
  return load_kernel(mla_decode_fma_kernel<Bf16, Bf16>, kName, bytes);
}

}  // namespace mla::cuda
