// mla_decode_wide_merge.cu - what mla_decode_wide_sm90.cu leaves to do: merges the partial results of row groups that
// several workers have parts of, and writes the rows that have no keys or no sequence: zeros and lse = -inf.
//
//   M = max m_i;  out = sum u_i * 2^(m_i - M) / sum l_i * 2^(m_i - M);  lse = (M + log2 sum) * ln 2
//
// Grid: blocks loop over the rows of the plan's merges (wide_plan.h). Block: 16 teams of a warp, for half of a row
// each, or where parts are fixed 4 teams for whole ones. Where rows are few and parts are many, several teams share a
// row's parts, and their sums are added in ascending order. How many do depends on shapes and plan alone, so that equal
// calls give equal bits. All in float32, rounded once. Bound by waits for memory: 16 bytes a lane, kAtOnce parts on
// their way at a time; everything about the plan is asked for at once, and its lines have been asked for by the kernel
// ahead. Limits: bf16, c = 512. Test: test/gpu/attention.test.ts.
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
constexpr int kThreads = 512;
/// What is read of a partial result at once: 16 bytes. Fixed parts are float32, others f16 (f16_part.cuh).
template <bool kFixed>
constexpr int kColumns = kFixed ? 4 : 8;
template <bool kFixed>
constexpr int kTeamThreads = kFixed ? 128 : 32;
template <bool kFixed>
constexpr int kTeams = kThreads / kTeamThreads<kFixed>;
/// Teams' shares of a row's columns.
template <bool kFixed>
constexpr int kShares = kC / (kColumns<kFixed> * kTeamThreads<kFixed>);
/// Parts of a row on their way at once; what else there would be room for, a second block of the multiprocessor needs.
template <bool kFixed>
constexpr int kAtOnce = kFixed ? 16 : 5;
template <bool kFixed>
constexpr int kBlocks = kFixed ? 1 : 2;  // of a multiprocessor

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

/// Sums up `parts` of a row, `stride` rows of partial results apart, for the columns that are `at`-th in
/// a row.
template <bool kFixed>
__device__ Part<kFixed> sum_parts(const DecodeArgs& a, int64_t first, int64_t stride, int parts, int at) {
  constexpr int kAtOnce = cuda::kAtOnce<kFixed>;
  const int lane = threadIdx.x % 32;
  const uint4* const rows = reinterpret_cast<const uint4*>(a.partial_out) + at;
  Part<kFixed> part{-INFINITY, 0, {}};
  for (int begin = 0; begin < parts; begin += kAtOnce) {
    const int count = min(parts - begin, kAtOnce);
    const int64_t from = first + begin * stride;
    uint4 out[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < count) out[i] = rows[(from + i * stride) * (kC / kColumns<kFixed>)];
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
__device__ __forceinline__ void write_row(const DecodeArgs& a, int64_t row, const Part<kFixed>& part, int at) {
  const float inverse = inverse_sum(part.sum);
  Bf16* const to = static_cast<Bf16*>(a.out) + row * kC;
  uint32_t pairs[kColumns<kFixed> / 2];
#pragma unroll
  for (int i = 0; i < kColumns<kFixed> / 2; ++i)
    pairs[i] = pack_bf16(part.out[2 * i] * inverse, part.out[2 * i + 1] * inverse);
  if constexpr (kFixed) {
    *reinterpret_cast<uint2*>(to + at * 4) = make_uint2(pairs[0], pairs[1]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) *reinterpret_cast<uint32_t*>(to + part_column(at * 8 + i * 2)) = pairs[i];
  }
  if (at == 0) a.lse[row] = natural_lse(part.largest, part.sum);
}

/// An entry of the plan's merges.
struct Entry {
  int before, row, slot, parts;  // rows before it; first row; first part's slot; parts
};

__device__ __forceinline__ Entry load_entry(const int32_t* from) { return {from[0], from[1], from[2], from[3]}; }

/// The entry that row `index` of all entries belongs to; each lane holds one of the first 32.
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
    if (begun < 32) break;
  }
  return any;
}

/// What the teams of a block have summed up of rows that they share.
struct Sums {
  float2 figures[kTeams<false>];  // largest, sum
  int row[kTeams<false>];
  float out[kTeams<false>][kTeamThreads<false> * kColumns<false>];
};

template <bool kFixed>
__global__ __launch_bounds__(kThreads, kBlocks<kFixed>) void mla_decode_wide_merge_kernel(DecodeArgs a, int records,
                                                                                          int tiles) {
  constexpr int kTeams = cuda::kTeams<kFixed>, kShares = cuda::kShares<kFixed>, kAtOnce = cuda::kAtOnce<kFixed>;
  const int lane = threadIdx.x % 32, team = threadIdx.x / kTeamThreads<kFixed>;
  // Everything before the kernel that leaves the partial results is complete: it waited before it let this one start.
  // What no true plan exceeds bounds the loops under one that makes no sense.
  const int most_merges = a.sequences + records - kWideTeams;
  const int32_t* const entries = a.plan + kWideHeader + kWideRecord * records;
  const Entry held = lane < most_merges ? load_entry(entries + 4 * lane) : Entry{};
  const int all = a.tokens * a.heads, merge_rows = min(max(a.plan[kWideMergeRows], 0), all);
  const int merges = min(max(a.plan[kWideMerges], 0), most_merges);
  const int teams = min(max(a.plan[kWideTeamsAt], 1), kWideTeams);
  const int slot_rows = min(max(a.plan[kWideSlotRows], 1), kWideRows);
  const int most = max(a.plan[kWideMostParts], 0);
  // Rows that belong to no sequence: before the first one and after the last one.
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads;
  const int items = (merge_rows + before + max(all - after, 0)) * kShares, blocks = static_cast<int>(gridDim.x);

  // Teams that share an item's parts: as many as go least often to memory. Fixed parts are added up in their order, so
  // by one team.
  int sharers = 1;
  if constexpr (!kFixed) {
    int fewest = INT32_MAX;
    for (int s = 1; s <= kTeams; s *= 2) {
      const int trips = div_up(items, blocks * (kTeams / s)) * div_up(most, s * kAtOnce);
      if (trips < fewest) {
        fewest = trips;
        sharers = s;
      }
    }
  }
  const int step = max(min(div_up(items, blocks), kTeams / sharers), 1);
  for (int first = static_cast<int>(blockIdx.x) * step; first < items; first += blocks * step) {
    const int item = first + team / sharers, index = item / kShares;
    const int at = item % kShares * kTeamThreads<kFixed> + static_cast<int>(threadIdx.x) % kTeamThreads<kFixed>;
    int64_t from = 0;
    int row = -1, parts = 0;
    if (index < merge_rows) {
      Entry it;
      if (find_entry(entries, merges, index, held, &it)) {
        const int offset = index - it.before;
        row = it.row < all ? it.row + offset : -1;
        from = (int64_t{it.slot} * tiles + offset / kWideRows) * slot_rows + offset % kWideRows;
        parts = min(it.parts, records);
        const int64_t last = int64_t{it.slot} + int64_t{parts - 1} * teams;
        const bool sound =
            row >= 0 && row < all && it.slot >= 0 && (last + 1) * tiles * slot_rows <= int64_t{a.slots} * kWideRows;
        if (!sound || (parts > 0 && (offset >= tiles * kWideRows || offset % kWideRows >= slot_rows))) row = -1;
      }
    } else if (item < items) {
      row = index - merge_rows;
      if (row >= before) row += after - before;
    }
    if (team / sharers >= step) row = -1;
    if (row < 0) parts = 0;
    const int64_t stride = int64_t{tiles} * teams * slot_rows;
    if (first == static_cast<int>(blockIdx.x) * step) {
      pdl_wait();
      pdl_launch_dependents();
    }
    const int share = div_up(parts, sharers), begin = min(team % sharers * share, parts);
    const Part<kFixed> part = sum_parts<kFixed>(a, from + begin * stride, stride, min(share, parts - begin), at);
    if (sharers == 1) {
      if (row >= 0) write_row<kFixed>(a, row, part, at);
      continue;
    }
    if constexpr (!kFixed) {
      __shared__ Sums s_sums;
      if (lane == 0) {
        s_sums.figures[team] = make_float2(part.largest, part.sum);
        s_sums.row[team] = row;
      }
      float4* const to = reinterpret_cast<float4*>(s_sums.out[team]) + lane * 2;
      to[0] = make_float4(part.out[0], part.out[1], part.out[2], part.out[3]);
      to[1] = make_float4(part.out[4], part.out[5], part.out[6], part.out[7]);
      __syncthreads();
      constexpr int kPairs = kTeamThreads<false> * kColumns<false> / 2;  // of neighbouring columns
      for (int i = threadIdx.x; i < kTeams / sharers * kPairs; i += kThreads) {
        const int from_team = i / kPairs * sharers, pair = i % kPairs;
        const int to_row = s_sums.row[from_team];
        if (to_row < 0) continue;
        float largest = -INFINITY, sum = 0, low = 0, high = 0;
        for (int t = from_team; t < from_team + sharers; ++t) largest = fmaxf(largest, s_sums.figures[t].x);
        const float shift = softmax_shift(largest);
        for (int t = from_team; t < from_team + sharers; ++t) {
          const float2 figures = s_sums.figures[t], x = reinterpret_cast<const float2*>(s_sums.out[t])[pair];
          const float weight = exp2f(figures.x - shift);
          sum += weight * figures.y;
          low += weight * x.x;
          high += weight * x.y;
        }
        const float inverse = inverse_sum(sum);
        const int place = (first + from_team / sharers) % kShares * (kC / kShares) + pair * 2;
        *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(a.out) + int64_t{to_row} * kC + part_column(place)) =
            pack_bf16(low * inverse, high * inverse);
        if (place == 0) a.lse[to_row] = natural_lse(largest, sum);
      }
      __syncthreads();  // the sums may be written again
    }
  }
  pdl_wait();  // blocks without a row, too
}

template <bool kFixed>
Status launch_merge(const DecodeArgs& args, const Launch& launch) {
  const int64_t rows = int64_t{args.tokens} * args.heads, multiprocessors = launch.traits->multiprocessors;
  // No more than run at once: later ones would keep the multiprocessors from the next operation. Of few rows no more
  // than one for each: they find room beside blocks of the kernel ahead on their multiprocessors.
  const int64_t blocks = rows > multiprocessors ? kBlocks<kFixed> * multiprocessors : rows;
  return cuda_status(
      launch_pdl(mla_decode_wide_merge_kernel<kFixed>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                 launch.stream, args, wide_records(*launch.traits), wide_tiles(args.heads)),
      "mla_decode_wide_merge_kernel");
}

}  // namespace

Status launch_decode_wide_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  return partials.fixed_parts ? launch_merge<true>(args, launch) : launch_merge<false>(args, launch);
}

Status load_decode_wide_merge_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_wide_merge_kernel<false>, "mla_decode_wide_merge_kernel"));
  return load_kernel(mla_decode_wide_merge_kernel<true>, "mla_decode_wide_merge_kernel");
}

}  // namespace mla::cuda
