// mla_decode_portable.cu - absorbed attention over the paged cache with mma.sync, for sm_80 and newer.
//
//   s = scale * q . row;  p = softmax(s);  out = sum p * row[:c];  lse = log sum exp(s)
//
// Grid: the most work items that the plan can have; a block without one leaves at once. Block 256 (8 warps) takes one
// item: kRows query rows against the keys of one split, 32 keys an iteration. A tile of 32 cache rows is read from
// global memory once, into a ring of shared memory that cp.async keeps full, and is used for both products:
//   scores: warp w takes a quarter of the channels (w % 4) and half of the keys (w / 4); the query fragments of that
//           quarter stay in registers for the whole item. The four partial sums go through shared memory.
//   softmax: all threads, kRows * 32 scores; online, in powers of two, with a maximum and a sum per row.
//   output: warp w owns an eighth of the c columns; probabilities come from shared memory, rounded to bf16.
// Three barriers an iteration: tile there and the oldest slot free; partial scores there; probabilities there.
//
// Rows of an fp8 cache (ops/fp8_row.h) come into the ring as they are. When a tile is there, all threads take it into
// registers and, after a barrier, put it back into the same slot as bf16; a second barrier follows.
//
// Shared memory: 2 to 6 stages of 32 * (2 * (c + r) + 16) bytes (the 16 keep ldmatrix free of bank conflicts), 12 or 23
// KB besides; as many stages as the GPU has room for, one block an SM. Registers at c = 512: 36 * kRowTiles for queries
// and 32 * kRowTiles for the output.
//
// Precision: products of bf16 accumulate in float32, softmax in float32, p rounded to bf16 before the second product;
// an f32 cache is rounded to bf16 when it is read, fp8 rows are exact in bf16. Keys past the length and keys of pages
// that do not exist count as zero rows with p = 0. A key that is not finite reaches every row of the item, also those
// that it comes after.
//
// Limits: c is 512 or 256, r is 64, pages of 64. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/fp8_rows.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeys = kPlanKeys;
constexpr int kChannelGroups = 4;
constexpr int kRope = 64;
constexpr int kMaxStages = 6;
constexpr int kStaticBytes = 256;        // room for the kernel's own shared variables
constexpr int kScoreStride = kKeys + 8;  // float32 partial scores: eight rows of a fragment on different banks
constexpr int kProbStride = kKeys + 8;   // bf16 probabilities, likewise

template <int kC, int kRowTiles>
struct Sizes {
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kRow = kC + kRope;
  static constexpr int kRowBytes = 2 * kRow + 16;
  static constexpr int kStageBytes = kKeys * kRowBytes;
  static constexpr int kScoreBytes = kChannelGroups * kRows * kScoreStride * 4;
  static constexpr int kProbBytes = kRows * kProbStride * 2;
  static constexpr int kRowStateBytes = 2 * kRows * 4;
  static constexpr int kFixedBytes = kScoreBytes + kProbBytes + kRowStateBytes;

  static int stages(int shared_bytes) {
    const int n = (shared_bytes - kStaticBytes - kFixedBytes) / kStageBytes;
    return n < kMaxStages ? n : kMaxStages;
  }
  static int shared_bytes(int stages) { return stages * kStageBytes + kFixedBytes; }
};

/// All but the newest `pending` groups of copies have arrived.
__device__ __forceinline__ void wait_for_copies(int pending) {
  switch (pending) {
    case 0: cp_async_wait<0>(); break;
    case 1: cp_async_wait<1>(); break;
    case 2: cp_async_wait<2>(); break;
    case 3: cp_async_wait<3>(); break;
    default: cp_async_wait<4>(); break;
  }
}

/// Cache rows [0, rows) of a tile into a stage, zeros behind them.
template <int kRow, int kRowBytes>
__device__ __forceinline__ void load_tile(const Bf16* from, int rows, uint8_t* stage) {
  constexpr int kChunks = kRow / 8;
  const uint32_t to = shared_address(stage);
  const bool whole = rows == kKeys;  // all tiles of a sequence but its last
  static_assert(kKeys * kChunks % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
    const int chunk = i * kThreads + threadIdx.x, row = chunk / kChunks, column = chunk % kChunks;
    if (whole) {
      cp_async16_stream(to + row * kRowBytes + column * 16, from + chunk * 8);
    } else {
      cp_async16(to + row * kRowBytes + column * 16, from + chunk * 8, row < rows);
    }
  }
}

template <int kRow, int kRowBytes>
__device__ __forceinline__ void load_tile(const float* from, int rows, uint8_t* stage) {
  constexpr int kChunks = kRow / 8;
#pragma unroll 2
  for (int i = 0; i < kKeys * kChunks / kThreads; ++i) {
    const int chunk = i * kThreads + threadIdx.x, row = chunk / kChunks, column = chunk % kChunks;
    float x[8] = {};
    if (row < rows) load8(from + chunk * 8, x);
    store8(reinterpret_cast<Bf16*>(stage + row * kRowBytes + column * 16), x);
  }
}

/// Fp8 rows stay packed, one behind the other.
template <int kRow, int kRowBytes>
__device__ __forceinline__ void load_tile(const F8E4M3* from, int rows, uint8_t* stage) {
  constexpr int kPacked = static_cast<int>(Fp8Row{kRow - kRope, kRope}.bytes());
  static_assert(kPacked % 16 == 0 && kPacked <= kRowBytes);
  const uint32_t to = shared_address(stage);
  for (int at = threadIdx.x * 16; at < kKeys * kPacked; at += kThreads * 16) {
    cp_async16_stream(to + at, from + at, at < rows * kPacked);
  }
}

/// A tile of fp8 rows in a stage becomes bf16 rows. Two barriers.
template <int kC, int kRowBytes>
__device__ __forceinline__ void widen_tile(uint8_t* stage) {
  constexpr Fp8Row kAt{kC, kRope};
  constexpr int kPacked = static_cast<int>(kAt.bytes()), kScales = static_cast<int>(kAt.scale_at());
  constexpr int kPackedRope = static_cast<int>(kAt.rope_at());
  constexpr int kChunks = kC / 8, kMine = kKeys * kChunks / kThreads;  // of 8 channels
  static_assert(kKeys * kChunks % kThreads == 0 && kKeys * kRope / 8 == kThreads);
  uint2 codes[kMine];
  uint32_t scales[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int chunk = i * kThreads + threadIdx.x, column = chunk % kChunks;
    const uint8_t* const row = stage + chunk / kChunks * kPacked;
    codes[i] = *reinterpret_cast<const uint2*>(row + column * 8);
    scales[i] = *reinterpret_cast<const uint32_t*>(row + kScales + column / (kRowScaleChannels / 8) * 4);
  }
  const int key = threadIdx.x / (kRope / 8), piece = threadIdx.x % (kRope / 8);
  const uint4 rope = load16(stage + key * kPacked + kPackedRope + piece * 16);
  __syncthreads();  // all have what they need of the packed rows
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int chunk = i * kThreads + threadIdx.x;
    store16(stage + chunk / kChunks * kRowBytes + chunk % kChunks * 16, f8_to_bf16_scaled(codes[i], scales[i]));
  }
  store16(stage + key * kRowBytes + kC * 2 + piece * 16, rope);
  __syncthreads();  // the tile is there for all
}

template <int kC, int kRowTiles, class Cache>
__global__ __launch_bounds__(kThreads, 1) void mla_decode_portable_kernel(DecodeArgs a, int stages) {
  using S = Sizes<kC, kRowTiles>;
  constexpr int kRows = S::kRows, kRow = S::kRow, kRowBytes = S::kRowBytes;
  constexpr int kSteps = kRow / 16 / kChannelGroups;  // steps of 16 channels that a warp takes of the scores
  constexpr int kColumns = kC / kWarps;               // of the output, per warp
  constexpr int kRowThreads = kThreads / kRows;       // that share a row's softmax
  constexpr int kThreadKeys = kKeys / kRowThreads;
  static_assert(kSteps * 16 * kChannelGroups == kRow && kColumns % 16 == 0 && kThreadKeys % 2 == 0);

  extern __shared__ __align__(128) uint8_t s_memory[];
  __shared__ int s_found[6];
  __shared__ int s_keys[kMaxStages];                                               // keys of the tile in each stage
  float* s_scores = reinterpret_cast<float*>(s_memory + stages * S::kStageBytes);  // [groups][kRows][kScoreStride]
  Bf16* s_probs = reinterpret_cast<Bf16*>(s_scores + S::kScoreBytes / 4);          // [kRows][kProbStride]
  float* s_factor = reinterpret_cast<float*>(s_probs + S::kProbBytes / 2);         // [kRows]
  float* s_sum = s_factor + kRows;                                                 // [kRows]
  const uint32_t ring = shared_address(s_memory);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;

  pdl_wait();
  DecodeItem item;
  if (!find_decode_item(a, blockIdx.x, s_found, &item)) return;

  const int32_t* table = a.block_table + int64_t{item.sequence} * a.max_pages;
  const int tiles = (item.key_end - item.key_begin + kKeys - 1) / kKeys;
  // The page of the next tile to be loaded is known one tile ahead, so that its load hides behind a whole iteration.
  const auto page_of = [&](int tile) {
    return tile < tiles ? table[(item.key_begin + tile * kKeys) / kPageTokens] : -1;
  };
  int next_page = page_of(0);
  const auto load_next = [&](int tile, int stage) {
    const int page = next_page;
    next_page = page_of(tile + 1);
    if (tile < tiles) {
      const int key = item.key_begin + tile * kKeys;
      const bool exists = page >= 0 && page < a.pages;
      const int keys = exists ? min(item.key_end - key, kKeys) : 0;
      const int64_t row = exists ? int64_t{page} * kPageTokens + key % kPageTokens : 0;
      load_tile<kRow, kRowBytes>(static_cast<const Cache*>(a.cache) + row * cache_row_elements<Cache>(kC, kRope), keys,
                                 s_memory + stage * S::kStageBytes);
      if (tid == 0) s_keys[stage] = keys;
    }
    cp_async_commit();
  };
  for (int i = 0; i < stages - 1; ++i) load_next(i, i);
  pdl_launch_dependents();

  // Query fragments of this warp's quarter of the channels.
  const int group = warp % kChannelGroups, key_half = warp / kChannelGroups;
  uint32_t q[kRowTiles][kSteps][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const int row = m * 16 + lane / 4;
    const Bf16* from =
        static_cast<const Bf16*>(a.q) + (int64_t{item.row} + row) * kRow + group * kSteps * 16 + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = row + i % 2 * 8 < item.rows;
        const Bf16* at = from + i % 2 * 8 * kRow + k * 16 + i / 2 * 8;
        q[m][k][i] = valid ? *reinterpret_cast<const uint32_t*>(at) : 0u;
      }
    }
  }

  // Softmax state of this thread's row: maximum in powers of two, and this thread's part of the sum.
  const int my_row = tid / kRowThreads, my_key = tid % kRowThreads * kThreadKeys;
  const int my_visible = visible_keys(item, my_row, a.heads) - item.key_begin;
  float largest = -INFINITY, sum = 0;

  float out[kRowTiles][kColumns / 8][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
    }
  }

  // Where ldmatrix finds this lane's row: keys of the score product, keys of the output product, probabilities.
  const uint32_t key_lane =
      (key_half * 16 + lane / 16 * 8 + lane % 8) * kRowBytes + lane / 8 % 2 * 16 + group * kSteps * 32;
  const uint32_t value_lane = (lane % 16) * kRowBytes + lane / 16 * 16 + warp * kColumns * 2;
  const uint32_t prob_lane = shared_address(s_probs) + (lane % 16) * kProbStride * 2 + lane / 16 * 16;

  int stage = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies(stages - 2);
    __syncthreads();  // the tile is there for all; nobody reads the tile before it any more
    load_next(tile + stages - 1, stage == 0 ? stages - 1 : stage - 1);
    const uint32_t rows = ring + stage * S::kStageBytes;
    const int keys = s_keys[stage];
    if constexpr (std::is_same_v<Cache, F8E4M3>) widen_tile<kC, kRowBytes>(s_memory + stage * S::kStageBytes);
    stage = stage + 1 == stages ? 0 : stage + 1;

    {  // partial scores of 16 keys over a quarter of the channels
      float scores[kRowTiles][2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t b[4];
        ldmatrix_x4(b, rows + key_lane + k * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_bf16(scores[m][0], q[m][k], {b[0], b[1]});
          mma_bf16(scores[m][1], q[m][k], {b[2], b[3]});
        }
      }
      float* to = s_scores + (group * kRows + lane / 4) * kScoreStride + key_half * 16 + lane % 4 * 2;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float* at = to + m * 16 * kScoreStride + n * 8;
          *reinterpret_cast<float2*>(at) = make_float2(scores[m][n][0], scores[m][n][1]);
          *reinterpret_cast<float2*>(at + 8 * kScoreStride) = make_float2(scores[m][n][2], scores[m][n][3]);
        }
      }
    }
    __syncthreads();  // partial scores of all warps

    {  // softmax of my_row, kThreadKeys scores a thread
      float score[kThreadKeys];
      const float* from = s_scores + my_row * kScoreStride + my_key;
      float tile_largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kThreadKeys; j += 2) {
        float2 s = make_float2(0, 0);
#pragma unroll
        for (int g = 0; g < kChannelGroups; ++g) {
          const float2 part = *reinterpret_cast<const float2*>(from + g * kRows * kScoreStride + j);
          s.x += part.x;
          s.y += part.y;
        }
        const int limit = min(my_visible - tile * kKeys, keys) - my_key - j;
        score[j] = limit > 0 ? s.x * a.scale_log2 : -INFINITY;
        score[j + 1] = limit > 1 ? s.y * a.scale_log2 : -INFINITY;
        tile_largest = fmaxf(tile_largest, fmaxf(score[j], score[j + 1]));
      }
#pragma unroll
      for (int i = kRowThreads / 2; i > 0; i /= 2) {
        tile_largest = fmaxf(tile_largest, __shfl_xor_sync(~0u, tile_largest, i));
      }
      const float before = largest;
      largest = fmaxf(largest, tile_largest);
      const float shift = softmax_shift(largest);
      const float factor = exp2_approx(before - shift);
      sum *= factor;
      Bf16* to = s_probs + my_row * kProbStride + my_key;
#pragma unroll
      for (int j = 0; j < kThreadKeys; j += 2) {
        const float p0 = exp2_approx(score[j] - shift), p1 = exp2_approx(score[j + 1] - shift);
        sum += p0 + p1;
        *reinterpret_cast<uint32_t*>(to + j) = pack_bf16(p0, p1);
      }
      if (my_key == 0) s_factor[my_row] = factor;
    }
    __syncthreads();  // probabilities and factors

    {  // out = out * factor + p * rows[:, my columns]
      uint32_t p[kRowTiles][kKeys / 16][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const float low = s_factor[m * 16 + lane / 4], high = s_factor[m * 16 + lane / 4 + 8];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          out[m][n][0] *= low;
          out[m][n][1] *= low;
          out[m][n][2] *= high;
          out[m][n][3] *= high;
        }
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) ldmatrix_x4(p[m][k], prob_lane + m * 16 * kProbStride * 2 + k * 32);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
          uint32_t b[4];
          ldmatrix_x4_trans(b, rows + value_lane + k * 16 * kRowBytes + n * 16);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            mma_bf16(out[m][n], p[m][k], {b[0], b[1]});
            mma_bf16(out[m][n + 1], p[m][k], {b[2], b[3]});
          }
        }
      }
    }
  }

#pragma unroll
  for (int i = kRowThreads / 2; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
  const bool direct = item.slot < 0;
  if (my_key == 0) {
    s_sum[my_row] = sum;
    const int64_t row = int64_t{item.row} + my_row;
    if (direct) {
      if (my_row < item.rows) a.lse[row] = natural_lse(largest, sum);
    } else {
      a.max_sum[int64_t{item.slot} * kRows + my_row] = make_float2(largest, sum);
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + lane / 4, column = warp * kColumns + lane % 4 * 2;
      if (row >= item.rows) continue;
      const float inverse = inverse_sum(s_sum[row]);
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const float x = out[m][n][half * 2], y = out[m][n][half * 2 + 1];
        if (direct) {
          Bf16* to = static_cast<Bf16*>(a.out) + (int64_t{item.row} + row) * kC + column + n * 8;
          *reinterpret_cast<uint32_t*>(to) = pack_bf16(x * inverse, y * inverse);
        } else {
          float* to = a.partial_out + (int64_t{item.slot} * kRows + row) * kC + column + n * 8;
          *reinterpret_cast<float2*>(to) = make_float2(x, y);
        }
      }
    }
  }
}

template <int kC, int kRowTiles, class Cache>
Status launch_one(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  using S = Sizes<kC, kRowTiles>;
  const int stages = S::stages(launch.traits->shared_bytes_per_block);
  const DecodeArgs args = make_decode_args(p, partials);
  const auto items = static_cast<unsigned>(decode_max_items(p, partials));
  return cuda_status(launch_pdl(mla_decode_portable_kernel<kC, kRowTiles, Cache>, dim3(items), dim3(kThreads),
                                S::shared_bytes(stages), launch.stream, args, stages),
                     "mla_decode_portable_kernel");
}

template <int kC, int kRowTiles>
Status launch_cache(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  switch (p.cache.dtype) {
    case DType::kF8E4M3: return launch_one<kC, kRowTiles, F8E4M3>(p, partials, launch);
    case DType::kBF16: return launch_one<kC, kRowTiles, Bf16>(p, partials, launch);
    default: return launch_one<kC, kRowTiles, float>(p, partials, launch);
  }
}

template <int kC>
Status launch_rows(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  return decode_row_tile(p.q.dim(1)) == 16 ? launch_cache<kC, 1>(p, partials, launch)
                                           : launch_cache<kC, 2>(p, partials, launch);
}

template <int kC, int kRowTiles>
Status load_one(const Traits& traits) {
  using S = Sizes<kC, kRowTiles>;
  const int bytes = S::shared_bytes(S::stages(traits.shared_bytes_per_block));
  constexpr const char* kName = "mla_decode_portable_kernel";
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_portable_kernel<kC, kRowTiles, F8E4M3>, kName, bytes));
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_portable_kernel<kC, kRowTiles, Bf16>, kName, bytes));
  return load_kernel(mla_decode_portable_kernel<kC, kRowTiles, float>, kName, bytes);
}

}  // namespace

bool decode_portable_fits(const MlaDecodeParams& p, const Traits& traits) {
  const int64_t c = p.out.dim(2);
  return p.q.dtype == DType::kBF16 && (c == 512 || c == 256) && p.q.dim(2) - c == kRope && aligned16(p.q.data) &&
         aligned16(p.cache.data) && aligned16(p.out.data) && Sizes<512, 2>::stages(traits.shared_bytes_per_block) >= 2;
}

Status launch_decode_portable(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  return p.out.dim(2) == 512 ? launch_rows<512>(p, partials, launch) : launch_rows<256>(p, partials, launch);
}

Status load_decode_portable_kernels(const Traits& traits) {
  if (Sizes<512, 2>::stages(traits.shared_bytes_per_block) < 2) return Status::Ok();
  MLA_RETURN_IF_ERROR((load_one<512, 1>(traits)));
  MLA_RETURN_IF_ERROR((load_one<512, 2>(traits)));
  MLA_RETURN_IF_ERROR((load_one<256, 1>(traits)));
  return load_one<256, 2>(traits);
}

}  // namespace mla::cuda
