// resident_device.cuh - what the warps of a resident kernel (resident_kernel.cuh) share: a block's memory, its part of
// each product, and how operands, stages and sums go from one role to the next.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/gemm/product_device.cuh"
#include "cuda/moe/router_select.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/resident/cache_range.cuh"
#include "cuda/resident/resident.h"
#include "cuda/resident/ring.cuh"

namespace mla::cuda {

constexpr int kConsumers = 16;  // warps, and the segments that a row of x may have where it is normed
constexpr int kProducerWarp = kConsumers, kEpilogueWarp = kConsumers + 1, kHelperWarp = kConsumers + 2;
constexpr int kResidentThreads = (kConsumers + 4) * 32;
constexpr int kSumStages = 16;  // stages whose sums may wait
constexpr int kMostExperts = kResidentExperts;
constexpr int kMostColumns = kResidentColumns;
// Named barriers: all consumers; the same and the helper that waits for the normed row; the same when it has taken it;
// the epilogue and helper 0, whose parts of x it waits for.
constexpr int kConsumerBarrier = 1, kNormedBarrier = 2, kTakenBarrier = 3, kPartsBarrier = 4;

/// The same number, of which the compiler does not know that it is the same in all layers: it would keep all that
/// follows from it in registers that there are not.
__device__ __forceinline__ int in_place(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// fp8 weights: a code moved to where bf16 has its exponent reads as the code times 2^-120. What it is multiplied by is
// held times 2^96 and sums are taken times 2^24. All of that is exact (activations lie far below 2^31), and making bf16
// of two codes would take a fourth instruction, where instructions are what a stage of codes takes its time by.
constexpr float kSumScale = 0x1p24f, kLogitScale = 0x1p-96f;

/// Two bf16 values times 2^96.
__device__ __forceinline__ uint32_t raised(uint32_t pair) { return scale_bf16(pair, 0x6f806f80u); }

/// How the weights of one type lie in stages.
template <class W>
struct StageShape {
  static constexpr int kK = ResidentRing::kWeightRowBytes / static_cast<int>(sizeof(W));
  static constexpr int kSegments = kK / kSegment;
  static constexpr int kOwn = kSegments / ResidentRing::kTeamWarps;  // segments of a warp
  __device__ static int stages(int k) { return (k + kK - 1) / kK; }
};

/// A share of `count` things in order: the blocks from `turn` 0 on get one more of what is left.
struct Share {
  int first, count;
  __device__ Share(int all, int turn, int blocks) {
    const int each = all / blocks, more = all - each * blocks;
    first = each * turn + min(turn, more);
    count = each + (turn < more ? 1 : 0);
  }
};

/// The products of a layer, in the order in which all roles go through them. In a dense layer kAlways and kAlwaysDown
/// are its feed-forward network, and nothing is chosen. Behind the last layer kCompress is the head.
enum Phase : int { kCompress, kExpand, kOut, kAlways, kAlwaysDown, kChosen, kChosenDown, kPhases };

/// An item of 16 rows of the experts' gate and up.
struct GateUpItem {
  int column, item;  // of the row's experts, of the expert
  __device__ GateUpItem(int column, int item) : column(column), item(item) {}
  /// The one i places behind; an expert has `each`. Without a division: it is few experts away.
  __device__ __forceinline__ GateUpItem behind(int i, int each) const {
    GateUpItem it(column, item + i);
#pragma unroll 1
    while (it.item >= each) it.item -= each, ++it.column;
    return it;
  }
};

/// What this block does of each product: items of 16 weight rows. In shared memory: registers are few.
struct Parts {
  int blocks, block;
  int columns;           // the block's 16 columns of x are block * 16 ..; 1 if it has any
  int compress;          // items block, block + blocks, ...
  int expand;            // item `block`
  Share always, chosen;  // of gate_up, always-on experts' and chosen ones' items, one expert's after the other's
  Share dense, head;
  GateUpItem first_always, first_chosen;
  int logit;     // the expert whose logit is this block's; negative: none
  int attended;  // stages of attention
  __device__ Parts(const Resident& p)
      : blocks(gridDim.x),
        block(blockIdx.x),
        columns(block < p.d / 16),
        compress(((p.heads * (p.n + p.r) + p.c + p.r) / 16 - block + blocks - 1) / blocks),
        expand(block < p.heads * p.v / 16),
        // Those that have less of compress begin.
        always(p.shared * (p.inner / 8), blocks - 1 - block, blocks),
        chosen(p.top_k * (p.inner / 8), block, blocks),
        dense(p.dense_inner / 8, block, blocks),
        head(p.vocab / 16, block, blocks),
        first_always(GateUpItem(p.top_k, 0).behind(always.first, each(p))),
        first_chosen(GateUpItem(0, 0).behind(chosen.first, each(p))),
        logit(block - (blocks - p.experts)),
        attended(0) {}
  /// The first item of kAlways (of a layer with experts) or kChosen.
  __device__ __forceinline__ const GateUpItem& gate_up(int phase) const {
    return phase == kAlways ? first_always : first_chosen;
  }

 private:
  __device__ static int each(const Resident& p) { return max(p.inner / 8, 1); }
};

/// This block's items of 16 weight rows of k in a phase.
struct Work {
  int items, k;
  Work() = default;
  __device__ Work(const Resident& p, const Parts& parts, int phase, bool dense, bool last) : items(0), k(p.d) {
    switch (phase) {
      case kCompress: items = last ? parts.head.count : parts.compress; break;
      case kExpand: items = parts.expand, k = p.c; break;
      case kOut: items = parts.columns, k = p.heads * p.v; break;
      case kAlways: items = dense ? parts.dense.count : parts.always.count; break;
      case kAlwaysDown:
        items = !parts.columns ? 0 : dense ? 1 : p.shared;
        k = dense ? p.dense_inner : p.inner;
        break;
      case kChosen: items = dense ? 0 : parts.chosen.count; break;
      default: items = dense || !parts.columns ? 0 : p.top_k, k = p.inner;
    }
  }
};

/// Layers differ in their work by being dense or not; behind the last one comes the head.
enum WorkKind : int { kExpertLayer, kDenseLayer, kHead, kWorkKinds };
__device__ __forceinline__ int work_kind(bool dense, bool last) {
  return last ? kHead : dense ? kDenseLayer : kExpertLayer;
}

struct alignas(128) ResidentShared {
  unsigned char stages[ResidentRing::kStages * ResidentRing::kStageBytes];
  alignas(128) unsigned char operands[20480];      // of attention
  alignas(16) Bf16 normed[kConsumers * kSegment];  // the row of x
  alignas(16) Bf16 own[kConsumers][2 * kSegment];  // of a warp: segments of other operands
  alignas(16) float sums[kSumStages][8][16];       // of each segment of a stage
  float squares[kConsumers / 2];
  float parts[kMostColumns][16];  // what each of the row's experts adds to the block's columns
  alignas(8) float logits[kMostExperts];
  int32_t ids[2][kMostColumns];  // of odd and even layers
  float weights[2][kMostColumns];
  int32_t slots[2][kMostColumns];
  uint32_t epoch;
  int32_t position;
  int2 kept[kConsumers + 2];  // of each consumer and helper: what it need not keep in registers
  CacheRange range;
  Parts products;
  Work work[kWorkKinds][kPhases];
  uint64_t full[ResidentRing::kStages], empty[ResidentRing::kStages], summable[kSumStages], summed[kSumStages];
  uint64_t chosen, weighed;  // the layer's ids are there; their weights and slots too
};

__device__ __forceinline__ LinkWord* link_of(const Resident& p, int link, uint32_t epoch) {
  return reinterpret_cast<LinkWord*>(p.links) + (epoch & 1) * p.link.buffer + link;
}

// ---- producer ------------------------------------------------------------------------------------------------------

struct Producer {
  ResidentRing ring;
  uint32_t s, under_way;

  /// Until stage s may be asked for.
  __device__ __forceinline__ void wait() const { ring.wait_to_fill(s, under_way); }

  /// One stage of 16 rows. One thread issues, from uniform registers (gemm/product_ring_device.cuh).
  __device__ __forceinline__ void fill(const unsigned char* from, int row_step, uint32_t bytes) {
    wait();
    const auto same = [](auto x) { return __shfl_sync(kFullWarp, x, 0); };
    const uint64_t first = same(reinterpret_cast<uint64_t>(from));
    const uint32_t to = same(shared_address(ring.at(s))), barrier = same(ring.full_of(s));
    bytes = same(bytes);
    const int64_t step = same(row_step);
    if (elect_lane()) {
      mbarrier_arrive_expect(barrier, 16 * bytes);
#pragma unroll
      for (int row = 0; row < 16; ++row) {
        bulk_load(to + row * ResidentRing::kWeightPitch, reinterpret_cast<const void*>(first + row * step), bytes,
                  barrier);
      }
    }
    __syncwarp();
    ++s;
  }

  /// The 16 rows of row_bytes each that begin at w.
  __device__ __forceinline__ void item(const void* w, int row_bytes) {
    const auto* const from = static_cast<const unsigned char*>(w);
#pragma unroll 1
    for (int at = 0; at < row_bytes; at += ResidentRing::kWeightRowBytes) {
      fill(from + at, row_bytes, min(ResidentRing::kWeightRowBytes, row_bytes - at));
    }
  }
};

// ---- consumers -----------------------------------------------------------------------------------------------------

struct Consumer {
  const Resident& p;
  ResidentShared& shared;
  ResidentRing ring;
  uint32_t summable, summed;
  uint32_t s = 0;  // the phase's first stage

  // Not kept: registers are few.
  __device__ static __forceinline__ int thread() { return in_place(threadIdx.x); }
  __device__ static __forceinline__ int team() { return thread() / 32 / ResidentRing::kTeamWarps; }
  __device__ static __forceinline__ int member() { return thread() / 32 % ResidentRing::kTeamWarps; }
  /// Of the phase's stages, this team's first one.
  __device__ __forceinline__ int first_turn() const { return (team() - static_cast<int>(s)) & 3; }

  /// This lane's operands of the segment that lies at `x` in shared memory: the one row is column 0.
  template <class W>
  __device__ __forceinline__ void take(const Bf16* x, uint4 (&to)[4]) const {
    const int lane = thread() % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = sizeof(W) == 1 ? lane * 16 + j / 2 * 64 + j % 2 * 8 : lane * 8 + j * 32;
      to[j] = lane < 4 ? load16(x + k) : make_uint4(0, 0, 0, 0);
    }
  }

  /// The row of x, normed, into shared.normed: a warp 256 channels, as in norm_rows.cu. All consumers; it is there for
  /// them. One block gives it to a plain tensor too, if there is one.
  /// `raise`: times 2^96, but for the plain tensor.
  __device__ __forceinline__ void norm(const LinkWord* from, uint32_t epoch, const void* weight, float eps, void* plain,
                                       bool raise) {
    const int thread = in_place(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int d = p.d, at = warp * 256 + lane * 8;
    const bool mine = at < d;
    uint32_t raw[4] = {};
    float w[8] = {};
    if (mine) load_weight_chunk(weight, p.norm_bf16, at, d, true, w);
    if (warp * 256 < d) {
      if (mine) link_load<2>(from + at / 2, 2, epoch, raw, from + warp * 128 + blockIdx.x % 16 * 8);
      __syncwarp();
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum = fmaf(bf16_low(raw[i]), bf16_low(raw[i]), sum);
        sum = fmaf(bf16_high(raw[i]), bf16_high(raw[i]), sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) shared.squares[warp] = sum;
    }
    named_barrier_sync(kConsumerBarrier, kConsumers * 32);
    if (mine) {
      float sum = shared.squares[0];
#pragma unroll
      for (int i = 1; i < kConsumers / 2; ++i) sum += i * 256 < d ? shared.squares[i] : 0.0f;
      const float factor = 1.0f / sqrtf(sum / static_cast<float>(d) + eps);
      uint32_t out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = pack_bf16(bf16_low(raw[i]) * factor * w[2 * i], bf16_high(raw[i]) * factor * w[2 * i + 1]);
      }
      const uint4 normed = make_uint4(out[0], out[1], out[2], out[3]);
      store16(shared.normed + at,
              raise ? make_uint4(raised(out[0]), raised(out[1]), raised(out[2]), raised(out[3])) : normed);
      if (plain != nullptr && blockIdx.x == gridDim.x - 1) store16(static_cast<Bf16*>(plain) + at, normed);
    }
    named_barrier_sync(kConsumerBarrier, kConsumers * 32);
  }

  /// The operands of a stage's segments that this warp multiplies, out of a link, of which the stage has `words` words
  /// from `from` on; into shared.own.
  template <class W>
  __device__ __forceinline__ void receive(const LinkWord* from, int words, uint32_t epoch) {
    const int thread = in_place(threadIdx.x), lane = thread % 32, warp = thread / 32;
    constexpr int kWords = kSegment / 2;  // of a segment: two a lane
    __syncwarp();                         // the ones before have been taken
#pragma unroll
    for (int o = 0; o < StageShape<W>::kOwn; ++o) {
      const int at = (warp % ResidentRing::kTeamWarps + 4 * o) * kWords;
      uint32_t data[2] = {0, 0};
      if (at + 2 * lane < words) link_load<1>(from + at + 2 * lane, 2, epoch, data, from + at);
      *reinterpret_cast<uint2*>(shared.own[warp] + o * kSegment + lane * 4) =
          sizeof(W) == 1 ? make_uint2(raised(data[0]), raised(data[1])) : make_uint2(data[0], data[1]);
    }
    __syncwarp();
  }

  /// Multiplies stage `at` of the ring, the one of number `turn` that has sums; it has `k` columns. `x`: this
  /// warp's segments of the row, x_step apart.
  template <class W>
  __device__ __forceinline__ void multiply(uint32_t at, uint32_t turn, int k, const Bf16* x, int x_step) {
    using S = StageShape<W>;
    constexpr int kSegmentBytes = kSegment * static_cast<int>(sizeof(W)), kChunks = kSegmentBytes / 64;
    const int thread = in_place(threadIdx.x), lane = thread % 32, member = thread / 32 % ResidentRing::kTeamWarps;
    const int g = lane / 4, q = lane % 4;
    ring.wait(at);
    const unsigned char* const from = ring.at(at) + g * ResidentRing::kWeightPitch + member * kSegmentBytes + q * 16;
    const uint32_t slot = turn % kSumStages;
    mbarrier_wait(summed + 8 * slot, (turn / kSumStages & 1) ^ 1);
    // fp8: one copy of the conversions.
    constexpr int kUnrolled = sizeof(W) == 1 ? 1 : S::kOwn;
#pragma unroll kUnrolled
    for (int o = 0; o < S::kOwn; ++o) {
      const int left = k - (member + 4 * o) * kSegment;
      if (left <= 0) break;
      float acc[4] = {};
      uint4 operands[4];
      take<W>(x + o * x_step, operands);
      uint4 low[kChunks], high[kChunks];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        low[c] = load16(from + 4 * o * kSegmentBytes + c * 64);
        high[c] = load16(from + 4 * o * kSegmentBytes + 8 * ResidentRing::kWeightPitch + c * 64);
      }
      if (sizeof(W) == 2 && left < kSegment) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          if (c * 32 + q * 8 >= left) low[c] = high[c] = make_uint4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if constexpr (sizeof(W) == 2) {
          mma_bf16(acc, {low[c].x, high[c].x, low[c].y, high[c].y}, {operands[c].x, operands[c].y});
          mma_bf16(acc, {low[c].z, high[c].z, low[c].w, high[c].w}, {operands[c].z, operands[c].w});
        } else {
          const uint32_t lows[4] = {low[c].x, low[c].y, low[c].z, low[c].w};
          const uint32_t highs[4] = {high[c].x, high[c].y, high[c].z, high[c].w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t a[4];
            f8_extended(lows[i], a[0], a[2]);
            a[0] = f8_lowered(a[0]), a[2] = f8_lowered(a[2]);
            f8_extended(highs[i], a[1], a[3]);
            a[1] = f8_lowered(a[1]), a[3] = f8_lowered(a[3]);
            const uint4& v = operands[2 * c + i / 2];
            if (i % 2 == 0) {
              mma_bf16(acc, a, {v.x, v.y});
            } else {
              mma_bf16(acc, a, {v.z, v.w});
            }
          }
        }
      }
      if (q == 0) {
        const float unit = sizeof(W) == 1 ? kSumScale : 1;
        shared.sums[slot][member + 4 * o][g] = acc[0] * unit;
        shared.sums[slot][member + 4 * o][g + 8] = acc[2] * unit;
      }
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(summable + 8 * slot);
      ring.leave(at);
    }
  }

  /// A phase's stages: operands are the normed row, or with `from` a link's words, those of item i from from + i * step
  /// on.
  template <class W>
  __device__ __forceinline__ void run(const Work& work, const LinkWord* from, int step, uint32_t epoch, int layer,
                                      int phase) {
    using S = StageShape<W>;
    const int each = S::stages(work.k), stages = each * work.items;
    // Attention's stages have no sums.
    const uint32_t turn = s - (layer + (phase >= kExpand ? 1 : 0)) * shared.products.attended;
    int item = 0, piece = first_turn();
#pragma unroll 1
    for (int i = first_turn(); i < stages; i += ResidentRing::kTeams, piece += ResidentRing::kTeams) {
      while (piece >= each) piece -= each, ++item;
      const int k0 = piece * S::kK;
      const Bf16* x = shared.normed + k0 + member() * kSegment;
      if (from != nullptr) {
        receive<W>(from + item * step + k0 / 2, (work.k - k0) / 2, epoch);
        x = shared.own[thread() / 32];
      }
      multiply<W>(s + i, turn + i, work.k - k0, x, from != nullptr ? kSegment : 4 * kSegment);
    }
    s += stages;
  }
};

// ---- epilogue ------------------------------------------------------------------------------------------------------

constexpr int kScaleSegments = 16;  // whose scales the warp keeps

/// Where the scales of an item's first and last 8 rows begin; fp8 weights only.
struct ItemScales {
  const float *low, *high;
};

struct Epilogue {
  const Resident& p;
  ResidentShared& shared;
  uint32_t summable, summed;
  uint32_t s = 0;  // stages that have sums
  int lane;
  float ahead = 0;

  __device__ __forceinline__ Epilogue(const Resident& p, ResidentShared& shared)
      : p(p),
        shared(shared),
        summable(shared_address(shared.summable)),
        summed(shared_address(shared.summed)),
        lane(threadIdx.x % 32) {}

  /// fp8 weights: asks for the scales of the next item's 16 segments from `first` on; of its rows 0 to 7 in lanes 0 to
  /// 15, of the others in lanes 16 to 31.
  template <class W>
  __device__ __forceinline__ void expect(const ItemScales& scales, int segments, int first = 0) {
    if constexpr (sizeof(W) == 1) {
      const int at = first + lane % kScaleSegments;
      ahead = at < segments ? (lane < kScaleSegments ? scales.low : scales.high)[at] : 0.0f;
    }
  }

  /// The next item's result of row lane % 16. Its scales have been asked for; next() asks for those of the item behind.
  template <class W, class Next>
  __device__ __forceinline__ float item(int k, const ItemScales& scales, Next&& next) {
    using S = StageShape<W>;
    const int segments = (k + kSegment - 1) / kSegment;
    float total = 0, scale = 1;
#pragma unroll 1
    for (int at = 0; at < segments; at += S::kSegments, ++s) {
      const uint32_t slot = s % kSumStages;
      if (sizeof(W) == 1 && at % kScaleSegments == 0) {
        scale = ahead;
        if (at + kScaleSegments < segments) {
          expect<W>(scales, segments, at + kScaleSegments);
        } else {
          next();
        }
      }
      mbarrier_wait(summable + 8 * slot, s / kSumStages & 1);
      const int count = min(S::kSegments, segments - at);
      float part[S::kSegments];
#pragma unroll
      for (int i = 0; i < S::kSegments; ++i) part[i] = i < count ? shared.sums[slot][i][lane % 16] : 0.0f;
#pragma unroll
      for (int i = 0; i < S::kSegments; ++i) {
        if constexpr (sizeof(W) == 1) {
          const float of_row = __shfl_sync(kFullWarp, scale, (lane & 8) * 2 + at % kScaleSegments + i);
          if (i < count) total = fmaf(of_row, part[i], total);
        } else {
          if (i < count) total += part[i];
        }
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(summed + 8 * slot);
    }
    return total;
  }

  /// Gives 16 results as bf16; to a plain tensor too, if there is one.
  __device__ __forceinline__ void give(float value, LinkWord* to, uint32_t epoch, void* plain) const {
    const uint32_t pair = pack_bf16(value, __shfl_down_sync(kFullWarp, value, 1));
    if (lane < 16 && lane % 2 == 0) {
      link_store(to + lane / 2, pair, epoch);
      if (plain != nullptr) static_cast<uint32_t*>(plain)[lane / 2] = pair;
    }
  }

  /// Gives 8 hidden channels from channel `at` of the link on, and of `plain`; `value`: gates in lanes 0 to 7, ups in
  /// lanes 8 to 15.
  __device__ __forceinline__ void give_hidden(float value, LinkWord* to, uint32_t epoch, void* plain) const {
    const float h = gate_up(value, __shfl_down_sync(kFullWarp, value, 8));
    const uint32_t pair = pack_bf16(h, __shfl_down_sync(kFullWarp, h, 1));
    if (lane < 8 && lane % 2 == 0) {
      link_store(to + lane / 2, pair, epoch);
      if (plain != nullptr) static_cast<uint32_t*>(plain)[lane / 2] = pair;
    }
  }
};

}  // namespace mla::cuda
