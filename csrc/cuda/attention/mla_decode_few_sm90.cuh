// mla_decode_few_sm90.cuh - absorbed attention on Hopper for few query rows a sequence (heads * new tokens up to 48).
//
//   S^T[64 keys x N rows] = K Q^T;  p = 2^(s - m);  O^T[c x N] += V^T P^T
//
// Keys lie on the M side of the matrix units and query rows on the N side, so that few rows waste nothing. A cache page
// arrives as sub-tiles of 64 keys x 64 channels by the copy engine; the same bytes are K (K-major) and V^T
// (transposed). Grid: the blocks that run at once; each does the plan's share of keys (few_plan.h), piece after piece.
// Block: two warpgroups that compute, and a warp that loads ahead, across pieces. They take pages in turns; above 32
// rows, where registers would not hold the output, they share its channels instead and compute the scores each for
// itself. Registers: the output, c * N / 128 a thread, or half of that. Shared memory: rings of sub-tiles, query,
// probabilities. What several blocks have of a row tile the merge kernel adds up (mla_decode_merge.cu). The order of
// all sums is the plan's, so equal calls give equal bits. Precision: float32 but for the probabilities (bf16), as
// everywhere. Keys behind a sequence's end are masked, and their rows set to zero before they are multiplied by zero.
// Pages of an fp8 cache arrive as they are, and become f16 in registers (few_fp8.cuh).
// Schedule and measurements: docs/kernels/mla-decode.md. Test: test/gpu/attention.test.ts.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <utility>

#include "cuda/attention/few_fp8.cuh"
#include "cuda/attention/few_load.cuh"
#include "cuda/attention/few_rows.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda::few {

/// A warpgroup that computes.
template <class S>
struct Consumer {
  static constexpr int kC = S::kLatent, kN = S::kRows;
  static constexpr int kPairs = kN / 8;  // columns of a thread come in pairs

  const Args& a;
  const Layout<S>& at;
  Piece* const pieces;          // in shared memory
  const int group, team, half;  // warpgroup, its team, its place there
  const int tid, lane, warp;    // thread and warp within the warpgroup
  RingCursor<S::kSlots> ring;
  uint32_t query_filled = 0;
  float out[S::kOwn][kN / 2];
  RowState<kN> rows;
  uint32_t scales[S::kProbs];  // of an fp8 cache: the bits of the largest so far, which the output is relative to

  __device__ Consumer(const Args& a, const Layout<S>& at, Piece* pieces)
      : a(a),
        at(at),
        pieces(pieces),
        group(__shfl_sync(kFullWarp, threadIdx.x / 128, 0)),
        team(group / S::kShare),
        half(group % S::kShare),
        tid(threadIdx.x % 128),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32 % 4) {}

  /// The team's ring, its barriers, its slots.
  __device__ __forceinline__ uint32_t full(uint32_t stage) const { return at.full + (team * S::kSlots + stage) * 8; }
  __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return at.empty + (team * S::kSlots + stage) * 8; }
  __device__ __forceinline__ uint32_t slots() const { return at.ring + team * S::kRingBytes; }
  __device__ __forceinline__ uint32_t slot(uint32_t stage) const { return slots() + stage * S::kSlotBytes; }
  /// The stage i behind another, i at most the ring's length.
  static __device__ __forceinline__ uint32_t behind(uint32_t stage, uint32_t i) {
    const uint32_t sum = stage + i;
    return sum < S::kSlots ? sum : sum - S::kSlots;
  }
  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane == 0) mbarrier_arrive(empty(stage));
  }
  __device__ __forceinline__ uint32_t probabilities() const { return at.prob + group * S::kProbBytes; }
  /// The first output tile of this warpgroup's.
  __device__ __forceinline__ int own_tile() const { return half * S::kOwn; }
  /// Barriers of this warpgroup, of its team, of all that compute.
  __device__ __forceinline__ void sync() const { named_barrier_sync(1 + group, 128); }
  __device__ __forceinline__ int team_barrier() const { return 5 + team; }
  __device__ __forceinline__ void sync_team() const { named_barrier_sync(team_barrier(), 128 * S::kShare); }
  __device__ __forceinline__ void sync_all() const { named_barrier_sync(7, S::kConsumers); }
  /// Combines figures of the rows over the warps; the whole team has come here before any goes on.
  template <class Combine>
  __device__ __forceinline__ void over_team(float (&x)[kN / 4], Combine combine) const {
    over_keys<kN>(x, combine);
    over_warps<kN>(x, at.stat, group, team_barrier(), 128 * S::kShare, combine);
  }

  /// All of a piece. What is needed only after its last key waits in shared memory meanwhile, a copy for each warp.
  __device__ __forceinline__ void run(const Piece& piece) {
    if (lane == 0) pieces[threadIdx.x / 32] = piece;
    __syncwarp();
    begin();
    for (int key = piece.begin + team * kTileKeys; key < piece.end; key += S::kTeams * kTileKeys) tile(piece, key);
    finish(pieces[threadIdx.x / 32]);
    __syncwarp();
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) out[i][j] = 0;
    }
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) {
      rows.largest[c] = -INFINITY;
      rows.sum[c] = 0;
    }
#pragma unroll
    for (int g = 0; g < S::kProbs; ++g) scales[g] = kRowLeastScale << 23;
    mbarrier_wait(at.query_full, query_filled);
    query_filled ^= 1;
    if constexpr (S::kFp8) {
      prepare_query<S>(at.query, at.row_scale, threadIdx.x);
      fence_proxy_async();
      sync_all();
    }
  }

  /// Keys [key, key + 64) or up to the piece's last.
  __device__ __forceinline__ void tile(const Piece& piece, int key) {
    float s[kN / 2];
    const uint32_t first = __shfl_sync(kFullWarp, ring.stage, 0);  // so that addresses live in uniform registers
    const uint64_t query_at = wgmma_tile(at.query, 16, 1024), prob_at = wgmma_tile(probabilities(), 16, 1024);
    const int keys = min(piece.end - key, kTileKeys);
    uint32_t pairs[kN / 4];
    if constexpr (S::kFp8) {
      mbarrier_wait(full(first), ring.filled);
      ring.advance();
      const Fp8Page<S> page(slot(first), half, warp, lane);
      page.scores(query_at, at.row_scale, s);
      if constexpr (S::kShare == 2) add_others(s);
      probabilities_of(piece, key, keys, s, pairs);
      raise_scales(page, keys);
#pragma unroll
      for (int g = 0; g < S::kProbs; ++g) {
        uint32_t scaled[kN / 4];
        page.scaled(pairs, g, scales[g], warp * 16 + lane / 4, keys, scaled);
        store_transposed<kN>(probabilities() + g * kN * 128, scaled);
      }
      if (keys < kTileKeys) page.clear(keys, tid);
      fence_proxy_async();
      sync();  // probabilities of all warps
      page.output(prob_at, out, [&] {
        __syncwarp();
        release(first);
      });
    } else {
      scores(first, query_at, s);
      probabilities_of(piece, key, keys, s, pairs);
      store_transposed<kN>(probabilities(), pairs);
      const uint32_t own = behind(first, 1 + own_tile());
      if (keys % 16 != 0) clear_rows(own, keys, (keys + 15) / 16 * 16);
      fence_proxy_async();
      sync();
      output(own, prob_at, (keys + 15) / 16);
    }
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) keep(out[i]);
  }

  /// Makes the output relative to a page's scales, where they are larger than those before.
  __device__ __forceinline__ void raise_scales(const Fp8Page<S>& page, int keys) {
    uint32_t largest[S::kProbs];
    bool grows = false;
#pragma unroll
    for (int g = 0; g < S::kProbs; ++g) largest[g] = scales[g];
    page.raise(largest, keys);
#pragma unroll
    for (int g = 0; g < S::kProbs; ++g) grows |= largest[g] > scales[g];
    if (!grows) return;
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
      const float factor = __uint_as_float(scales[i / 2] + (127u << 23) - largest[i / 2]);
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) out[i][j] *= factor;
    }
#pragma unroll
    for (int g = 0; g < S::kProbs; ++g) scales[g] = largest[g];
  }

  /// s += the scores over the channels of the team's other warpgroup.
  __device__ __forceinline__ void add_others(float (&s)[kN / 2]) const {
    const uint32_t mine = at.part + group * S::kPartBytes + tid * 16,
                   other = at.part + (group ^ 1) * S::kPartBytes + tid * 16;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      shared_store4(mine + j * 2048, s[4 * j], s[4 * j + 1], s[4 * j + 2], s[4 * j + 3]);
    }
    sync_team();  // the next one is in over_team(), behind which these may be written again
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float4 x = shared_load4f(other + j * 2048);
      s[4 * j] += x.x;
      s[4 * j + 1] += x.y;
      s[4 * j + 2] += x.z;
      s[4 * j + 3] += x.w;
    }
  }

  /// s = a page's keys * query, sub-tile by sub-tile from stage `first` on.
  __device__ __forceinline__ void scores(uint32_t first, uint64_t query_at, float (&s)[kN / 2]) {
    const uint64_t keys_at = wgmma_tile(slots(), 16, 1024);
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
      const uint32_t stage = behind(first, i);
      mbarrier_wait(full(stage), ring.filled);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Wgmma<kN>::bf16(s, wgmma_advance(keys_at, stage * kTileBytes + k * 32),
                        wgmma_advance(query_at, i * S::kQueryTile + k * 32), i + k > 0);
      }
      wgmma_commit();
      ring.advance();
    }
    wgmma_wait<0>();
    keep(s);
    release(first);
    if constexpr (S::kShare == 2) {  // the other warpgroup's output
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) release(behind(first, 1 + (1 - half) * S::kOwn + i));
    }
  }

  /// Scores of keys [key, key + keys) become probabilities relative to the rows' maxima, which move if need be.
  __device__ __forceinline__ void probabilities_of(const Piece& piece, int key, int keys, float (&s)[kN / 2],
                                                   uint32_t (&pairs)[kN / 4]) {
    const int token = warp * 16 + lane / 4;
    float most[kN / 4];
    const bool whole = keys == kTileKeys && key + kTileKeys <= piece.seen;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& low = s[4 * j + e];
        float& high = s[4 * j + 2 + e];
        low *= a.scale_log2;
        high *= a.scale_log2;
        if (!whole) {
          const int limit = piece.visible(j * 8 + lane % 4 * 2 + e, a.heads) - key;
          if (token >= limit) low = -INFINITY;
          if (token + 8 >= limit) high = -INFINITY;
        }
        most[2 * j + e] = fmaxf(low, high);
      }
    }
    const auto larger = [](float x, float y) { return fmaxf(x, y); };
    over_team(most, larger);
    bool grows = false;
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) grows |= most[c] > rows.largest[c] + (S::kFp8 ? kFp8Slack : 0);
    if (__any_sync(kFullWarp, grows)) rescale(most);  // all warps see the same maxima
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float up = S::kFp8 ? kProbUp : 0;
      const float shift0 = softmax_shift(rows.largest[2 * j]) - up,
                  shift1 = softmax_shift(rows.largest[2 * j + 1]) - up;
      const float p0 = exp2_approx(s[4 * j] - shift0), p1 = exp2_approx(s[4 * j + 1] - shift1);
      const float p2 = exp2_approx(s[4 * j + 2] - shift0), p3 = exp2_approx(s[4 * j + 3] - shift1);
      rows.sum[2 * j] += p0 + p2;
      rows.sum[2 * j + 1] += p1 + p3;
      pairs[2 * j] = S::kFp8 ? pack_f16(p0, p1) : pack_bf16(p0, p1);
      pairs[2 * j + 1] = S::kFp8 ? pack_f16(p2, p3) : pack_bf16(p2, p3);
    }
  }

  /// out += values * probabilities of `steps` times 16 keys, sub-tiles from stage `own` on.
  __device__ __forceinline__ void output(uint32_t own, uint64_t prob_at, int steps) {
    const uint64_t values_at = wgmma_tile(slots(), 8192, 1024);
    if (steps == 4) {
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          multiply(i, wgmma_advance(values_at, behind(own, i) * kTileBytes + k * 2048), wgmma_advance(prob_at, k * 32));
        wgmma_commit();
      }
      release_in_order(own, std::make_integer_sequence<int, S::kOwn>());
    } else {
#pragma unroll 1
      for (int k = 0; k < steps; ++k) {
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < S::kOwn; ++i)
          multiply(i, wgmma_advance(values_at, behind(own, i) * kTileBytes + k * 2048), wgmma_advance(prob_at, k * 32));
        wgmma_commit();
      }
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) release(behind(own, i));
    }
  }

  /// out[i] += 16 keys of an output tile * their probabilities.
  __device__ __forceinline__ void multiply(int i, uint64_t values, uint64_t prob) {
    Wgmma<kN>::template bf16<Major::kTransposed, Major::kK>(out[i], values, prob, 1);
  }

  /// Gives back the slots of this warpgroup's output tiles, each as soon as its products are done.
  template <int... kI>
  __device__ __forceinline__ void release_in_order(uint32_t own, std::integer_sequence<int, kI...>) const {
    ((wgmma_wait<S::kOwn - 1 - kI>(), release(behind(own, kI))), ...);
  }

  /// Moves the rows' maxima.
  __device__ __forceinline__ void rescale(const float (&most)[kN / 4]) {
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) {
      const float before = rows.largest[c];
      const float after = fmaxf(most[c], before);
      const float factor = exp2_approx(before - softmax_shift(after));
      rows.largest[c] = after;
      rows.sum[c] *= factor;
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) {
        out[i][c / 2 * 4 + c % 2] *= factor;
        out[i][c / 2 * 4 + c % 2 + 2] *= factor;
      }
    }
  }

  /// Zeros in rows [begin, end) of this warpgroup's latent sub-tiles, from stage `first` on: no key stands there.
  __device__ __forceinline__ void clear_rows(uint32_t first, int begin, int end) const {
    for (int i = 0; i < S::kOwn; ++i) {
      const uint32_t to = slot((first + i) % S::kSlots) + begin * 128;
      for (int x = tid; x < (end - begin) * 8; x += 128) shared_store4(to + x * 16, 0, 0, 0, 0);
    }
  }

  /// What follows the last key of a piece.
  __device__ __forceinline__ void finish(const Piece& piece) {
    if constexpr (S::kFp8) {
#pragma unroll
      for (int c = 0; c < kN / 4; ++c) rows.sum[c] *= 1.0f / (1 << kProbUp);
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) {
        const float factor = __uint_as_float(scales[i / 2]) / (1 << kProbUp);
#pragma unroll
        for (int j = 0; j < kN / 2; ++j) out[i][j] *= factor;
      }
    }
    const auto add = [](float x, float y) { return x + y; };
    over_team(rows.sum, add);
    // What of the output this warpgroup writes.
    int first = own_tile(), end = first + S::kOwn;
    if constexpr (S::kTurns) {
      if (piece.shared()) {
        exchange();
        first += team * (S::kOwn / 2);
        end = first + S::kOwn / 2;
      } else if (team == 1) {
        first = end;
      }
    }
    if (piece.slot >= 0) {
      write_part(piece, first, end);
    } else {
      if constexpr (!S::kFp8 && !S::kTurns) sync_all();  // nobody reads the query any more
      write(piece, first, end);
    }
    fence_proxy_async();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(at.query_empty);
  }

  /// This thread's fragment i of an exchange that begins with slot `first` of a ring.
  __device__ __forceinline__ uint32_t fragment(uint32_t ring_slots, uint32_t first, int i) const {
    const uint32_t offset = (half * (S::kOwn / 2) * kPairs + i) * 2048;
    return ring_slots + behind(first, offset / S::kSlotBytes) * S::kSlotBytes + offset % S::kSlotBytes + tid * 16;
  }

  /// Adds up what both teams have: afterwards each warpgroup holds the sums of half of its output tiles. None comes
  /// here again before the other has read: the next query waits for both.
  __device__ __forceinline__ void exchange() {
    constexpr int kHalf = S::kOwn / 2;
    const uint32_t first = ring.stage;
    for (int i = 0; i < S::kExchange; ++i) {
      mbarrier_wait(full(ring.stage), ring.filled);
      ring.advance();
    }
    if (tid < 4 && half == 0) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        shared_store4(at.figures + (team * kN + j * 8 + tid * 2) * 8, rows.largest[2 * j], rows.sum[2 * j],
                      rows.largest[2 * j + 1], rows.sum[2 * j + 1]);
      }
      shared_store1(at.stages + team * 4, first);
    }
    const auto mine = [this](int i) { return i / kHalf == team; };
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
      if (mine(i)) continue;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        shared_store4(fragment(slots(), first, i % kHalf * kPairs + j), out[i][4 * j], out[i][4 * j + 1],
                      out[i][4 * j + 2], out[i][4 * j + 3]);
      }
    }
    sync_all();
    const uint32_t others = at.ring + (1 - team) * S::kRingBytes,
                   others_first = shared_load1(at.stages + (1 - team) * 4);
    float weight[2][kN / 4];  // of the first warpgroup's, of the second's
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float4 one = shared_load4f(at.figures + (j * 8 + lane % 4 * 2) * 8);
      const float4 two = shared_load4f(at.figures + (kN + j * 8 + lane % 4 * 2) * 8);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float m1 = e == 0 ? one.x : one.z, m2 = e == 0 ? two.x : two.z;
        const float largest = fmaxf(m1, m2), shift = softmax_shift(largest);
        weight[0][2 * j + e] = exp2_approx(m1 - shift);
        weight[1][2 * j + e] = exp2_approx(m2 - shift);
        rows.largest[2 * j + e] = largest;
        rows.sum[2 * j + e] =
            weight[0][2 * j + e] * (e == 0 ? one.y : one.w) + weight[1][2 * j + e] * (e == 0 ? two.y : two.w);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
      if (!mine(i)) continue;
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        const float4 x = shared_load4f(fragment(others, others_first, i % kHalf * kPairs + j));
        const float other[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float w1 = weight[0][2 * j + k % 2], w2 = weight[1][2 * j + k % 2];
          const float own = out[i][4 * j + k];
          out[i][4 * j + k] = team == 0 ? w1 * own + w2 * other[k] : w1 * other[k] + w2 * own;
        }
      }
    }
    fence_proxy_async();
    __syncwarp();
    for (int i = 0; i < S::kExchange; ++i) {
      if (lane == 0) mbarrier_arrive(at.empty + ((1 - team) * S::kSlots + behind(others_first, i)) * 8);
    }
  }

  /// Where rows g and g + 8 of this warp's output stand among the 64 channels of a tile.
  __device__ __forceinline__ int low_channel() const { return warp * 16 + (S::kFp8 ? lane / 4 * 2 : lane / 4); }
  static constexpr int kHighChannel = S::kFp8 ? 1 : 8;  // behind the low one

  /// What the piece has of the tile's rows, not divided by the sums, of some output tiles. Eight lanes write 32 or 64
  /// bytes of a row.
  __device__ __forceinline__ void write_part(const Piece& piece, int first, int end) const {
    const int64_t part = int64_t{piece.slot} * kN;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = j * 8 + lane % 4 * 2 + e;
        if (row >= piece.rows) continue;
        float* const to = a.partial_out + (part + row) * kC + own_tile() * 64 + low_channel();
#pragma unroll
        for (int i = 0; i < S::kOwn; ++i) {
          if (own_tile() + i < first || own_tile() + i >= end) continue;
          const float low = out[i][4 * j + e], high = out[i][4 * j + 2 + e];
          if constexpr (S::kFp8) {
            *reinterpret_cast<float2*>(to + i * 64) = make_float2(low, high);
          } else {
            to[i * 64] = low;
            to[i * 64 + kHighChannel] = high;
          }
        }
        if (tid < 4 && group == 0) a.max_sum[part + row] = make_float2(rows.largest[2 * j + e], rows.sum[2 * j + e]);
      }
    }
  }

  /// The rows of some output tiles, divided by the rows' sums.
  __device__ __forceinline__ void write(const Piece& piece, int first, int end) const {
    float inverse[kN / 4];
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) inverse[c] = inverse_sum(rows.sum[c]);
    if constexpr (S::kFp8) {
      write_pairs(piece, first, end, inverse);
    } else {
      write_tiles(piece, first, end, inverse);
    }
    if (group == 0 && tid < 4) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = j * 8 + tid * 2 + e;
          if (row < piece.rows)
            a.lse[int64_t{piece.row} + row] = natural_lse(rows.largest[2 * j + e], rows.sum[2 * j + e]);
        }
      }
    }
  }

  /// Where a thread holds neighbouring channels: eight lanes write 32 bytes of a row.
  __device__ __forceinline__ void write_pairs(const Piece& piece, int first, int end,
                                              const float (&inverse)[kN / 4]) const {
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) {
      const int row = c / 2 * 8 + lane % 4 * 2 + c % 2;
      if (row >= piece.rows) continue;
      Bf16* const to = a.out + (int64_t{piece.row} + row) * kC + own_tile() * 64 + low_channel();
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) {
        if (own_tile() + i < first || own_tile() + i >= end) continue;
        const float low = out[i][c / 2 * 4 + c % 2] * inverse[c], high = out[i][c / 2 * 4 + c % 2 + 2] * inverse[c];
        *reinterpret_cast<uint32_t*>(to + i * 64) = pack_bf16(low, high);
      }
    }
  }

  /// By way of the query's place.
  __device__ __forceinline__ void write_tiles(const Piece& piece, int first, int end,
                                              const float (&inverse)[kN / 4]) const {
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
      if (own_tile() + i < first || own_tile() + i >= end) continue;
      uint32_t pairs[kN / 4];
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        pairs[2 * j] = pack_bf16(out[i][4 * j] * inverse[2 * j], out[i][4 * j + 1] * inverse[2 * j + 1]);
        pairs[2 * j + 1] = pack_bf16(out[i][4 * j + 2] * inverse[2 * j], out[i][4 * j + 3] * inverse[2 * j + 1]);
      }
      store_transposed<kN>(at.query + (own_tile() + i) * S::kQueryTile, pairs);
    }
    sync();
    for (int i = first; i < end; ++i) {
      for (int x = tid; x < piece.rows * 8; x += 128) {
        const int row = x / 8, column = x % 8;
        const uint4 v = shared_load4(at.query + i * S::kQueryTile + row * 128 + ((column ^ (row % 8)) * 16));
        *reinterpret_cast<uint4*>(a.out + (int64_t{piece.row} + row) * kC + i * 64 + column * 8) = v;
      }
    }
  }
};

template <class S>
__global__ __launch_bounds__(S::kThreads, 1) void mla_decode_few_kernel(const __grid_constant__ Args a,
                                                                        const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t s_memory[];
  const Layout<S> at(static_cast<uint32_t>(__cvta_generic_to_shared(s_memory)));
  const bool producer = __shfl_sync(kFullWarp, threadIdx.x / 32, 0) >= S::kConsumers / 32;
  if (!a.early) pdl_wait();
  Walk<S::kRows> walk(a);
  if (producer && threadIdx.x % 32 == 0) {
    if constexpr (!S::kFp8) prefetch_tensor_map(&maps.cache);
    prefetch_tensor_map(&maps.query);
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kRings * S::kSlots; ++i) {
      mbarrier_init(at.full + i * 8, 1);
      mbarrier_init(at.empty + i * 8, S::kReaders);
    }
    mbarrier_init(at.query_full, 1);
    mbarrier_init(at.query_empty, S::kConsumers / 32);
    mbarrier_fence_init();
  }
  // The first block stays, so that the kernels behind this one find it waiting for the one before.
  if (walk.done() && blockIdx.x > 0) return;
  __syncthreads();
  if (producer) {
    if constexpr (S::kPassesRegisters) {
      give_registers<24>();
      if (threadIdx.x >= S::kConsumers + 32) return;
    }
    produce<S>(a, maps, at, walk);
  } else {
    if constexpr (S::kPassesRegisters) take_registers<240>();
    Consumer<S> consumer(a, at, reinterpret_cast<Piece*>(s_memory + (at.pieces - at.ring)));
    Piece piece;
    bool found = walk.next(&piece);
    if (a.early) pdl_wait();
    pdl_launch_dependents();
    for (; found; found = walk.next(&piece)) consumer.run(piece);
  }
}

// ---- host ---------------------------------------------------------------------------------------------------------

template <int kC, int kN, bool kFp8 = false>
Status launch(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  using S = Sizes<kC, kN, kFp8>;
  const int64_t sequences = p.lengths.dim(0), width = S::kLatent + kRope;
  Args a;
  a.plan = p.plan.as<int32_t>() + partials.plan_at;
  a.q_start = p.q_start.as<int32_t>();
  a.block_table = p.block_table.as<int32_t>();
  a.lengths = p.lengths.as<int32_t>();
  a.cache = p.cache.as<uint8_t>();
  a.out = p.out.as<Bf16>();
  a.lse = p.lse.as<float>();
  a.partial_out = partials.out;
  a.max_sum = reinterpret_cast<float2*>(partials.max_sum);
  a.tokens = static_cast<int>(p.q.dim(0));
  a.heads = static_cast<int>(p.q.dim(1));
  a.sequences = static_cast<int>(sequences);
  a.max_pages = static_cast<int>(p.block_table.dim(1));
  a.pages = static_cast<int>(p.cache.dim(0));
  a.slots = partials.slots;
  a.scale_log2 = p.scale * kLog2E;
  a.early =
      launch.settled(p.plan) && launch.settled(p.q_start) && launch.settled(p.block_table) && launch.settled(p.lengths);
  const Appended& appended = launch.appended;
  const bool all_but = appended.cache.data == p.cache.data && appended.slots.present() &&
                       appended.slots.numel() <= kMostFreshRows && launch.settled(appended.slots);
  a.early_keys = a.early && (all_but || launch.settled(p.cache));
  a.fresh_slots = appended.slots.as<int32_t>();
  a.fresh_rows = all_but ? static_cast<int>(appended.slots.numel()) : 0;
  Maps maps{};
  const int64_t query_rows = p.q.dim(0) * p.q.dim(1), cache_rows = p.cache.dim(0) * kPageTokens;
  const auto map = [width](const View& view, int64_t rows, int box, CUtensorMap* out) {
    return make_tensor_map(view.data, DType::kBF16, std::array{width, rows}, std::array{width}, std::array{64, box},
                           Swizzle::k128, out);
  };
  MLA_RETURN_IF_ERROR(map(p.q, query_rows, S::kRows, &maps.query));
  if (!kFp8) MLA_RETURN_IF_ERROR(map(p.cache, cache_rows, 64, &maps.cache));
  // No more blocks than there can be units of keys.
  const int64_t row_tiles = decode_max_row_tiles(query_rows, sequences, a.heads, 8);
  const int64_t blocks = std::min<int64_t>(launch.traits->multiprocessors, row_tiles * std::max(a.max_pages, 1));
  return cuda_status(launch_pdl(mla_decode_few_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(S::kThreads),
                                S::kBytes, launch.stream, a, maps),
                     "mla_decode_few_kernel");
}

template <int kC, int kN, bool kFp8 = false>
Status load() {
  using S = Sizes<kC, kN, kFp8>;
  return load_kernel(mla_decode_few_kernel<S>, "mla_decode_few_kernel", S::kBytes);
}

}  // namespace mla::cuda::few
