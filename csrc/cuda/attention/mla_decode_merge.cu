// mla_decode_merge.cu - merges the partial results that the splits of a row have left, and writes the rows that no work
// item covers: zeros and lse = -inf.
//
//   M = max m_i;  out = sum u_i * 2^(m_i - M) / sum l_i * 2^(m_i - M);  lse = (M + log2 sum) * ln 2
//
// Grid: blocks loop over the rows of the plan's merge list. Block: a warp for 128 columns and one of 1 or 4 groups of
// splits; the groups are summed in ascending order at the end, the splits of a group in ascending order. Which of the
// two depends on the shapes alone, so that equal calls give equal bits. All in float32, rounded once. Bandwidth-bound:
// 16 bytes a lane. Limits: c <= 512. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarpColumns = 128;
constexpr int kMaxChunks = 4;  // of kWarpColumns
constexpr int kMaxGroups = 4;
constexpr int kMaxThreads = 32 * kMaxChunks * kMaxGroups;

struct Part {
  float largest, sum;
  float4 out;
};

/// Four neighbouring columns, of which only `columns` exist; by 16 bytes unless rows are too short for it.
__device__ __forceinline__ float4 load4(const float* from, int columns, bool vector) {
  if (vector) return *reinterpret_cast<const float4*>(from);
  float x[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) x[i] = from[i];
  }
  return make_float4(x[0], x[1], x[2], x[3]);
}

template <class Act>
__device__ __forceinline__ void store4(Act* to, float4 x, int columns, bool vector) {
  if (vector) {
    if constexpr (sizeof(Act) == 4) {
      *reinterpret_cast<float4*>(to) = x;
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    }
    return;
  }
  const float elements[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) to[i] = from_float<Act>(elements[i]);
  }
}

/// A row of the merge list.
struct MergeRow {
  int64_t row;      // of T * H
  int64_t slot;     // of its first split
  int slot_stride;  // from a split to the next: the sequence's row tiles
  int splits;       // 0: zeros
  int tile_row;     // within the row tile
};

/// Sums up splits [begin, end) of a row for the columns of this warp.
__device__ Part sum_splits(const DecodeArgs& a, const MergeRow& r, int begin, int end, int column) {
  const int lane = threadIdx.x % 32, columns = a.c - column;
  Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
  for (int first = begin; first < end; first += 32) {
    const int count = min(end - first, 32);
    float2 mine = make_float2(-INFINITY, 0);
    const int64_t slot = r.slot + int64_t{first + lane} * r.slot_stride;
    if (lane < count && slot < a.slots) mine = a.max_sum[slot * a.row_tile + r.tile_row];
    const float largest = fmaxf(warp_max(mine.x), part.largest);
    const float shift = softmax_shift(largest), keep = exp2f(part.largest - shift);
    const float weight = lane < count ? exp2f(mine.x - shift) : 0.0f;
    const float sum = warp_sum(weight * mine.y);
    part.largest = largest;
    part.sum = part.sum * keep + sum;
    part.out = make_float4(part.out.x * keep, part.out.y * keep, part.out.z * keep, part.out.w * keep);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float w = __shfl_sync(kFullWarp, weight, i);
      const int64_t from = r.slot + int64_t{first + i} * r.slot_stride;
      if (from >= a.slots || columns <= 0) continue;
      const float4 x = load4(a.partial_out + (from * a.row_tile + r.tile_row) * a.c + column, columns, a.c % 4 == 0);
      part.out.x += w * x.x;
      part.out.y += w * x.y;
      part.out.z += w * x.z;
      part.out.w += w * x.w;
    }
  }
  return part;
}

template <class Act>
__global__ __launch_bounds__(kMaxThreads, 2) void mla_decode_merge_kernel(DecodeArgs a, int chunks, int groups,
                                                                          bool vector) {
  __shared__ Part s_parts[kMaxGroups][kMaxChunks][32];
  __shared__ int s_sequence;
  const int tid = threadIdx.x, lane = tid % 32, chunk = tid / 32 % chunks, group = tid / 32 / chunks;
  const int column = chunk * kWarpColumns + lane * 4;
  if (tid == 0) s_sequence = 0;
  pdl_wait();
  pdl_launch_dependents();
  const int32_t* slot_start = a.plan + kPlanHeader + a.sequences + 1;
  const int32_t* merge_start = slot_start + a.sequences + 1;
  const int split_keys = max(a.plan[kPlanSplitKeys], kPlanKeys) / kPlanKeys * kPlanKeys;
  // What no true plan exceeds bounds the loops under one that makes no sense.
  const int all = a.tokens * a.heads, merge_rows = min(max(a.plan[kPlanMergeRows], 0), all);
  // Rows that belong to no sequence: before the first one and after the last one.
  const int before = min(max(a.q_start[0], 0), a.tokens) * a.heads;
  const int after = min(max(a.q_start[a.sequences], 0), a.tokens) * a.heads;

  for (int64_t index = blockIdx.x; index < int64_t{merge_rows} + before + all - after; index += gridDim.x) {
    MergeRow r{0, 0, 0, 0, 0};
    if (index < merge_rows) {
      __syncthreads();  // all have read what the row before has left
      for (int b = tid; b < a.sequences; b += blockDim.x) {
        if (merge_start[b] <= index && index < merge_start[b + 1]) s_sequence = b;
      }
      __syncthreads();
      const int b = s_sequence;
      const int q_begin = max(a.q_start[b], 0), tokens = max(min(a.q_start[b + 1], a.tokens) - q_begin, 0);
      const int rows = tokens * a.heads;
      const int in_sequence = static_cast<int>(index) - merge_start[b], tile = in_sequence / a.row_tile;
      if (in_sequence < 0 || in_sequence >= rows) continue;
      r.row = int64_t{q_begin} * a.heads + in_sequence;
      r.slot_stride = (rows + a.row_tile - 1) / a.row_tile;
      r.slot = int64_t{max(slot_start[b], 0)} + tile;
      r.tile_row = in_sequence - tile * a.row_tile;
      r.splits = a.lengths[b] > 0 ? min((a.lengths[b] - 1) / split_keys + 1, a.slots) : 0;
    } else {
      r.row = index - merge_rows;
      if (r.row >= before) r.row += after - before;
    }
    const int share = (r.splits + groups - 1) / groups;
    Part part = sum_splits(a, r, group * share, min((group + 1) * share, r.splits), column);
    if (groups > 1) {
      s_parts[group][chunk][lane] = part;
      __syncthreads();
      if (group == 0) {
        float largest = part.largest;
        for (int g = 1; g < groups; ++g) largest = fmaxf(largest, s_parts[g][chunk][lane].largest);
        const float shift = softmax_shift(largest);
        Part all_parts{largest, 0, make_float4(0, 0, 0, 0)};
        for (int g = 0; g < groups; ++g) {
          const Part& x = s_parts[g][chunk][lane];
          const float w = exp2f(x.largest - shift);
          all_parts.sum += w * x.sum;
          all_parts.out.x += w * x.out.x;
          all_parts.out.y += w * x.out.y;
          all_parts.out.z += w * x.out.z;
          all_parts.out.w += w * x.out.w;
        }
        part = all_parts;
      }
      __syncthreads();  // s_parts may be written again
    }
    if (group != 0) continue;
    const float inverse = inverse_sum(part.sum);
    if (column < a.c) {
      const float4 x =
          make_float4(part.out.x * inverse, part.out.y * inverse, part.out.z * inverse, part.out.w * inverse);
      store4(static_cast<Act*>(a.out) + r.row * a.c + column, x, a.c - column, vector);
    }
    if (tid == 0) a.lse[r.row] = natural_lse(part.largest, part.sum);
  }
}

template <class Act>
Status launch_one(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const DecodeArgs args = make_decode_args(p, partials);
  const int chunks = (args.c + kWarpColumns - 1) / kWarpColumns;
  const int64_t rows = p.q.dim(0) * p.q.dim(1), multiprocessors = launch.traits->multiprocessors;
  // With fewer row tiles than a fraction of the GPU there can be many splits, which then are worth more warps.
  const int64_t row_tiles = decode_max_row_tiles(rows, args.sequences, args.heads, args.row_tile);
  const int groups = row_tiles * 8 <= multiprocessors ? kMaxGroups : 1;
  const int64_t blocks = rows < multiprocessors * 8 ? rows : multiprocessors * 8;
  return cuda_status(
      launch_pdl(mla_decode_merge_kernel<Act>, dim3(static_cast<unsigned>(blocks)), dim3(32 * chunks * groups), 0,
                 launch.stream, args, chunks, groups, args.c % 4 == 0 && aligned16(args.out)),
      "mla_decode_merge_kernel");
}

}  // namespace

Status launch_decode_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  return p.out.dtype == DType::kBF16 ? launch_one<Bf16>(p, partials, launch) : launch_one<float>(p, partials, launch);
}

Status load_decode_merge_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(mla_decode_merge_kernel<Bf16>, "mla_decode_merge_kernel"));
  return load_kernel(mla_decode_merge_kernel<float>, "mla_decode_merge_kernel");
}

}  // namespace mla::cuda
