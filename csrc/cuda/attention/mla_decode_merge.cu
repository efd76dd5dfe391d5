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

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/few_plan.h"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {
namespace {

constexpr int kLanes = 16;  // of a team
constexpr int kColumns = 4 * kLanes;
constexpr int kThreads = kLanes * kMergeTeams;
constexpr int kBatch = 8;  // parts on their way

struct Part {
  float largest, sum;
  float4 out;
};

/// Four neighbouring columns, of which only `columns` exist; by 16 bytes unless rows are too short for it.
template <bool kVector>
__device__ __forceinline__ float4 load4(const float* from, int columns) {
  if constexpr (kVector) return __ldcg(reinterpret_cast<const float4*>(from));
  return make_float4(from[0], columns > 1 ? from[1] : 0.0f, columns > 2 ? from[2] : 0.0f, columns > 3 ? from[3] : 0.0f);
}

template <bool kVector, class Act>
__device__ __forceinline__ void store4(Act* to, float4 x, int columns) {
  if constexpr (kVector && sizeof(Act) == 4) {
    *reinterpret_cast<float4*>(to) = x;
  } else if constexpr (kVector) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
  } else {
    const float elements[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < columns) to[i] = from_float<Act>(elements[i]);
    }
  }
}

/// What has been left of a row.
struct MergeRow {
  int64_t row = 0;   // of T * H
  int64_t slot = 0;  // of its first part
  int slot_stride = 0;
  int parts = 0;     // 0: zeros
  int tile_row = 0;  // within the row tile
};

/// Sums up parts [begin, end) of a row for the columns of this team.
template <bool kVector>
__device__ __forceinline__ Part sum_parts(const DecodeArgs& a, const MergeRow& r, int begin, int end, int column) {
  const int lane = threadIdx.x % kLanes, columns = a.c - column;
  const unsigned team = 0xffffu << (threadIdx.x & kLanes);
  const int64_t first_row = r.slot * a.row_tile + r.tile_row, stride = int64_t{r.slot_stride} * a.row_tile;
  Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
  for (int first = begin; first < end; first += kLanes) {
    const int count = min(end - first, kLanes);
    const float2 mine =
        lane < count ? __ldcg(a.max_sum + first_row + (first + lane) * stride) : make_float2(-INFINITY, 0);
    const float* from = a.partial_out + (first_row + first * stride) * a.c + column;
    float weight = 0;
    for (int batch = 0; batch < count; batch += kBatch) {
      float4 x[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        x[i] = make_float4(0, 0, 0, 0);
        if (batch + i < count && columns > 0) x[i] = load4<kVector>(from, columns);
        from += stride * a.c;
      }
      if (batch == 0) {
        float largest = mine.x;
#pragma unroll
        for (int i = 1; i < kLanes; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(team, largest, i));
        largest = fmaxf(largest, part.largest);
        const float shift = softmax_shift(largest), keep = exp2f(part.largest - shift);
        weight = lane < count ? exp2f(mine.x - shift) : 0.0f;
        float sum = weight * mine.y;
#pragma unroll
        for (int i = 1; i < kLanes; i *= 2) sum += __shfl_xor_sync(team, sum, i);
        part.largest = largest;
        part.sum = part.sum * keep + sum;
        part.out = make_float4(part.out.x * keep, part.out.y * keep, part.out.z * keep, part.out.w * keep);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float w = __shfl_sync(team, weight, batch + i, kLanes);
        part.out.x += w * x[i].x;
        part.out.y += w * x[i].y;
        part.out.z += w * x[i].z;
        part.out.w += w * x[i].w;
      }
    }
  }
  return part;
}

/// Two sums over some parts each.
__device__ __forceinline__ Part added(const Part& x, const Part& y) {
  const float largest = fmaxf(x.largest, y.largest), shift = softmax_shift(largest);
  const float a = exp2f(x.largest - shift), b = exp2f(y.largest - shift);
  return {largest, a * x.sum + b * y.sum,
          make_float4(a * x.out.x + b * y.out.x, a * x.out.y + b * y.out.y, a * x.out.z + b * y.out.z,
                      a * x.out.w + b * y.out.w)};
}

/// A sequence of the merge list.
struct MergeSequence {
  int rows;     // query rows
  int64_t row;  // first of them
  int item;     // its first work item
  int row_tile;
  uint32_t start;         // of its slots, or, of a few-rows plan, of its pages
  int parts;              // of a row; of a few-rows plan at most
  uint32_t pages, share;  // of a few-rows plan
};

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
  for (int b = threadIdx.x; b < a.sequences; b += kThreads) {
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
  const int q_begin = max(s_found[2], 0), tokens = max(min(max(s_found[3], 0), a.tokens) - q_begin, 0);
  const int length = max(s_found[4], 0);
  MergeSequence s;
  s.rows = tokens * a.heads;
  s.row = int64_t{q_begin} * a.heads;
  s.item = s_found[0];
  s.start = static_cast<uint32_t>(max(s_found[1], 0));
  if constexpr (kFew) {
    s.row_tile = min(max(row_tile, 1), a.row_tile);
    s.share = static_cast<uint32_t>(max(share, 1));
    s.pages = static_cast<uint32_t>(max((length - 1) / kPageTokens + 1, 1));
    s.parts = few_parts(s.start, (s.rows + s.row_tile - 1) / s.row_tile, s.pages, s.share);
  } else {
    const int split_keys = max(share, kPlanKeys) / kPlanKeys * kPlanKeys;
    s.row_tile = a.row_tile;
    s.parts = length > 0 ? (length - 1) / split_keys + 1 : 0;
  }
  return s;
}

/// Row i of a sequence; false if the kernel ahead has written it.
template <bool kFew>
__device__ __forceinline__ bool merge_row(const MergeSequence& s, int i, int slots, MergeRow* r) {
  if (i < 0 || i >= s.rows) return false;
  const int tile = i / s.row_tile;
  r->row = s.row + i;
  r->tile_row = i - tile * s.row_tile;
  if constexpr (kFew) {
    const FewTile blocks = few_tile(s.start + tile * s.pages, s.pages, s.share);
    r->slot = 2 * int64_t{blocks.first};
    r->slot_stride = 1;
    r->parts = blocks.parts();
    return r->parts > 1 && r->slot + r->parts <= slots;
  } else {
    r->slot = s.start + tile;
    r->slot_stride = (s.rows + s.row_tile - 1) / s.row_tile;
    r->parts = s.parts;
    return s.parts == 0 || r->slot + (s.parts - 1) * int64_t{r->slot_stride} < slots;
  }
}

template <class Act, bool kFew, bool kVector>
__global__ __launch_bounds__(kThreads, 5) void mla_decode_merge_kernel(const __grid_constant__ DecodeArgs a,
                                                                       bool alone) {
  __shared__ Part s_parts[kMergeTeams][kLanes];
  const int lane = threadIdx.x % kLanes, team = threadIdx.x / kLanes;
  const int column = blockIdx.y * kColumns + lane * 4;
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
    MergeRow r;
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
  if (!alone && static_cast<int>(blockIdx.x) >= work) pdl_wait();
}

template <class Act, bool kFew, bool kVector>
Status launch_one(const DecodeArgs& args, const Launch& launch) {
  const int64_t rows = int64_t{args.tokens} * args.heads, most = launch.traits->multiprocessors;
  const dim3 grid(static_cast<unsigned>(rows < most ? rows : most),
                  static_cast<unsigned>((args.c + kColumns - 1) / kColumns));
  return cuda_status(launch_pdl(mla_decode_merge_kernel<Act, kFew, kVector>, grid, dim3(kThreads), 0, launch.stream,
                                args, args.sequences == 0),
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
