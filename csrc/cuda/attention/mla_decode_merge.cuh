// mla_decode_merge.cuh - how teams of 16 lanes add up what several blocks have left of a row (mla_decode_merge.cu).
#pragma once
#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/few_plan.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {

constexpr int kMergeLanes = 16;  // of a team
constexpr int kMergeColumns = 4 * kMergeLanes;
constexpr int kMergeThreads = kMergeLanes * kMergeTeams;
constexpr int kMergeBatch = 8;  // parts on their way

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
  int64_t row;   // of T * H
  int64_t slot;  // of its first part
  int slot_stride;
  int parts;     // 0: zeros
  int tile_row;  // within the row tile
};

/// Sums up parts [begin, end) of a row for the columns of this team.
template <bool kVector>
__device__ __forceinline__ Part sum_parts(const DecodeArgs& a, const MergeRow& r, int begin, int end, int column) {
  const int lane = threadIdx.x % kMergeLanes, columns = a.c - column;
  const unsigned team = 0xffffu << (threadIdx.x & kMergeLanes);
  const int64_t first_row = r.slot * a.row_tile + r.tile_row, stride = int64_t{r.slot_stride} * a.row_tile;
  Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
  for (int first = begin; first < end; first += kMergeLanes) {
    const int count = min(end - first, kMergeLanes);
    const float2 mine =
        lane < count ? __ldcg(a.max_sum + first_row + (first + lane) * stride) : make_float2(-INFINITY, 0);
    const float* from = a.partial_out + (first_row + first * stride) * a.c + column;
    float weight = 0;
    for (int batch = 0; batch < count; batch += kMergeBatch) {
      float4 x[kMergeBatch];
#pragma unroll
      for (int i = 0; i < kMergeBatch; ++i) {
        x[i] = make_float4(0, 0, 0, 0);
        if (batch + i < count && columns > 0) x[i] = load4<kVector>(from, columns);
        from += stride * a.c;
      }
      if (batch == 0) {
        float largest = mine.x;
#pragma unroll
        for (int i = 1; i < kMergeLanes; i *= 2) largest = fmaxf(largest, __shfl_xor_sync(team, largest, i));
        largest = fmaxf(largest, part.largest);
        const float shift = softmax_shift(largest), keep = exp2f(part.largest - shift);
        weight = lane < count ? exp2f(mine.x - shift) : 0.0f;
        float sum = weight * mine.y;
#pragma unroll
        for (int i = 1; i < kMergeLanes; i *= 2) sum += __shfl_xor_sync(team, sum, i);
        part.largest = largest;
        part.sum = part.sum * keep + sum;
        part.out = make_float4(part.out.x * keep, part.out.y * keep, part.out.z * keep, part.out.w * keep);
      }
#pragma unroll
      for (int i = 0; i < kMergeBatch; ++i) {
        const float w = __shfl_sync(team, weight, batch + i, kMergeLanes);
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

/// What the plan and the tensors say of a sequence, made safe: rows lie within T * H.
template <bool kFew>
__device__ __forceinline__ MergeSequence merge_sequence(const DecodeArgs& a, int start, int q_begin, int q_end,
                                                        int length, int row_tile, int share) {
  q_begin = max(q_begin, 0);
  length = max(length, 0);
  const int tokens = max(min(max(q_end, 0), a.tokens) - q_begin, 0);
  MergeSequence s{};
  s.rows = tokens * a.heads;
  s.row = int64_t{q_begin} * a.heads;
  s.start = static_cast<uint32_t>(max(start, 0));
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

}  // namespace mla::cuda
