// mla_decode_few_sm90.cuh - absorbed attention on Hopper for few query rows a sequence (heads * new tokens up to 48).
//
//   S^T[64 keys x N rows] = K Q^T;  p = 2^(s - m);  O^T[c x N] += V^T P^T
//
// Keys lie on the M side of the matrix units and query rows on the N side, so that few rows waste nothing. A cache page
// arrives as sub-tiles of 64 keys x 64 channels by the copy engine; the same bytes are K (K-major) and V^T
// (transposed). Grid: clusters of blocks (cluster_plan.h), each loops over the plan's work items. Block: one or two
// warpgroups that compute (two share the output channels and compute the scores each for itself: their registers would
// not hold the output), and a warp that loads ahead, across items. Registers: the output, c * N / 128 / warpgroups a
// thread. Shared memory: ring of sub-tiles, query, probabilities; two blocks of one warpgroup fit on a multiprocessor.
// What the blocks of a cluster have summed up is merged through shared memory, output channels dealt out to the blocks;
// groups of a sequence through the workspace, by the block that comes last. Both in ascending order of keys, so equal
// calls give equal bits.
// Precision: float32 but for the probabilities (bf16), as
// everywhere. Keys behind a sequence's end are masked, and their rows set to zero before they are multiplied by zero.
// Schedule and measurements: docs/kernels/mla-decode.md. Test: test/gpu/attention.test.ts.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <utility>

#include "cuda/attention/few_load.cuh"
#include "cuda/attention/few_rows.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda::few {

/// A warpgroup that computes.
template <int kC, int kN>
struct Consumer {
  using S = Sizes<kC, kN>;
  static constexpr int kPairs = kN / 8;  // columns of a thread come in pairs

  const Args& a;
  const Layout<kC, kN>& at;
  Item* const items;  // in shared memory
  const int rank;
  const int group, tid, lane, warp;  // warpgroup, and thread and warp within it
  RingCursor<S::kSlots> ring;
  uint32_t query_filled = 0, exchanged = 0;
  uint32_t peer_stage = 0;  // thread r of a warpgroup: where block r of the cluster stands in its ring
  float out[S::kOwn][kN / 2];
  RowState<kN> rows;

  __device__ Consumer(const Args& a, const Layout<kC, kN>& at, Item* items, int rank)
      : a(a),
        at(at),
        items(items),
        rank(rank),
        group(__shfl_sync(kFullWarp, threadIdx.x / 128, 0)),
        tid(threadIdx.x % 128),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32 % 4) {}

  __device__ __forceinline__ uint32_t slot(uint32_t stage) const { return at.ring + stage * kTileBytes; }
  /// The stage i behind another, i at most the ring's length.
  static __device__ __forceinline__ uint32_t behind(uint32_t stage, uint32_t i) {
    const uint32_t sum = stage + i;
    return sum < S::kSlots ? sum : sum - S::kSlots;
  }
  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane == 0) mbarrier_arrive(at.empty + stage * 8);
  }
  __device__ __forceinline__ uint32_t probabilities() const { return at.prob + group * S::kProbBytes; }
  __device__ __forceinline__ void sync() const { named_barrier_sync(1 + group, 128); }

  /// All of an item. What is needed only after its last key waits in shared memory meanwhile, a copy for each warp.
  __device__ __forceinline__ void run(const Item& item) {
    if (lane == 0) items[threadIdx.x / 32] = item;
    __syncwarp();
    begin();
    for (int key = item.begin; key < item.end; key += kTileKeys) tile(item, key);
    finish(items[threadIdx.x / 32]);
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
    mbarrier_wait(at.query_full, query_filled);
    query_filled ^= 1;
  }

  /// Keys [key, key + 64) or up to the block's last.
  __device__ __forceinline__ void tile(const Item& item, int key) {
    float s[kN / 2];
    const uint32_t first = __shfl_sync(kFullWarp, ring.stage, 0);  // so that addresses live in uniform registers
    const uint64_t keys_at = wgmma_tile(at.ring, 16, 1024), query_at = wgmma_tile(at.query, 16, 1024);
    const uint64_t values_at = wgmma_tile(at.ring, 8192, 1024), prob_at = wgmma_tile(probabilities(), 16, 1024);
#pragma unroll
    for (int i = 0; i < S::kTiles; ++i) {
      const uint32_t stage = behind(first, i);
      mbarrier_wait(at.full + stage * 8, ring.filled);
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
    if constexpr (S::kGroups == 2) {  // the other warpgroup's output
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) release(behind(first, 1 + (1 - group) * S::kOwn + i));
    }

    const int keys = min(item.end - key, kTileKeys);
    const int steps = (keys + 15) / 16;
    const int token = warp * 16 + lane / 4;
    float most[kN / 4];
    const bool whole = keys == kTileKeys && key + kTileKeys <= item.visible(0, a.heads);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& low = s[4 * j + e];
        float& high = s[4 * j + 2 + e];
        low *= a.scale_log2;
        high *= a.scale_log2;
        if (!whole) {
          const int limit = item.visible(j * 8 + lane % 4 * 2 + e, a.heads) - key;
          if (token >= limit) low = -INFINITY;
          if (token + 8 >= limit) high = -INFINITY;
        }
        most[2 * j + e] = fmaxf(low, high);
      }
    }
    const auto larger = [](float x, float y) { return fmaxf(x, y); };
    over_keys<kN>(most, larger);
    over_warps<kN>(most, at.stat, group, larger);
    bool grows = false;
#pragma unroll
    for (int c = 0; c < kN / 4; ++c) grows |= most[c] > rows.largest[c];
    if (__any_sync(kFullWarp, grows)) rescale(most);  // all warps see the same maxima
    uint32_t pairs[kN / 4];
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float shift0 = softmax_shift(rows.largest[2 * j]), shift1 = softmax_shift(rows.largest[2 * j + 1]);
      const float p0 = exp2_approx(s[4 * j] - shift0), p1 = exp2_approx(s[4 * j + 1] - shift1);
      const float p2 = exp2_approx(s[4 * j + 2] - shift0), p3 = exp2_approx(s[4 * j + 3] - shift1);
      rows.sum[2 * j] += p0 + p2;
      rows.sum[2 * j + 1] += p1 + p3;
      pairs[2 * j] = pack_bf16(p0, p1);
      pairs[2 * j + 1] = pack_bf16(p2, p3);
    }
    store_transposed<kN>(probabilities(), pairs);
    if (keys % 16 != 0) clear_rows(behind(first, 1 + group * S::kOwn), keys, steps * 16);
    fence_proxy_async();
    sync();  // probabilities of all warps

    const uint32_t own = behind(first, 1 + group * S::kOwn);
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
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) keep(out[i]);
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

  /// What follows the last key of an item.
  __device__ __forceinline__ void finish(const Item& item) {
    const int blocks = item.active;
    const bool active = rank<blocks, exchanges = blocks> 1;
    if (active) {
      if constexpr (S::kGroups == 2) named_barrier_sync(3, 256);  // nobody reads the query any more
      const auto add = [](float x, float y) { return x + y; };
      over_keys<kN>(rows.sum, add);
      over_warps<kN>(rows.sum, at.stat, group, add);
    }
    if (tid < a.cluster) {
      peer_stage = (peer_stage + item.tiles_of(tid) * S::kTiles) % S::kSlots;
      if (exchanges && tid < item.active) {
        shared_store1(at.stage + tid * 4, peer_stage);
        peer_stage = (peer_stage + S::kExchange) % S::kSlots;
      }
    }
    unsigned tiles = active ? dealt_out(item) : 0;
    const uint32_t first = ring.stage;
    if (exchanges) {
      if (active) show(item, first);
      sync();
      if (tid < a.cluster) mbarrier_arrive_cluster(at.ready, tid);
      mbarrier_wait_cluster(at.ready, exchanged);
      if (active) {
        sum_parts(
            item.active, tiles, [&](int r, int n) { return shared_load2(at.figures + (r * kN + n) * 8); },
            [&](int r, int tile, int j) {
              return cluster_load4(cluster_address(fragment(shared_load1(at.stage + r * 4), tile, j), r));
            },
            [&](int tile, const float(&x)[kN / 2]) { deliver(item, tile, x); });
      }
      sync();
      if (tid < a.cluster) mbarrier_arrive_cluster_relaxed(at.done, tid);
    } else if (active) {
#pragma unroll
      for (int i = 0; i < S::kOwn; ++i) deliver(item, group * S::kOwn + i, out[i]);
    }
    if (active) {
      if (item.groups > 1) tiles = merge_groups(item, tiles);
      write(item, tiles);
    }
    fence_proxy_async();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(at.query_empty);
    if (exchanges) {
      mbarrier_wait_cluster(at.done, exchanged);
      exchanged ^= 1;
      for (int i = 0; i < S::kExchange && active; ++i) release((first + i) % S::kSlots);
    }
  }

  /// Output tiles of this warpgroup that the block sums up over its cluster, as bits.
  __device__ __forceinline__ unsigned dealt_out(const Item& item) const {
    unsigned tiles = 0;
    for (int i = rank; i < S::kOutTiles; i += item.active) tiles |= 1u << i;
    return S::kGroups == 1 ? tiles : tiles & ((1u << S::kOwn) - 1) << group * S::kOwn;
  }

  /// This thread's fragment of output tile i, columns 8 j, in an exchange that begins with slot `first`.
  __device__ __forceinline__ uint32_t fragment(uint32_t first, int i, int j) const {
    const uint32_t offset = (i * kPairs + j) * 2048;
    return slot((first + offset / kTileBytes) % S::kSlots) + offset % kTileBytes + tid * 16;
  }

  /// Maxima and sums to all blocks of the cluster, the output to slots where they can read it.
  __device__ __forceinline__ void show(const Item& item, uint32_t first) {
    if (group == 0 && lane < 4) {
      for (int r = warp; r < item.active; r += 4) {
        const uint32_t to = cluster_address(at.figures + (rank * kN + lane * 2) * 8, r);
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          cluster_store4(to + j * 64, make_float4(rows.largest[2 * j], rows.sum[2 * j], rows.largest[2 * j + 1],
                                                  rows.sum[2 * j + 1]));
        }
      }
    }
    for (int i = 0; i < S::kExchange; ++i) {
      mbarrier_wait(at.full + ring.stage * 8, ring.filled);
      ring.advance();
    }
#pragma unroll
    for (int i = 0; i < S::kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        shared_store4(fragment(first, group * S::kOwn + i, j), out[i][4 * j], out[i][4 * j + 1], out[i][4 * j + 2],
                      out[i][4 * j + 3]);
      }
    }
  }

  /// What the cluster has of an output tile: the result if it is alone, else a part of it.
  __device__ __forceinline__ void deliver(const Item& item, int tile, const float (&x)[kN / 2]) const {
    if (item.groups == 1) {
      stage(tile, x);
      return;
    }
    const int64_t part = int64_t{item.slot} * S::kOutTiles + tile;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      a.partial_out[(part * kPairs + j) * 128 + tid] = make_float4(x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]);
    }
    if (tid < 4) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        *reinterpret_cast<float4*>(a.max_sum + part * kN + j * 8 + tid * 2) =
            make_float4(rows.largest[2 * j], rows.sum[2 * j], rows.largest[2 * j + 1], rows.sum[2 * j + 1]);
      }
    }
  }

  /// Counts this group's parts of output tiles `tiles`. Returns those whose last part that was, merged and staged.
  __device__ __forceinline__ unsigned merge_groups(const Item& item, unsigned tiles) {
    sync();
    if (warp == 0) {
      bool last = false;
      if (lane < S::kOutTiles && (tiles >> lane & 1) != 0) {
        int32_t* counter = a.arrived + int64_t{item.first_slot} * kMaxOutTiles + lane;
        __threadfence();
        last = atomicAdd(counter, 1) == item.groups - 1;
        if (last) *counter = 0;
        __threadfence();
      }
      const unsigned found = __ballot_sync(kFullWarp, last);
      if (lane == 0) shared_store1(at.flag + group * 4, found);
    }
    sync();
    const unsigned last = shared_load1(at.flag + group * 4);
    if (last == 0) return 0;
    const auto part_of = [&item](int g, int tile) {
      return (item.first_slot + int64_t{g} * item.slot_stride) * S::kOutTiles + tile;
    };
    const int any = __ffs(last) - 1;  // the rows' figures are the same for all of its tiles
    sum_parts(
        item.groups, last, [&](int g, int n) { return __ldcg(a.max_sum + part_of(g, any) * kN + n); },
        [&](int g, int tile, int j) { return __ldcg(a.partial_out + (part_of(g, tile) * kPairs + j) * 128 + tid); },
        [&](int tile, const float(&x)[kN / 2]) { stage(tile, x); });
    return last;
  }

  /// Sums up 2^(maximum of the part - maximum of all) * part, in ascending order, for the output tiles named by bits,
  /// and gives each to `result`. The rows' maxima and sums become those of all parts. figures(part, row) gives maximum
  /// and sum, data(part, tile, j) this thread's fragment. Uses the place of the probabilities.
  template <class Figures, class Data, class Result>
  __device__ __forceinline__ void sum_parts(int parts, unsigned tiles, Figures figures, Data data, Result result) {
    constexpr int kBatch = kN <= 16 ? 8 : 4, kChunk = kPairs % 2 == 0 ? 2 : 1;  // loads on their way: parts, pairs
    bool weighed = false;
    for (unsigned left = tiles; left != 0; left &= left - 1) {
      const int tile = __ffs(left) - 1;
      float sum[kN / 2];
#pragma unroll
      for (int j = 0; j < kN / 2; ++j) sum[j] = 0;
#pragma unroll 1
      for (int first = 0; first < parts; first += kBatch) {
#pragma unroll
        for (int chunk = 0; chunk < kPairs; chunk += kChunk) {
          float4 x[kBatch][kChunk];
#pragma unroll
          for (int p = 0; p < kBatch; ++p) {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              x[p][j] = first + p < parts ? data(first + p, tile, chunk + j) : make_float4(0, 0, 0, 0);
            }
          }
          if (!weighed) weigh(parts, figures);
          weighed = true;
#pragma unroll
          for (int p = 0; p < kBatch; ++p) {
#pragma unroll
            for (int j = 0; j < kChunk; ++j) {
              const int pair = chunk + j;
              if (first + p >= parts) continue;
              const float2 w = shared_load2(probabilities() + ((first + p) * kN + pair * 8 + lane % 4 * 2) * 4);
              sum[4 * pair] += w.x * x[p][j].x;
              sum[4 * pair + 1] += w.y * x[p][j].y;
              sum[4 * pair + 2] += w.x * x[p][j].z;
              sum[4 * pair + 3] += w.y * x[p][j].w;
            }
          }
        }
      }
      result(tile, sum);
    }
    if (!weighed) weigh(parts, figures);  // all threads of the warpgroup go the same way
  }

  /// The weights of the parts of each row [parts, N], and the rows' maxima and sums. Eight threads a row.
  template <class Figures>
  __device__ __forceinline__ void weigh(int parts, Figures figures) {
    const uint32_t totals = at.stat + group * 4 * kN * 4;
    for (int n = tid / 8; n < kN; n += 16) {
      float2 mine[kMaxClusterGroups / 8];
      float largest = -INFINITY, sum = 0;
#pragma unroll
      for (int i = 0; i < kMaxClusterGroups / 8; ++i) {
        const int part = i * 8 + tid % 8;
        mine[i] = part < parts ? figures(part, n) : make_float2(-INFINITY, 0);
        largest = fmaxf(largest, mine[i].x);
      }
      const unsigned threads = 0xffu << (lane & 24);
#pragma unroll
      for (int i = 1; i < 8; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(threads, largest, i));
      const float shift = softmax_shift(largest);
#pragma unroll
      for (int i = 0; i < kMaxClusterGroups / 8; ++i) {
        const int part = i * 8 + tid % 8;
        const float weight = exp2_approx(mine[i].x - shift);
        sum += weight * mine[i].y;
        if (part < parts) shared_store1(probabilities() + (part * kN + n) * 4, __float_as_uint(weight));
      }
#pragma unroll
      for (int i = 1; i < 8; i *= 2) sum += __shfl_xor_sync(threads, sum, i);
      if (tid % 8 == 0) shared_store2(totals + n * 8, largest, sum);
    }
    sync();
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float4 x = shared_load4f(totals + (j * 8 + lane % 4 * 2) * 8);
      rows.largest[2 * j] = x.x;
      rows.sum[2 * j] = x.y;
      rows.largest[2 * j + 1] = x.z;
      rows.sum[2 * j + 1] = x.w;
    }
  }

  /// An output tile, divided by the rows' sums, into the query's place.
  __device__ __forceinline__ void stage(int tile, const float (&x)[kN / 2]) const {
    uint32_t pairs[kN / 4];
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float inverse0 = inverse_sum(rows.sum[2 * j]), inverse1 = inverse_sum(rows.sum[2 * j + 1]);
      pairs[2 * j] = pack_bf16(x[4 * j] * inverse0, x[4 * j + 1] * inverse1);
      pairs[2 * j + 1] = pack_bf16(x[4 * j + 2] * inverse0, x[4 * j + 3] * inverse1);
    }
    store_transposed<kN>(at.query + tile * S::kQueryTile, pairs);
  }

  /// Writes the staged output tiles of the item's rows.
  __device__ __forceinline__ void write(const Item& item, unsigned tiles) const {
    sync();
    for (unsigned left = tiles; left != 0; left &= left - 1) {
      const int tile = __ffs(left) - 1;
      for (int x = tid; x < item.rows * 8; x += 128) {
        const int row = x / 8, piece = x % 8;
        const uint4 v = shared_load4(at.query + tile * S::kQueryTile + row * 128 + ((piece ^ (row % 8)) * 16));
        *reinterpret_cast<uint4*>(a.out + (int64_t{item.row} + row) * kC + tile * 64 + piece * 8) = v;
      }
    }
    if ((tiles & 1) != 0 && tid < 4) {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = j * 8 + tid * 2 + e;
          if (row < item.rows)
            a.lse[int64_t{item.row} + row] = natural_lse(rows.largest[2 * j + e], rows.sum[2 * j + e]);
        }
      }
    }
  }
};

/// Zeros and lse = -inf for the rows that belong to no sequence; the first `blocks` blocks share them.
template <int kC>
__device__ __forceinline__ void clear_other_rows(const Args& a, int blocks, int threads) {
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads, all = a.tokens * a.heads;
  for (int64_t i = blockIdx.x; i < int64_t{before} + all - after; i += blocks) {
    const int64_t row = i < before ? i : i - before + after;
    for (int x = threadIdx.x; x < kC / 8; x += threads) {
      *reinterpret_cast<uint4*>(a.out + row * kC + x * 8) = make_uint4(0, 0, 0, 0);
    }
    if (threadIdx.x == 0) a.lse[row] = -INFINITY;
  }
}

template <int kC, int kN>
__global__ __launch_bounds__((Sizes<kC, kN>::kThreads),
                             (Sizes<kC, kN>::kBlocks)) void mla_decode_few_kernel(const __grid_constant__ Args a,
                                                                                  const __grid_constant__ Maps maps) {
  using S = Sizes<kC, kN>;
  extern __shared__ __align__(1024) uint8_t s_memory[];
  const Layout<kC, kN> at(static_cast<uint32_t>(__cvta_generic_to_shared(s_memory)));
  const int rank = static_cast<int>(blockIdx.x) % a.cluster, cluster = static_cast<int>(blockIdx.x) / a.cluster;
  const int clusters = static_cast<int>(gridDim.x) / a.cluster;
  const bool producer = __shfl_sync(kFullWarp, threadIdx.x / 32, 0) >= S::kConsumers / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kSlots; ++i) {
      mbarrier_init(at.full + i * 8, 1);
      mbarrier_init(at.empty + i * 8, S::kConsumers / 32);
    }
    mbarrier_init(at.query_full, 1);
    mbarrier_init(at.query_empty, S::kConsumers / 32);
    mbarrier_init(at.ready, a.cluster * S::kGroups);
    mbarrier_init(at.done, a.cluster * S::kGroups);
    mbarrier_fence_init();
  }
  if (producer && threadIdx.x % 32 == 0) {
    prefetch_tensor_map(&maps.cache);
    prefetch_tensor_map(&maps.query);
  }
  if (!a.early) pdl_wait();
  // The first clusters stay, so that the kernels behind this one find it waiting for the one before.
  if (cluster >= item_count(a) && cluster > 0) return;
  if (a.cluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (producer) {
    if constexpr (S::kGroups == 2) {
      give_registers<24>();
      if (threadIdx.x >= S::kConsumers + 32) return;
    }
    produce<kC, kN>(a, maps, at, rank, cluster, clusters);
  } else {
    if constexpr (S::kGroups == 2) take_registers<240>();
    const int items = item_count(a);
    Consumer<kC, kN> consumer(a, at, reinterpret_cast<Item*>(s_memory + (at.items - at.ring)), rank);
    Item item;
    int index = cluster;
    bool found = index < items && find_item<kN>(a, index, rank, &item);
    if (a.early) pdl_wait();
    pdl_launch_dependents();
    clear_other_rows<kC>(a, min(max(items, 1), clusters) * a.cluster, S::kConsumers);
    while (index < items) {
      if (found) consumer.run(item);
      index += clusters;
      found = index < items && find_item<kN>(a, index, rank, &item);
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------------------------

template <int kC, int kN>
Status launch(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  using S = Sizes<kC, kN>;
  const int64_t sequences = p.lengths.dim(0), width = kC + kRope;
  Args a;
  int32_t* const plan = p.plan.as<int32_t>() + cluster_plan_offset(sequences);
  a.plan = plan;
  a.q_start = p.q_start.as<int32_t>();
  a.block_table = p.block_table.as<int32_t>();
  a.lengths = p.lengths.as<int32_t>();
  a.out = p.out.as<Bf16>();
  a.lse = p.lse.as<float>();
  a.partial_out = reinterpret_cast<float4*>(partials.out);
  a.max_sum = reinterpret_cast<float2*>(partials.max_sum);
  a.arrived = plan + kClusterHeader + 2 * (sequences + 1);
  a.tokens = static_cast<int>(p.q.dim(0));
  a.heads = static_cast<int>(p.q.dim(1));
  a.sequences = static_cast<int>(sequences);
  a.max_pages = static_cast<int>(p.block_table.dim(1));
  a.pages = static_cast<int>(p.cache.dim(0));
  a.slots = partials.slots;
  a.cluster = cluster_size(sequences);
  a.max_items = static_cast<int>(partials.slots + p.q.dim(0) * p.q.dim(1) / 8 + sequences);
  a.scale_log2 = p.scale * kLog2E;
  a.early = launch.settled(p.plan) && launch.settled(p.q_start) && launch.settled(p.block_table) &&
            launch.settled(p.lengths) && launch.settled(p.cache);
  Maps maps;
  const int64_t query_rows = p.q.dim(0) * p.q.dim(1), cache_rows = p.cache.dim(0) * kPageTokens;
  const auto map = [width](const View& view, int64_t rows, int box, CUtensorMap* out) {
    return make_tensor_map(view.data, DType::kBF16, std::array{width, rows}, std::array{width}, std::array{64, box},
                           Swizzle::k128, out);
  };
  MLA_RETURN_IF_ERROR(map(p.q, query_rows, kN, &maps.query));
  MLA_RETURN_IF_ERROR(map(p.cache, cache_rows, 64, &maps.cache));
  MLA_RETURN_IF_ERROR(map(p.cache, cache_rows, 32, &maps.cache_parts[0]));
  MLA_RETURN_IF_ERROR(map(p.cache, cache_rows, 16, &maps.cache_parts[1]));
  const int clusters = std::max(clusters_at_once(*launch.traits, a.cluster) / (cluster_block_fills(kN) ? 2 : 1), 1);
  return cuda_status(launch_clusters(mla_decode_few_kernel<kC, kN>, dim3(static_cast<unsigned>(clusters * a.cluster)),
                                     dim3(S::kThreads), a.cluster, S::kBytes, launch.stream, a, maps),
                     "mla_decode_few_kernel");
}

template <int kC, int kN>
Status load() {
  return load_kernel(mla_decode_few_kernel<kC, kN>, "mla_decode_few_kernel", Sizes<kC, kN>::kBytes);
}

}  // namespace mla::cuda::few
