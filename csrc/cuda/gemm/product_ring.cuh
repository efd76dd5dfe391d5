// product_ring.cuh - products of few rows on Hopper: bounded by the bytes of the weights, which the copy engine streams
// through a ring in shared memory, as far as it holds them before the kernel ahead has ended.
//
// Formula and order of sums: product.h; combined (moeDown): out[t] = residual[t] + sum over j ascending of
//   weight[t, j] * part[slot[t, j]].
// Work: an item is 16 weight rows times a tile of up to 8 or 16 rows of x, over all of k. A block takes a share of the
//   items that are known from the start (all of even groups; the always-on experts of uneven ones) and a share of the
//   rest. Combined, a cluster of two blocks takes 16 columns of the output; its blocks take turns with the tiles of all
//   experts, and the first one sums up.
// Block: 10 warps, two blocks a multiprocessor, so that the next kernel's blocks move in and load while the last ones
//   of this kernel finish.
//   warp 8, the producer, cuts items into pieces of 16 rows by 1024 bytes and copies one after the other into the ring,
//     across items. Where the launcher found the weights settled all warps together fill the ring before pdl_wait(): a
//     warp issues the copies of its lanes one after the other.
//   warps 0 to 7 multiply, four at a piece in turn: a warp takes whole segments of 128 k, weights as the 16 rows of A,
//     rows of x as the 8 columns of B, and leaves each segment's sums in shared memory.
//   warp 9, the epilogue, adds segments in ascending order, eight of them a step, and writes results.
// x lies in shared memory where it is small, else it comes through L1.
// Shared memory: rows of a piece 1088 bytes apart, which spreads a quarter-warp's 16-byte loads over all banks; 17 KB a
//   stage, at most 6 stages; sums 8 or 16 KB; x, lists of uneven groups; combined also 64 bytes a pair.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/pdl_cluster.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_ring.h"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {

constexpr int kRingConsumers = 8;  // warps
constexpr int kRingThreads = (kRingConsumers + 2) * 32;
constexpr int kTurnWarps = 4;  // that share a piece

/// A place in the sequence of the items of a block: which tile, which 16-row block of w.
struct RingItem {
  int i = 0, tile = 0, block = 0;
};

/// The rows of an item's tile.
struct RingRows {
  int group, row0, count;
};

/// The barriers of a block, as shared addresses.
struct RingBarriers {
  uint32_t full, empty;       // of each stage
  uint32_t summable, summed;  // of each half of the sums
  __device__ static uint32_t at(uint32_t first, int i) { return first + 8 * i; }
};

/// A place in the sequence of all pieces of a block.
struct RingPlace {
  RingItem item;
  int piece = 0;  // of the item
  int stage = 0;
  uint32_t filled = 0;  // parity of the stage's phase
};

template <class W, int kTiles, bool kCombine>
struct Ring {
  static constexpr int kHeight = 8 * kTiles;
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kSegmentBytes = kSegment * sizeof(W);
  static constexpr int kPieceK = kPieceRowBytes / sizeof(W);
  static constexpr int kPieceSegments = kPieceK / kSegment;           // 4 with bf16, 8 with fp8
  static constexpr int kStepPieces = kStepSegments / kPieceSegments;  // 2 with bf16, 1 with fp8
  static constexpr int kChunks = kSegmentBytes / 64;                  // a lane group of four covers 64 bytes at a time

  const Product& p;
  const RingPlan& plan;
  unsigned char* shared;
  RingBarriers barriers;
  int row_blocks, segments, pieces, steps;
  int tiles = 0;  // of uneven groups
  int known = 0;  // items whose weights are known from the start, and the first of them
  int first_known = 0;
  int items = 0;  // of this block, and the first of those that are not known
  int first = 0;

  /// This block's share of `count` things that are in order, `turn` of them in the place of blockIdx.
  __device__ static int share(int64_t count, int turn, int* first) {
    *first = static_cast<int>(count * turn / gridDim.x);
    return static_cast<int>(count * (turn + 1) / gridDim.x) - *first;
  }

  /// Item `i` from scratch.
  __device__ RingItem item(int i) const {
    RingItem out{i};
    if constexpr (kCombine) {
      out.tile = 2 * i + static_cast<int>(blockIdx.x & 1);
      out.block = static_cast<int>(blockIdx.x >> 1);
    } else {
      const int at = i < known ? first_known + i : first + i - known;
      out.tile = at / row_blocks;
      out.block = at - out.tile * row_blocks;
    }
    return out;
  }

  __device__ __forceinline__ void next(RingItem& it) const {
    if constexpr (kCombine) {
      ++it.i;
      it.tile += 2;
    } else if (it.i + 1 == known) {
      it = item(known);
    } else {
      ++it.i;
      if (++it.block == row_blocks) {
        it.block = 0;
        ++it.tile;
      }
    }
  }

  __device__ __forceinline__ void advance(RingPlace& at, int by) const {
    at.piece += by;
    while (at.piece >= pieces) {
      at.piece -= pieces;
      next(at.item);
    }
    at.stage += by;
    while (at.stage >= plan.stages) {
      at.stage -= plan.stages;
      at.filled ^= 1;
    }
  }

  /// What the list says of an uneven tile: {group << 8 | rows, first row}.
  __device__ int2 listed(int tile) const { return reinterpret_cast<const int2*>(shared + plan.tiles)[tile]; }

  __device__ int group_of(const RingItem& it) const {
    if (p.offsets == nullptr) return plan.per_group == 1 ? it.tile : it.tile / plan.per_group;
    // The list may not be there yet.
    if (!kCombine && it.tile < plan.always) return static_cast<int>(p.groups) - plan.always + it.tile;
    return listed(it.tile).x >> 8;
  }

  __device__ RingRows rows_of(const RingItem& it) const {
    if (p.offsets == nullptr) {
      const int group = plan.per_group == 1 ? it.tile : it.tile / plan.per_group;
      const int row0 = (it.tile - group * plan.per_group) * kHeight;
      return {group, row0, min(kHeight, static_cast<int>(p.rows) - row0)};
    }
    const int2 tile = listed(it.tile);
    return {tile.x >> 8, tile.y, tile.x & 255};
  }

  // ---- producer ----

  /// Rows of w that an item has.
  __device__ int item_rows(const RingItem& it) const {
    return min(kItemRows, static_cast<int>(p.n) - it.block * kItemRows);
  }
  __device__ const W* item_weights(const RingItem& it) const {
    return static_cast<const W*>(p.w) + group_of(it) * p.w_group + static_cast<int64_t>(it.block) * kItemRows * p.k;
  }

  /// Asks for one row of a piece of the item whose weights begin at w.
  __device__ __forceinline__ void load_row(const RingPlace& at, const W* w, int row) const {
    const int k0 = at.piece * kPieceK;
    bulk_load(shared_address(shared) + at.stage * kStageBytes + row * kPieceRowPitch,
              w + static_cast<int64_t>(row) * p.k + k0, row_bytes(at.piece), RingBarriers::at(barriers.full, at.stage));
  }
  __device__ __forceinline__ void expect(const RingPlace& at, int rows) const {
    mbarrier_arrive_expect(RingBarriers::at(barriers.full, at.stage), rows * row_bytes(at.piece));
  }
  __device__ __forceinline__ uint32_t row_bytes(int piece) const {
    return min(kPieceK, static_cast<int>(p.k) - piece * kPieceK) * static_cast<uint32_t>(sizeof(W));
  }

  // ---- consumers ----

  /// Points x[t] to this lane's row of each row tile; null where there is none.
  __device__ __forceinline__ void aim_x(const RingRows& it, int g, int q, const Bf16* (&x)[kTiles]) const {
    const int* const operand_rows = reinterpret_cast<const int*>(shared + plan.operand_rows);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      x[t] = nullptr;
      const int r = 8 * t + g;
      if (r >= it.count) continue;
      const int row = p.order == nullptr ? it.row0 + r : operand_rows[it.row0 + r];
      if (row < 0) continue;
      x[t] = (plan.x_pitch > 0 ? reinterpret_cast<const Bf16*>(shared + plan.x + row * plan.x_pitch)
                               : static_cast<const Bf16*>(p.x) + it.group * p.x_group + row * p.x_row) +
             q * (kScaled ? 16 : 8);
    }
  }

  /// This lane's four loads of x in a segment: the k of its weights. Zeros for what does not exist.
  __device__ __forceinline__ void load_x(const Bf16* const (&rows)[kTiles], int segment, int q,
                                         uint4 (&x)[kTiles][4]) const {
    const int k0 = segment * kSegment;
    const int left = static_cast<int>(p.k) - k0 - q * (kScaled ? 16 : 8);
    const bool whole = k0 + kSegment <= p.k;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = kScaled ? j / 2 * 64 + j % 2 * 8 : j * 32;
        x[t][j] = rows[t] != nullptr && (whole || k < left) ? load16(rows[t] + k0 + k) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  /// acc += the segment at `weights`, times x. `left`: how many k, from this lane's first one on, are weights; what
  /// lies behind them in the ring may be anything. `used`: row tiles that have rows.
  __device__ __forceinline__ void multiply(const unsigned char* weights, int left, int used,
                                           const uint4 (&x)[kTiles][4], float (&acc)[kTiles][4]) const {
    uint4 low[kChunks], high[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      low[c] = load16(weights + c * 64);
      high[c] = load16(weights + 8 * kPieceRowPitch + c * 64);
      if (c * 64 / static_cast<int>(sizeof(W)) >= left) low[c] = high[c] = make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if constexpr (!kScaled) {
        const uint32_t a0[4] = {low[c].x, high[c].x, low[c].y, high[c].y};
        const uint32_t a1[4] = {low[c].z, high[c].z, low[c].w, high[c].w};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t < used) mma_bf16(acc[t], a0, {x[t][c].x, x[t][c].y});
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t < used) mma_bf16(acc[t], a1, {x[t][c].z, x[t][c].w});
        }
      } else {
        const uint32_t lows[4] = {low[c].x, low[c].y, low[c].z, low[c].w};
        const uint32_t highs[4] = {high[c].x, high[c].y, high[c].z, high[c].w};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          f8_to_bf16(lows[s], a[0], a[2]);
          f8_to_bf16(highs[s], a[1], a[3]);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            if (t >= used) break;
            const uint4& v = x[t][2 * c + s / 2];
            if (s % 2 == 0) {
              mma_bf16(acc[t], a, {v.x, v.y});
            } else {
              mma_bf16(acc[t], a, {v.z, v.w});
            }
          }
        }
      }
    }
  }

  /// Where the sums of a step lie: a float4 for each lane of each row tile of each segment.
  __device__ float4* sums(int step, int lane) const {
    return reinterpret_cast<float4*>(shared + plan.sums) + (step & 1) * (kStepSegments * kTiles * 32) + lane;
  }

  /// Pieces of the step that this piece belongs to.
  __device__ int step_pieces(int piece) const { return min(kStepPieces, pieces - piece / kStepPieces * kStepPieces); }

  // ---- epilogue ----

  /// The scale that this lane keeps for the step that begins with segment s0: of the item's first 8 rows in lanes 0 to
  /// 15, of the other 8 in lanes 16 to 31.
  __device__ float step_scale(const RingItem& it, int group, int s0, int lane) const {
    const int segment = s0 + lane % 16;
    if (lane % 16 >= kStepSegments || segment >= segments) return 0;
    const int first_row = p.gated ? it.block * (kItemRows / 2) : it.block * kItemRows;
    int64_t block = first_row / kSegment;
    if (p.gated && lane >= 16) block += div_up<int64_t>(p.n / 2, kSegment);
    return p.scale[group * p.scale_group + block * segments + segment];
  }

  /// Writes the results of row tile t: rows of w g and g + 8, rows of the tile 2q and 2q + 1.
  __device__ void emit(const RingItem& it, const RingRows& rows, int t, int lane, const float (&total)[4]) const {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = 8 * t + 2 * q + j;
      if (r >= rows.count) continue;
      if constexpr (kCombine) {
        // In the first block of the cluster.
        const uint32_t part =
            cluster_address(shared_address(shared) + plan.parts +
                                ((rows.row0 + r) * kItemRows + g) * static_cast<uint32_t>(sizeof(float)),
                            0);
        cluster_store(part, total[j]);
        cluster_store(part + 8 * sizeof(float), total[2 + j]);
      } else {
        const int64_t row = rows.group * p.y_group + (rows.row0 + r) * p.y_row;
        if (p.gated) {
          put(p, row + it.block * 8 + g, gate_up(total[j], total[2 + j]));
        } else {
          const int64_t n = static_cast<int64_t>(it.block) * kItemRows + g;
          if (n < p.n) put(p, row + n, total[j]);
          if (n + 8 < p.n) put(p, row + n + 8, total[2 + j]);
        }
      }
    }
  }
};

/// The lists of uneven groups: tiles, always-on ones first, and which row of x each row multiplies; combined also where
/// each pair stands and its weight. `listed` receives how many tiles there are, and how many rows have a group. All
/// threads; the barrier that must follow is the caller's.
template <class W, int kTiles, bool kCombine>
__device__ void make_lists(const Ring<W, kTiles, kCombine>& s, const Combine& combine, int* listed) {
  using S = Ring<W, kTiles, kCombine>;
  const Product& p = s.p;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    constexpr int kAtOnce = 4;  // loads under way
    int2* const list = reinterpret_cast<int2*>(s.shared + s.plan.tiles);
    const int first_always = static_cast<int>(p.groups) - s.plan.always;
    int before = s.plan.always;
    for (int e0 = 0; e0 < p.groups; e0 += 32 * kAtOnce) {
      int begin[kAtOnce], end[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const GroupRows group(p, e0 + 32 * i + lane);
        begin[i] = group.begin;
        end[i] = group.end;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int e = e0 + 32 * i + lane;
        if (e0 + 32 * i >= p.groups) break;
        if (e >= first_always) {
          if (e < p.groups) list[e - first_always] = {e << 8 | min(S::kHeight, end[i] - begin[i]), begin[i]};
          begin[i] = end[i];
        }
        const int count = (end[i] - begin[i] + S::kHeight - 1) / S::kHeight;
        const int until = before + inclusive_scan(count, lane);
        for (int j = 0; j < count; ++j) {
          const int at = until - count + j, row0 = begin[i] + j * S::kHeight;
          if (at < s.plan.capacity) list[at] = {e << 8 | min(S::kHeight, end[i] - row0), row0};
        }
        before = __shfl_sync(kFullWarp, until, 31);
      }
    }
    if (lane == 0) {
      listed[0] = min(before, s.plan.capacity);
      listed[1] = min(max(p.offsets[p.groups], 0), static_cast<int>(p.rows));
    }
  } else {
    if (p.order != nullptr) {
      int* const rows = reinterpret_cast<int*>(s.shared + s.plan.operand_rows);
      for (int i = threadIdx.x - 32; i < p.rows; i += kRingThreads - 32) rows[i] = static_cast<int>(operand_row(p, i));
    }
    if constexpr (kCombine) {
      int* const slots = reinterpret_cast<int*>(s.shared + s.plan.slots);
      float* const weights = reinterpret_cast<float*>(s.shared + s.plan.weights);
      for (int i = threadIdx.x - 32; i < combine.tokens * combine.per_token; i += kRingThreads - 32) {
        slots[i] = combine.slots[i];
        weights[i] = combine.weights[i];
      }
    }
  }
}

/// out[t, 16 columns] from the parts of all pairs, by all threads of the cluster's first block.
template <class S>
__device__ void combine_parts(const S& s, const Combine& c, int block, int used) {
  const float* const parts = reinterpret_cast<const float*>(s.shared + s.plan.parts);
  const int* const slots = reinterpret_cast<const int*>(s.shared + s.plan.slots);
  const float* const weights = reinterpret_cast<const float*>(s.shared + s.plan.weights);
  for (int i = threadIdx.x; i < c.tokens * kItemRows; i += kRingThreads) {
    const int t = i / kItemRows, column = i % kItemRows;
    const int64_t n = static_cast<int64_t>(block) * kItemRows + column;
    if (n >= c.n) continue;
    const int64_t at = t * c.out_row + n;
    const float residual = c.residual != nullptr ? to_float(static_cast<const Bf16*>(c.residual)[at]) : 0.0f;
    float sum = 0;
    for (int j = 0; j < c.per_token; ++j) {
      const int pair = t * static_cast<int>(c.per_token) + j;
      const int slot = slots[pair];
      if (slot >= 0 && slot < used) sum = fmaf(weights[pair], parts[slot * kItemRows + column], sum);
    }
    if (c.residual != nullptr) sum += residual;
    static_cast<Bf16*>(c.out)[at] = from_float<Bf16>(sum);
  }
}

/// Rows of x into shared memory, by the consumers; ends with their barrier.
__device__ inline void hold_x(const Product& p, const RingPlan& plan, unsigned char* shared) {
  constexpr int kAtOnce = 8;
  const int pieces = static_cast<int>(p.k / 8), all = plan.x_rows * pieces;
  for (int i0 = threadIdx.x; i0 < all; i0 += kAtOnce * kRingConsumers * 32) {
    uint4 held[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = i0 + j * kRingConsumers * 32;
      if (i >= all) break;
      const int row = i / pieces;
      held[j] = load16(static_cast<const Bf16*>(p.x) + row * p.x_row + (i - row * pieces) * 8);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = i0 + j * kRingConsumers * 32;
      if (i >= all) break;
      const int row = i / pieces;
      store16(shared + plan.x + row * plan.x_pitch + (i - row * pieces) * 16, held[j]);
    }
  }
  named_barrier_sync(1, kRingConsumers * 32);
}

template <class W, int kTiles, bool kCombine>
__global__ void __launch_bounds__(kRingThreads, 2)
    product_ring_kernel(const __grid_constant__ Product p, const __grid_constant__ Combine combine,
                        const __grid_constant__ RingPlan plan) {
  using S = Ring<W, kTiles, kCombine>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t barrier_words[2 * kMaxStages + 4];
  __shared__ int listed[2];  // tiles, rows that have a group
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t barriers = shared_address(barrier_words);
  S s{.p = p,
      .plan = plan,
      .shared = shared,
      .barriers = {barriers, barriers + 8 * kMaxStages, barriers + 16 * kMaxStages, barriers + 16 * kMaxStages + 16},
      .row_blocks = static_cast<int>((p.n + kItemRows - 1) / kItemRows),
      .segments = static_cast<int>((p.k + kSegment - 1) / kSegment),
      .pieces = static_cast<int>((p.k + S::kPieceK - 1) / S::kPieceK),
      .steps = 0};
  s.steps = (s.pieces + S::kStepPieces - 1) / S::kStepPieces;
  const bool uneven = p.offsets != nullptr;
  if constexpr (!kCombine) {
    const int64_t tiles = uneven ? plan.always : p.groups * plan.per_group;
    s.items = s.known = S::share(tiles * s.row_blocks, blockIdx.x, &s.first_known);
  }
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.stages; ++i) {
      mbarrier_init(RingBarriers::at(s.barriers.full, i), 1);
      mbarrier_init(RingBarriers::at(s.barriers.empty, i), kTurnWarps);
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(RingBarriers::at(s.barriers.summable, i), kTurnWarps * S::kStepPieces);
      mbarrier_init(RingBarriers::at(s.barriers.summed, i), 1);
    }
    mbarrier_fence_init();
  }
  const auto list = [&] {
    make_lists(s, combine, listed);
    __syncthreads();
    s.tiles = listed[0];
    if constexpr (kCombine) {
      s.items = (s.tiles + 1 - static_cast<int>(blockIdx.x & 1)) / 2;
    } else {
      // Blocks with more of the known items get fewer of the others.
      s.items = s.known + S::share(static_cast<int64_t>(s.tiles - plan.always) * s.row_blocks,
                                   gridDim.x - 1 - blockIdx.x, &s.first);
      s.first += plan.always * s.row_blocks;
    }
  };
  // Lists that the operation before left alone: all weights are known before the wait.
  if (uneven && plan.lists_settled) {
    list();
  } else {
    __syncthreads();
  }

  RingPlace at;
  if (s.items > 0) at.item = s.item(0);
  if (plan.weights_settled) {
    // The ring as far as it goes, two rows a warp.
    RingPlace early = at;
    const int row = warp * 2 + lane;
    for (int c = 0; c < plan.stages && early.item.i < s.items; ++c) {
      const int rows = s.item_rows(early.item);
      if (threadIdx.x == 0) s.expect(early, rows);
      if (warp < kRingConsumers && lane < 2 && row < rows) s.load_row(early, s.item_weights(early.item), row);
      s.advance(early, 1);
    }
    if (warp == kRingConsumers) at = early;
  }
  if constexpr (kCombine) cluster_sync();  // its blocks run: the first one's shared memory may be written
  pdl_wait();
  if (warp == kRingConsumers) pdl_launch_dependents();
  if (uneven && !plan.lists_settled) {
    list();
    if (s.items > 0 && at.item.i == s.known) at.item = s.item(at.item.i);
  }

  if (warp == kRingConsumers) {
    int loaded = -1, rows = 0;
    const W* w = nullptr;
#pragma unroll 1
    while (at.item.i < s.items) {
      if (loaded != at.item.i) {
        loaded = at.item.i;
        rows = s.item_rows(at.item);
        w = s.item_weights(at.item);
      }
      mbarrier_wait(RingBarriers::at(s.barriers.empty, at.stage), at.filled ^ 1);
      if (lane == 0) s.expect(at, rows);
      if (lane < rows) s.load_row(at, w, lane);
      s.advance(at, 1);
    }
  } else if (warp < kRingConsumers) {
    if (plan.x_pitch > 0) hold_x(p, plan, shared);
    const int turn = warp / kTurnWarps, member = warp % kTurnWarps, g = lane / 4, q = lane % 4;
    const unsigned char* const weights = shared + g * kPieceRowPitch + q * 16;
    if (s.items > 0) s.advance(at, turn);
    const Bf16* x_rows[kTiles];
    int aimed = -1, used = 1;
#pragma unroll 1
    while (at.item.i < s.items) {
      if (aimed != at.item.i) {
        const RingRows rows = s.rows_of(at.item);
        s.aim_x(rows, g, q, x_rows);
        used = rows.count > 8 ? 2 : 1;
        aimed = at.item.i;
      }
      const int segment0 = at.piece * S::kPieceSegments;
      const int count = min(S::kPieceSegments, s.segments - segment0);
      const int step = at.item.i * s.steps + at.piece / S::kStepPieces;
      float4* const sums = s.sums(step, lane) + (at.piece % S::kStepPieces) * (S::kPieceSegments * kTiles * 32);
      const unsigned char* const piece = weights + at.stage * kStageBytes;
      const uint32_t full = RingBarriers::at(s.barriers.full, at.stage);
      constexpr int kEach = S::kPieceSegments / kTurnWarps;  // segments of a warp
      uint4 x[kEach][kTiles][4];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (member + i * kTurnWarps < count) s.load_x(x_rows, segment0 + member + i * kTurnWarps, q, x[i]);
      }
      mbarrier_wait(full, at.filled);
      float acc[kEach][kTiles][4] = {};
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int j = member + i * kTurnWarps;
        const int left = static_cast<int>(p.k) - (segment0 + j) * kSegment - q * (16 / static_cast<int>(sizeof(W)));
        if (j < count) s.multiply(piece + j * S::kSegmentBytes, left, used, x[i], acc[i]);
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(RingBarriers::at(s.barriers.empty, at.stage));
      mbarrier_wait(RingBarriers::at(s.barriers.summed, step & 1), (step >> 1 & 1) ^ 1);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int j = member + i * kTurnWarps;
        if (j >= count) break;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t < used)
            sums[(j * kTiles + t) * 32] = make_float4(acc[i][t][0], acc[i][t][1], acc[i][t][2], acc[i][t][3]);
        }
      }
      __syncwarp();
      if (lane == 0) {
        // A step that ends with the item may lack the other turn's piece.
        for (int i = s.step_pieces(at.piece); i <= S::kStepPieces; i += i)
          mbarrier_arrive(RingBarriers::at(s.barriers.summable, step & 1));
      }
      s.advance(at, 2);
    }
  } else {
    int step = 0;
#pragma unroll 1
    for (; at.item.i < s.items; s.next(at.item)) {
      const RingRows rows = s.rows_of(at.item);
      const int used = rows.count > 8 ? 2 : 1;
      float total[kTiles][4] = {};
#pragma unroll 1
      for (int s0 = 0; s0 < s.segments; s0 += kStepSegments, ++step) {
        const float4* const sums = s.sums(step, lane);
        float scale = 1;
        if constexpr (S::kScaled) scale = s.step_scale(at.item, rows.group, s0, lane);
        mbarrier_wait(RingBarriers::at(s.barriers.summable, step & 1), step >> 1 & 1);
        const int count = min(kStepSegments, s.segments - s0);
#pragma unroll
        for (int j = 0; j < kStepSegments; ++j) {
          if (j >= count) break;
          float low = 1, high = 1;
          if constexpr (S::kScaled) {
            low = __shfl_sync(kFullWarp, scale, j);
            high = __shfl_sync(kFullWarp, scale, 16 + j);
          }
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            if (t >= used) break;
            const float4 v = sums[(j * kTiles + t) * 32];
            if constexpr (S::kScaled) {
              total[t][0] = fmaf(low, v.x, total[t][0]);
              total[t][1] = fmaf(low, v.y, total[t][1]);
              total[t][2] = fmaf(high, v.z, total[t][2]);
              total[t][3] = fmaf(high, v.w, total[t][3]);
            } else {
              total[t][0] += v.x;
              total[t][1] += v.y;
              total[t][2] += v.z;
              total[t][3] += v.w;
            }
          }
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(RingBarriers::at(s.barriers.summed, step & 1));
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) s.emit(at.item, rows, t, lane, total[t]);
    }
  }
  if constexpr (kCombine) {
    __syncwarp();
    cluster_sync();
    if ((blockIdx.x & 1) == 0) combine_parts(s, combine, static_cast<int>(blockIdx.x >> 1), listed[1]);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W, int kTiles, bool kCombine>
cudaError_t launch_ring_kernel(const Product& p, const Combine& c, const RingLaunch& launch) {
  const dim3 grid(static_cast<unsigned>(launch.blocks)), block(kRingThreads);
  const size_t bytes = static_cast<size_t>(launch.plan.bytes);
  const auto kernel = product_ring_kernel<W, kTiles, kCombine>;
  if constexpr (kCombine) {
    return launch_pdl_cluster(kernel, 2, grid, block, bytes, launch.stream, p, c, launch.plan);
  } else {
    return launch_pdl(kernel, grid, block, bytes, launch.stream, p, c, launch.plan);
  }
}

template <class W>
cudaError_t launch_ring(const Product& p, const Combine* c, const RingLaunch& launch) {
  if (c == nullptr) {
    return launch.row_tiles == 1 ? launch_ring_kernel<W, 1, false>(p, Combine{}, launch)
                                 : launch_ring_kernel<W, 2, false>(p, Combine{}, launch);
  }
  return launch.row_tiles == 1 ? launch_ring_kernel<W, 1, true>(p, *c, launch)
                               : launch_ring_kernel<W, 2, true>(p, *c, launch);
}

template <class W>
cudaError_t load_ring(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_ring_kernel<W, 1, false>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 2, false>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 1, true>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 2, true>);
  return error;
}

}  // namespace mla::cuda
