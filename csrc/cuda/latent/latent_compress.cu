// latent_compress.cu - everything between the residual stream and the query, in three steps:
//
//   1  a = rmsNorm(x, norm)                           norm/norm_rows.cu, into the workspace; zeros for padding. Few
//                                                     rows are normed by the kernel of step 2
//   2  y = a * weight^T                               gemm/, float32, into the workspace
//   3  q = round(y[:Nq]) or rmsNorm(y[:Nq], q_norm); cache row = [rmsNorm(y[Nq:Nq+c], latent_norm) ; rope(y[Nq+c:])]
//
// The kernel of step 3: grid (T, 2), the second index 0 for the query part and 1 for the cache row; block 256. Float32
// throughout, each output rounded once. RoPE rotates pairs of neighbours: (a cos - b sin, a sin + b cos). A row whose
// position is negative or past the table gives zeros in q and no cache row; a slot outside of the cache is not written.
// The latent of an fp8 row (ops/fp8_row.h) is normed within y first; then a warp takes every eighth 128 channels.
// Long inputs go through in passes of kPassRows rows, which bounds the workspace. Bandwidth-bound.
// Test: test/gpu/rows.test.ts.
#include <algorithm>

#include "cuda/device/pdl.cuh"
#include "cuda/device/workspace.h"
#include "cuda/gemm/product.h"
#include "cuda/latent/latent_few.h"
#include "cuda/launch.h"
#include "cuda/norm/norm.h"
#include "cuda/norm/norm_row.cuh"
#include "cuda/quant/round_rows.h"
#include "ops/fp8_row.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPassRows = 4096;

struct FinishArgs {
  float* y;                  // [T, nq + c + r]
  const void* q_norm;        // [nq], may be null
  const void* latent_norm;   // [c]
  const int32_t* positions;  // [T]
  const int32_t* slots;      // [T]
  const float* cos_sin;      // [table, r]
  void* q;                   // [T, nq]
  void* cache;               // [slots, c + r], or rows of bytes
  int64_t nq, c, r, table, cache_slots;
  float eps;
  bool q_norm_bf16, latent_norm_bf16;
  bool q_vector, latent_vector;
};

template <class Act>
__device__ __forceinline__ void finish_query(const FinishArgs& a, const float* y, Act* q, bool padding, float* s_sums) {
  const auto load = [&](int64_t at, float(&v)[kChunk], bool) { load_chunk(y, at, a.nq, a.q_vector, v); };
  const auto store = [&](int64_t at, const float(&v)[kChunk]) { store_chunk(q, at, a.nq, a.q_vector, v); };
  if (!padding && a.q_norm != nullptr) {
    norm_row(
        a.nq, a.eps, s_sums, load,
        [&](int64_t at, float(&v)[kChunk]) { load_weight_chunk(a.q_norm, a.q_norm_bf16, at, a.nq, a.q_vector, v); },
        store);
    return;
  }
  for (int64_t at = int64_t{threadIdx.x} * kChunk; at < a.nq; at += kThreads * kChunk) {
    float v[kChunk] = {};
    if (!padding) load(at, v, false);
    store(at, v);
  }
}

/// store(at, latent channels at .. at + 8, normed).
template <class Store>
__device__ __forceinline__ void norm_latent(const FinishArgs& a, const float* y, float* s_sums, Store&& store) {
  norm_row(
      a.c, a.eps, s_sums, [&](int64_t at, float(&v)[kChunk], bool) { load_chunk(y, at, a.c, a.latent_vector, v); },
      [&](int64_t at, float(&v)[kChunk]) {
        load_weight_chunk(a.latent_norm, a.latent_norm_bf16, at, a.c, a.latent_vector, v);
      },
      store);
}

/// The shared key, rotated, by the last threads: the first ones have the latent's chunks.
template <class T>
__device__ __forceinline__ void rotate_key(const FinishArgs& a, const float* y, const float* angles, T* to) {
  for (int64_t i = 2 * (kThreads - 1 - int64_t{threadIdx.x}); i < a.r; i += 2 * kThreads) {
    const float first = y[a.c + i], second = y[a.c + i + 1];
    const float cos = angles[i], sin = angles[i + 1];
    to[i] = from_float<T>(fmaf(first, cos, -(second * sin)));
    to[i + 1] = from_float<T>(fmaf(first, sin, second * cos));
  }
}

template <class Cache>
__device__ __forceinline__ void finish_latent(const FinishArgs& a, float* y, int64_t slot, const float* angles,
                                              float* s_sums) {
  Cache* const row = static_cast<Cache*>(a.cache) + slot * (a.c + a.r);
  norm_latent(a, y, s_sums,
              [&](int64_t at, const float(&v)[kChunk]) { store_chunk(row, at, a.c, a.latent_vector, v); });
  rotate_key(a, y, angles, row + a.c);
}

template <>
__device__ __forceinline__ void finish_latent<F8E4M3>(const FinishArgs& a, float* y, int64_t slot, const float* angles,
                                                      float* s_sums) {
  const Fp8Row at{a.c, a.r};
  uint8_t* const row = static_cast<uint8_t*>(a.cache) + slot * at.bytes();
  float* const scales = reinterpret_cast<float*>(row + at.scale_at());
  norm_latent(a, y, s_sums, [&](int64_t i, const float(&v)[kChunk]) { store_chunk(y, i, a.c, a.latent_vector, v); });
  rotate_key(a, y, angles, reinterpret_cast<Bf16*>(row + at.rope_at()));
  const auto clear = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) row[i] = 0;
  };
  clear(at.scale_at() + 4 * at.scales(), at.rope_at());
  clear(at.rope_end(), at.bytes());
  __syncthreads();  // the normed latent is there
  const int lane = threadIdx.x % 32;
  for (int64_t block = threadIdx.x / 32; block < at.scales(); block += kThreads / 32) {
    const int64_t first = block * kRowScaleChannels + lane * 4;
    float v[4];
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = first + i < a.c ? y[first + i] : 0.0f;
      largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
    }
    const uint32_t scale = row_scale_bits(__reduce_max_sync(kFullWarp, largest));
    const float inverse = __uint_as_float(row_inverse_bits(scale));
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) codes |= uint32_t{from_float<F8E4M3>(v[i] * inverse).bits} << 8 * i;
    // What follows the last channel in its four bytes is padding, and zero.
    if (first < a.c) *reinterpret_cast<uint32_t*>(row + first) = codes;
    if (lane == 0) scales[block] = __uint_as_float(scale);
  }
}

template <class Act, class Cache>
__global__ __launch_bounds__(kThreads) void latent_finish_kernel(FinishArgs a) {
  __shared__ float s_sums[32];
  pdl_wait();
  pdl_launch_dependents();
  const int64_t t = blockIdx.x;
  const int64_t position = a.positions[t];
  const bool padding = position < 0 || position >= a.table;
  float* const y = a.y + t * (a.nq + a.c + a.r);
  if (blockIdx.y == 0) {
    finish_query(a, y, static_cast<Act*>(a.q) + t * a.nq, padding, s_sums);
    return;
  }
  const int64_t slot = a.slots[t];
  if (padding || slot < 0 || slot >= a.cache_slots) return;
  finish_latent<Cache>(a, y + a.nq, slot, a.cos_sin + position * a.r, s_sums);
}

using Kernel = void (*)(FinishArgs);

template <class Act>
Kernel kernel_for(DType cache) {
  switch (cache) {
    case DType::kF8E4M3: return latent_finish_kernel<Act, F8E4M3>;
    case DType::kBF16: return latent_finish_kernel<Act, Bf16>;
    default: return latent_finish_kernel<Act, float>;
  }
}

Kernel kernel_of(DType act, DType cache) {
  return act == DType::kBF16 ? kernel_for<Bf16>(cache) : kernel_for<float>(cache);
}

/// What one pass keeps in the workspace.
struct Scratch {
  GemmParams product;  // x: the normed rows
  View workspace;      // of the product
};

Scratch scratch_of(const LatentCompressParams& p, int64_t rows, const Traits& traits, Carver* carver) {
  Scratch s;
  s.product.x = carver->tensor(p.x.dtype, rows, p.x.dim(1));
  s.product.w = p.weight;
  s.product.w_scale = p.weight_scale;
  s.product.fp8_activations = p.fp8_activations;
  s.product.y = carver->tensor(DType::kF32, rows, p.weight.dim(0));
  s.workspace = carver->tensor(DType::kU8, 1, workspace(s.product, traits));
  return s;
}

/// Rows [begin, begin + rows) of a tensor.
View rows_of(const View& view, int64_t begin, int64_t rows) {
  View part = view;
  const int64_t row_bytes = view.dim(0) == 0 ? 0 : view.bytes() / view.dim(0);
  part.data = view.as<char>() + begin * row_bytes;
  part.shape[0] = rows;
  return part;
}

Status norm_rows(const LatentCompressParams& p, View x, View positions, const Scratch& scratch, const Launch& launch) {
  NormRows norm;
  norm.x = x;
  norm.weight = p.norm;
  norm.positions = positions;
  norm.out = scratch.product.x;
  norm.eps = p.eps;
  return launch_norm_rows(norm, launch);
}

Status run_pass(const LatentCompressParams& p, int64_t begin, int64_t rows, const Launch& launch) {
  Carver carver{launch.workspace.as<char>()};
  const Scratch scratch = scratch_of(p, rows, *launch.traits, &carver);
  const View positions = rows_of(p.positions, begin, rows);
  const View x = rows_of(p.x, begin, rows);
  const View slots = rows_of(p.slots, begin, rows), q = rows_of(p.q, begin, rows);
  Product product = dense_product(x, p.weight, p.weight_scale, false, scratch.product.y);
  product.norm.weight = p.norm.data;
  product.norm.weight_bf16 = p.norm.dtype == DType::kBF16;
  product.norm.eps = p.eps;
  product.norm.threads = norm_threads(p.x.dim(1));
  product.norm.positions = positions.as<const int32_t>();
  if (!p.q_norm.present()) {
    LatentFew few;
    few.product = product;
    few.product.fp8_x = p.fp8_activations;
    few.product.y_row = p.weight.dim(0) - p.q.dim(1);
    few.latent_norm = p.latent_norm.data;
    few.latent_norm_bf16 = p.latent_norm.dtype == DType::kBF16;
    few.latent_eps = p.latent_eps;
    few.positions = product.norm.positions;
    few.slots = slots.as<const int32_t>();
    few.cos_sin = p.cos_sin.as<const float>();
    few.q = q.data;
    few.cache = p.cache.data;
    few.cache_dtype = p.cache.dtype;
    few.nq = p.q.dim(1);
    few.c = p.latent_norm.dim(0);
    few.r = 2 * p.cos_sin.dim(1);
    few.table = p.cos_sin.dim(0);
    few.cache_slots = p.cache.dim(0) * kPageTokens;
    if (latent_few_fits(few, *launch.traits)) {
      Launch last = launch;
      if (rows > kLatentNormedRows) {
        MLA_RETURN_IF_ERROR(norm_rows(p, x, positions, scratch, launch));
        last.fresh = {};
        few.product.x = scratch.product.x.data;
        few.product.norm = {};
        MLA_RETURN_IF_ERROR(round_rows(&few.product, scratch.product.x.data, launch));
      }
      return cuda_status(launch_latent_few(few, last), "latent_few_kernel");
    }
  }
  if (!p.fp8_activations && aligned16(p.norm.data) && holds_norm(product, *launch.traits)) {
    MLA_RETURN_IF_ERROR(cuda_status(launch_product(product, launch), "latentCompress"));
  } else {
    MLA_RETURN_IF_ERROR(norm_rows(p, x, positions, scratch, launch));
    Launch inner = launch;
    inner.workspace = scratch.workspace;
    MLA_RETURN_IF_ERROR(gemm(scratch.product, inner));
  }

  FinishArgs args;
  args.y = scratch.product.y.as<float>();
  args.q_norm = p.q_norm.present() ? p.q_norm.data : nullptr;
  args.latent_norm = p.latent_norm.data;
  args.positions = positions.as<const int32_t>();
  args.slots = slots.as<const int32_t>();
  args.cos_sin = p.cos_sin.as<const float>();
  args.nq = p.q.dim(1);
  args.c = p.latent_norm.dim(0);
  args.r = 2 * p.cos_sin.dim(1);
  args.q = q.data;
  args.cache = p.cache.data;
  args.table = p.cos_sin.dim(0);
  args.cache_slots = p.cache.dim(0) * kPageTokens;
  args.eps = p.latent_eps;
  args.q_norm_bf16 = p.q_norm.present() && p.q_norm.dtype == DType::kBF16;
  args.latent_norm_bf16 = p.latent_norm.dtype == DType::kBF16;
  const bool rows_aligned = (args.nq + args.c + args.r) % 4 == 0;  // of y
  args.q_vector = rows_aligned && args.nq % kChunk == 0 && aligned16(args.q) && aligned16(args.q_norm);
  args.latent_vector = rows_aligned && args.nq % 4 == 0 && args.c % kChunk == 0 && args.r % kChunk == 0 &&
                       aligned16(args.cache) && aligned16(args.latent_norm);
  return cuda_status(launch_pdl(kernel_of(p.x.dtype, p.cache.dtype), dim3(static_cast<unsigned>(rows), 2),
                                dim3(kThreads), 0, launch.stream, args),
                     "latent_finish_kernel");
}

}  // namespace

int64_t workspace(const LatentCompressParams& p, const Traits& traits) {
  Carver carver;
  scratch_of(p, std::min(p.x.dim(0), kPassRows), traits, &carver);
  return carver.used;
}

Status latentCompress(const LatentCompressParams& p, const Launch& launch) noexcept {
  const int64_t rows = p.x.dim(0);
  for (int64_t begin = 0; begin < rows; begin += kPassRows) {
    MLA_RETURN_IF_ERROR(run_pass(p, begin, std::min(rows - begin, kPassRows), launch));
  }
  return Status::Ok();
}

Status load_latent_kernels(const Traits& traits) {
  if (traits.hopper)
    MLA_RETURN_IF_ERROR(cuda_status(load_latent_few(traits.shared_bytes_per_block), "loading latent_few_kernel"));
  for (const DType act : {DType::kF32, DType::kBF16}) {
    for (const DType cache : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      MLA_RETURN_IF_ERROR(load_kernel(kernel_of(act, cache), "latent_finish_kernel"));
    }
  }
  return Status::Ok();
}

}  // namespace mla::cuda
