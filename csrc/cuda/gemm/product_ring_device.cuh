// product_ring_device.cuh - the parts of product_ring.cuh: which items and pieces a block has, what is done with one,
// and what lies in shared memory.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/gemm/product_ring.h"
#include "cuda/norm/hold_normed.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {

constexpr int kScaleSegments = 16;  // whose scales a warp keeps
constexpr int kRingConsumers = 8;   // warps
constexpr int kRingThreads = (kRingConsumers + 2) * 32;
// Named barriers, beside that of hold_x: the mbarriers are there; the lists are there, for the producer and for the
// others.
constexpr int kStartBarrier = 4, kListBarrier = 2, kListedBarrier = 3;
constexpr int kTouchedRows = 2;  // rows of x that uneven products bring into L1 while their lists are on their way

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
  static constexpr bool kCombines = kCombine;
  static constexpr bool kScaled = sizeof(W) == 1;
  static constexpr int kSegmentBytes = kSegment * sizeof(W);
  static constexpr int kStepPieces = kScaled ? 1 : 2;
  static constexpr int kMaxStep = kScaled ? kWholeSegments : kStepSegments;  // segments
  static constexpr int kTurns = 2;                                           // of warps, which take pieces in turn
  static constexpr int kTurnWarps = kRingConsumers / kTurns;                 // that share a piece
  static constexpr int kChunks = kSegmentBytes / 64;  // a lane group of four covers 64 bytes at a time

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

  /// This block's share of `count` things that are in order, `turn` of them in the place of blockIdx: the first
  /// `count % gridDim.x` turns get one more.
  __device__ static int share(uint32_t count, uint32_t turn, int* first) {
    const uint32_t each = count / gridDim.x, more = count - each * gridDim.x;
    *first = static_cast<int>(each * turn + min(turn, more));
    return static_cast<int>(each + (turn < more ? 1 : 0));
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

  // Constants with bf16 weights.
  __device__ __forceinline__ int piece_row_bytes() const { return kScaled ? plan.piece_row_bytes : kPieceRowBytes; }
  __device__ __forceinline__ int piece_k() const { return piece_row_bytes() / static_cast<int>(sizeof(W)); }
  __device__ __forceinline__ int piece_segments() const { return piece_row_bytes() / kSegmentBytes; }
  __device__ __forceinline__ int step_segments() const { return kStepPieces * piece_segments(); }
  __device__ __forceinline__ int pitch() const { return piece_row_bytes() + kPieceRowPad; }
  __device__ __forceinline__ int stage_bytes() const { return kItemRows * pitch(); }

  // ---- producer ----

  /// Rows of w that an item has.
  __device__ int item_rows(const RingItem& it) const {
    return min(kItemRows, static_cast<int>(p.n) - it.block * kItemRows);
  }
  __device__ const W* item_weights(const RingItem& it) const {
    return static_cast<const W*>(p.w) + group_of(it) * p.w_group + static_cast<int64_t>(it.block) * kItemRows * p.k;
  }

  /// Asks for a piece of the item whose weights begin at w; by the whole warp. One thread issues, from values that the
  /// compiler knows to be the same in all lanes: they have to be in uniform registers, and it would loop over the
  /// lanes.
  __device__ __forceinline__ void load(const RingPlace& place, const W* w, int rows) const {
    const auto same = [](auto x) { return __shfl_sync(kFullWarp, x, 0); };
    const int stage = same(place.stage), piece = same(place.piece);
    const uint64_t first = same(reinterpret_cast<uint64_t>(w + piece * piece_k()));
    const uint32_t to = shared_address(shared) + stage * stage_bytes(), bytes = row_bytes(piece);
    const uint32_t barrier = RingBarriers::at(barriers.full, stage);
    const int64_t row_step = p.k * static_cast<int64_t>(sizeof(W));
    const auto copy = [&](int row) {
      bulk_load(to + row * pitch(), reinterpret_cast<const void*>(first + row * row_step), bytes, barrier);
    };
    rows = same(rows);
    if (elect_lane()) {
      mbarrier_arrive_expect(barrier, rows * bytes);
      if (rows == kItemRows) {
#pragma unroll
        for (int row = 0; row < kItemRows; ++row) copy(row);
      } else {
#pragma unroll 1
        for (int row = 0; row < rows; ++row) copy(row);
      }
    }
    __syncwarp();
  }
  __device__ __forceinline__ uint32_t row_bytes(int piece) const {
    return min(piece_k(), static_cast<int>(p.k) - piece * piece_k()) * static_cast<uint32_t>(sizeof(W));
  }

  // ---- consumers ----

  /// Points x[t] to this lane's row of each row tile, at this lane's first k, with how many k it has from there on:
  /// none where there is no row.
  __device__ __forceinline__ void aim_x(const RingRows& it, int g, int q, const Bf16* (&x)[kTiles],
                                        int (&reach)[kTiles]) const {
    const int* const operand_rows = reinterpret_cast<const int*>(shared + plan.operand_rows);
    const int k0 = q * (kScaled ? 16 : 8);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      x[t] = nullptr;
      reach[t] = 0;
      const int r = 8 * t + g;
      if (r >= it.count) continue;
      const int row = p.order == nullptr ? it.row0 + r : operand_rows[it.row0 + r];
      if (row < 0) continue;
      x[t] = (plan.x_pitch > 0 ? reinterpret_cast<const Bf16*>(shared + plan.x + row * plan.x_pitch)
                               : static_cast<const Bf16*>(p.x) + it.group * p.x_group + row * p.x_row) +
             k0;
      reach[t] = static_cast<int>(p.k) - k0;
    }
  }

  /// This lane's four loads of x in a segment: the k of its weights. Zeros for what does not exist.
  __device__ __forceinline__ void load_x(const Bf16* const (&rows)[kTiles], const int (&reach)[kTiles], int segment,
                                         uint4 (&x)[kTiles][4]) const {
    const int k0 = segment * kSegment;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const Bf16* const from = rows[t] + k0;
      const int left = reach[t] - k0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = kScaled ? j / 2 * 64 + j % 2 * 8 : j * 32;
        x[t][j] = k < left ? load16(from + k) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  /// This lane's weights of the segment at `weights`. `left`: how many k, from this lane's first one on, are weights;
  /// what lies behind them in the ring may be anything. Every fp8 code gives a number, so zeros in x are enough there.
  __device__ __forceinline__ void load_weights(const unsigned char* weights, int left, uint4 (&low)[kChunks],
                                               uint4 (&high)[kChunks]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      low[c] = load16(weights + c * 64);
      high[c] = load16(weights + 8 * pitch() + c * 64);
      if (!kScaled && c * 64 / static_cast<int>(sizeof(W)) >= left) low[c] = high[c] = make_uint4(0, 0, 0, 0);
    }
  }

  /// acc += weights times x. `used`: row tiles that have rows.
  __device__ __forceinline__ void multiply(const uint4 (&low)[kChunks], const uint4 (&high)[kChunks], int used,
                                           const uint4 (&x)[kTiles][4], float (&acc)[kTiles][4]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if constexpr (!kScaled) {
        const uint32_t a0[4] = {low[c].x, high[c].x, low[c].y, high[c].y};
        const uint32_t a1[4] = {low[c].z, high[c].z, low[c].w, high[c].w};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t == 0 || t < used) mma_bf16(acc[t], a0, {x[t][c].x, x[t][c].y});
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t == 0 || t < used) mma_bf16(acc[t], a1, {x[t][c].z, x[t][c].w});
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
            if (t > 0 && t >= used) break;
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
    return reinterpret_cast<float4*>(shared + plan.sums) + (step & 1) * (step_segments() * kTiles * 32) + lane;
  }

  /// Pieces of the step that this piece belongs to.
  __device__ int step_pieces(int piece) const { return min(kStepPieces, pieces - piece / kStepPieces * kStepPieces); }

  // ---- epilogue ----

  /// The scale that this lane keeps for the 16 segments from s0 on: of the item's first 8 rows in lanes 0 to 15, of the
  /// other 8 in lanes 16 to 31.
  __device__ float scale_of(const RingItem& it, int s0, int lane) const {
    const int segment = s0 + lane % kScaleSegments;
    if (segment >= segments) return 0;
    const int first_row = p.gated ? it.block * (kItemRows / 2) : it.block * kItemRows;
    int64_t block = first_row / kSegment;
    if (p.gated && lane >= kScaleSegments) block += div_up<int64_t>(p.n / 2, kSegment);
    return p.scale[group_of(it) * p.scale_group + block * segments + segment];
  }

  /// Where this lane's result j (0, 1: row g of w; 2, 3: row g + 8; rows 2q and 2q + 1 of row tile t) goes; -1:
  /// nowhere.
  __device__ int64_t place_of(const RingItem& it, const RingRows& rows, int t, int j, int lane) const {
    const int r = 8 * t + 2 * (lane % 4) + j % 2;
    const int64_t n = static_cast<int64_t>(it.block) * kItemRows + lane / 4 + j / 2 * 8;
    return r < rows.count && n < p.n ? rows.group * p.y_group + (rows.row0 + r) * p.y_row + n : -1;
  }

  /// What is added to the results of an item: asked for before they are there.
  __device__ void load_residual(const RingItem& it, const RingRows& rows, int lane,
                                float (&residual)[kTiles][4]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t at = place_of(it, rows, t, j, lane);
        residual[t][j] = at < 0 ? 0.0f : to_float(static_cast<const Bf16*>(p.residual)[at]);
      }
    }
  }

  /// Writes the results of row tile t.
  __device__ void emit(const RingItem& it, const RingRows& rows, int t, int lane, const float (&total)[4]) const {
    const int g = lane / 4, q = lane % 4;
    if constexpr (kCombine) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = 8 * t + 2 * q + j;
        if (r >= rows.count) continue;
        // In the first block of the cluster.
        const uint32_t part =
            cluster_address(shared_address(shared) + plan.parts +
                                ((rows.row0 + r) * kItemRows + g) * static_cast<uint32_t>(sizeof(float)),
                            0);
        cluster_store(part, total[j]);
        cluster_store(part + 8 * sizeof(float), total[2 + j]);
      }
    } else if (p.gated) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = 8 * t + 2 * q + j;
        if (r >= rows.count) continue;
        store(rows.group * p.y_group + (rows.row0 + r) * p.y_row + it.block * 8 + g, gate_up(total[j], total[2 + j]));
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t at = place_of(it, rows, t, j, lane);
        if (at >= 0) store(at, total[j]);
      }
    }
  }

  __device__ __forceinline__ void store(int64_t at, float value) const {
    if (p.y_dtype == DType::kF32) {
      static_cast<float*>(p.y)[at] = value;
    } else {
      static_cast<Bf16*>(p.y)[at] = from_float<Bf16>(value);
    }
  }
};

/// The list of uneven tiles, always-on ones first; `listed` receives how many there are, and how many rows have a
/// group. By one warp.
template <class S>
__device__ void list_tiles(const S& s, int* listed) {
  constexpr int kAtOnce = 4;  // loads under way
  const Product& p = s.p;
  const int lane = threadIdx.x % 32;
  int2* const list = reinterpret_cast<int2*>(s.shared + s.plan.tiles);
  const int first_always = static_cast<int>(p.groups) - s.plan.always;
  const int end_of_rows = p.offsets[p.groups];
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
        begin[i] = min(end[i], begin[i] + S::kHeight);  // rows beyond, if any, are tiles like all others
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
    listed[1] = min(max(end_of_rows, 0), static_cast<int>(p.rows));
  }
}

/// Which row of x each row multiplies, and, combined, where each pair stands and its weight. By the consumers, who call
/// meanwhile() while they wait for the memory.
template <class S, class Meanwhile>
__device__ void list_rows(const S& s, const Combine& combine, Meanwhile&& meanwhile) {
  constexpr int kThreads = kRingConsumers * 32;
  const Product& p = s.p;
  const int rows = p.order == nullptr ? 0 : static_cast<int>(p.rows), thread = threadIdx.x;
  const uint32_t per_row = static_cast<uint32_t>(p.per_row), pairs = static_cast<uint32_t>(p.x_rows) * per_row;
  int pair = thread < rows ? p.order[thread] : 0;
  meanwhile();
  int* const list = reinterpret_cast<int*>(s.shared + s.plan.operand_rows);
  for (int i = thread; i < rows; i += kThreads) {
    if (i != thread) pair = p.order[i];
    list[i] = static_cast<uint32_t>(pair) < pairs ? static_cast<int>(static_cast<uint32_t>(pair) / per_row) : -1;
  }
  if constexpr (S::kCombines) {
    int* const slots = reinterpret_cast<int*>(s.shared + s.plan.slots);
    float* const weights = reinterpret_cast<float*>(s.shared + s.plan.weights);
    for (int i = thread; i < combine.tokens * combine.per_token; i += kThreads) {
      slots[i] = combine.slots[i];
      weights[i] = combine.weights[i];
    }
  }
}

/// What a thread adds to the sum of its token and column, the first one if it has several.
__device__ inline float combine_residual(const Combine& c, int block, int i) {
  const int64_t n = static_cast<int64_t>(block) * kItemRows + i % kItemRows;
  if (c.residual == nullptr || i >= c.tokens * kItemRows || n >= c.n) return 0;
  return to_float(static_cast<const Bf16*>(c.residual)[i / kItemRows * c.out_row + n]);
}

/// out[t, 16 columns] from the parts of all pairs, by all threads of the cluster's first block.
template <class S>
__device__ void combine_parts(const S& s, const Combine& c, int block, int used, float residual) {
  const float* const parts = reinterpret_cast<const float*>(s.shared + s.plan.parts);
  const int* const slots = reinterpret_cast<const int*>(s.shared + s.plan.slots);
  const float* const weights = reinterpret_cast<const float*>(s.shared + s.plan.weights);
  for (int i = threadIdx.x; i < c.tokens * kItemRows; i += kRingThreads) {
    const int t = i / kItemRows, column = i % kItemRows;
    const int64_t n = static_cast<int64_t>(block) * kItemRows + column;
    if (i != static_cast<int>(threadIdx.x)) residual = combine_residual(c, block, i);
    if (n >= c.n) continue;
    float sum = 0;
    for (int j = 0; j < c.per_token; ++j) {
      const int pair = t * static_cast<int>(c.per_token) + j;
      const int slot = slots[pair];
      if (slot >= 0 && slot < used) sum = fmaf(weights[pair], rounded_bf16(parts[slot * kItemRows + column]), sum);
    }
    if (c.residual != nullptr) sum += residual;
    static_cast<Bf16*>(c.out)[t * c.out_row + n] = from_float<Bf16>(sum);
  }
}

/// Brings all rows of x into L1, by the consumers.
__device__ __forceinline__ void touch_x(const Product& p) {
  for (int64_t row = 0; row < p.x_rows; ++row) {
    for (int k = threadIdx.x * 8; k < p.k; k += kRingConsumers * 32 * 8) {
      [[maybe_unused]] uint32_t a, b, c, d;
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "l"(static_cast<const Bf16*>(p.x) + row * p.x_row + k));
    }
  }
}

/// Rows of x into shared memory by the consumers; complete after a barrier that follows.
__device__ inline void hold_rows(const Product& p, const RingPlan& plan, unsigned char* shared) {
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
}

/// The same, normed if p says so; ends with their barrier.
__device__ inline void hold_x(const Product& p, const RingPlan& plan, unsigned char* shared) {
  const auto sync = [] { named_barrier_sync(1, kRingConsumers * 32); };
  if (p.norm.weight != nullptr) {
    hold_normed<kRingConsumers>(p.norm, static_cast<const Bf16*>(p.x), p.x_row, plan.x_rows, static_cast<int>(p.k),
                                shared + plan.x, plan.x_pitch, reinterpret_cast<float*>(shared + plan.norm_sums),
                                threadIdx.x / 32, sync);
  } else {
    hold_rows(p, plan, shared);
  }
  sync();
}

}  // namespace mla::cuda
