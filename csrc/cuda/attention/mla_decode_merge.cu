// mla_decode_merge.cu - merges the partial results that several blocks have left of a row, and writes the rows that no
// work item covers: zeros and lse = -inf.
//
//   M = max m_i;  out = sum u_i * 2^(m_i - M) / sum l_i * 2^(m_i - M);  lse = (M + log2 sum) * ln 2
//
// Grid: x loops over the work items of the plan's merge list, y is the chunk of 64 columns. Block: 8 teams of 16 lanes,
// one or several to a row (merge_groups): each sums up its share of the parts in ascending order, the shares are added
// in ascending order. All depends on the plan alone, so equal calls give equal bits. All in float32, rounded once.
// Bandwidth-bound: 16 bytes a lane, all parts of a team on their way at once. Few and small blocks, so that they fit on
// a multiprocessor beside one of the kernel for few rows and wait for its end there. Limits: c <= 512.
// Which rows are whose is read while the kernel ahead, of the same operation, still runs: it has waited for the
// operation before, so plan, starts and lengths are settled; and the next operation's kernel may start at once, for it
// does not touch what this operation writes before its own wait. Without sequences there is no kernel ahead.
// Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/few_plan.h"
#include "cuda/attention/kernels.h"
#include "cuda/attention/mla_decode_merge.cuh"
#include "cuda/device/pdl.cuh"

namespace mla::cuda {
namespace {

/// The sequence of a work item, the same in all threads; every value is made safe: rows lie within T * H. What could be
/// asked for is asked for at once.
template <bool kFew>
__device__ __forceinline__ MergeSequence find_sequence(const DecodeArgs& a, int index) {
  __shared__ int s_found[5];
  const int32_t* merge_start = a.plan + (kFew ? kFewHeader + a.sequences + 1 : kPlanHeader + 2 * (a.sequences + 1));
  const int32_t* first_start = a.plan + (kFew ? kFewHeader : kPlanHeader + a.sequences + 1);
  const int row_tile = a.plan[kFew ? kFewRowTile : kPlanRowTile], share = a.plan[kFew ? kFewShare : kPlanSplitKeys];
  __syncthreads();  // all have read what the item before has left
  if (threadIdx.x < 5) s_found[threadIdx.x] = 0;
  __syncthreads();
  for (int b = threadIdx.x; b < a.sequences; b += kMergeThreads) {
    const int item = merge_start[b], behind = merge_start[b + 1], start = first_start[b];
    const int q_begin = a.q_start[b], q_end = a.q_start[b + 1], length = a.lengths[b];
    if (item <= index && index < behind) {
      s_found[0] = item;
      s_found[1] = start;
      s_found[2] = q_begin;
      s_found[3] = q_end;
      s_found[4] = length;
    }
  }
  __syncthreads();
  MergeSequence s = merge_sequence<kFew>(a, s_found[1], s_found[2], s_found[3], s_found[4], row_tile, share);
  s.item = s_found[0];
  return s;
}

template <class Act, bool kFew, bool kVector>
__global__ __launch_bounds__(kMergeThreads, 5) void mla_decode_merge_kernel(const __grid_constant__ DecodeArgs a,
                                                                            bool alone) {
  __shared__ Part s_parts[kMergeTeams][kMergeLanes];
  const int lane = threadIdx.x % kMergeLanes, team = threadIdx.x / kMergeLanes;
  const int column = blockIdx.y * kMergeColumns + lane * 4;
  if (alone) pdl_wait();
  pdl_launch_dependents();
  // What no true plan exceeds bounds the loops under one that makes no sense.
  const int all = a.tokens * a.heads;
  const int items = min(max(a.plan[kFew ? kFewMergeItems : kPlanMergeItems], 0), all + a.sequences);
  // Rows that belong to no sequence: before the first one and after the last one.
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads;
  const int others = max(before + all - after, 0);
  const int work = items + (others + kMergeTeams - 1) / kMergeTeams;

  // Asked for beside the number of items.
  MergeSequence sequence = find_sequence<kFew>(a, blockIdx.x);
  for (int index = blockIdx.x; index < work; index += gridDim.x) {
    if (index > static_cast<int>(blockIdx.x)) sequence = find_sequence<kFew>(a, index);
    MergeRow r{};
    bool mine;
    int groups = 1;
    if (index < items) {
      groups = merge_groups(sequence.parts);
      const int row = (index - sequence.item) * (kMergeTeams / groups) + team / groups;
      mine = merge_row<kFew>(sequence, row, a.slots, &r);
    } else {
      r.row = (index - items) * kMergeTeams + team;
      mine = r.row < others;
      if (r.row >= before) r.row += after - before;
    }
    if (!alone && index == static_cast<int>(blockIdx.x)) pdl_wait();
    Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
    const int group = team % groups, share = (r.parts + groups - 1) / groups;
    if (mine) part = sum_parts<kVector>(a, r, group * share, min((group + 1) * share, r.parts), column);
    if (groups > 1) {
      s_parts[team][lane] = part;
      __syncthreads();
      if (group == 0) {
        for (int g = 1; g < groups; ++g) part = added(part, s_parts[team + g][lane]);
      }
    }
    if (!mine || group != 0) continue;
    const float inverse = inverse_sum(part.sum);
    if (column < a.c) {
      const float4 x =
          make_float4(part.out.x * inverse, part.out.y * inverse, part.out.z * inverse, part.out.w * inverse);
      store4<kVector>(static_cast<Act*>(a.out) + r.row * a.c + column, x, a.c - column);
    }
    if (column == 0) a.lse[r.row] = natural_lse(part.largest, part.sum);
  }
  // A kernel has ended when all blocks have: without any work one has to wait for the kernel ahead. The others make
  // room at once, for the next kernel's blocks start only when all of these have.
  if (!alone && work == 0 && blockIdx.x + blockIdx.y == 0) pdl_wait();
}

template <class Act, bool kFew, bool kVector>
Status launch_one(const DecodeArgs& args, const Launch& launch) {
  const int64_t rows = int64_t{args.tokens} * args.heads, most = launch.traits->multiprocessors;
  const dim3 grid(static_cast<unsigned>(rows < most ? rows : most),
                  static_cast<unsigned>((args.c + kMergeColumns - 1) / kMergeColumns));
  return cuda_status(launch_pdl(mla_decode_merge_kernel<Act, kFew, kVector>, grid, dim3(kMergeThreads), 0,
                                launch.stream, args, args.sequences == 0),
                     "mla_decode_merge_kernel");
}

template <class Act>
Status launch_act(const DecodeArgs& args, const Launch& launch) {
  return args.c % 4 == 0 && aligned16(args.out) ? launch_one<Act, false, true>(args, launch)
                                                : launch_one<Act, false, false>(args, launch);
}

template <class Act, bool kFew, bool kVector>
Status load_one() {
  return load_kernel(mla_decode_merge_kernel<Act, kFew, kVector>, "mla_decode_merge_kernel");
}

}  // namespace

Status launch_decode_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  if (partials.few_plan) return launch_one<Bf16, true, true>(args, launch);
  return p.out.dtype == DType::kBF16 ? launch_act<Bf16>(args, launch) : launch_act<float>(args, launch);
}

Status load_decode_merge_kernels() {
  MLA_RETURN_IF_ERROR((load_one<Bf16, true, true>()));
  MLA_RETURN_IF_ERROR((load_one<Bf16, false, true>()));
  MLA_RETURN_IF_ERROR((load_one<Bf16, false, false>()));
  MLA_RETURN_IF_ERROR((load_one<float, false, true>()));
  return load_one<float, false, false>();
}

}  // namespace mla::cuda
