// mla_decode_wide_merge.cu - what mla_decode_wide_sm90.cu leaves to do: merges the partial results of row groups that
// several workers have parts of, and writes the rows that have no keys or no sequence: zeros and lse = -inf.
//
//   M = max m_i;  out = sum u_i * 2^(m_i - M) / sum l_i * 2^(m_i - M);  lse = (M + log2 sum) * ln 2
//
// Grid: blocks loop over the rows of the plan's merges (wide_plan.h). Block: 4 teams of 2 warps, where parts are fixed
// 2 of 4. A team takes a row; or, where rows are few and parts are many, several share a row's parts and their sums are
// added in ascending order. How many depends on shapes and plan alone, so that equal calls give equal bits. All in
// float32, rounded once. Bound by waits for memory: 16 bytes a lane, kAtOnce parts on their way at a time; what the
// plan says is asked for at once, and the kernel ahead has brought it into L2. Limits: bf16, c = 512. Test:
// test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/f16_part.cuh"
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
constexpr int kThreads = 256;
// Parts on their way at once, and blocks of a multiprocessor. Few rows have many parts each, and every wait for memory
// counts; many rows have few, and blocks hide one another's waits: 128 heads, 32 sequences of 4,096 keys 87 to 78 us
// (H200, 2026-11-26). Small blocks: of one sequence's rows all find room where the kernel ahead leaves half of the
// multiprocessors free, and wait there for its end.
constexpr int kFewRowsAtOnce = 17, kFewRowsBlocks = 2;
constexpr int kManyRowsAtOnce = 4, kManyRowsBlocks = 4;
constexpr int kFixedAtOnce = 16, kFixedBlocks = 2;

/// What is read of a partial result at once: 16 bytes. Fixed parts are float32, others f16 (f16_part.cuh).
template <bool kFixed>
constexpr int kColumns = kFixed ? 4 : 8;
template <bool kFixed>
constexpr int kTeamThreads = kC / kColumns<kFixed>;
template <bool kFixed>
constexpr int kTeams = kThreads / kTeamThreads<kFixed>;

/// Some columns of a sum over keys, relative to 2^largest.
template <bool kFixed>
struct Part {
  float largest, sum;
  float out[kColumns<kFixed>];
};

template <bool kFixed>
__device__ __forceinline__ void unpack(const uint4& x, float (&out)[kColumns<kFixed>]) {
  const uint32_t words[] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kFixed) {
      out[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_f16(words[i]);
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

/// Sums up `parts` of a row, `stride` rows of partial results apart, for the columns of each thread of a team.
template <int kAtOnce, bool kFixed>
__device__ Part<kFixed> sum_parts(const DecodeArgs& a, int64_t first, int64_t stride, int parts, int in_team) {
  const int lane = threadIdx.x % 32;
  const uint4* const rows = reinterpret_cast<const uint4*>(a.partial_out) + in_team;
  Part<kFixed> part{-INFINITY, 0, {}};
  for (int begin = 0; begin < parts; begin += kAtOnce) {
    const int count = min(parts - begin, kAtOnce);
    const int64_t from = first + begin * stride;
    uint4 out[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < count) out[i] = rows[(from + i * stride) * kTeamThreads<kFixed>];
    }
    const float2 mine = lane < count ? a.max_sum[from + lane * stride] : make_float2(-INFINITY, 0);
    float now[kColumns<kFixed>];
    if constexpr (kFixed) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const SumWeights w(part.largest, __shfl_sync(kFullWarp, mine.x, i));
        const float sum = __shfl_sync(kFullWarp, mine.y, i);
        if (i >= count) continue;
        unpack<kFixed>(out[i], now);
        part.sum = begin + i == 0 ? sum : w.added(part.sum, sum);
#pragma unroll
        for (int c = 0; c < kColumns<kFixed>; ++c) part.out[c] = begin + i == 0 ? now[c] : w.added(part.out[c], now[c]);
        part.largest = w.largest;
      }
    } else {
      const float largest = fmaxf(warp_max(mine.x), part.largest), shift = softmax_shift(largest);
      const float keep = exp2f(part.largest - shift), weight = exp2f(mine.x - shift);
      part.largest = largest;
      part.sum = part.sum * keep + warp_sum(weight * mine.y);
#pragma unroll
      for (int c = 0; c < kColumns<kFixed>; ++c) part.out[c] *= keep;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float w = __shfl_sync(kFullWarp, weight, i);
        if (i >= count) continue;
        unpack<kFixed>(out[i], now);
#pragma unroll
        for (int c = 0; c < kColumns<kFixed>; ++c) part.out[c] += w * now[c];
      }
    }
  }
  return part;
}

template <bool kFixed>
__device__ __forceinline__ void write_row(const DecodeArgs& a, int64_t row, const Part<kFixed>& part, int in_team) {
  const float inverse = inverse_sum(part.sum);
  Bf16* const to = static_cast<Bf16*>(a.out) + row * kC;
  uint32_t pairs[kColumns<kFixed> / 2];
#pragma unroll
  for (int i = 0; i < kColumns<kFixed> / 2; ++i)
    pairs[i] = pack_bf16(part.out[2 * i] * inverse, part.out[2 * i + 1] * inverse);
  if constexpr (kFixed) {
    *reinterpret_cast<uint2*>(to + in_team * 4) = make_uint2(pairs[0], pairs[1]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint32_t*>(to + in_team / 4 * 32 + i * 8 + in_team % 4 * 2) = pairs[i];
  }
  if (in_team == 0) a.lse[row] = natural_lse(part.largest, part.sum);
}

/// An entry of the plan's merges.
struct Entry {
  int before, row, slot, parts;  // rows before it; first row; first part's slot; parts
};

__device__ __forceinline__ Entry load_entry(const int32_t* from) { return {from[0], from[1], from[2], from[3]}; }

/// The entry that row `index` of all entries belongs to; `held`: the lane's own of the first 32.
__device__ __forceinline__ bool find_entry(const int32_t* entries, int merges, int64_t index, const Entry& held,
                                           Entry* found) {
  const int lane = threadIdx.x % 32;
  bool any = false;
  for (int e = 0; e < merges; e += 32) {
    Entry mine = held;
    if (e > 0 && e + lane < merges) mine = load_entry(entries + 4 * (e + lane));
    const int begun = __popc(__ballot_sync(kFullWarp, e + lane < merges && mine.before <= index));
    if (begun == 0) break;
    *found = {__shfl_sync(kFullWarp, mine.before, begun - 1), __shfl_sync(kFullWarp, mine.row, begun - 1),
              __shfl_sync(kFullWarp, mine.slot, begun - 1), __shfl_sync(kFullWarp, mine.parts, begun - 1)};
    any = true;
  }
  return any;
}

template <int kAtOnce, int kBlocks, bool kFixed>
__global__ __launch_bounds__(kThreads, kBlocks) void mla_decode_wide_merge_kernel(DecodeArgs a, int records,
                                                                                  int tiles) {
  constexpr int kTeams = cuda::kTeams<kFixed>, kTeamThreads = cuda::kTeamThreads<kFixed>;
  using Part = cuda::Part<kFixed>;
  __shared__ Part s_parts[kTeams][kTeamThreads];
  const int lane = threadIdx.x % 32, team = threadIdx.x / kTeamThreads, in_team = threadIdx.x % kTeamThreads;
  // Everything before the kernel that leaves the partial results is complete: it waited before it let this one start.
  // What no true plan exceeds bounds the loops under one that makes no sense.
  const int most_merges = a.sequences + records - kWideTeams;
  const int32_t* const entries = a.plan + kWideHeader + kWideRecord * records;
  const Entry held = lane < most_merges ? load_entry(entries + 4 * lane) : Entry{};  // beside the header
  const int all = a.tokens * a.heads, merge_rows = min(max(a.plan[kWideMergeRows], 0), all);
  const int merges = min(max(a.plan[kWideMerges], 0), most_merges);
  const int teams = min(max(a.plan[kWideTeamsAt], 1), kWideTeams);
  const int slot_rows = min(max(a.plan[kWideSlotRows], 1), kWideRows);
  // Rows that belong to no sequence: before the first one and after the last one.
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads;
  const int64_t rows = int64_t{merge_rows} + before + max(all - after, 0);

  // Teams that share a row's parts: as many as go least often to memory. Fixed parts are added up in their order, so by
  // one team.
  const int64_t blocks = gridDim.x, most = max(a.plan[kWideMostParts], 0);
  int sharers = 1;
  if constexpr (!kFixed) {
    int64_t fewest = INT64_MAX;
    for (int s = 1; s <= kTeams; s *= 2) {
      const int64_t trips = div_up(rows, blocks * (kTeams / s)) * div_up(most, int64_t{s * kAtOnce});
      if (trips < fewest) fewest = trips, sharers = s;
    }
  }
  const int step = max(min(static_cast<int>(div_up(rows, blocks)), kTeams / sharers), 1);
  for (int64_t first = int64_t{blockIdx.x} * step; first < rows; first += int64_t{gridDim.x} * step) {
    const int64_t index = first + team / sharers;
    int64_t row = -1, from = 0;
    int parts = 0;
    if (index < merge_rows) {
      Entry it;
      if (find_entry(entries, merges, index, held, &it)) {
        const int offset = static_cast<int>(index) - it.before;
        row = int64_t{it.row} + offset;
        from = (int64_t{it.slot} * tiles + offset / kWideRows) * slot_rows + offset % kWideRows;
        parts = min(it.parts, records);
        const int64_t last = int64_t{it.slot} + int64_t{parts - 1} * teams;
        const bool sound =
            row >= 0 && row < all && it.slot >= 0 && (last + 1) * tiles * slot_rows <= int64_t{a.slots} * kWideRows;
        if (!sound || (parts > 0 && (offset >= tiles * kWideRows || offset % kWideRows >= slot_rows))) row = -1;
      }
    } else if (index < rows) {
      row = index - merge_rows;
      if (row >= before) row += after - before;
    }
    if (team / sharers >= step) row = -1;
    if (row < 0) parts = 0;
    const int64_t stride = int64_t{tiles} * teams * slot_rows;
    if (first == int64_t{blockIdx.x} * step) {
      pdl_wait();
      pdl_launch_dependents();
    }
    if (sharers == 1) {
      const Part part = sum_parts<kAtOnce, kFixed>(a, from, stride, parts, in_team);
      if (row >= 0) write_row<kFixed>(a, row, part, in_team);
      continue;
    }
    const int share = div_up(parts, sharers), begin = min(team % sharers * share, parts);
    s_parts[team][in_team] =
        sum_parts<kAtOnce, kFixed>(a, from + begin * stride, stride, min(share, parts - begin), in_team);
    __syncthreads();
    if (team % sharers == 0 && row >= 0) {
      Part part = s_parts[team][in_team];
      for (int t = 1; t < sharers; ++t) part.largest = fmaxf(part.largest, s_parts[team + t][in_team].largest);
      const float shift = softmax_shift(part.largest);
      part.sum = 0;
      for (float& x : part.out) x = 0;
      for (int t = 0; t < sharers; ++t) {
        const Part& x = s_parts[team + t][in_team];
        const float weight = exp2f(x.largest - shift);
        part.sum += weight * x.sum;
        for (int c = 0; c < kColumns<kFixed>; ++c) part.out[c] += weight * x.out[c];
      }
      write_row<kFixed>(a, row, part, in_team);
    }
    __syncthreads();  // s_parts may be written again
  }
  pdl_wait();  // blocks without a row, too
}

constexpr auto* kMergeFewRows = mla_decode_wide_merge_kernel<kFewRowsAtOnce, kFewRowsBlocks, false>;
constexpr auto* kMergeManyRows = mla_decode_wide_merge_kernel<kManyRowsAtOnce, kManyRowsBlocks, false>;
constexpr auto* kMergeFixedParts = mla_decode_wide_merge_kernel<kFixedAtOnce, kFixedBlocks, true>;

}  // namespace

Status launch_decode_wide_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  const int64_t rows = p.q.dim(0) * p.q.dim(1), multiprocessors = launch.traits->multiprocessors;
  const bool many = !partials.fixed_parts && rows > kTeams<false> * kFewRowsBlocks * multiprocessors;
  // No more than run at once: later ones keep the multiprocessors from the next operation.
  const int at_once = partials.fixed_parts ? kFixedBlocks : many ? kManyRowsBlocks : kFewRowsBlocks;
  const int64_t blocks = std::min(rows, at_once * multiprocessors);
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
