// wide_plan.cuh - writes decodePlan's part for the Hopper kernel of many query rows (wide_plan.h).
//
// Pages are dealt out greedily under a share: a worker takes whole groups as long as they fit, then the pages that
// still do; each part of a group counts kWidePartPages more, for its queries, filling the pipeline and its result. The
// lanes of one warp try 32 shares from the smallest thinkable one on, for the first team, which has the most. The one
// is taken whose time is the least: the share, and what merging partial results takes. The last worker of a team takes
// what is left, so that every plan is complete.
#pragma once
#include "cuda/attention/plan_scan.cuh"
#include "cuda/attention/wide_plan.h"
#include "ops/ops.h"

namespace mla::cuda {

struct WidePlanArgs {
  const int32_t* q_start;  // [B + 1]
  const int32_t* lengths;  // [B]
  int32_t* plan;           // the part
  int sequences;
  int heads;
  int tiles;    // of a group
  int workers;  // that run at once
  int records;  // wide_records
};

// In pages of one worker.
constexpr int kWidePartPages = 3;            // a part besides its pages
constexpr int kWideLeastPages = 2;           // that are worth beginning a part for
constexpr float kWideMergeTime = 2;          // the merge kernel, if it has anything to do
constexpr float kWideMergeSlot = 1 / 32.0f;  // of that, for each partial result of a tile

/// What a deal comes to.
struct WideDeal {
  bool fits = true;  // under the share
  int workers = 0, merges = 0, most_parts = 0;
  int64_t slots = 0, merge_rows = 0;
};

/// Deals the pages of one team's groups out. With kWrite also writes the records; `base` has what other teams' merges
/// come to.
template <bool kWrite>
__device__ WideDeal deal_wide(const WidePlanArgs& a, int teams, int team, int64_t share, const WideDeal& base = {}) {
  const int64_t group_rows = int64_t{a.tiles} * kWideRows;
  const int most_workers = a.workers / teams;
  WideDeal deal;
  const auto write = [](int32_t* to, int64_t x, int64_t y, int64_t z, int64_t w) {
    to[0] = clamp_int(x);
    to[1] = clamp_int(y);
    to[2] = clamp_int(z);
    to[3] = clamp_int(w);
  };
  // Worker `index` of the team begins here, the one before ends.
  const auto begin = [&](int index, int b, int64_t group, int page) {
    int32_t* to = a.plan + kWideHeader + kWideRecord * (index * teams + team);
    if (index > 0) write(to - kWideRecord * teams + 4, b, group, page, teams);
    write(to, b, group, page, deal.slots);
    write(to + 4, a.sequences, 0, 0, teams);
    if (b < a.sequences) write(to + 8, a.q_start[b], a.q_start[b + 1], a.lengths[b], 0);
  };
  // An entry for the last `parts` parts that were dealt out; or, with none, for a sequence without keys.
  const auto merge = [&](int b, int64_t first, int64_t rows, int parts) {
    if constexpr (kWrite)
      write(a.plan + kWideHeader + kWideRecord * a.records + 4 * (base.merges + deal.merges),
            base.merge_rows + deal.merge_rows, int64_t{a.q_start[b]} * a.heads + first,
            (deal.slots - parts) * teams + team, parts);
    ++deal.merges;
    deal.merge_rows += rows;
    deal.most_parts = max(deal.most_parts, parts);
  };
  int64_t left = 0;
  bool next = true;  // what comes goes to the next worker
  for (int b = 0; b < a.sequences; ++b) {
    const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
    if (s.keys == 0) {
      if (s.rows > 0 && team == 0) merge(b, 0, s.rows, 0);
      continue;
    }
    const int64_t groups = (s.rows + group_rows - 1) / group_rows;
    const int pages = static_cast<int>((s.keys + kPageTokens - 1) / kPageTokens), whole = pages + kWidePartPages;
    int64_t group = team;
    int page = 0, parts = 0;
    while (group < groups) {
      if (next) {
        if (deal.workers == most_workers) {
          deal.fits = false;
          left = INT64_MAX;
        } else {
          if constexpr (kWrite) begin(deal.workers, b, group, page);
          ++deal.workers;
          left = share;
        }
        next = false;
      }
      const int rest = whole - page;
      if (rest > left) {
        const int fit = static_cast<int>(left) - kWidePartPages;
        if ((fit >= kWideLeastPages || left == share) && deal.workers < most_workers) {
          page += fit;
          ++parts;
          ++deal.slots;
        }
        next = true;
        continue;
      }
      left -= rest;
      if (page > 0) {
        ++parts;
        ++deal.slots;
        merge(b, group * group_rows, min(group_rows, s.rows - group * group_rows), parts);
        page = parts = 0;
      }
      group += teams;
      const int64_t more = max(min(left / whole, (groups - group + teams - 1) / teams), int64_t{0});
      group += more * teams;
      left -= more * whole;
    }
  }
  if constexpr (kWrite) {
    for (int w = deal.workers; w <= most_workers; ++w) begin(w, a.sequences, 0, 0);
  }
  return deal;
}

/// By all threads of a block of kPlanThreads.
__device__ inline void make_wide_plan(const WidePlanArgs& a) {
  __shared__ unsigned long long s_pages, s_most, s_fewer;
  const int lane = threadIdx.x;
  if (lane == 0) s_pages = s_most = s_fewer = 0;
  __syncthreads();
  const int64_t group_rows = int64_t{a.tiles} * kWideRows;
  for (int b = threadIdx.x; b < a.sequences; b += kPlanThreads) {
    const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
    if (s.keys == 0) continue;
    const int64_t groups = (s.rows + group_rows - 1) / group_rows;
    const int64_t pages = (s.keys + kPageTokens - 1) / kPageTokens + kWidePartPages;
    atomicAdd(&s_pages, static_cast<unsigned long long>(groups * pages));
    atomicMax(&s_most, static_cast<unsigned long long>(groups));
    atomicMax(&s_fewer, ~static_cast<unsigned long long>(groups));
  }
  __syncthreads();
  if (lane >= 32) return;
  // Teams only where all sequences have as many groups, or some teams would have more to do than others.
  const bool alike = s_most == ~s_fewer && s_most <= kWideTeams && s_most <= static_cast<unsigned>(a.workers);
  const int teams = alike ? static_cast<int>(s_most) : 1;
  const int used = a.workers / teams * teams;
  const int64_t least = (static_cast<int64_t>(s_pages) + used - 1) / used;
  const int64_t first = max(least, int64_t{kWidePartPages} + 1), mine = first + lane;
  const WideDeal tried = deal_wide<false>(a, teams, 0, mine);
  float cost = static_cast<float>(mine);
  if (tried.slots > 0) cost += kWideMergeTime + static_cast<float>(tried.slots * teams * a.tiles) * kWideMergeSlot;
  if (!tried.fits) cost = INFINITY;
  float best = cost;
#pragma unroll
  for (int i = 16; i > 0; i /= 2) best = fminf(best, __shfl_xor_sync(kFullWarp, best, i));
  const int64_t share = first + __ffs(__ballot_sync(kFullWarp, cost == best)) - 1;  // the smallest of those

  // Merges of the teams before this one.
  WideDeal made;
  if (lane < teams) made = deal_wide<false>(a, teams, lane, share);
  WideDeal base, all;
  for (int t = 0; t < teams; ++t) {
    const int merges = __shfl_sync(kFullWarp, made.merges, t), parts = __shfl_sync(kFullWarp, made.most_parts, t);
    const int64_t rows = __shfl_sync(kFullWarp, made.merge_rows, t);
    if (t < lane) {
      base.merges += merges;
      base.merge_rows += rows;
    }
    all.merges += merges;
    all.merge_rows += rows;
    all.most_parts = max(all.most_parts, parts);
  }
  if (lane < teams) deal_wide<true>(a, teams, lane, share, base);
  if (lane != 0) return;
  a.plan[kWideTeamsAt] = teams;
  a.plan[kWideMerges] = all.merges;
  a.plan[kWideMergeRows] = clamp_int(all.merge_rows);
  a.plan[kWideMostParts] = all.most_parts;
  for (int i = kWideMostParts + 1; i < kWideHeader; ++i) a.plan[i] = 0;
}

}  // namespace mla::cuda
