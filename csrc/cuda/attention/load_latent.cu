// load_latent.cu - gathers cached rows of each sequence into packed latents and rotated keys.
//
//   row k_start[b] + i: [latent ; rope] = cache row of token k_pos[b] + i of sequence b; rows of no sequence are zero
//
// Grid: a warp per packed row, 8 a block. A warp finds its sequence by comparing 32 starts at a time, then copies by 16
// bytes a lane (elements one by one where c or r is no multiple of 8; 8 channels of an fp8 row are 8 bytes).
// Bandwidth-bound: each byte is read and written once. Conversions between float32 and bf16 round to nearest even, fp8
// rows (ops/fp8_row.h) convert exactly. Tokens and pages that do not exist give zeros.
// Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/fp8_rows.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;

struct LoadArgs {
  const void* cache;           // [pages, 64, c + r], or fp8 rows
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* k_start;      // [B + 1]
  const int32_t* k_pos;        // [B]
  void* latent;                // [S, c]
  void* rope;                  // [S, r]
  int rows;                    // S
  int sequences;
  int max_pages;
  int pages;
  int c, r;
};

/// The sequence that packed row `row` belongs to, or -1; the same in all lanes.
__device__ int find_sequence(const int32_t* k_start, int sequences, int row) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < sequences; first += 32) {
    const int b = first + lane;
    const bool mine = b < sequences && k_start[b] <= row && row < k_start[b + 1];
    const unsigned found = __ballot_sync(kFullWarp, mine);
    if (found != 0) return first + __ffs(static_cast<int>(found)) - 1;
  }
  return -1;
}

/// n elements from `from`, or zeros without it, by one warp.
template <bool kVector, class From, class To>
__device__ void copy_row(const From* from, int n, To* to) {
  const int lane = threadIdx.x % 32;
  if constexpr (kVector) {
    for (int i = lane * 8; i < n; i += 32 * 8) {
      float x[8] = {};
      if (from != nullptr) load8(from + i, x);
      store8(to + i, x);
    }
  } else {
    for (int i = lane; i < n; i += 32) store1(to, i, from != nullptr ? load1(from, i) : 0.0f);
  }
}

/// A row of the cache, or zeros without it, by one warp.
template <bool kVector, class From, class To>
__device__ void unpack_row(const LoadArgs& a, const From* row, To* latent, To* rope) {
  copy_row<kVector>(row, a.c, latent);
  copy_row<kVector>(row == nullptr ? nullptr : row + a.c, a.r, rope);
}

template <bool kVector, class To>
__device__ void unpack_row(const LoadArgs& a, const F8E4M3* row, To* latent, To* rope) {
  const Fp8Row at{a.c, a.r};
  if (row == nullptr) {
    copy_row<kVector, Bf16>(nullptr, a.c, latent);
    copy_row<kVector, Bf16>(nullptr, a.r, rope);
    return;
  }
  constexpr int kStep = kVector ? 8 : 1;
  for (int i = threadIdx.x % 32 * kStep; i < a.c; i += 32 * kStep) {
    if constexpr (kVector) {
      float x[8];
      load8_scaled(row, at, i, x);
      store8(latent + i, x);
    } else {
      store1(latent, i, load1_scaled(row, at, i));
    }
  }
  copy_row<kVector>(reinterpret_cast<const Bf16*>(row + at.rope_at()), a.r, rope);
}

template <bool kVector, class From, class To>
__global__ __launch_bounds__(32 * kWarps) void load_latent_kernel(LoadArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  const From* from = nullptr;
  const int b = find_sequence(a.k_start, a.sequences, row);
  if (b >= 0) {
    const int64_t token = int64_t{a.k_pos[b]} + row - a.k_start[b];
    if (token >= 0 && token < int64_t{a.max_pages} * kPageTokens) {
      const int page = a.block_table[int64_t{b} * a.max_pages + token / kPageTokens];
      if (page >= 0 && page < a.pages) {
        const int64_t slot = int64_t{page} * kPageTokens + token % kPageTokens;
        from = static_cast<const From*>(a.cache) + slot * cache_row_elements<From>(a.c, a.r);
      }
    }
  }
  unpack_row<kVector>(a, from, static_cast<To*>(a.latent) + int64_t{row} * a.c,
                      static_cast<To*>(a.rope) + int64_t{row} * a.r);
}

template <bool kVector, class From, class To>
Status launch_one(const LoadArgs& args, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(div_up(args.rows, kWarps)));
  return cuda_status(launch_pdl(load_latent_kernel<kVector, From, To>, grid, dim3(32 * kWarps), 0, launch.stream, args),
                     "load_latent_kernel");
}

template <class From, class To>
Status launch_width(const LoadArgs& args, const Launch& launch) {
  const bool vector =
      args.c % 8 == 0 && args.r % 8 == 0 && aligned16(args.cache) && aligned16(args.latent) && aligned16(args.rope);
  return vector ? launch_one<true, From, To>(args, launch) : launch_one<false, From, To>(args, launch);
}

template <class To>
Status launch_from(DType cache, const LoadArgs& args, const Launch& launch) {
  switch (cache) {
    case DType::kF8E4M3: return launch_width<F8E4M3, To>(args, launch);
    case DType::kBF16: return launch_width<Bf16, To>(args, launch);
    default: return launch_width<float, To>(args, launch);
  }
}

template <class From, class To>
Status load_one() {
  MLA_RETURN_IF_ERROR(load_kernel(load_latent_kernel<true, From, To>, "load_latent_kernel"));
  return load_kernel(load_latent_kernel<false, From, To>, "load_latent_kernel");
}

}  // namespace

Status loadLatent(const LoadLatentParams& p, const Launch& launch) noexcept {
  if (p.latent.dim(0) == 0) return Status::Ok();
  LoadArgs args;
  args.cache = p.cache.data;
  args.block_table = p.block_table.as<int32_t>();
  args.k_start = p.k_start.as<int32_t>();
  args.k_pos = p.k_pos.as<int32_t>();
  args.latent = p.latent.data;
  args.rope = p.rope.data;
  args.rows = static_cast<int>(p.latent.dim(0));
  args.sequences = static_cast<int>(p.k_pos.dim(0));
  args.max_pages = static_cast<int>(p.block_table.dim(1));
  args.pages = static_cast<int>(p.cache.dim(0));
  args.c = static_cast<int>(p.latent.dim(1));
  args.r = static_cast<int>(p.rope.dim(1));
  return p.latent.dtype == DType::kBF16 ? launch_from<Bf16>(p.cache.dtype, args, launch)
                                        : launch_from<float>(p.cache.dtype, args, launch);
}

Status load_load_latent_kernels() {
  MLA_RETURN_IF_ERROR((load_one<F8E4M3, Bf16>()));
  MLA_RETURN_IF_ERROR((load_one<F8E4M3, float>()));
  MLA_RETURN_IF_ERROR((load_one<Bf16, Bf16>()));
  MLA_RETURN_IF_ERROR((load_one<Bf16, float>()));
  MLA_RETURN_IF_ERROR((load_one<float, Bf16>()));
  return load_one<float, float>();
}

}  // namespace mla::cuda
