// mla_decode_wide_sm90.cu - absorbed attention over the paged cache on Hopper, for tiles of 64 query rows: many heads,
// or many new tokens, where the matrix units are the limit and not the memory.
//
//   s = scale * q . row;  p = softmax(s);  u = sum p * latent;  lse = log sum exp(s)
//
// Grid: the workers of the plan (wide_plan.h), which deal all pages out evenly; a worker is a block, or a cluster of
// two where the heads make an even number of row tiles of 64: they take the same keys, and each loads half of the
// sub-tiles into both. A worker goes through its parts of sequences one after the other, and loads the next one's first
// pages while it writes a result. Block: two warpgroups that compute. The output of 64 rows x 512 channels fills half
// of the registers, so there is one, cut by channels, and two pages of keys at a time: warpgroup 0 takes the scores of
// the first page and the left half of the output, warpgroup 1 the scores of the second page and the right half. Each
// passes its probabilities on through shared memory as soon as it has them; what they are relative to only rises, and
// whoever takes them follows. So the first page is free while the second one's scores become probabilities:
//
//   0: scores of page 0 | softmax | P0 V0 left                 | P1 V1 left  | scores of the next page 0
//   1: scores of page 1           | P0 V0 right beside softmax | P1 V1 right | scores of the next page 1
//
// A page arrives as sub-tiles of 64 keys x 64 channels, each with its own barrier; a product begins when its sub-tile
// is there, and half a page is loaded anew as soon as its last reader is done, by the threads of a third warpgroup.
// What scores are relative to is shared by the warpgroups.
//
// Shared memory: queries, two pages, one page of probabilities (those of page 1 lie where the queries' last sub-tile
// was, which lives in registers): 226 KB. Precision: products of bf16 accumulate in float32, softmax in float32, p
// rounded to bf16, partial results to f16 (f16_part.cuh; fixed parts stay float32). Rows behind the last key are set to
// zero before they are multiplied by p = 0.
//
// Limits: bf16, c = 512, r = 64, scale > 0, splits of whole pages. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "common/checked.h"
#include "cuda/attention/f16_part.cuh"
#include "cuda/attention/fixed_sum.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/wide_worker.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kMathThreads = 2 * kWarpgroup, kThreads = kMathThreads + kWarpgroup;
constexpr int kMathRegisters = 224, kLoadRegisters = 56;
constexpr int kRows = kWideRows;
constexpr int kC = 512, kRope = 64;
constexpr int kHalf = kC / 2;   // channels of a warpgroup
constexpr int kRowBytes = 128;  // of a swizzled row: 64 elements
constexpr int kTileBytes = kPageTokens * kRowBytes;
constexpr int kOutTiles = kC / 64, kTiles = kOutTiles + 1, kHalfTiles = kOutTiles / 2;
constexpr int kSteps = 4;  // of 16 elements in a swizzled row
// Powers of two that a score may pass what it is relative to by: the output is seldom multiplied then. Probabilities
// keep their relative precision. 1 to 4 % (H200, 2026-11-26).
constexpr float kSlack = 6;

// Shared memory.
constexpr int kPageBytes = kTiles * kTileBytes;
constexpr int kPagesAt = kPageBytes;  // behind the queries
constexpr int kProbabilitiesAt = 3 * kPageBytes;
constexpr int kOtherProbabilitiesAt = kOutTiles * kTileBytes;  // the queries' last sub-tile
constexpr int kFiguresAt = kProbabilitiesAt + kTileBytes;
constexpr int kBarriersAt = kFiguresAt + 10 * kRows * 4;
constexpr int kParts = 4;  // that a page pair is loaded in: left and right half of each page
constexpr int kBarriers = 3 + 2 * kTiles + kParts + kOutTiles;
constexpr int kSharedBytes = kBarriersAt + kBarriers * 8;

// Named barriers. Each is waited for by one warpgroup and arrived at by the other.
constexpr int kFirstReady = 1;   // probabilities of page 0 are in shared memory, and what they are relative to
constexpr int kSecondReady = 2;  // those of page 1
constexpr int kZeroed = 3;       // and 4: within a warpgroup
constexpr int kBoth = 5;         // both warpgroups that compute
constexpr int kSums = 6;         // the same, at the end of a segment

/// The segment at hand and the next one, what a row's scores are relative to, and by how much that changed; sums at the
/// end. Read where it is needed: registers are short.
struct Figures {
  Segment segments[2];
  float largest[kRows];
  float factor[2][kRows];  // by page 0, by page 1
  float sum[2][kRows];
  union {
    float2 kept[2][kRows];  // fixed parts: maxima and sums of what add_kept() has kept, in turns
    float most[2][kRows];   // others: the largest magnitude of either half of the output
  };
};

__device__ constexpr int filled_at(int buffer, int tile) { return kBarriersAt + 16 + (buffer * kTiles + tile) * 8; }
__device__ constexpr int asked_at(int tile) { return kBarriersAt + (2 + 2 * kTiles + kParts + tile) * 8; }

/// A block, one of kBlocks that form a cluster and take neighbouring row tiles of the same keys.
template <int kBlocks, bool kFixed>
struct Context {
  const DecodeArgs& a;
  uint32_t s_base;
  Figures* s_figures;

  __device__ uint32_t page(int buffer) const { return s_base + kPagesAt + buffer * kPageBytes; }
  /// The segment's queries are there, and what it is.
  __device__ uint32_t begun() const { return s_base + kBarriersAt; }
  /// Both warpgroups are done with them.
  __device__ uint32_t ended() const { return s_base + kBarriersAt + 8; }
  /// Sub-tile `tile` of a page is there.
  __device__ uint32_t filled(int buffer, int tile) const { return s_base + filled_at(buffer, tile); }
  /// Half `half` of a page has been read by all blocks; the rope sub-tile belongs to the right one.
  __device__ uint32_t read(int buffer, int half) const {
    return s_base + kBarriersAt + (2 + 2 * kTiles + buffer * 2 + half) * 8;
  }
  /// The first segment's queries have been asked for.
  __device__ uint32_t opened() const { return s_base + kBarriersAt + (kBarriers - 1) * 8; }
  /// Sub-tile `tile` of the segment's queries is there; of the last one begun() tells.
  __device__ uint32_t asked(int tile) const { return s_base + asked_at(tile); }
};

/// Shows the worker's segment (none: it has no more), and loads its queries, as soon as the one before has no more use
/// for its own.
template <int kBlocks, bool kFixed>
__device__ __forceinline__ void begin_segment(const Context<kBlocks, kFixed>& x, const CUtensorMap* q,
                                              const Worker<kBlocks, kFixed>* worker, uint32_t index) {
  mbarrier_wait(x.ended(), index % 2 ^ 1);
  Segment& segment = x.s_figures->segments[index % 2];
  if (worker == nullptr) {
    segment.pages = 0;
    mbarrier_arrive(x.begun());
    return;
  }
  worker->describe(&segment);
  mbarrier_arrive_expect(x.begun(), kTileBytes);
  tile_load(x.s_base + kOutTiles * kTileBytes, q, x.begun(), kOutTiles * 64, segment.item.row);
#pragma unroll 1
  for (int i = 0; i < kOutTiles; ++i) {  // in turns from where either warpgroup begins
    const int tile = i / 2 + i % 2 * kHalfTiles;
    mbarrier_arrive_expect(x.asked(tile), kTileBytes);
    tile_load(x.s_base + tile * kTileBytes, q, x.asked(tile), tile * 64, segment.item.row);
  }
}

/// One thread for each half of the two pages: loads it as soon as it has been read, by all blocks of the cluster, which
/// share the sub-tiles out and load each into all of them. What lies outside of the cache arrives as zeros. The first
/// of the four threads begins the segments, too; the first page may be under way before the queries have been written.
/// The second one comes behind them: queries are needed sooner, and while the operation before ends, it has memory to
/// itself (64 heads, 8 x 8,192 keys 37.2 to 32.6 us, H200, 2026-11-27).
template <int kBlocks, bool kFixed>
__device__ __forceinline__ void load_half(const Context<kBlocks, kFixed>& x, const CUtensorMap* q,
                                          const CUtensorMap* cache, int buffer, int half) {
  const int begin = half == 0 ? 0 : kHalfTiles, end = half == 0 ? kHalfTiles : kTiles;
  const int rank = kBlocks == 1 ? 0 : static_cast<int>(cluster_rank());
  const bool begins = buffer == 0 && half == 0;
  Worker<kBlocks, kFixed> worker(x.a);
  uint32_t parity = 1, index = 0;
  for (; worker.next(); ++index) {
    for (int i = buffer; i < worker.pages(); i += 2, parity ^= 1) {
      if (index == 0 && i == 1) mbarrier_wait(x.opened(), 0);
      const int page = worker.table()[i], row = (page >= 0 && page < x.a.pages ? page : x.a.pages) * kPageTokens;
      mbarrier_wait(x.read(buffer, half), parity);
#pragma unroll 1
      for (int tile = begin; tile < end; ++tile) mbarrier_arrive_expect(x.filled(buffer, tile), kTileBytes);
#pragma unroll 1
      for (int tile = begin; tile < end; ++tile) {
        const uint32_t to = x.page(buffer) + tile * kTileBytes;
        if constexpr (kBlocks == 1) {
          tile_load(to, cache, x.filled(buffer, tile), tile * 64, row);
        } else if (tile % kBlocks == rank) {
          tile_load_multicast(to, cache, x.filled(buffer, tile), tile * 64, row, (1 << kBlocks) - 1);
        }
      }
      if (begins && i == 0) {
        if (index == 0) pdl_wait();
        begin_segment(x, q, &worker, index);
        if (index == 0) mbarrier_arrive(x.opened());
      }
    }
  }
  if (begins) begin_segment<kBlocks, kFixed>(x, q, nullptr, index);
}

/// One warpgroup of the two: its scores, its half of the output.
template <int kBlocks, bool kFixed>
struct Half {
  const Context<kBlocks, kFixed>& x;
  const int group;      // 0 or 1, also the page whose scores it takes
  const int my_row;     // and 8 after it
  uint32_t base;        // of shared memory
  uint32_t index = 0;   // of the segment
  uint32_t filled = 1;  // the phase of this group's page
  float score[kPageTokens / 2], out[kHalf / 2];
  float sum[2];              // of this thread's columns
  uint32_t p[kSteps][4];     // probabilities as operand
  uint32_t rope[kSteps][4];  // the queries' last sub-tile as operand

  __device__ Half(const Context<kBlocks, kFixed>& context, int group)
      : x(context),
        group(group),
        my_row(threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4),
        base(context.s_base) {}

  __device__ __forceinline__ const Segment& segment() const { return x.s_figures->segments[index % 2]; }
  /// Waits for the next segment; false if there is none.
  __device__ bool next() {
    mbarrier_wait(x.begun(), index % 2);
    return segment().pages > 0;
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) out[i] = 0;
    sum[0] = sum[1] = 0;
  }

  /// The address of this lane's row of the 16 x 16 matrix at k = 16 * step of a swizzled tile, for ld- and stmatrix.
  __device__ uint32_t matrix(uint32_t tile, int step) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x % kWarpgroup / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
    return tile + row * kRowBytes + ((2 * step + lane / 16) ^ (row % 8)) * 16;
  }
  /// At the start of a pair of pages. Adds zero, which the compiler does not know: descriptors that it found to be the
  /// same for all pages would take registers that there are not.
  __device__ void begin(int page) { base = x.s_base + (static_cast<uint32_t>(page) >> 24); }
  /// All of them, where parts are fixed: registers are too short there to wait for one after the other.
  __device__ void await_queries() {
    for (int tile = 0; tile < kOutTiles; ++tile) mbarrier_wait(x.asked(tile), index % 2);
  }
  __device__ void take_rope() {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) ldmatrix_x4(rope[k], matrix(x.s_base + kOutTiles * kTileBytes, k));
  }

  /// Scores of sub-tiles [kBegin, kEnd), as they arrive, and on the segment's first pages the queries as well; kStart:
  /// the first ones of this group's page.
  template <int kBegin, int kEnd, bool kStart>
  __device__ __forceinline__ void issue_scores(bool first) {
    if constexpr (kStart) filled ^= 1;
    const uint64_t query = wgmma_tile(base, 16, 1024), key = wgmma_tile(base + kPagesAt + group * kPageBytes, 16, 1024);
#pragma unroll
    for (int tile = kBegin; tile < kEnd; ++tile) {
      if (!kFixed && first && tile < kOutTiles) mbarrier_wait(base + asked_at(tile), index % 2);
      mbarrier_wait(base + filled_at(group, tile), filled);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const int accumulate = !kStart || tile > kBegin || k > 0;
        const uint64_t k_tile = wgmma_advance(key, tile * kTileBytes + k * 32);
        if (tile == kOutTiles) {
          Wgmma<kPageTokens>::bf16(score, rope[k], k_tile, accumulate);
        } else {
          Wgmma<kPageTokens>::bf16(score, wgmma_advance(query, tile * kTileBytes + k * 32), k_tile, accumulate);
        }
      }
    }
  }
  __device__ __forceinline__ uint64_t values(int buffer) const {
    return wgmma_tile(base + kPagesAt + buffer * kPageBytes + group * kHalfTiles * kTileBytes, kTileBytes, 1024);
  }
  /// out += p * values of this warpgroup's own page
  __device__ __forceinline__ void issue_own() {
    const uint64_t v = values(group);
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      Wgmma<kHalf>::bf16<Major::kTransposed>(out, p[k], wgmma_advance(v, k * 16 * kRowBytes), 1);
    wgmma_commit();
  }
  /// The same for the other's page, whose probabilities are in shared memory.
  __device__ __forceinline__ void issue_other() {
    const uint64_t v = values(1 - group);
    const uint64_t tile = wgmma_tile(base + (group == 0 ? kOtherProbabilitiesAt : kProbabilitiesAt), 16, 1024);
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      Wgmma<kHalf>::bf16<Major::kK, Major::kTransposed>(out, wgmma_advance(tile, k * 32),
                                                        wgmma_advance(v, k * 16 * kRowBytes), 1);
    wgmma_commit();
  }

  /// This warpgroup's half of a page has been read.
  __device__ __forceinline__ void release(int buffer) {
    const int lane = threadIdx.x % 32;
    if constexpr (kBlocks == 1) {
      if (lane == 0) mbarrier_arrive(x.read(buffer, group));
    } else {
      if (lane < kBlocks) mbarrier_arrive_cluster_relaxed(x.read(buffer, group), lane);
    }
  }

  /// It needs the segment's queries, and what lies over them, no more.
  __device__ __forceinline__ void release_queries() {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(x.ended());
  }

  /// Hides keys that a row does not see.
  __device__ __forceinline__ void hide(int page) {
    const int first = (segment().first_page + page) * kPageTokens + threadIdx.x % 4 * 2;
    const int visible[2] = {visible_keys(segment().item, my_row, x.a.heads) - first,
                            visible_keys(segment().item, my_row + 8, x.a.heads) - first};
#pragma unroll
    for (int i = 0; i < kPageTokens / 2; ++i) {
      if (i / 4 * 8 + i % 2 >= visible[i % 4 / 2]) score[i] = -INFINITY;
    }
  }
  /// Nothing is known yet of the segment's scores.
  __device__ __forceinline__ void forget() {
    if (threadIdx.x % 4 == 0) x.s_figures->largest[my_row] = x.s_figures->largest[my_row + 8] = -INFINITY;
    __syncwarp();
  }
  /// What scores are relative to. Read early: while the matrix units read shared memory, that takes long.
  __device__ __forceinline__ void recall(float (&largest)[2]) const {
    largest[0] = x.s_figures->largest[my_row];
    largest[1] = x.s_figures->largest[my_row + 8];
  }
  /// Scores become powers of two relative to the largest that was known before. Most pages leave that as it is, which
  /// one vote tells; otherwise it is raised to what passes it by far. `factor`: what has been summed up before is to be
  /// multiplied by; exactly 1 as a rule.
  __device__ __forceinline__ void take_powers(float (&largest)[2], float (&factor)[2]) {
    const float scale = x.a.scale_log2;
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[h] = 1;
      float even = score[2 * h], odd = score[2 * h + 1];
#pragma unroll
      for (int i = 4; i < kPageTokens / 2; i += 4) {
        even = fmaxf(even, score[i + 2 * h]);
        odd = fmaxf(odd, score[i + 2 * h + 1]);
      }
      most[h] = fmaxf(even, odd);
    }
    const auto passes = [&](int h) { return most[h] * scale > fmaf(largest[h], scale, kSlack); };
    if (__any_sync(kFullWarp, passes(0) || passes(1))) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 2));
        if (passes(h)) {
          factor[h] = exp2_approx((largest[h] - most[h]) * scale);
          largest[h] = most[h];
        }
        if (threadIdx.x % 4 == 0) x.s_figures->largest[my_row + 8 * h] = largest[h];
      }
    }
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) x.s_figures->factor[group][my_row + 8 * h] = factor[h];
    }
    const float shift[2] = {softmax_shift(largest[0]) * scale, softmax_shift(largest[1]) * scale};
    float page_sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kPageTokens / 2; i += 2) {
      const int h = i % 4 / 2;
      const float a = exp2_approx(fmaf(score[i], scale, -shift[h])),
                  b = exp2_approx(fmaf(score[i + 1], scale, -shift[h]));
      page_sum[h] += a + b;
      p[i / 8][i % 8 / 2] = pack_bf16(a, b);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) sum[h] = fmaf(sum[h], factor[h], page_sum[h]);
  }
  /// Shows the probabilities to the other warpgroup.
  __device__ __forceinline__ void publish(uint32_t to) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) stmatrix_x4(matrix(x.s_base + to, k), p[k]);
    fence_proxy_async();
  }
  /// Follows the other warpgroup to what scores are relative to now.
  __device__ __forceinline__ void take_factor() {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[h] = x.s_figures->factor[1 - group][my_row + 8 * h];
      sum[h] *= factor[h];
    }
    rescale(factor);
  }
  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
    if (!__any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) out[i] *= factor[i % 4 / 2];
  }
  /// Zeros instead of rows behind the last key, in this warpgroup's half of a page: 0 * NaN is NaN.
  __device__ __forceinline__ void zero_tail(int page, int buffer) {
    const int live = segment().item.key_end - (segment().first_page + page) * kPageTokens;
    if (live >= kPageTokens) return;
    const uint32_t to = x.page(buffer) + group * kHalfTiles * kTileBytes + threadIdx.x % 8 * 16;
    for (int row = live + threadIdx.x % kWarpgroup / 8; row < kPageTokens; row += kWarpgroup / 8) {
#pragma unroll
      for (int tile = 0; tile < kHalfTiles; ++tile)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to + tile * kTileBytes + row * kRowBytes), "r"(0)
                     : "memory");
    }
    fence_proxy_async();
    named_barrier_sync(kZeroed + group, kWarpgroup);
  }

  /// The largest magnitude in this half of row my_row + 8 * h.
  __device__ __forceinline__ float most_of(int h) const {
    float even = 0, odd = 0;
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n) {
      even = fmaxf(even, fabsf(out[4 * n + 2 * h]));
      odd = fmaxf(odd, fabsf(out[4 * n + 2 * h + 1]));
    }
    float most = fmaxf(even, odd);
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
    return fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
  }
  /// Writes this half of row my_row + 8 * h, times `factor`: of each 32 columns a lane's eight side by side
  /// (f16_part.cuh).
  __device__ __forceinline__ void write_part(uint16_t* to, int h, float factor) const {
    to += threadIdx.x % 4 * 8;
#pragma unroll
    for (int n = 0; n < kHalf / 8; n += 4) {
      const float* const x = &out[4 * n + 2 * h];
      *reinterpret_cast<uint4*>(to + n * 8) =
          make_uint4(pack_f16(x[0] * factor, x[1] * factor), pack_f16(x[4] * factor, x[5] * factor),
                     pack_f16(x[8] * factor, x[9] * factor), pack_f16(x[12] * factor, x[13] * factor));
    }
  }
  /// Writes this half of row my_row + 8 * h, if it is one. A lane has two columns in every 8: neighbours exchange
  /// theirs, so that each has four and every write fills its sectors. All lanes of the warp take part.
  __device__ __forceinline__ void write_fixed_part(float* to, int h, bool live) {
    const bool odd = threadIdx.x % 2 != 0;
    to += odd * 8 + threadIdx.x % 4 / 2 * 4;
#pragma unroll
    for (int n = 0; n < kHalf / 8; n += 2) {
      const float* const x = &out[4 * n + 2 * h];  // and 4 further on: of the next 8 columns
      const float a = __shfl_xor_sync(kFullWarp, odd ? x[0] : x[4], 1),
                  b = __shfl_xor_sync(kFullWarp, odd ? x[1] : x[5], 1);
      if (live)
        *reinterpret_cast<float4*>(to + n * 8) = odd ? make_float4(a, b, x[4], x[5]) : make_float4(x[0], x[1], a, b);
    }
  }
  /// The same in bf16, divided by the sum.
  __device__ __forceinline__ void write_out(Bf16* to, int h, bool live, float inverse) {
    const bool odd = threadIdx.x % 2 != 0;
    to += odd * 8 + threadIdx.x % 4 / 2 * 4;
#pragma unroll
    for (int n = 0; n < kHalf / 8; n += 2) {
      const float* const x = &out[4 * n + 2 * h];
      const uint32_t here = pack_bf16(x[0] * inverse, x[1] * inverse),
                     there = pack_bf16(x[4] * inverse, x[5] * inverse);
      const uint32_t got = __shfl_xor_sync(kFullWarp, odd ? here : there, 1);
      if (live) *reinterpret_cast<uint2*>(to + n * 8) = odd ? make_uint2(got, there) : make_uint2(here, got);
    }
  }

  /// Adds to what the block has kept of the same tile, or keeps what that comes to, for its next segment: in a slot of
  /// its own behind those of the plan, as it lies in registers.
  __device__ __forceinline__ void add_kept(bool adds, bool keeps, float (&largest)[2], float (&total)[2]) {
    if (threadIdx.x % kWarpgroup / 32 * 16 >= segment().item.rows) return;  // none of the warp's rows is one
    const int64_t slot = x.a.slots - gridDim.x + blockIdx.x;
    float4* const kept = reinterpret_cast<float4*>(x.a.partial_out + slot * kRows * kC) + threadIdx.x;
    if (adds) {
      const float2* const before = &x.s_figures->kept[(index + 1) % 2][my_row];
      const SumWeights low(before[0].x, largest[0]), high(before[8].x, largest[1]);
      total[0] = low.added(before[0].y, total[0]);
      total[1] = high.added(before[8].y, total[1]);
      largest[0] = low.largest;
      largest[1] = high.largest;
#pragma unroll
      for (int i = 0; i < kHalf / 8; ++i) {
        const float4 v = kept[i * kMathThreads];
        low.add_in_place(v.x, out[4 * i]);
        low.add_in_place(v.y, out[4 * i + 1]);
        high.add_in_place(v.z, out[4 * i + 2]);
        high.add_in_place(v.w, out[4 * i + 3]);
        if (i % 4 == 3) __syncwarp();  // with more on their way the compiler spills
      }
    }
    if (!keeps) return;
#pragma unroll
    for (int i = 0; i < kHalf / 8; ++i)
      kept[i * kMathThreads] = make_float4(out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]);
    if (threadIdx.x % 4 == 0) {  // both warpgroups, the same; what is read lies in the other place
      float2* const now = &x.s_figures->kept[index % 2][my_row];
      now[0] = make_float2(largest[0], total[0]);
      now[8] = make_float2(largest[1], total[1]);
    }
    __syncwarp();
  }

  /// Writes this warpgroup's half of the result.
  __device__ __forceinline__ void finish() {
    const DecodeArgs& a = x.a;
    const DecodeItem& item = segment().item;
    const int lane = threadIdx.x % 32;
    const bool rounds = !kFixed && item.slot >= 0;  // to f16
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      if (lane % 4 == 0) x.s_figures->sum[group][my_row + 8 * h] = total;
      if (!rounds) continue;
      const float most = most_of(h);
      if (lane % 4 == 0) x.s_figures->most[group][my_row + 8 * h] = most;
    }
    named_barrier_sync(kSums, kMathThreads);
    float total[2], largest[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = my_row + 8 * h;
      total[h] = x.s_figures->sum[0][row] + x.s_figures->sum[1][row];
      largest[h] = x.s_figures->largest[row] * a.scale_log2;
    }
    const bool adds = kFixed && segment().adds, keeps = kFixed && segment().keeps;
    if (adds || keeps) add_kept(adds, keeps, largest, total);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = my_row + 8 * h;
      const bool live = row < item.rows && !keeps;
      const int64_t at = int64_t{item.slot >= 0 ? item.slot : item.row} + row;
      if (rounds) {
        if (!live) continue;
        const int power = part_power(fmaxf(x.s_figures->most[0][row], x.s_figures->most[1][row]));
        const float factor = power_of_two(power);
        if (group == 0 && lane % 4 == 0)
          a.max_sum[at] = make_float2(largest[h] - static_cast<float>(power), total[h] * factor);
        write_part(reinterpret_cast<uint16_t*>(a.partial_out) + at * kC + group * kHalf, h, factor);
      } else if (item.slot >= 0) {
        if (live && group == 0 && lane % 4 == 0) a.max_sum[at] = make_float2(largest[h], total[h]);
        write_fixed_part(a.partial_out + at * kC + group * kHalf, h, live);
      } else {
        if (live && group == 0 && lane % 4 == 0) a.lse[at] = natural_lse(largest[h], total[h]);
        write_out(static_cast<Bf16*>(a.out) + at * kC + group * kHalf, h, live, inverse_sum(total[h]));
      }
    }
  }
};

/// Warpgroup 0: page 0 of each pair, and the left half.
template <int kBlocks, bool kFixed>
__device__ __forceinline__ void take_left(Half<kBlocks, kFixed>& me) {
  for (int page = 0; page < me.segment().pages; page += 2) {
    me.begin(page);
    float largest[2], factor[2];
    me.recall(largest);
    const bool hides = page >= me.segment().seen_pages;
    wgmma_fence();
    me.template issue_scores<0, kTiles, true>(page == 0);
    wgmma_commit();
    wgmma_wait<0>();
    keep(me.score);
    if (hides) me.hide(page);
    me.take_powers(largest, factor);
    me.publish(kProbabilitiesAt);
    named_barrier_arrive(kFirstReady, kMathThreads);
    me.rescale(factor);
    me.zero_tail(page, 0);
    wgmma_fence();
    me.issue_own();
    wgmma_wait<0>();
    keep(me.out);
    me.release(0);
    if (page + 1 >= me.segment().pages) break;

    named_barrier_sync(kSecondReady, kMathThreads);
    me.take_factor();
    me.zero_tail(page + 1, 1);
    wgmma_fence();
    me.issue_other();
    wgmma_wait<0>();
    keep(me.out);
    me.release(1);
  }
}

/// Warpgroup 1: page 1 of each pair, and the right half.
template <int kBlocks, bool kFixed>
__device__ __forceinline__ void take_right(Half<kBlocks, kFixed>& me) {
  for (int page = 0; page < me.segment().pages; page += 2) {
    me.begin(page);
    const bool has_second = page + 1 < me.segment().pages, hides = page + 1 >= me.segment().seen_pages;
    if (has_second) {
      wgmma_fence();
      me.template issue_scores<kHalfTiles, kTiles, true>(page == 0);
      me.template issue_scores<0, kHalfTiles, false>(page == 0);
      wgmma_commit();
      wgmma_wait<0>();
      keep(me.score);
    }
    named_barrier_sync(kFirstReady, kMathThreads);
    float largest[2], factor[2];
    me.recall(largest);
    me.take_factor();
    me.zero_tail(page, 0);
    wgmma_fence();
    me.issue_other();
    if (!has_second) {
      wgmma_wait<0>();
      keep(me.out);
      me.release(0);
      break;
    }
    if (hides) me.hide(page + 1);
    me.take_powers(largest, factor);
    me.publish(kOtherProbabilitiesAt);
    named_barrier_arrive(kSecondReady, kMathThreads);
    wgmma_wait<0>();
    keep(me.out);
    me.release(0);
    me.rescale(factor);
    me.zero_tail(page + 1, 1);
    wgmma_fence();
    me.issue_own();
    wgmma_wait<0>();
    keep(me.out);
    me.release(1);
  }
}

/// The warpgroups that compute.
template <int kBlocks, bool kFixed>
__device__ __forceinline__ void compute(const Context<kBlocks, kFixed>& x, int group) {
  Half<kBlocks, kFixed> me(x, group);
  for (; me.next(); ++me.index) {
    if constexpr (kFixed) me.await_queries();
    me.take_rope();
    me.clear();
    named_barrier_sync(kBoth, kMathThreads);  // both have; probabilities may lie there now
    if (group == 0) {
      me.forget();
      take_left(me);
    } else {
      take_right(me);
    }
    me.release_queries();
    me.finish();
  }
}

template <int kBlocks, bool kFixed>
__global__ __launch_bounds__(kThreads, 1) void mla_decode_wide_sm90_kernel(DecodeArgs a, bool early, int records,
                                                                           const __grid_constant__ CUtensorMap q_map,
                                                                           const __grid_constant__ CUtensorMap cache) {
  extern __shared__ __align__(1024) uint8_t s_memory[];
  const uint32_t s_base = shared_address(s_memory);
  // The compiler is to know that it is the same in all lanes.
  const int warpgroup = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  Figures* const s_figures = reinterpret_cast<Figures*>(s_memory + kFiguresAt);
  static_assert(sizeof(Figures) <= kBarriersAt - kFiguresAt);
  const Context<kBlocks, kFixed> x{a, s_base, s_figures};
  // What the merge kernel looks up first: it may come when all else has been done.
  if (blockIdx.x == 0 && warpgroup == 2) {
    const int32_t* const entries = a.plan + kWideHeader + kWideRecord * records;
    constexpr int kLine = 128 / sizeof(int32_t);
    for (int i = threadIdx.x % kWarpgroup * kLine; i < 4 * a.sequences; i += kWarpgroup * kLine)
      prefetch_l2(entries + i);
    if (threadIdx.x == kMathThreads) {
      prefetch_l2(a.plan);
      prefetch_l2(a.q_start);
      prefetch_l2(a.q_start + a.sequences);
    }
  }
  if (threadIdx.x == kMathThreads) {
    prefetch_tensor_map(&cache);
    prefetch_tensor_map(&q_map);
  }
  if (threadIdx.x == 0) {
    mbarrier_init(x.begun(), 1);
    mbarrier_init(x.ended(), kMathThreads / 32);
    mbarrier_init(x.opened(), 1);
    for (int i = 0; i < 2 * kTiles; ++i) mbarrier_init(x.filled(i / kTiles, i % kTiles), 1);
    for (int i = 0; i < kOutTiles; ++i) mbarrier_init(x.asked(i), 1);
    for (int i = 0; i < kParts; ++i) mbarrier_init(x.read(i / 2, i % 2), kWarpgroup / 32 * kBlocks);
    mbarrier_fence_init();
  }
  if constexpr (kBlocks > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (!early) pdl_wait();
  if (warpgroup == 2) {
    give_registers<kLoadRegisters>();
    const int part = threadIdx.x / 32 % kParts;
    if (elect_lane()) load_half(x, &q_map, &cache, part % 2, part / 2);
    __syncwarp();
  } else {
    take_registers<kMathRegisters>();
    pdl_wait();
    pdl_launch_dependents();
    compute(x, warpgroup);
  }
  // The others may still write to this block's barriers. Alone, it keeps the warps that load until all have passed the
  // barriers of those that compute: synccheck takes a warp that has ended for one that does not come.
  if constexpr (kBlocks > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
}

template <bool kFixed>
auto* pick_kernel(int blocks) {
  return blocks == 2 ? mla_decode_wide_sm90_kernel<2, kFixed> : mla_decode_wide_sm90_kernel<1, kFixed>;
}

}  // namespace

Status launch_decode_wide(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  CUtensorMap q_map, cache;
  const int64_t width = kC + kRope, strides[] = {width};
  const int box[] = {64, kRows}, page[] = {64, kPageTokens};
  const int64_t q_dims[] = {width, p.q.dim(0) * p.q.dim(1)}, cache_dims[] = {width, p.cache.dim(0) * kPageTokens};
  MLA_RETURN_IF_ERROR(make_tensor_map(p.q.data, DType::kBF16, q_dims, strides, box, Swizzle::k128, &q_map));
  MLA_RETURN_IF_ERROR(make_tensor_map(p.cache.data, DType::kBF16, cache_dims, strides, page, Swizzle::k128, &cache));
  const bool early = launch.settled(p.plan) && launch.settled(p.q_start) && launch.settled(p.block_table) &&
                     launch.settled(p.lengths) && launch.settled(p.cache);
  const int blocks = wide_tiles(p.q.dim(1));
  const dim3 grid(static_cast<unsigned>(wide_workers(*launch.traits, p.q.dim(1)) * blocks));
  auto* const kernel = partials.fixed_parts ? pick_kernel<true>(blocks) : pick_kernel<false>(blocks);
  return cuda_status(launch_clusters(kernel, grid, dim3(kThreads), blocks, kSharedBytes, launch.stream, args, early,
                                     wide_records(*launch.traits), q_map, cache),
                     "mla_decode_wide_sm90_kernel");
}

Status load_decode_wide_kernels() {
  for (const int blocks : {1, 2}) {
    for (auto* const kernel : {pick_kernel<false>(blocks), pick_kernel<true>(blocks)})
      MLA_RETURN_IF_ERROR(load_kernel(kernel, "mla_decode_wide_sm90_kernel", kSharedBytes));
  }
  return Status::Ok();
}

}  // namespace mla::cuda
