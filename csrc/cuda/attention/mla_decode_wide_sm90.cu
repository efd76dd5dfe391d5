// mla_decode_wide_sm90.cu - absorbed attention over the paged cache on Hopper, for tiles of 64 query rows: many heads,
// or many new tokens, where the matrix units are the limit and not the memory.
//
//   s = scale * q . row;  p = softmax(s);  u = sum p * latent;  lse = log sum exp(s)
//
// Grid: a block per work item of the plan (decode_plan.h): 64 query rows, a split of a sequence's keys. Block: two
// warpgroups. The output of 64 rows x 512 channels fills half of the registers, so there is one, cut by channels, and
// two pages of keys at a time: warpgroup 0 takes the scores of the first page and the left half of the output,
// warpgroup 1 the scores of the second page and the right half. Each needs the other's probabilities and passes its own
// through shared memory, so that the softmax of one runs beside the products of the other:
//
//   0: softmax of page 0 | P0 V0 left  | publish P0 | P1 V1 left              | scores of the next page 0
//   1: scores of page 1  | softmax     | publish P1, P1 V1 right, P0 V0 right | scores of the next page 1
//
// A page arrives as sub-tiles of 64 keys x 64 channels, each with its own barrier; a product begins when its sub-tile
// is there, and half a page is loaded anew as soon as its last reader is done, by the threads of a third warpgroup.
// What scores are relative to is shared by the warpgroups. Where the heads make two row tiles of everything, two blocks
// that take the same keys form a cluster: each loads half of the sub-tiles, into both.
//
// Shared memory: queries, two pages, one page of probabilities (those of page 1 lie where the queries' last sub-tile
// was, which lives in registers): 226 KB. Precision: products of bf16 accumulate in float32, softmax in float32, p
// rounded to bf16. Rows behind the last key are set to zero before they are multiplied by p = 0.
//
// Limits: bf16, c = 512, r = 64, scale > 0, splits of whole pages. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "common/checked.h"
#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/kernels.h"
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
constexpr int kMathRegisters = 240, kLoadRegisters = 24;
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
constexpr int kBarriersAt = kFiguresAt + 6 * kRows * 4;
constexpr int kParts = 4;  // that a page pair is loaded in: left and right half of each page
constexpr int kItemAt = kBarriersAt + (1 + 2 * kTiles + kParts) * 8;
constexpr int kSharedBytes = kItemAt + 6 * 4;

// Named barriers. Each is waited for by one warpgroup and arrived at by the other.
constexpr int kFirstMaximum = 1;   // warpgroup 0 has seen its scores
constexpr int kSecondMaximum = 2;  // warpgroup 1 too
constexpr int kFirstReady = 3;     // probabilities of page 0 are in shared memory
constexpr int kSecondReady = 4;    // those of page 1
constexpr int kZeroed = 5;         // and 6: within a warpgroup
constexpr int kBoth = 7;           // both warpgroups that compute

/// The item, what a row's scores are relative to, and by how much that changed; sums at the end. Read where it is
/// needed: registers are short.
struct Figures {
  DecodeItem item;
  int first_page;  // of the item, in the sequence
  int pages;       // of the item
  float largest[kRows];
  float factor[2][kRows];  // by page 0, by page 1
  float sum[2][kRows];
};

__device__ constexpr int filled_at(int buffer, int tile) { return kBarriersAt + 8 + (buffer * kTiles + tile) * 8; }

/// A block, one of kBlocks that form a cluster and take neighbouring row tiles of the same keys.
template <int kBlocks>
struct Context {
  const DecodeArgs& a;
  uint32_t s_base;
  Figures* s_figures;

  __device__ uint32_t page(int buffer) const { return s_base + kPagesAt + buffer * kPageBytes; }
  /// Sub-tile `tile` of a page is there.
  __device__ uint32_t filled(int buffer, int tile) const { return s_base + filled_at(buffer, tile); }
  /// Half `half` of a page has been read by all blocks; the rope sub-tile belongs to the right one.
  __device__ uint32_t read(int buffer, int half) const {
    return s_base + kBarriersAt + (1 + 2 * kTiles + buffer * 2 + half) * 8;
  }
};

/// One thread for each half of the two pages: loads it as soon as it has been read, by all blocks of the cluster, which
/// share the sub-tiles out and load each into all of them. What lies outside of the cache arrives as zeros.
template <int kBlocks>
__device__ __forceinline__ void load_half(const Context<kBlocks>& x, const CUtensorMap* cache, int buffer, int half) {
  const int begin = half == 0 ? 0 : kHalfTiles, end = half == 0 ? kHalfTiles : kTiles;
  const int rank = kBlocks == 1 ? 0 : static_cast<int>(cluster_rank());
  const int32_t* table =
      x.a.block_table + int64_t{x.s_figures->item.sequence} * x.a.max_pages + x.s_figures->first_page;
  uint32_t parity = 1;
  for (int i = buffer; i < x.s_figures->pages; i += 2, parity ^= 1) {
    const int page = table[i], row = (page >= 0 && page < x.a.pages ? page : x.a.pages) * kPageTokens;
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
  }
}

/// One warpgroup of the two: its scores, its half of the output.
template <int kBlocks>
struct Half {
  const Context<kBlocks>& x;
  const int group;   // 0 or 1, also the page whose scores it takes
  const int my_row;  // and 8 after it
  uint32_t base;     // of shared memory
  float score[kPageTokens / 2], out[kHalf / 2];
  float sum[2] = {0, 0};     // of this thread's columns
  uint32_t p[kSteps][4];     // probabilities as operand
  uint32_t rope[kSteps][4];  // the queries' last sub-tile as operand

  __device__ Half(const Context<kBlocks>& context, int group)
      : x(context),
        group(group),
        my_row(threadIdx.x % kWarpgroup / 32 * 16 + threadIdx.x % 32 / 4),
        base(context.s_base) {
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) out[i] = 0;
  }

  /// The address of this lane's row of the 16 x 16 matrix at k = 16 * step of a swizzled tile, for ld- and stmatrix.
  __device__ uint32_t matrix(uint32_t tile, int step) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x % kWarpgroup / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
    return tile + row * kRowBytes + ((2 * step + lane / 16) ^ (row % 8)) * 16;
  }
  /// At the start of a pair of pages. Adds zero, which the compiler does not know: descriptors that it found to be the
  /// same for all pages would take registers that there are not.
  __device__ void begin(int page) { base = x.s_base + (static_cast<uint32_t>(page) >> 24); }
  __device__ void take_rope() {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) ldmatrix_x4(rope[k], matrix(x.s_base + kOutTiles * kTileBytes, k));
  }

  /// Scores of sub-tiles [kBegin, kEnd), as they arrive; kStart: the first ones of the page.
  template <int kBegin, int kEnd, bool kStart>
  __device__ __forceinline__ void issue_scores(uint32_t filled) {
    const uint64_t query = wgmma_tile(base, 16, 1024), key = wgmma_tile(base + kPagesAt + group * kPageBytes, 16, 1024);
#pragma unroll
    for (int tile = kBegin; tile < kEnd; ++tile) {
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
    wgmma_commit();
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

  /// Hides keys that a row does not see, and finds the largest score of each of the two rows.
  __device__ __forceinline__ void largest_scores(int page, float (&most)[2]) {
    const int start = (x.s_figures->first_page + page) * kPageTokens;
    if (start + kPageTokens > visible_keys(x.s_figures->item, 0, x.a.heads)) {
      const int first = start + threadIdx.x % 4 * 2;
      const int visible[2] = {visible_keys(x.s_figures->item, my_row, x.a.heads) - first,
                              visible_keys(x.s_figures->item, my_row + 8, x.a.heads) - first};
#pragma unroll
      for (int i = 0; i < kPageTokens / 2; ++i) {
        if (i / 4 * 8 + i % 2 >= visible[i % 4 / 2]) score[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = score[2 * h];
#pragma unroll
      for (int i = 0; i < kPageTokens / 2; ++i) {
        if (i % 4 / 2 == h) most[h] = fmaxf(most[h], score[i]);
      }
      most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(kFullWarp, most[h], 2));
    }
  }
  /// Raises what scores are relative to, where they pass it by far, and tells the other warpgroup.
  __device__ __forceinline__ void settle(const float (&most)[2], float (&largest)[2], float (&factor)[2]) {
    const float scale = x.a.scale_log2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float before = x.s_figures->largest[my_row + 8 * h];
      largest[h] = most[h] * scale > fmaf(before, scale, kSlack) ? most[h] : before;
      // Exactly 1 as a rule, so that nothing has to be multiplied.
      factor[h] = largest[h] == before ? 1.0f : exp2_approx((before - largest[h]) * scale);
    }
    __syncwarp();  // all lanes of a row have read
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        x.s_figures->largest[my_row + 8 * h] = largest[h];
        x.s_figures->factor[group][my_row + 8 * h] = factor[h];
      }
    }
  }
  /// Scores become powers of two relative to `largest`; what was summed up before is multiplied by `factor`.
  __device__ __forceinline__ void take_powers(const float (&largest)[2], const float (&factor)[2]) {
    const float scale = x.a.scale_log2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float shift = softmax_shift(largest[h]) * scale;
      float page_sum = 0;
#pragma unroll
      for (int i = 0; i < kPageTokens / 2; ++i) {
        if (i % 4 / 2 != h) continue;
        score[i] = exp2_approx(fmaf(score[i], scale, -shift));
        page_sum += score[i];
      }
      sum[h] = fmaf(sum[h], factor[h], page_sum);
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack_bf16(score[8 * k + 2 * i], score[8 * k + 2 * i + 1]);
    }
  }
  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
    if (!__any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kHalf / 2; ++i) out[i] *= factor[i % 4 / 2];
  }
  /// Zeros instead of rows behind the last key, in this warpgroup's half of a page: 0 * NaN is NaN.
  __device__ __forceinline__ void zero_tail(int page, int buffer) {
    const int live = x.s_figures->item.key_end - (x.s_figures->first_page + page) * kPageTokens;
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

  /// Writes this warpgroup's half of the result.
  __device__ __forceinline__ void finish() {
    const DecodeArgs& a = x.a;
    const DecodeItem& item = x.s_figures->item;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      if (lane % 4 == 0) x.s_figures->sum[group][my_row + 8 * h] = total;
    }
    named_barrier_sync(kBoth, kMathThreads);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = my_row + 8 * h;
      if (row >= item.rows) continue;
      const float total = x.s_figures->sum[0][row] + x.s_figures->sum[1][row];
      const float largest = x.s_figures->largest[row] * a.scale_log2;
      const int column = group * kHalf + lane % 4 * 2;
      if (item.slot >= 0) {
        const int64_t at = int64_t{item.slot} * kRows + row;
        if (group == 0 && lane % 4 == 0) a.max_sum[at] = make_float2(largest, total);
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n)
          *reinterpret_cast<float2*>(a.partial_out + at * kC + column + n * 8) =
              make_float2(out[4 * n + 2 * h], out[4 * n + 2 * h + 1]);
      } else {
        const int64_t at = int64_t{item.row} + row;
        const float inverse = inverse_sum(total);
        if (group == 0 && lane % 4 == 0) a.lse[at] = natural_lse(largest, total);
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n)
          *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(a.out) + at * kC + column + n * 8) =
              pack_bf16(out[4 * n + 2 * h] * inverse, out[4 * n + 2 * h + 1] * inverse);
      }
    }
  }
};

/// Warpgroup 0: page 0 of each pair, and the left half.
template <int kBlocks>
__device__ __forceinline__ void compute_left(const Context<kBlocks>& x) {
  Half<kBlocks> me(x, 0);
  me.take_rope();
  named_barrier_sync(kBoth, kMathThreads);  // both have; probabilities may lie there now
  if (x.s_figures->pages > 0) {
    wgmma_fence();
    me.template issue_scores<0, kTiles, true>(0);
    wgmma_wait<0>();
    keep(me.score);
  }
  for (int page = 0; page < x.s_figures->pages; page += 2) {
    const uint32_t next_filled = page / 2 % 2 ^ 1;
    me.begin(page);
    const bool has_second = page + 1 < x.s_figures->pages, has_next = page + 2 < x.s_figures->pages;
    float most[2], largest[2], factor[2];
    me.largest_scores(page, most);
    me.settle(most, largest, factor);
    named_barrier_arrive(kFirstMaximum, kMathThreads);
    me.take_powers(largest, factor);
    me.rescale(factor);
    me.zero_tail(page, 0);
    wgmma_fence();
    me.issue_own();

    factor[0] = factor[1] = 1;
    if (has_second) {
      named_barrier_sync(kSecondMaximum, kMathThreads);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        factor[h] = x.s_figures->factor[1][me.my_row + 8 * h];
        me.sum[h] *= factor[h];
      }
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t scaled[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        scaled[i] = pack_bf16(me.score[8 * k + 2 * i] * factor[i % 2], me.score[8 * k + 2 * i + 1] * factor[i % 2]);
      stmatrix_x4(me.matrix(x.s_base + kProbabilitiesAt, k), scaled);
    }
    fence_proxy_async();
    named_barrier_arrive(kFirstReady, kMathThreads);
    wgmma_wait<0>();
    keep(me.out);
    me.release(0);
    if (!has_second) break;

    named_barrier_sync(kSecondReady, kMathThreads);
    me.rescale(factor);
    me.zero_tail(page + 1, 1);
    if (has_next) {
      wgmma_fence();
      me.issue_other();
      me.template issue_scores<0, kHalfTiles, true>(next_filled);
      wgmma_wait<1>();
      me.release(1);
      me.template issue_scores<kHalfTiles, kTiles, false>(next_filled);
      wgmma_wait<0>();
      keep(me.score);
      keep(me.out);
    } else {
      wgmma_fence();
      me.issue_other();
      wgmma_wait<0>();
      keep(me.out);
    }
  }
  me.finish();
}

/// Warpgroup 1: page 1 of each pair, and the right half.
template <int kBlocks>
__device__ __forceinline__ void compute_right(const Context<kBlocks>& x) {
  Half<kBlocks> me(x, 1);
  me.take_rope();
  named_barrier_sync(kBoth, kMathThreads);
  if (x.s_figures->pages > 1) {
    wgmma_fence();
    me.template issue_scores<0, kTiles, true>(0);
    wgmma_wait<0>();
    keep(me.score);
  }
  for (int page = 0; page < x.s_figures->pages; page += 2) {
    const uint32_t next_filled = page / 2 % 2 ^ 1;
    me.begin(page);
    const bool has_second = page + 1 < x.s_figures->pages;
    float most[2], largest[2], factor[2];
    if (has_second) me.largest_scores(page + 1, most);
    named_barrier_sync(kFirstMaximum, kMathThreads);
    float first_factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) first_factor[h] = x.s_figures->factor[0][me.my_row + 8 * h];
    if (!has_second) {
#pragma unroll
      for (int h = 0; h < 2; ++h) me.sum[h] *= first_factor[h];
      me.rescale(first_factor);
      me.zero_tail(page, 0);
      named_barrier_sync(kFirstReady, kMathThreads);
      wgmma_fence();
      me.issue_other();
      wgmma_wait<0>();
      keep(me.out);
      break;
    }
    me.settle(most, largest, factor);
    named_barrier_arrive(kSecondMaximum, kMathThreads);
#pragma unroll
    for (int h = 0; h < 2; ++h) factor[h] *= first_factor[h];
    me.take_powers(largest, factor);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) stmatrix_x4(me.matrix(x.s_base + kOtherProbabilitiesAt, k), me.p[k]);
    fence_proxy_async();
    named_barrier_arrive(kSecondReady, kMathThreads);
    me.rescale(factor);
    me.zero_tail(page + 1, 1);
    wgmma_fence();
    me.issue_own();
    named_barrier_sync(kFirstReady, kMathThreads);
    wgmma_fence();
    me.issue_other();
    wgmma_wait<1>();
    me.release(1);
    wgmma_wait<0>();
    keep(me.out);
    me.release(0);
    if (page + 3 < x.s_figures->pages) {
      wgmma_fence();
      me.template issue_scores<kHalfTiles, kTiles, true>(next_filled);
      me.template issue_scores<0, kHalfTiles, false>(next_filled);
      wgmma_wait<0>();
      keep(me.score);
    }
  }
  me.finish();
}

/// The item of the cluster's block `rank`, of which `item` is the first block's. All blocks go on or none does.
__device__ __forceinline__ void take_neighbour(const DecodeArgs& a, int rank, DecodeItem* item) {
  const int rows = a.tokens * a.heads - item->row - rank * kRows;
  item->first += rank * kRows;
  item->row += rank * kRows;
  item->rows = min(max(rows, 0), item->rows);
  if (item->slot >= 0) item->slot += rank;
  if (item->slot >= a.slots) item->rows = 0;
}

template <int kBlocks>
__global__ __launch_bounds__(kThreads, 1) void mla_decode_wide_sm90_kernel(DecodeArgs a,
                                                                           const __grid_constant__ CUtensorMap q_map,
                                                                           const __grid_constant__ CUtensorMap cache) {
  extern __shared__ __align__(1024) uint8_t s_memory[];
  const uint32_t s_base = shared_address(s_memory);
  // The compiler is to know that it is the same in all lanes.
  const int warpgroup = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  pdl_wait();
  pdl_launch_dependents();
  DecodeItem item;
  const int first_block = static_cast<int>(blockIdx.x) / kBlocks * kBlocks;
  if (!find_decode_item(a, first_block, reinterpret_cast<int*>(s_memory + kItemAt), &item)) return;
  if constexpr (kBlocks > 1) take_neighbour(a, static_cast<int>(blockIdx.x) - first_block, &item);
  Figures* const s_figures = reinterpret_cast<Figures*>(s_memory + kFiguresAt);
  static_assert(sizeof(Figures) <= kBarriersAt - kFiguresAt);
  const Context<kBlocks> x{a, s_base, s_figures};
  const uint32_t queries = s_base + kBarriersAt;
  if (threadIdx.x == 0) {
    s_figures->item = item;
    s_figures->first_page = item.key_begin / kPageTokens;
    s_figures->pages = div_up(item.key_end, kPageTokens) - s_figures->first_page;
    for (int i = 0; i < 1 + 2 * kTiles; ++i) mbarrier_init(queries + i * 8, 1);
    for (int i = 0; i < kParts; ++i) mbarrier_init(x.read(i / 2, i % 2), kWarpgroup / 32 * kBlocks);
    mbarrier_fence_init();
    mbarrier_arrive_expect(queries, kPageBytes);
    for (int i = 0; i < kTiles; ++i) tile_load(s_base + i * kTileBytes, &q_map, queries, i * 64, item.row);
  }
  if (threadIdx.x < kRows) s_figures->largest[threadIdx.x] = -INFINITY;
  if constexpr (kBlocks > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (warpgroup == 2) {
    give_registers<kLoadRegisters>();
    const int part = threadIdx.x / 32 % kParts;
    if (elect_lane()) load_half(x, &cache, part % 2, part / 2);
    __syncwarp();
  } else {
    take_registers<kMathRegisters>();
    mbarrier_wait(queries, 0);
    if (warpgroup == 0) {
      compute_left(x);
    } else {
      compute_right(x);
    }
  }
  // The others may still write to this block's barriers. Alone, it keeps the warps that load until all have passed the
  // barriers of those that compute: synccheck takes a warp that has ended for one that does not come.
  if constexpr (kBlocks > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
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
  const dim3 grid(static_cast<unsigned>(round_up(decode_max_items(p, partials), 2)));
  const auto start = [&](auto kernel, int blocks) {
    return cuda_status(
        launch_clusters(kernel, grid, dim3(kThreads), blocks, kSharedBytes, launch.stream, args, q_map, cache),
        "mla_decode_wide_sm90_kernel");
  };
  // An even number of row tiles in every sequence.
  if (p.q.dim(1) % (2 * kRows) == 0) return start(mla_decode_wide_sm90_kernel<2>, 2);
  return start(mla_decode_wide_sm90_kernel<1>, 1);
}

Status load_decode_wide_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_wide_sm90_kernel<1>, "mla_decode_wide_sm90_kernel", kSharedBytes));
  return load_kernel(mla_decode_wide_sm90_kernel<2>, "mla_decode_wide_sm90_kernel", kSharedBytes);
}

}  // namespace mla::cuda
