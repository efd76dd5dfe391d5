// latent_few_sm90.cu - latentCompress of up to 8 rows in one launch: norm, product, query and cache rows.
//
//   a = rmsNorm(x);  y = a * weight^T;  q = round(y[:nq]);  cache row = [rmsNorm(y[nq:nq+c]) ; rope(y[nq+c:])]
//
// Grid: a block for each 16 weight rows, those of the cache row first. Block: a warp for each 128 k, whose weights wait
// in shared memory (gemm/product_held_device.cuh: order of sums, limits). Up to 2 rows are normed by every block for
// itself, with the bits of norm_rows.cu: a warp and its neighbour have the 256 channels of one of that kernel's warps,
// add their squares, and norm the 128 that they multiply, and round them where they enter as fp8 activations. The
// norm's weights are asked for before the product's, behind which they would queue. The last block of the cache row's
// to arrive at a counter (Launch::counters) norms and rotates what all of them have left in scratch, a team of threads
// a row, with the bits of latent_compress.cu. Test: test/gpu/rows.test.ts.
#include "common/checked.h"
#include "cuda/device/arrive.cuh"
#include "cuda/device/fp8_chunk.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_held.h"
#include "cuda/gemm/product_held_device.cuh"
#include "cuda/latent/latent_few.h"
#include "cuda/norm/norm_row.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {
namespace {

constexpr int kNormWarpChannels = 32 * kChunk;  // of a warp of norm_rows.cu
constexpr int kNormWarps = kHeldSegments * kSegment / kNormWarpChannels;

__host__ __device__ constexpr int team_threads(int64_t c) { return static_cast<int>((c + 255) / 256 * 32); }

struct Args {
  LatentFew p;
  unsigned* arrived;  // zero before and after
  bool weights_settled;
};

struct Shared {
  HeldShared held;
  float squares[kLatentNormedRows][kNormWarps];
  alignas(16) Bf16 x[kLatentNormedRows][kHeldSegments * kSegment];
  alignas(16) unsigned char norm[kHeldSegments * kSegment * 4];  // weights of the norm, in their type
  float latent[kHeldThreads / 32];                               // sums of squares
  int positions[kHeldRows], slots[kHeldRows];
  bool last;
};

/// Rows of x, normed, into shared.x, each warp the channels of its segment.
__device__ __forceinline__ void norm_segment(const Product& p, Shared& shared, const uint4 (&raw)[kLatentNormedRows]) {
  const int segment = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int norm_warp = segment / 2, at = norm_warp * kNormWarpChannels + lane * kChunk;
  const int rows = static_cast<int>(p.rows), k = static_cast<int>(p.k);
#pragma unroll
  for (int r = 0; r < kLatentNormedRows; ++r) {
    if (r >= rows) break;
    const Eight<Bf16>& x = reinterpret_cast<const Eight<Bf16>&>(raw[r]);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(x.v[i]), to_float(x.v[i]), sum);
    sum = warp_sum(sum);
    if (segment % 2 == 0 && lane == 0) shared.squares[r][norm_warp] = sum;
  }
  __syncthreads();
  const bool exists = at < k;
  if (lane / 16 != segment % 2 || !(exists || p.fp8_x)) return;
  float weight[kChunk];
  load_weight_chunk(shared.norm, p.norm.weight_bf16, at, k, true, weight);
#pragma unroll
  for (int r = 0; r < kLatentNormedRows; ++r) {
    if (r >= rows) break;
    float sum = shared.squares[r][0];
    for (int i = 1; i < div_up(k, kNormWarpChannels); ++i) sum += shared.squares[r][i];
    const float factor = 1.0f / sqrtf(sum / static_cast<float>(k) + p.norm.eps);
    const bool padding = p.norm.positions[r] < 0;
    Eight<Bf16> x = reinterpret_cast<const Eight<Bf16>&>(raw[r]);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      x.v[i] = padding ? from_float<Bf16>(0.0f) : from_float<Bf16>(to_float(x.v[i]) * factor * weight[i]);
    }
    if (p.fp8_x) {
      float v[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] = to_float(x.v[i]);
      round_fp8_chunk(0xffffu << (lane & 16), v);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) x.v[i] = from_float<Bf16>(v[i]);
    }
    if (exists) *reinterpret_cast<Eight<Bf16>*>(&shared.x[r][at]) = x;
  }
}

/// Latent channels at .. at + 8 of a cache row.
template <class Cache>
__device__ __forceinline__ void store_latent(void* row, const LatentFew&, int at, bool exists,
                                             const float (&v)[kChunk]) {
  if (exists) store_chunk(static_cast<Cache*>(row), at, at + kChunk, true, v);
}

template <>
__device__ __forceinline__ void store_latent<F8E4M3>(void* row, const LatentFew& p, int at, bool exists,
                                                     const float (&v)[kChunk]) {
  static_assert(kRowScaleChannels == 16 * kChunk);
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
#pragma unroll
  for (int i = 1; i < 16; i *= 2) largest = max(largest, __shfl_xor_sync(kFullWarp, largest, i));
  if (!exists) return;
  const uint32_t scale = row_scale_bits(largest);
  const float inverse = __uint_as_float(row_inverse_bits(scale));
  float codes[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) codes[i] = v[i] * inverse;
  store_chunk(static_cast<F8E4M3*>(row), at, at + kChunk, true, codes);
  if (at % kRowScaleChannels == 0) {
    reinterpret_cast<float*>(static_cast<uint8_t*>(row) + Fp8Row{p.c, p.r}.scale_at())[at / kRowScaleChannels] =
        __uint_as_float(scale);
  }
}

template <class Cache>
struct CacheRow {
  using Rope = Cache;
  static __device__ int64_t bytes(const LatentFew& p) { return (p.c + p.r) * static_cast<int64_t>(sizeof(Cache)); }
  static __device__ int64_t rope_at(const LatentFew& p) { return p.c * static_cast<int64_t>(sizeof(Cache)); }
};
template <>
struct CacheRow<F8E4M3> {
  using Rope = Bf16;
  static __device__ int64_t bytes(const LatentFew& p) { return Fp8Row{p.c, p.r}.bytes(); }
  static __device__ int64_t rope_at(const LatentFew& p) { return Fp8Row{p.c, p.r}.rope_at(); }
};

/// Which part of which cache row a thread does: a team of threads does a row, each 8 channels and a pair of the key's.
struct Team {
  int threads, teams, index, member;
  __device__ explicit Team(int c)
      : threads(team_threads(c)),
        teams(blockDim.x / threads),
        index(threadIdx.x / threads),
        member(threadIdx.x % threads) {}
  __device__ int channel() const { return member * kChunk; }
  __device__ int pair() const { return 2 * (threads - 1 - member); }  // the first threads have channels to do
};

/// What that takes besides y, asked for while y is not there yet.
struct RowParts {
  int position = -1, slot = -1;
  float weight[kChunk] = {}, cosine = 0, sine = 0;

  __device__ RowParts(const LatentFew& p, const Shared& shared, const Team& team, int t) {
    if (team.index >= team.teams || t >= p.product.rows) return;
    position = shared.positions[t];
    slot = shared.slots[t];
    if (team.channel() < p.c) load_weight_chunk(p.latent_norm, p.latent_norm_bf16, team.channel(), p.c, true, weight);
    if (position < 0 || position >= p.table || team.pair() >= p.r) return;
    cosine = p.cos_sin[position * p.r + team.pair()];
    sine = p.cos_sin[position * p.r + team.pair() + 1];
  }
};

/// The cache rows out of y. All threads of the block; `parts` of the team's first row.
template <class Cache>
__device__ __forceinline__ void finish_rows(const LatentFew& p, const Team& team, RowParts parts, Shared& shared) {
  const int c = static_cast<int>(p.c), rows = static_cast<int>(p.product.rows), at = team.channel(), pair = team.pair();
  for (int t0 = 0; t0 < rows; t0 += team.teams) {
    const int t = t0 + team.index;
    const bool mine = team.index < team.teams && t < rows, exists = mine && at < c;
    const float* const y = static_cast<const float*>(p.product.y) + t * p.product.y_row;
    float v[kChunk] = {}, sum = 0;
    float2 key = make_float2(0, 0);
    if (exists) {
      const float4 low = __ldcg(reinterpret_cast<const float4*>(y + at));
      const float4 high = __ldcg(reinterpret_cast<const float4*>(y + at) + 1);
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    }
    if (mine && pair < p.r) key = __ldcg(reinterpret_cast<const float2*>(y + c + pair));
    if (t0 > 0) parts = RowParts(p, shared, team, t);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum = fmaf(v[i], v[i], sum);
    sum = warp_sum(sum);
    if (t0 > 0) __syncthreads();
    if (threadIdx.x % 32 == 0) shared.latent[threadIdx.x / 32] = sum;
    __syncthreads();
    const bool written =
        mine && parts.position >= 0 && parts.position < p.table && parts.slot >= 0 && parts.slot < p.cache_slots;
    if (mine) {
      const int first_warp = team.index * (team.threads / 32);
      sum = shared.latent[first_warp];
      for (int i = 1; i < team.threads / 32; ++i) sum += shared.latent[first_warp + i];
    }
    const float factor = 1.0f / sqrtf(sum / static_cast<float>(c) + p.latent_eps);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = exists ? v[i] * factor * parts.weight[i] : 0.0f;
    uint8_t* const row =
        static_cast<uint8_t*>(p.cache) + (written ? int64_t{parts.slot} : 0) * CacheRow<Cache>::bytes(p);
    store_latent<Cache>(row, p, at, exists && written, v);
    if (!written) continue;
    using Rope = typename CacheRow<Cache>::Rope;
    if (pair < p.r) {
      Rope* const to = reinterpret_cast<Rope*>(row + CacheRow<Cache>::rope_at(p)) + pair;
      to[0] = from_float<Rope>(fmaf(key.x, parts.cosine, -(key.y * parts.sine)));
      to[1] = from_float<Rope>(fmaf(key.x, parts.sine, key.y * parts.cosine));
    }
    if constexpr (sizeof(Cache) == 1) {
      const Fp8Row place{p.c, p.r};
      for (int64_t i = place.scale_at() + 4 * place.scales() + team.member; i < place.rope_at(); i += team.threads)
        row[i] = 0;
      for (int64_t i = place.rope_end() + team.member; i < place.bytes(); i += team.threads) row[i] = 0;
    }
  }
}

template <class W, bool kNorm, class Cache>
__global__ void __launch_bounds__(kHeldThreads, 2) latent_few_kernel(const __grid_constant__ Args a) {
  constexpr bool kScaled = sizeof(W) == 1;
  constexpr int kOwn = HeldWeights<W>::kOwn;
  extern __shared__ __align__(128) unsigned char held[];
  __shared__ Shared shared;
  const LatentFew& p = a.p;
  const Product& m = p.product;
  const int segment = threadIdx.x / 32, segments = blockDim.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int k = static_cast<int>(m.k), rows = static_cast<int>(m.rows);
  const int cache_items = static_cast<int>(div_up<int64_t>(p.c + p.r, kHeldItemRows));
  const bool of_cache = static_cast<int>(blockIdx.x) < cache_items;
  const int n0 = of_cache ? static_cast<int>(p.nq) + blockIdx.x * kHeldItemRows
                          : (static_cast<int>(blockIdx.x) - cache_items) * kHeldItemRows;
  const Bf16* const x_rows = static_cast<const Bf16*>(m.x);
  const HeldWeights<W> weights{shared.held, held, k};
  const auto load_weights = [&] {
    weights.load(static_cast<const W*>(m.w) + static_cast<int64_t>(n0) * k, static_cast<int>(m.n) - n0);
    if (kScaled && lane == 0) shared.held.scales[segment] = m.scale[n0 / kSegment * segments + segment];
  };
  uint4 x[4];
  int64_t position = -1;  // of the row of this thread's result
  const int result_row = held_row(threadIdx.x), column = n0 + held_column(threadIdx.x);
  const bool has_result = threadIdx.x < kHeldSums && result_row < rows && column < m.n;
  const int at = segment / 2 * kNormWarpChannels + lane * kChunk;  // of x, to be normed
  // Small things before the weights, behind which they would queue. A warp and its neighbour need the same.
  const auto load_norm = [&] {
    if (segment % 2 != 0) return;
    const int bytes = m.norm.weight_bf16 ? 16 : 32;
    for (int i = 0; i < bytes; i += 16) {
      const int from = at / kChunk * bytes + i;
      cp_async16(shared_address(shared.norm + from), static_cast<const char*>(m.norm.weight) + from, at < k);
    }
    cp_async_commit();  // what is in no group, cp_async_wait() does not wait for
  };
  if (a.weights_settled) {
    if (kNorm) load_norm();
    const int line = threadIdx.x * 128;
    if (of_cache && line < p.c * (p.latent_norm_bf16 ? 2 : 4))
      prefetch_l2(static_cast<const char*>(p.latent_norm) + line);
  }
  weights.begin();
  if (!a.weights_settled) {
    pdl_wait();
    if (kNorm) load_norm();
  }
  load_weights();
  if (a.weights_settled) pdl_wait();
  pdl_launch_dependents();
  int row_position = -1, row_slot = -1;
  const bool has_row = of_cache && static_cast<int>(threadIdx.x) < rows;
  if (has_row) {
    row_position = p.positions[threadIdx.x];
    row_slot = p.slots[threadIdx.x];
  }
  if constexpr (kNorm) {
    uint4 raw[kLatentNormedRows];
#pragma unroll
    for (int r = 0; r < kLatentNormedRows; ++r) {
      raw[r] = r < rows && at < k ? __ldcg(reinterpret_cast<const uint4*>(x_rows + r * m.x_row + at))
                                  : make_uint4(0, 0, 0, 0);
    }
    if (has_result) position = p.positions[result_row];
    cp_async_wait<0>();
    norm_segment(m, shared, raw);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at_j = segment * kSegment + q * kOwn + HeldWeights<W>::x_at(j);
      x[j] = g < rows && at_j < k ? load16(&shared.x[g % kLatentNormedRows][at_j]) : make_uint4(0, 0, 0, 0);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at_j = segment * kSegment + q * kOwn + HeldWeights<W>::x_at(j);
      x[j] = g < rows && at_j < k ? __ldcg(reinterpret_cast<const uint4*>(x_rows + g * m.x_row + at_j))
                                  : make_uint4(0, 0, 0, 0);
    }
    if (has_result) position = p.positions[result_row];
  }
  float acc[4] = {};
  weights.multiply(x, acc);
  give_sums(shared.held, acc);
  if (has_row) {
    shared.positions[threadIdx.x] = row_position;
    shared.slots[threadIdx.x] = row_slot;
  }
  __syncthreads();
  if (has_result) {
    const float total = held_sum<kScaled>(shared.held, segments, threadIdx.x);
    if (of_cache) {
      static_cast<float*>(m.y)[result_row * m.y_row + column - p.nq] = total;
    } else {
      const bool padding = position < 0 || position >= p.table;
      static_cast<Bf16*>(p.q)[result_row * p.nq + column] = from_float<Bf16>(padding ? 0.0f : total);
    }
  }
  if (!of_cache) return;
  __syncthreads();
  if (threadIdx.x == blockDim.x - 1) {  // in a warp that has no row to do, or the last one
    shared.last = arrive(a.arrived) == static_cast<unsigned>(cache_items) - 1;
    if (shared.last) *a.arrived = 0;
  }
  const Team team(static_cast<int>(p.c));
  const RowParts parts(p, shared, team, team.index);
  __syncthreads();
  if (shared.last) finish_rows<Cache>(p, team, parts, shared);
}

using Kernel = void (*)(Args);

template <class W, bool kNorm>
Kernel kernel_for(DType cache) {
  switch (cache) {
    case DType::kF8E4M3: return latent_few_kernel<W, kNorm, F8E4M3>;
    case DType::kBF16: return latent_few_kernel<W, kNorm, Bf16>;
    default: return latent_few_kernel<W, kNorm, float>;
  }
}

Kernel kernel_of(DType weights, bool norm, DType cache) {
  if (weights == DType::kF8E4M3) return norm ? kernel_for<F8E4M3, true>(cache) : kernel_for<F8E4M3, false>(cache);
  return norm ? kernel_for<Bf16, true>(cache) : kernel_for<Bf16, false>(cache);
}

}  // namespace

bool latent_few_fits(const LatentFew& p, const Traits& traits) {
  const int64_t segments = ceil_div(p.product.k, int64_t{kSegment}), team = team_threads(p.c);
  Product plain = p.product;
  plain.norm.weight = nullptr;
  return holds_weights(plain, traits) && segments * 32 >= kHeldSums && segments * 32 >= team && p.r <= 2 * team &&
         p.nq % kHeldItemRows == 0 && p.c % kChunk == 0 && p.r % kChunk == 0 && aligned16(p.cache) &&
         aligned16(p.latent_norm) && aligned16(p.product.norm.weight) && aligned16(p.product.y) &&
         p.product.y_row % 4 == 0;
}

cudaError_t launch_latent_few(const LatentFew& p, const Launch& launch) {
  const Args args{p, launch.counters, weights_settled(p.product, launch)};
  const int64_t blocks = p.nq / kHeldItemRows + ceil_div(p.c + p.r, int64_t{kHeldItemRows});
  return launch_pdl(kernel_of(p.product.w_dtype, p.product.norm.weight != nullptr, p.cache_dtype),
                    dim3(static_cast<unsigned>(blocks)),
                    dim3(static_cast<unsigned>(ceil_div(p.product.k, int64_t{kSegment}) * 32)), held_bytes(p.product),
                    launch.stream, args);
}

cudaError_t load_latent_few(int shared_bytes_per_block) {
  for (const DType weights : {DType::kBF16, DType::kF8E4M3}) {
    for (const bool norm : {false, true}) {
      for (const DType cache : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        const cudaError_t error = load_into_context(kernel_of(weights, norm, cache), shared_bytes_per_block);
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace mla::cuda
