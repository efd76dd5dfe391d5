// cluster_plan.cuh - writes decodePlan's second part (cluster_plan.h): the groups of keys that clusters take.
//
//   group_keys = the candidate with the lowest estimated time; then prefix sums over the sequences
//
// The estimate in microseconds, for items that free clusters take in ascending order: the smaller of
//   ceil(items / clusters) * t   and   max(ceil(full items / clusters) * t, all work / clusters) + mean shorter item
// with t the time of a full group: its beginning and end, and its pages at the rate at which one block computes or its
// share of the memory delivers, whichever is slower; plus what merging groups costs. A candidate is a number of groups
// of the longest sequence.
#pragma once
#include "cuda/attention/cluster_plan.h"
#include "cuda/attention/plan_scan.cuh"

namespace mla::cuda {

struct ClusterPlanArgs {
  const int32_t* q_start;  // [B + 1]
  const int32_t* lengths;  // [B]
  int32_t* plan;           // the part
  int sequences;
  int heads;
  int clusters;  // that run at once, of blocks that share a multiprocessor by two
  int cluster;   // blocks of a cluster
};

constexpr int kClusterCandidates = 32;  // groups of the longest sequence
// Fitted to 16 heads, batches of 1 to 128, 1k to 128k keys on an H200 (2026-11-26): the choice was the best measured
// one.
constexpr float kClusterItemTime = 5.7f;     // first loads, query, merging the cluster, writing
constexpr float kClusterPageTime = 3.0f;     // a page in a block that has a multiprocessor's loads for itself
constexpr float kClusterLeastPages = 0.8f;   // what half a page and less takes
constexpr float kClusterLoadTime = 0.0168f;  // a page from memory
constexpr float kClusterMergeTime = 1.8f;    // several groups: writing parts, counting
constexpr float kClusterGroupTime = 0.15f;   // of that, for each part

/// Keys of a group when the longest sequence has about `groups`.
__device__ inline int cluster_group_keys(int64_t longest, int groups, int cluster) {
  const int share = cluster_rank_keys(static_cast<int>((longest + groups - 1) / groups), cluster);
  return max(share * cluster, kPageTokens);
}

__device__ inline void make_cluster_plan(const ClusterPlanArgs& a) {
  __shared__ unsigned long long s_longest;
  __shared__ float s_cost[kClusterCandidates];
  __shared__ Counts s_warp_totals[kPlanWarps];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  int32_t* item_start = a.plan + kClusterHeader;
  int32_t* slot_start = item_start + a.sequences + 1;
  int32_t* arrived = slot_start + a.sequences + 1;
  for (int i = tid; i < kClusterSlots * kMaxOutTiles; i += kPlanThreads) arrived[i] = 0;
  if (tid == 0) s_longest = 0;
  __syncthreads();
  for (int b = tid; b < a.sequences; b += kPlanThreads) {
    atomicMax(&s_longest, static_cast<unsigned long long>(load_sequence(a.q_start, a.lengths, b, a.heads).keys));
  }
  __syncthreads();
  const int64_t longest = static_cast<int64_t>(s_longest);
  const int64_t tokens = int64_t{a.q_start[a.sequences]} - a.q_start[0];
  const int row_tile = cluster_row_tile(tokens > 0 ? tokens : 0, a.sequences, a.heads);
  const auto row_tiles = [row_tile](const PlanSequence& s) { return (s.rows + row_tile - 1) / row_tile; };
  const auto groups = [](const PlanSequence& s, int keys) { return s.keys > keys ? (s.keys + keys - 1) / keys : 1; };
  const float clusters = static_cast<float>(max(a.clusters / (cluster_block_fills(row_tile) ? 2 : 1), 1));

  if (warp < kClusterCandidates) {
    const int keys = cluster_group_keys(longest, warp + 1, a.cluster);
    const float pages = static_cast<float>(cluster_rank_keys(keys, a.cluster)) / kPageTokens;
    // In pages: longest of a block, summed up over items.
    float items = 0, slots = 0, shorter = 0, shorter_pages = 0, active = 0;
    for (int b = lane; b < a.sequences; b += 32) {
      const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
      const float tiles = static_cast<float>(row_tiles(s)), n = static_cast<float>(groups(s, keys));
      const int rest = static_cast<int>(s.keys - (static_cast<int64_t>(n) - 1) * keys);
      items += tiles * n;
      if (n > 1) slots += tiles * n;
      active += tiles * static_cast<float>(s.keys) / (pages * kPageTokens);
      if (rest < keys) {
        shorter += tiles;
        shorter_pages += tiles * static_cast<float>(cluster_rank_keys(rest, a.cluster)) / kPageTokens;
      }
    }
    items = warp_sum(items);
    slots = warp_sum(slots);
    shorter = warp_sum(shorter);
    shorter_pages = warp_sum(shorter_pages);
    active = warp_sum(active);
    if (lane == 0) {
      const float page_time =
          fmaxf(kClusterPageTime, kClusterLoadTime * fminf(active, clusters * static_cast<float>(a.cluster)));
      const float full_time = kClusterItemTime + fmaxf(pages, kClusterLeastPages) * page_time;
      const float shorter_time = shorter > 0 ? kClusterItemTime + shorter_pages / shorter * page_time : 0;
      const float all = (items - shorter) * full_time + shorter * shorter_time;
      const float waves = ceilf(items / clusters) * full_time;
      const float full_waves = ceilf((items - shorter) / clusters) * full_time;
      const float filled = fmaxf(full_waves, all / clusters) + shorter_time;
      const float most = ceilf(static_cast<float>(longest) / static_cast<float>(keys));
      const float merge = slots > 0 ? kClusterMergeTime + most * kClusterGroupTime : 0;
      const bool fits = slots <= kClusterSlots && most <= kMaxClusterGroups;
      s_cost[warp] = fits ? fminf(waves, filled) + merge : INFINITY;
    }
  }
  __syncthreads();
  int best = 0;  // of equal costs the fewest groups
  for (int i = 1; i < kClusterCandidates; ++i) {
    if (s_cost[i] < s_cost[best]) best = i;
  }
  const int keys = cluster_group_keys(longest, best + 1, a.cluster);

  Counts base{0, 0, 0};
  for (int first = 0; first < a.sequences; first += kPlanThreads) {
    const int b = first + tid;
    Counts mine{0, 0, 0};
    if (b < a.sequences) {
      const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
      mine.items = row_tiles(s) * groups(s, keys);
      if (groups(s, keys) > 1) mine.slots = mine.items;
    }
    Counts total;
    const Counts before = block_exclusive_scan(mine, s_warp_totals, &total);
    if (b < a.sequences) {
      item_start[b] = clamp_int(base.items + before.items);
      slot_start[b] = clamp_int(base.slots + before.slots);
    }
    base = {base.items + total.items, base.slots + total.slots, 0};
  }
  if (tid == 0) {
    item_start[a.sequences] = clamp_int(base.items);
    slot_start[a.sequences] = clamp_int(base.slots);
    a.plan[kClusterRowTile] = row_tile;
    a.plan[kClusterKeys] = keys;
    a.plan[kClusterItems] = clamp_int(base.items);
    for (int i = kClusterItems + 1; i < kClusterHeader; ++i) a.plan[i] = 0;
  }
}

}  // namespace mla::cuda
