// mla_prefill_portable.cu - causal attention over up-projected keys with mma.sync, for sm_80 and newer.
//
//   s = scale * q . [k_nope(head) ; k_rope];  p = softmax(s over keys at the query's position and before)
//   out = sum p * value;  lse = log sum exp(s)
//
// Grid: query tiles (prefill_tile.cuh) x heads, so that blocks which run together read the keys of few heads. Block
// 128: 4 warps of 16 * kRowTiles queries each. A block walks over tiles of 64 keys up to the last that it sees, with an
// online softmax; only tiles that cross the diagonal or the end are masked. The values of a tile load while its scores
// are computed, the keys of the next one during softmax and second product; two barriers a tile. Queries stay in shared
// memory, scores, probabilities and the output in registers. Two blocks an SM hide one another's softmax.
//
// Shared memory: rows padded by 16 bytes against bank conflicts; 92 KB for 128/128, 99 KB for 192/256 (n/v), 68 KB for
// 64/128.
//
// Precision: products of bf16 accumulate in float32, softmax in float32, p rounded to bf16 before the second product.
// Rows past the end of the keys count as zeros with p = 0. A key or value that is not finite reaches the queries of a
// tile that it comes after as well.
//
// Limits: bf16; n/v as above, r = 64; scale > 0. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/kernels.h"
#include "cuda/attention/prefill_tile.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kKeys = 64;
constexpr int kRope = 64;

template <int kNope, int kV, int kRowTiles>
struct Sizes {
  static constexpr int kWidth = kNope + kRope;
  static constexpr int kQueries = 16 * kRowTiles * kWarps;
  static constexpr int kKeyBytes = 2 * kWidth + 16;  // of a query or key row
  static constexpr int kValueBytes = 2 * kV + 16;    // of a value row
  static constexpr int kSharedBytes = (kQueries + kKeys) * kKeyBytes + kKeys * kValueBytes;
};

/// `rows` rows of `kColumns` elements, `stride` elements apart, to shared memory, zeros up to kRows rows. Eight threads
/// take 128 bytes of a row, so that a thread needs one address and constants only.
template <int kRows, int kColumns, int kRowBytes>
__device__ __forceinline__ void load_rows(const Bf16* from, int64_t stride, int rows, uint32_t to) {
  constexpr int kLanes = 8, kStep = kThreads / kLanes;
  static_assert(kRows % kStep == 0 && kColumns % (kLanes * 8) == 0);
  const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes;
  const Bf16* at = from + first * stride + lane * 8;
  to += first * kRowBytes + lane * 16;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep) {
#pragma unroll
    for (int column = 0; column < kColumns; column += kLanes * 8) {
      cp_async16(to + row * kRowBytes + column * 2, at + column, first + row < rows);
    }
    at += kStep * stride;
  }
}

template <int kNope, int kV, int kRowTiles>
__global__ __launch_bounds__(kThreads, 2) void mla_prefill_portable_kernel(PrefillArgs a) {
  using S = Sizes<kNope, kV, kRowTiles>;
  constexpr int kKeyBytes = S::kKeyBytes, kValueBytes = S::kValueBytes;
  extern __shared__ __align__(128) uint8_t s_memory[];
  const uint32_t s_q = shared_address(s_memory), s_k = s_q + S::kQueries * kKeyBytes, s_v = s_k + kKeys * kKeyBytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y;
  const int64_t heads = a.heads;

  pdl_wait();
  PrefillTile tile;
  // Tiles take all of the shared memory that some GPUs have, but nobody uses the padding of a row. What is needed again
  // only at the end waits there, as registers are short.
  int* s_spare = reinterpret_cast<int*>(s_memory + kKeyBytes - 16);
  if (!find_prefill_tile(a, blockIdx.x, S::kQueries, s_spare, &tile)) return;
  if (threadIdx.x == 0) {
    s_spare[1] = tile.row;
    s_spare[2] = tile.rows;
  }
  __syncthreads();

  const auto load_keys = [&](int j) {
    const int64_t key = int64_t{tile.key} + j;
    load_rows<kKeys, kNope, kKeyBytes>(static_cast<const Bf16*>(a.k_nope) + (key * heads + head) * kNope, heads * kNope,
                                       tile.keys - j, s_k);
    load_rows<kKeys, kRope, kKeyBytes>(static_cast<const Bf16*>(a.k_rope) + key * kRope, kRope, tile.keys - j,
                                       s_k + kNope * 2);
  };
  if (tile.keys > 0) {
    load_rows<S::kQueries, S::kWidth, kKeyBytes>(static_cast<const Bf16*>(a.q) + (tile.row * heads + head) * S::kWidth,
                                                 heads * S::kWidth, tile.rows, s_q);
    load_keys(0);
  }
  cp_async_commit();
  pdl_launch_dependents();

  const int warp_row = warp * 16 * kRowTiles;
  const uint32_t query_lane = s_q + (warp_row + lane % 16) * kKeyBytes + lane / 16 * 16;
  const uint32_t key_lane = s_k + (lane / 16 * 8 + lane % 8) * kKeyBytes + lane / 8 % 2 * 16;
  const uint32_t value_lane = s_v + lane % 16 * kValueBytes + lane / 16 * 16;

  // Of rows lane / 4 and lane / 4 + 8 of each row tile.
  float largest[kRowTiles][2], sum[kRowTiles][2];
  float out[kRowTiles][kV / 8][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[m][h] = -INFINITY;
      sum[m][h] = 0;
    }
#pragma unroll
    for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
    }
  }

  for (int j = 0; j < tile.keys; j += kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // keys are there; nobody reads the values before these any more
    load_rows<kKeys, kV, kValueBytes>(static_cast<const Bf16*>(a.value) + ((int64_t{tile.key} + j) * heads + head) * kV,
                                      heads * kV, tile.keys - j, s_v);
    cp_async_commit();

    float score[kRowTiles][kKeys / 8][4] = {};
#pragma unroll 4  // more spills on sm_100 and sm_120 (nvcc 13.0)
    for (int k = 0; k < S::kWidth / 16; ++k) {
      uint32_t q[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) ldmatrix_x4(q[m], query_lane + m * 16 * kKeyBytes + k * 32);
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_x4(b, key_lane + n * 8 * kKeyBytes + k * 32);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_bf16(score[m][n], q[m], {b[0], b[1]});
          mma_bf16(score[m][n + 1], q[m], {b[2], b[3]});
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // values are there; nobody reads these keys any more
    if (j + kKeys < tile.keys) load_keys(j + kKeys);
    cp_async_commit();

    if (j + kKeys > tile.keys || j + kKeys - 1 > warp_row + tile.shift) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = warp_row + m * 16 + i / 2 * 8 + lane / 4;
          const int visible = min(row + tile.shift + 1, tile.keys) - j - lane % 4 * 2 - i % 2;
#pragma unroll
          for (int n = 0; n < kKeys / 8; ++n) {
            if (n * 8 >= visible) score[m][n][i] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float before = largest[m][h];
        float x = before;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) x = fmaxf(x, fmaxf(score[m][n][2 * h], score[m][n][2 * h + 1]));
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
        largest[m][h] = x;
        const float shift = softmax_shift(x) * a.scale_log2;
        float tile_sum = 0;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            score[m][n][i] = exp2_approx(fmaf(score[m][n][i], a.scale_log2, -shift));
            tile_sum += score[m][n][i];
          }
        }
        const float factor = exp2_approx(fmaf(before, a.scale_log2, -shift));
        sum[m][h] = fmaf(sum[m][h], factor, tile_sum);
        // Once the maximum has settled nothing needs scaling.
        if (__any_sync(kFullWarp, factor != 1.0f)) {
#pragma unroll
          for (int n = 0; n < kV / 8; ++n) {
            out[m][n][2 * h] *= factor;
            out[m][n][2 * h + 1] *= factor;
          }
        }
      }
    }

#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      // What the first product leaves of two neighbouring key octets is what the second takes as its operand.
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &score[m][2 * k + i / 2][i % 2 * 2];
          p[m][i] = pack_bf16(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kV / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, value_lane + k * 16 * kValueBytes + n * 16);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_bf16(out[m][n], p[m], {b[0], b[1]});
          mma_bf16(out[m][n + 1], p[m], {b[2], b[3]});
        }
      }
    }
  }

  const int first_row = s_spare[1], rows = s_spare[2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[m][h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      const int row = warp_row + m * 16 + h * 8 + lane / 4;
      if (row >= rows) continue;
      const int64_t at = (first_row + row) * int64_t{a.heads} + blockIdx.y;
      if (lane % 4 == 0) a.lse[at] = natural_lse(largest[m][h] * a.scale_log2, total);
      const float inverse = inverse_sum(total);
#pragma unroll
      for (int n = 0; n < kV / 8; ++n) {
        const float x = out[m][n][2 * h] * inverse, y = out[m][n][2 * h + 1] * inverse;
        const int64_t column = at * kV + n * 8 + lane % 4 * 2;
        if (a.out_is_f32) {
          *reinterpret_cast<float2*>(static_cast<float*>(a.out) + column) = make_float2(x, y);
        } else {
          *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(a.out) + column) = pack_bf16(x, y);
        }
      }
    }
  }
}

template <int kNope, int kV, int kRowTiles>
Status launch_one(const MlaPrefillParams& p, const Launch& launch) {
  using S = Sizes<kNope, kV, kRowTiles>;
  const dim3 grid(prefill_tiles(p, S::kQueries), static_cast<unsigned>(p.q.dim(1)));
  return cuda_status(launch_pdl(mla_prefill_portable_kernel<kNope, kV, kRowTiles>, grid, dim3(kThreads),
                                S::kSharedBytes, launch.stream, make_prefill_args(p)),
                     "mla_prefill_portable_kernel");
}

template <int kNope, int kV, int kRowTiles>
Status load_one() {
  return load_kernel(mla_prefill_portable_kernel<kNope, kV, kRowTiles>, "mla_prefill_portable_kernel",
                     Sizes<kNope, kV, kRowTiles>::kSharedBytes);
}

/// Calls f<n, v, row tiles>() for the dimensions that there is a kernel for.
template <class F, class R>
R with_dimensions(int64_t n, int64_t v, F&& f, R none) {
  if (n == 128 && v == 128) return f.template operator()<128, 128, 2>();
  if (n == 192 && v == 256) return f.template operator()<192, 256, 1>();
  if (n == 64 && v == 128) return f.template operator()<64, 128, 2>();
  return none;
}

}  // namespace

bool prefill_portable_fits(const MlaPrefillParams& p, const Traits& traits) {
  if (p.q.dtype != DType::kBF16 || p.k_rope.dim(1) != kRope || !(p.scale > 0)) return false;
  for (const View& view : {p.q, p.k_nope, p.k_rope, p.value, p.out}) {
    if (!aligned16(view.data)) return false;
  }
  return with_dimensions(
      p.k_nope.dim(2), p.value.dim(2),
      [&]<int kNope, int kV, int kRowTiles>() {
        return Sizes<kNope, kV, kRowTiles>::kSharedBytes <= traits.shared_bytes_per_block;
      },
      false);
}

Status launch_prefill_portable(const MlaPrefillParams& p, const Launch& launch) {
  return with_dimensions(
      p.k_nope.dim(2), p.value.dim(2),
      [&]<int kNope, int kV, int kRowTiles>() { return launch_one<kNope, kV, kRowTiles>(p, launch); }, Status::Ok());
}

Status load_prefill_portable_kernels(const Traits& traits) {
  const auto load = [&](int64_t n, int64_t v) {
    return with_dimensions(
        n, v,
        [&]<int kNope, int kV, int kRowTiles>() {
          const bool fits = Sizes<kNope, kV, kRowTiles>::kSharedBytes <= traits.shared_bytes_per_block;
          return fits ? load_one<kNope, kV, kRowTiles>() : Status::Ok();
        },
        Status::Ok());
  };
  MLA_RETURN_IF_ERROR(load(128, 128));
  MLA_RETURN_IF_ERROR(load(192, 256));
  return load(64, 128);
}

}  // namespace mla::cuda
