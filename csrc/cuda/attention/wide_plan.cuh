// wide_plan.cuh - writes decodePlan's part for the Hopper kernel of many query rows (wide_plan.h).
//
// Pages are dealt out greedily under a share: a worker takes whole groups as long as they fit, then the pages that
// still do; each part of a group counts kWidePartPages more, for its queries, filling the pipeline and its result.
// kWideTries shares from the smallest thinkable one on are tried, for the first team, which has the most. The one is
// taken whose time is the least: the share, and what merging partial results takes. The last worker of a team takes
// what is left, so that every plan is complete.
//
// Dealing out is one thing after the other, and every step of a model waits for it. So it is done in 32 bits, on
// figures in shared memory; workers that have nothing but a piece of one group are taken in one go, and written by the
// lanes of a warp side by side. Eight warps try four shares each: one warp would go through the ways of all lanes, 32
// warps wait for one another's instructions (docs/kernels/mla-decode-wide.md has times).
//
// Where parts are fixed (wide_plan.h), cuts are at their ends, and the shares that are tried go up to one more group;
// the last one cuts no group, so it needs no partial results, nor more workers than there are, since each but the last
// has more than an equal share then.
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
  int slots;    // wide_slots
};

// In pages of one worker.
constexpr int kWidePartPages = 3;            // a part besides its pages
constexpr int kWideLeastPages = 2;           // that are worth beginning a part for
constexpr float kWideMergeTime = 2;          // the merge kernel, if it has anything to do
constexpr float kWideMergeSlot = 1 / 32.0f;  // of that, for each partial result of a tile

/// A sequence as it is dealt out. What makes no sense is cut down to what keeps sums within 32 bits.
struct WideSequence {
  int rows;
  int groups;
  int whole;  // pages, and kWidePartPages for each part; 0 without keys
  int parts;  // fixed ones, or 1
};

template <bool kFixed>
__device__ WideSequence load_wide_sequence(const WidePlanArgs& a, int b) {
  constexpr int64_t kMost = 1 << 30;
  const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
  const int64_t group_rows = int64_t{a.tiles} * kWideRows;
  const int pages = static_cast<int>((s.keys + kPageTokens - 1) / kPageTokens);
  const int parts = kFixed && pages > 0 ? fixed_part(pages - 1) + 1 : 1;
  return {static_cast<int>(min(s.rows, kMost)), static_cast<int>(min((s.rows + group_rows - 1) / group_rows, kMost)),
          pages == 0 ? 0 : pages + kWidePartPages * parts, parts};
}

/// What a worker's share is charged for fixed part `part`, which begins at `page`.
__device__ inline int fixed_cost(const WideSequence& s, int page, int part) {
  return min(fixed_part_begin(part + 1), s.whole - kWidePartPages * s.parts) - page + kWidePartPages;
}

constexpr int kWideHeld = kPlanThreads;  // sequences whose figures are in shared memory
constexpr int kWideTries = 32;           // shares
constexpr int kWideTriesAtOnce = 4;      // by a warp

/// What a deal comes to.
struct WideDeal {
  bool over;  // more than fits under the share
  int workers, slots, merges, most_parts;
  int64_t merge_rows;
};

/// Deals the pages of one team's groups out. With kWrite, all lanes of a warp alike, also writes where workers begin,
/// and the merges; `base` has what other teams' merges come to. Groups are cut, or (with fixed parts only) not.
template <bool kFixed, bool kWrite>
__device__ WideDeal deal_wide(const WidePlanArgs& a, const WideSequence* s_sequences, int teams, int team, int share,
                              bool cut, const WideDeal& base = WideDeal{}) {
  constexpr int kNoEnd = INT32_MAX;  // of a share
  const int lane = threadIdx.x % 32, most_workers = a.workers / teams, group_rows = a.tiles * kWideRows;
  WideDeal deal{};
  // The next `count` workers of the team begin here and every `pages` further on.
  const auto begin = [&](int b, int group, int page, int pages, int count) {
    if constexpr (kWrite) {
      for (int i = lane; i < count; i += 32) {
        int32_t* const to = a.plan + kWideHeader + kWideRecord * ((deal.workers + i) * teams + team);
        to[0] = b;
        to[1] = group;
        to[2] = page + i * pages;
        to[3] = deal.slots + (pages > 0 ? i : 0);
      }
    }
    deal.workers += count;
  };
  // An entry for the last `parts` parts that were dealt out; or, with none, for a sequence without keys.
  const auto merge = [&](int b, int64_t first, int64_t rows, int parts) {
    if (kWrite && lane == 0) {
      int32_t* const to = a.plan + kWideHeader + kWideRecord * a.records + 4 * (base.merges + deal.merges);
      to[0] = clamp_int(base.merge_rows + deal.merge_rows);
      to[1] = clamp_int(int64_t{a.q_start[b]} * a.heads + first);
      to[2] = (deal.slots - parts) * teams + team;
      to[3] = parts;
    }
    ++deal.merges;
    deal.merge_rows += rows;
    deal.most_parts = max(deal.most_parts, parts);
  };
  int left = 0;
  bool next = true;  // what comes goes to the next worker
  for (int b = 0; b < a.sequences; ++b) {
    const WideSequence s = b < kWideHeld ? s_sequences[b] : load_wide_sequence<kFixed>(a, b);
    if (s.whole == 0) {
      if (s.rows > 0 && team == 0) merge(b, 0, s.rows, 0);
      continue;
    }
    int group = team, page = 0, parts = 0;
    while (group < s.groups) {
      if (next) {
        deal.over = deal.workers == most_workers;
        left = deal.over ? kNoEnd : share;
        if (kFixed && !deal.over) left = max(left, cut ? fixed_cost(s, page, parts) : s.whole);
        if (!deal.over) begin(b, group, page, 0, 1);
        next = false;
      }
      const int rest = s.whole - page - (kFixed ? kWidePartPages * parts : 0);
      if (kFixed && rest > left) {
        for (int cost; cut && (cost = fixed_cost(s, page, parts)) <= left; left -= cost) {
          page += cost - kWidePartPages;
          ++parts;
          ++deal.slots;
        }
        next = true;
        continue;
      }
      if (rest > left) {
        // What is left of a worker's share; all of it, and so on until the rest fits, if it has nothing else.
        const bool fresh = left == share;
        const int fit = left - kWidePartPages;
        int cuts = fresh ? (rest - share + fit - 1) / fit : fit >= kWideLeastPages ? 1 : 0;
        cuts = min(cuts, most_workers - deal.workers);
        if (fresh && cuts > 0) {
          ++deal.slots;
          begin(b, group, page + fit, fit, cuts);
          deal.slots += cuts - 1;
        } else {
          deal.slots += cuts;
          next = true;
        }
        page += cuts * fit;
        parts += cuts;
        continue;
      }
      if (left != kNoEnd) left -= rest;
      if (page > 0) {
        const int last = kFixed ? s.parts - parts : 1;
        parts += last;
        deal.slots += last;
        const int64_t first = int64_t{group} * group_rows;
        merge(b, first, min(int64_t{group_rows}, s.rows - first), parts);
        page = parts = 0;
      }
      group += teams;
      if (group >= s.groups) break;
      const int more = min(left == kNoEnd ? kNoEnd : left / s.whole, (s.groups - group + teams - 1) / teams);
      group += more * teams;
      if (left != kNoEnd) left -= more * s.whole;
    }
  }
  begin(a.sequences, 0, 0, 0, most_workers + 1 - deal.workers);
  return deal;
}

/// By all threads of a block of kPlanThreads.
template <bool kFixed>
__device__ void make_wide_plan(const WidePlanArgs& a) {
  __shared__ unsigned long long s_pages;
  __shared__ int s_most, s_fewest;  // groups of a sequence
  __shared__ int s_whole, s_rows;   // of any sequence
  __shared__ WideSequence s_sequences[kWideHeld];
  __shared__ float s_cost[kWideTries];
  __shared__ WideDeal s_deals[kWideTeams];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  if (tid == 0) {
    s_pages = 0;
    s_most = s_whole = s_rows = 0;
    s_fewest = INT32_MAX;
  }
  __syncthreads();
  for (int b = tid; b < a.sequences; b += kPlanThreads) {
    const WideSequence s = load_wide_sequence<kFixed>(a, b);
    if (b < kWideHeld) s_sequences[b] = s;
    if (s.whole == 0) continue;
    atomicAdd(&s_pages, static_cast<unsigned long long>(s.groups) * static_cast<unsigned>(s.whole));
    atomicMax(&s_most, s.groups);
    atomicMin(&s_fewest, s.groups);
    if (!kFixed) continue;
    atomicMax(&s_whole, s.whole);
    atomicMax(&s_rows, s.rows);
  }
  __syncthreads();
  // Teams only where all sequences have as many groups, or some teams would have more to do than others.
  const bool alike = s_most == s_fewest && s_most <= min(kWideTeams, a.workers);
  const int teams = alike ? s_most : 1;
  const int used = a.workers / teams * teams;
  const int64_t least = (static_cast<int64_t>(s_pages) + used - 1) / used;
  const int first = clamp_int(max(least, int64_t{kWidePartPages} + 1)), most = INT32_MAX / 2;
  const int step = kFixed ? (s_whole + kWideTries - 2) / (kWideTries - 1) : 1;
  const auto share_of = [&](int i) { return min(first, most) + i * step; };
  const auto cut_of = [](int i) { return !kFixed || i < kWideTries - 1; };
  const int slot_rows = kFixed ? min(max(s_rows, 1), kWideRows) : kWideRows;

  if (warp < kWideTries / kWideTriesAtOnce) {
    const int i = warp * kWideTriesAtOnce + lane % kWideTriesAtOnce;
    const WideDeal tried = deal_wide<kFixed, false>(a, s_sequences, teams, 0, share_of(i), cut_of(i));
    float cost = static_cast<float>(share_of(i));
    const float slots = static_cast<float>(tried.slots * teams * a.tiles) * slot_rows / kWideRows;  // of whole tiles
    if (tried.slots > 0) cost += kWideMergeTime + slots * kWideMergeSlot;
    const bool fits = !tried.over && (!kFixed || slots <= a.slots);
    if (lane < kWideTriesAtOnce) s_cost[i] = fits ? cost : INFINITY;
  }
  __syncthreads();
  const float cost = s_cost[lane];
  float best = cost;
#pragma unroll
  for (int i = 16; i > 0; i /= 2) best = fminf(best, __shfl_xor_sync(kFullWarp, best, i));
  const int chosen = __ffs(__ballot_sync(kFullWarp, cost == best)) - 1;  // the smallest of those
  const int share = share_of(chosen);
  const bool cut = cut_of(chosen);

  WideDeal base{};  // merges of the teams before a warp's
  if (teams > 1) {
    if (warp < teams) {
      const WideDeal deal = deal_wide<kFixed, false>(a, s_sequences, teams, warp, share, cut);
      if (lane == 0) s_deals[warp] = deal;
    }
    __syncthreads();
    for (int t = 0; t < min(warp, teams); ++t) {
      base.merges += s_deals[t].merges;
      base.merge_rows += s_deals[t].merge_rows;
    }
    __syncthreads();  // s_deals may be written again
  }
  if (warp < teams) {
    const WideDeal deal = deal_wide<kFixed, true>(a, s_sequences, teams, warp, share, cut, base);
    if (lane == 0) s_deals[warp] = deal;
  }
  __syncthreads();
  // Where workers end, and what they begin with.
  const int records = used + teams;
  for (int i = tid; i < records; i += kPlanThreads) {
    int32_t* const to = a.plan + kWideHeader + kWideRecord * i;
    const bool last = i + teams >= records;
    const int32_t* const behind = to + kWideRecord * teams;
    to[4] = last ? a.sequences : behind[0];
    to[5] = last ? 0 : behind[1];
    to[6] = last ? 0 : behind[2];
    to[7] = teams;
    const int b = to[0];
    if (b >= a.sequences) continue;
    to[8] = a.q_start[b];
    to[9] = a.q_start[b + 1];
    to[10] = a.lengths[b];
    to[11] = 0;
  }
  if (tid != 0) return;
  WideDeal all{};
  for (int t = 0; t < teams; ++t) {
    all.merges += s_deals[t].merges;
    all.merge_rows += s_deals[t].merge_rows;
    all.most_parts = max(all.most_parts, s_deals[t].most_parts);
  }
  a.plan[kWideTeamsAt] = teams;
  a.plan[kWideMerges] = all.merges;
  a.plan[kWideMergeRows] = clamp_int(all.merge_rows);
  a.plan[kWideMostParts] = all.most_parts;
  a.plan[kWideSlotRows] = slot_rows;
  for (int i = kWideSlotRows + 1; i < kWideHeader; ++i) a.plan[i] = 0;
}

}  // namespace mla::cuda
