// mla_decode_wide_merge.cu - what mla_decode_wide_sm90.cu leaves to do: merges the partial results of row groups that
// several workers have parts of, and writes the rows that have no keys or no sequence: zeros and lse = -inf.
//
//   M = max m_i;  out = sum u_i * 2^(m_i - M) / sum l_i * 2^(m_i - M);  lse = (M + log2 sum) * ln 2
//
// Grid: blocks loop over the rows of the plan's merges (wide_plan.h). Block: 4 teams of 4 warps, a warp for 128
// columns. Each team takes a row; or, where rows are few and parts are many, the teams share a row's parts and their
// sums are added in ascending order. Which of the two depends on shapes and plan alone, so that equal calls give equal
// bits. All in float32, rounded once. Bound by memory: 16 bytes a lane, kAtOnce parts on their way at a time. Limits:
// bf16, c = 512. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/fixed_sum.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/wide_plan.h"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kC = 512;
constexpr int kChunks = kC / 128;  // warps of a team
constexpr int kTeams = 4;
constexpr int kTeamThreads = 32 * kChunks, kThreads = kTeams * kTeamThreads;
// Parts on their way at once, and blocks of a multiprocessor. Few rows have many parts each, and every wait for memory
// counts; many rows have few, and blocks hide one another's waits: 128 heads, 32 sequences of 4,096 keys 87 to 78 us
// (H200, 2026-11-26).
constexpr int kFewRowsAtOnce = 16, kFewRowsBlocks = 1;
constexpr int kManyRowsAtOnce = 6, kManyRowsBlocks = 2;

struct Part {
  float largest, sum;
  float4 out;
};

/// What has been summed up, brought to what other sums are relative to.
__device__ __forceinline__ void add(Part& to, float weight, const float4& out) {
  to.out.x += weight * out.x;
  to.out.y += weight * out.y;
  to.out.z += weight * out.z;
  to.out.w += weight * out.w;
}

/// Sums up `parts` of a row, `stride` rows of partial results apart, for four columns of each lane.
template <int kAtOnce, bool kFixed>
__device__ Part sum_parts(const DecodeArgs& a, int64_t first, int64_t stride, int parts, int column) {
  const int lane = threadIdx.x % 32;
  Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
  for (int begin = 0; begin < parts; begin += kAtOnce) {
    const int count = min(parts - begin, kAtOnce);
    const int64_t from = first + begin * stride;
    float4 out[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < count) out[i] = *reinterpret_cast<const float4*>(a.partial_out + (from + i * stride) * kC + column);
    }
    const float2 mine = lane < count ? a.max_sum[from + lane * stride] : make_float2(-INFINITY, 0);
    if constexpr (kFixed) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const SumWeights w(part.largest, __shfl_sync(kFullWarp, mine.x, i));
        const float sum = __shfl_sync(kFullWarp, mine.y, i);
        if (begin + i == 0) {
          part = {w.largest, sum, out[i]};
        } else if (i < count) {
          part = {w.largest, w.added(part.sum, sum),
                  make_float4(w.added(part.out.x, out[i].x), w.added(part.out.y, out[i].y),
                              w.added(part.out.z, out[i].z), w.added(part.out.w, out[i].w))};
        }
      }
      continue;
    }
    const float largest = fmaxf(warp_max(mine.x), part.largest), shift = softmax_shift(largest);
    const float keep = exp2f(part.largest - shift), weight = exp2f(mine.x - shift);
    part.largest = largest;
    part.sum = part.sum * keep + warp_sum(weight * mine.y);
    part.out = make_float4(part.out.x * keep, part.out.y * keep, part.out.z * keep, part.out.w * keep);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float w = __shfl_sync(kFullWarp, weight, i);
      if (i < count) add(part, w, out[i]);
    }
  }
  return part;
}

__device__ __forceinline__ void write_row(const DecodeArgs& a, int64_t row, const Part& part, int column) {
  const float inverse = inverse_sum(part.sum);
  *reinterpret_cast<uint2*>(static_cast<Bf16*>(a.out) + row * kC + column) = make_uint2(
      pack_bf16(part.out.x * inverse, part.out.y * inverse), pack_bf16(part.out.z * inverse, part.out.w * inverse));
  if (column == 0) a.lse[row] = natural_lse(part.largest, part.sum);
}

template <int kAtOnce, int kBlocks, bool kFixed>
__global__ __launch_bounds__(kThreads, kBlocks) void mla_decode_wide_merge_kernel(DecodeArgs a, int records,
                                                                                  int tiles) {
  __shared__ Part s_parts[kTeams][kTeamThreads];
  const int lane = threadIdx.x % 32, team = threadIdx.x / kTeamThreads, in_team = threadIdx.x % kTeamThreads;
  const int column = in_team * 4;
  // Everything before the kernel that leaves the partial results is complete: it waited before it let this one start.
  // What no true plan exceeds bounds the loops under one that makes no sense.
  const int all = a.tokens * a.heads, merge_rows = min(max(a.plan[kWideMergeRows], 0), all);
  const int merges = min(max(a.plan[kWideMerges], 0), a.sequences + records - kWideTeams);
  const int teams = min(max(a.plan[kWideTeamsAt], 1), kWideTeams);
  const int slot_rows = min(max(a.plan[kWideSlotRows], 1), kWideRows);
  const int32_t* const entries = a.plan + kWideHeader + kWideRecord * records;
  // Rows that belong to no sequence: before the first one and after the last one.
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads;
  const int64_t rows = int64_t{merge_rows} + before + max(all - after, 0);

  // Whichever goes less often to memory.
  const int64_t blocks = gridDim.x, most = max(a.plan[kWideMostParts], 0);
  const bool shared = !kFixed && div_up(rows, blocks) * div_up(most, int64_t{kTeams * kAtOnce}) <
                                     div_up(rows, blocks * kTeams) * div_up(most, int64_t{kAtOnce});
  // Fixed parts are added up in their order, so by one team.
  const int step = kFixed ? max(min(static_cast<int>(div_up(rows, blocks)), kTeams), 1) : shared ? 1 : kTeams;
  for (int64_t first = int64_t{blockIdx.x} * step; first < rows; first += int64_t{gridDim.x} * step) {
    const int64_t index = shared ? first : first + team;
    int64_t row = -1, from = 0;
    int parts = 0;
    if (index < merge_rows) {
      int entry = -1;
      for (int e = 0; e < merges; e += 32) {
        const bool begun = e + lane < merges && entries[4 * (e + lane)] <= index;
        entry += __popc(__ballot_sync(kFullWarp, begun));
      }
      if (entry >= 0) {
        const int32_t* const it = entries + 4 * entry;
        const int offset = static_cast<int>(index) - it[0];
        row = int64_t{it[1]} + offset;
        from = (int64_t{it[2]} * tiles + offset / kWideRows) * slot_rows + offset % kWideRows;
        parts = min(it[3], records);
        const int64_t last = int64_t{it[2]} + int64_t{parts - 1} * teams;
        const bool sound =
            row >= 0 && row < all && it[2] >= 0 && (last + 1) * tiles * slot_rows <= int64_t{a.slots} * kWideRows;
        if (!sound || (parts > 0 && (offset >= tiles * kWideRows || offset % kWideRows >= slot_rows))) row = -1;
      }
    } else if (index < rows) {
      row = index - merge_rows;
      if (row >= before) row += after - before;
    }
    if (!shared && team >= step) row = -1;
    if (row < 0) parts = 0;
    const int64_t stride = int64_t{tiles} * teams * slot_rows;
    if (first == int64_t{blockIdx.x} * step) {
      pdl_wait();
      pdl_launch_dependents();
    }
    if (!shared) {
      const Part part = sum_parts<kAtOnce, kFixed>(a, from, stride, parts, column);
      if (row >= 0) write_row(a, row, part, column);
      continue;
    }
    const int share = (parts + kTeams - 1) / kTeams, begin = min(team * share, parts);
    s_parts[team][in_team] =
        sum_parts<kAtOnce, kFixed>(a, from + begin * stride, stride, min(share, parts - begin), column);
    __syncthreads();
    if (team == 0 && row >= 0) {
      Part part = s_parts[0][in_team];
      for (int t = 1; t < kTeams; ++t) part.largest = fmaxf(part.largest, s_parts[t][in_team].largest);
      const float shift = softmax_shift(part.largest);
      part.sum = 0;
      part.out = make_float4(0, 0, 0, 0);
      for (int t = 0; t < kTeams; ++t) {
        const Part& x = s_parts[t][in_team];
        const float weight = exp2f(x.largest - shift);
        part.sum += weight * x.sum;
        add(part, weight, x.out);
      }
      write_row(a, row, part, column);
    }
    __syncthreads();  // s_parts may be written again
  }
  pdl_wait();  // blocks without a row, too
}

constexpr auto* kMergeFewRows = mla_decode_wide_merge_kernel<kFewRowsAtOnce, kFewRowsBlocks, false>;
constexpr auto* kMergeManyRows = mla_decode_wide_merge_kernel<kManyRowsAtOnce, kManyRowsBlocks, false>;
constexpr auto* kMergeFixedParts = mla_decode_wide_merge_kernel<kFewRowsAtOnce, kFewRowsBlocks, true>;

}  // namespace

Status launch_decode_wide_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  const int64_t rows = p.q.dim(0) * p.q.dim(1), multiprocessors = launch.traits->multiprocessors;
  const bool many = !partials.fixed_parts && rows > kTeams * multiprocessors;
  // As many as run at once: later ones keep the multiprocessors from the next operation.
  const int64_t blocks = many ? kManyRowsBlocks * multiprocessors : std::min(rows, multiprocessors);
  return cuda_status(launch_pdl(partials.fixed_parts ? kMergeFixedParts
                                : many               ? kMergeManyRows
                                                     : kMergeFewRows,
                                dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, launch.stream, args,
                                wide_records(*launch.traits), wide_tiles(p.q.dim(1))),
                     "mla_decode_wide_merge_kernel");
}

Status load_decode_wide_merge_kernels() {
  for (auto* const kernel : {kMergeFewRows, kMergeManyRows, kMergeFixedParts})
    MLA_RETURN_IF_ERROR(load_kernel(kernel, "mla_decode_wide_merge_kernel"));
  return Status::Ok();
}

}  // namespace mla::cuda
