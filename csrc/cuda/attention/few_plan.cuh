// few_plan.cuh - writes decodePlan's second part (few_plan.h): which pages of keys each block takes.
//
//   share = ceil(pages / blocks)
//
// Of sequences that are all as long, the next larger share that cuts them evenly, or not at all, is taken instead, if
// that is at most kFewAlignPages more: a block then has one piece instead of two.
#pragma once
#include "cuda/attention/few_plan.h"
#include "cuda/attention/plan_scan.cuh"

namespace mla::cuda {

struct FewPlanArgs {
  const int32_t* q_start;  // [B + 1]
  const int32_t* lengths;  // [B]
  int32_t* plan;           // the part
  int sequences;
  int heads;
  int blocks;
};

// 16 heads, H200, 2026-11-26: at batch 128 with 4,096 keys shares of 63 pages take 163 us, of 64 pages 154.
constexpr int kFewAlignPages = 4;

__device__ inline void make_few_plan(const FewPlanArgs& a) {
  __shared__ Counts s_warp_totals[kPlanWarps];
  __shared__ int s_shortest, s_longest;  // pages
  const int tid = threadIdx.x;
  int32_t* page_start = a.plan + kFewHeader;
  int32_t* merge_start = page_start + a.sequences + 1;
  int32_t* starts = merge_start + a.sequences + 1;
  const int64_t tokens = int64_t{a.q_start[a.sequences]} - a.q_start[0];
  const int row_tile = few_row_tile(tokens > 0 ? tokens : 0, a.sequences, a.heads);
  const auto load = [&](int b) { return load_sequence(a.q_start, a.lengths, b, a.heads); };
  const auto row_tiles = [&](const PlanSequence& s) { return (s.rows + row_tile - 1) / row_tile; };
  const auto tile_pages = [&](const PlanSequence& s) {
    return s.keys > kPageTokens ? (s.keys + kPageTokens - 1) / kPageTokens : 1;
  };
  // Prefix sums over the sequences of what count(b) gives.
  const auto scan = [&](int32_t* to, auto count) {
    int64_t base = 0;
    for (int first = 0; first < a.sequences; first += kPlanThreads) {
      const int b = first + tid;
      Counts total, mine{b < a.sequences ? count(b) : 0, 0, 0};
      const Counts before = block_exclusive_scan(mine, s_warp_totals, &total);
      if (b < a.sequences) to[b] = clamp_int(base + before.items);
      base += total.items;
    }
    if (tid == 0) to[a.sequences] = clamp_int(base);
    return base;
  };
  const int pages = clamp_int(scan(page_start, [&](int b) {
    const PlanSequence s = load(b);
    return row_tiles(s) * tile_pages(s);
  }));
  if (tid == 0) {
    s_shortest = INT32_MAX;
    s_longest = 0;
  }
  __syncthreads();
  for (int b = tid; b < a.sequences; b += kPlanThreads) {
    const PlanSequence s = load(b);
    if (s.rows == 0) continue;
    atomicMin(&s_shortest, static_cast<int>(tile_pages(s)));
    atomicMax(&s_longest, static_cast<int>(tile_pages(s)));
  }
  __syncthreads();
  int share = max(static_cast<int>((int64_t{pages} + a.blocks - 1) / a.blocks), 1);
  if (s_shortest == s_longest) {
    const int length = s_longest, cuts = length / share;
    const int even = cuts > 0 ? (length + cuts - 1) / cuts : (share + length - 1) / length * length;
    if (even - share <= kFewAlignPages) share = even;
  }
  const int64_t items = scan(merge_start, [&](int b) -> int64_t {
    const PlanSequence s = load(b);
    if (s.rows == 0) return 0;
    const int parts = few_parts(page_start[b], row_tiles(s), tile_pages(s), share);
    return parts > 1 ? merge_items(s.rows, parts) : 0;
  });
  __syncthreads();  // page_start
  for (int i = tid; i < a.blocks; i += kPlanThreads) {
    const int64_t at = int64_t{i} * share;
    int sequence = -1, tile = 0, page = 0;
    if (at < pages) {
      int behind = a.sequences;  // the sequence lies in [sequence, behind)
      for (sequence = 0; behind - sequence > 1;) {
        const int middle = (sequence + behind) / 2;
        (page_start[middle] <= at ? sequence : behind) = middle;
      }
      const int64_t within = at - page_start[sequence], n = tile_pages(load(sequence));
      tile = static_cast<int>(within / n);
      page = static_cast<int>(within % n);
    }
    starts[i * kFewStart] = sequence;
    starts[i * kFewStart + 1] = tile;
    starts[i * kFewStart + 2] = page;
  }
  if (tid == 0) {
    for (int i = 0; i < kFewHeader; ++i) a.plan[i] = 0;
    a.plan[kFewRowTile] = row_tile;
    a.plan[kFewShare] = share;
    a.plan[kFewPages] = pages;
    a.plan[kFewMergeItems] = clamp_int(items);
  }
}

}  // namespace mla::cuda
