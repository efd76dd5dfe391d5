// decode_plan.cu - how the decode attention of this step is cut into work items; decode_plan.h has the layout.
//
//   split_keys = the candidate with the lowest estimated time; then prefix sums over the sequences
//
// The estimate, in tiles of the keys that an iteration takes, for items that free blocks take in ascending order: the
// smaller of
//   ceil(items / blocks) * t   and   max(ceil(full items / blocks) * t, all work / blocks) + mean shorter item
// with t the time of a full split and its overhead, plus what the merge costs. A candidate is a number of splits of the
// longest sequence; one split is always allowed. In a simulation of 21 batches (equal and random lengths, 132 blocks)
// the choice was within 6 % of the best candidate; handing out full splits first gained nothing.
//
// Grid 1 (on Hopper 3: the second block writes the second part, few_plan.cuh, the third one the third,
// wide_plan.cuh), block 1024, some KB of shared memory, B * 64 / 32 steps. The plan depends on lengths and q_start
// alone, never on the order in which blocks run. Lengths and starts that make no sense give a plan that makes none, but
// reads and writes nothing outside of its tensors. Test: test/gpu/attention.test.ts.
#include "cuda/attention/decode_plan.h"

#include <cuda_runtime.h>

#include "common/checked.h"
#include "cuda/attention/few_plan.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/plan_scan.cuh"
#include "cuda/attention/wide_plan.cuh"
#include "cuda/device/pdl.cuh"

namespace mla::cuda {
namespace {

constexpr int kCandidates = 64;
constexpr float kItemOverhead = 2;           // tiles: filling the pipeline
constexpr float kSplitOverhead = 2;          // tiles: writing a partial result and reading it again
constexpr float kMergeOverhead = 1 / 64.0f;  // tiles per partial result: the merge kernel reads them after all else

/// Splits of the longest sequence under candidate i: 1 to 16, then 12 steps an octave up to 16 * 2^4.
__device__ int candidate_splits(int i) {
  return i < 16 ? i + 1 : static_cast<int>(16.0f * exp2f(static_cast<float>(i - 15) / 12.0f) + 0.5f);
}

struct PlanArgs {
  const int32_t* q_start;  // [B + 1]
  const int32_t* lengths;  // [B]
  int32_t* plan;
  int row_tile;
  int sequences;
  int heads;
  int blocks;      // that run at once: one on each multiprocessor
  int candidates;  // that are tried; with one, every sequence is one split
  FewPlanArgs few;
  WidePlanArgs wide;
};

template <bool kFixed>
__global__ __launch_bounds__(kPlanThreads) void decode_plan_kernel(PlanArgs a) {
  __shared__ unsigned long long s_work;  // key tiles of all row tiles
  __shared__ unsigned long long s_longest;
  __shared__ unsigned long long s_row_tiles;
  __shared__ float s_cost[kCandidates];
  __shared__ int s_split_tiles;
  __shared__ Counts s_warp_totals[kPlanWarps];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  if (tid == 0) {
    s_work = 0;
    s_longest = 0;
    s_row_tiles = 0;
  }
  __syncthreads();
  pdl_wait();
  pdl_launch_dependents();
  if (blockIdx.x == 1) {
    make_few_plan(a.few);
    return;
  }
  if (blockIdx.x == 2) {
    make_wide_plan<kFixed>(a.wide);
    return;
  }
  const auto key_tiles = [](const PlanSequence& s) { return (s.keys + kPlanKeys - 1) / kPlanKeys; };

  for (int b = tid; b < a.sequences; b += kPlanThreads) {
    const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
    const int64_t row_tiles = (s.rows + a.row_tile - 1) / a.row_tile;
    atomicAdd(&s_row_tiles, static_cast<unsigned long long>(row_tiles));
    atomicAdd(&s_work, static_cast<unsigned long long>(row_tiles * key_tiles(s)));
    atomicMax(&s_longest, static_cast<unsigned long long>(key_tiles(s)));
  }
  __syncthreads();
  const float work = static_cast<float>(s_work);
  const int64_t blocks = a.blocks, tiles = static_cast<int64_t>(s_row_tiles);
  // As decode_max_slots() on the host, which knows no more than a bound on the row tiles.
  const int64_t max_slots = (tiles * 4 <= blocks ? 1 : kManySlots) * blocks;
  const int longest = static_cast<int>(s_longest);  // at most 2^31 / 32

  for (int candidate = warp; candidate < a.candidates; candidate += kPlanWarps) {
    const int splits = candidate_splits(candidate);
    const int split_tiles = (longest + splits - 1) / splits;
    int64_t items = 0, slots = 0, shorter = 0, shorter_work = 0;
    for (int b = lane; b < a.sequences && split_tiles > 0; b += 32) {
      const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
      const int n = (static_cast<int>(key_tiles(s)) + split_tiles - 1) / split_tiles;
      const int rest = static_cast<int>(key_tiles(s)) - (n - 1) * split_tiles;
      const int64_t row_tiles = (s.rows + a.row_tile - 1) / a.row_tile;
      items += row_tiles * n;
      if (n > 1) slots += row_tiles * n;
      if (n > 0 && rest < split_tiles) {
        shorter += row_tiles;
        shorter_work += row_tiles * rest;
      }
    }
    items = sum_lanes(items);
    slots = sum_lanes(slots);
    shorter = sum_lanes(shorter);
    shorter_work = sum_lanes(shorter_work);
    if (lane == 0) {
      const float item_time = split_tiles + kItemOverhead + (slots > 0 ? kSplitOverhead : 0);
      const float all = (work + items * kItemOverhead + slots * kSplitOverhead) / a.blocks;
      const float waves = static_cast<float>((items + a.blocks - 1) / a.blocks) * item_time;
      const float full_waves = static_cast<float>((items - shorter + a.blocks - 1) / a.blocks) * item_time;
      const float filled = fmaxf(full_waves, all) + (shorter > 0 ? static_cast<float>(shorter_work) / shorter : 0);
      const float cost = fminf(waves, filled) + slots * kMergeOverhead;
      s_cost[candidate] = slots > max_slots ? INFINITY : cost;
    }
  }
  __syncthreads();
  if (warp == 0) {
    // Of equal costs the fewest splits.
    float best = INFINITY;
    int index = 0;
    for (int i = lane; i < a.candidates; i += 32) {
      if (s_cost[i] < best) {
        best = s_cost[i];
        index = i;
      }
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, best, i);
      const int other_index = __shfl_xor_sync(kFullWarp, index, i);
      if (other < best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
    const int splits = candidate_splits(index);
    if (lane == 0) s_split_tiles = longest > 0 ? (longest + splits - 1) / splits : 1;
  }
  __syncthreads();
  const int split_tiles = s_split_tiles;

  int32_t* item_start = a.plan + kPlanHeader;
  int32_t* slot_start = item_start + a.sequences + 1;
  int32_t* merge_start = slot_start + a.sequences + 1;
  Counts base{0, 0, 0};
  for (int first = 0; first < a.sequences; first += kPlanThreads) {
    const int b = first + tid;
    Counts mine{0, 0, 0};
    if (b < a.sequences) {
      const PlanSequence s = load_sequence(a.q_start, a.lengths, b, a.heads);
      const int n = (static_cast<int>(key_tiles(s)) + split_tiles - 1) / split_tiles;
      mine.items = (s.rows + a.row_tile - 1) / a.row_tile * n;
      if (n > 1) mine.slots = mine.items;
      if (n != 1) mine.merge_items = merge_items(s.rows, n);
    }
    Counts total;
    const Counts before = block_exclusive_scan(mine, s_warp_totals, &total);
    if (b < a.sequences) {
      item_start[b] = clamp_int(base.items + before.items);
      slot_start[b] = clamp_int(base.slots + before.slots);
      merge_start[b] = clamp_int(base.merge_items + before.merge_items);
    }
    base = {base.items + total.items, base.slots + total.slots, base.merge_items + total.merge_items};
  }
  if (tid == 0) {
    item_start[a.sequences] = clamp_int(base.items);
    slot_start[a.sequences] = clamp_int(base.slots);
    merge_start[a.sequences] = clamp_int(base.merge_items);
    a.plan[kPlanRowTile] = a.row_tile;
    a.plan[kPlanSplitKeys] = split_tiles * kPlanKeys;
    a.plan[kPlanItems] = clamp_int(base.items);
    a.plan[kPlanMergeItems] = clamp_int(base.merge_items);
    for (int i = kPlanMergeItems + 1; i < kPlanHeader; ++i) a.plan[i] = 0;
  }
}

}  // namespace

int64_t decode_plan_ints(int64_t max_sequences, int64_t heads, const Traits& traits) {
  (void)heads;
  if (!traits.hopper) return decode_plan_size(max_sequences);
  return wide_plan_offset(max_sequences, traits.multiprocessors) + wide_plan_size(max_sequences, traits);
}

Status check_plan_size(const char* verb, const View& plan, int64_t sequences, const Traits& traits) {
  const int64_t needed = decode_plan_ints(sequences, 1, traits);
  if (plan.dim(0) >= needed) return Status::Ok();
  return Status::Error(Code::kInvalidArg, std::string(verb) + ": plan has " + std::to_string(plan.dim(0)) +
                                              " elements, but " + std::to_string(sequences) + " sequences need " +
                                              std::to_string(needed) + "; take as many as decodePlanInts() says.");
}

Status decodePlan(const DecodePlanParams& p, const Launch& launch) noexcept {
  const int64_t sequences = p.lengths.dim(0);
  MLA_RETURN_IF_ERROR(check_plan_size("decodePlan", p.plan, sequences, *launch.traits));
  PlanArgs args;
  args.q_start = p.q_start.as<int32_t>();
  args.lengths = p.lengths.as<int32_t>();
  int32_t* const plan = p.plan.as<int32_t>();
  args.plan = plan;
  args.row_tile = decode_row_tile(p.heads);
  args.sequences = static_cast<int>(sequences);
  args.heads = static_cast<int>(p.heads);
  args.blocks = launch.traits->multiprocessors;
  args.candidates = launch.traits->deterministic ? 1 : kCandidates;
  args.few = {args.q_start,   args.lengths, plan + few_plan_offset(sequences),
              args.sequences, args.heads,   launch.traits->multiprocessors};
  args.wide = {args.q_start,
               args.lengths,
               plan + wide_plan_offset(sequences, launch.traits->multiprocessors),
               args.sequences,
               args.heads,
               wide_tiles(p.heads),
               wide_workers(*launch.traits, p.heads),
               wide_records(*launch.traits),
               static_cast<int>(wide_slots(*launch.traits, p.heads))};
  return cuda_status(launch_pdl(launch.traits->deterministic ? decode_plan_kernel<true> : decode_plan_kernel<false>,
                                dim3(launch.traits->hopper ? 3 : 1), dim3(kPlanThreads), 0, launch.stream, args),
                     "decode_plan_kernel");
}

Status load_decode_plan_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(decode_plan_kernel<false>, "decode_plan_kernel"));
  return load_kernel(decode_plan_kernel<true>, "decode_plan_kernel");
}

}  // namespace mla::cuda
