// router_select_block.cuh - the choice of experts for one row, by the first 8 warps of a block, with the results of
// router_select.cuh.
//
// One warp's choice is a chain of two reductions for each of top_k. Here every expert counts those that come before it,
// by key and then by index, and so knows its place: up to 64 experts all others, four lanes each; of more those of its
// warp first, and the best top_k of each warp then all of these.
#pragma once
#include "cuda/moe/router_select.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {

constexpr int kChoiceWarps = 8;
constexpr int kChoiceThreads = kChoiceWarps * 32;

/// What the warps share. kPer: experts, at most, over 32: 2 or 8.
template <int kPer>
struct BlockChoice {
  static constexpr int kExperts = 32 * kPer;
  static constexpr int kMostColumns = 96;  // top_k is at most 64
  alignas(16) uint32_t keys[kPer == 2 ? kChoiceWarps : 1][kExperts];
  alignas(16) uint32_t best[kPer == 2 ? 1 : kChoiceThreads];  // of each warp
  int32_t best_ids[kPer == 2 ? 1 : kChoiceThreads];
  uint32_t group_keys[kPer == 2 ? 1 : kExperts];
  float scores[kMostColumns];  // of the choices
  int32_t ids[kMostColumns];   // of the columns; the caller fills those behind them if it needs any
};

__device__ __forceinline__ void choice_barrier() { named_barrier_sync(1, kChoiceThreads); }

/// 1 if `other`, whose place is `at`, comes before `key`, whose place is `mine`.
__device__ __forceinline__ int comes_before(uint32_t other, int at, uint32_t key, int mine) {
  return other > key || (other == key && at < mine);
}

/// Up to 64 experts: ids and scores of the choices.
__device__ __forceinline__ void choose(const SelectArgs& a, const float* logits, BlockChoice<2>& s) {
  constexpr int kExperts = BlockChoice<2>::kExperts, kPart = kExperts / 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t* const keys = s.keys[warp];  // every warp computes them all, instead of waiting for the others
  uint32_t of_lane[2];
  const Scorer score = score_row(a, logits, of_lane, keys);
  keys[lane] = of_lane[0];
  keys[lane + 32] = of_lane[1];
  __syncwarp();
  const int expert = warp * (kExperts / kChoiceWarps) + lane / 4, first = lane % 4 * kPart;
  const uint32_t key = keys[expert];
  int place = 0;
#pragma unroll
  for (int i = 0; i < kPart; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + first + i);
    const uint32_t others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) place += comes_before(others[j], first + i + j, key, expert);
  }
  place += __shfl_xor_sync(kFullWarp, place, 1);
  place += __shfl_xor_sync(kFullWarp, place, 2);
  if (lane % 4 == 0 && place < a.top_k && expert < a.experts) {
    s.ids[place] = expert;
    s.scores[place] = score(logits[expert]);
  }
}

/// Whether the group of this thread's expert is among the topk_group best. All threads; two barriers.
__device__ __forceinline__ bool keeps_group(const SelectArgs& a, float choice, BlockChoice<8>& s) {
  const int expert = static_cast<int>(threadIdx.x), warp = expert / 32, lane = expert % 32;
  const int size = a.experts / a.n_group;
  if (size == 32) {
    const uint32_t key = order_key(fmaxf(choice, -INFINITY));  // NaN is least
    uint32_t score = __reduce_max_sync(kFullWarp, key);
    if (a.group_top2) {
      const int owner = __ffs(__ballot_sync(kFullWarp, key == score)) - 1;
      const uint32_t second = __reduce_max_sync(kFullWarp, lane == owner ? kTaken : key);
      score = order_key(from_order_key(score) + from_order_key(second));
    }
    if (lane == 0) s.group_keys[warp] = score;
  } else {
    s.keys[0][expert] = __float_as_uint(choice);
    choice_barrier();
    for (int group = expert; group < a.n_group; group += kChoiceThreads) {
      float first = -INFINITY, second = -INFINITY;
      for (int i = group * size; i < (group + 1) * size; ++i) {
        const float x = __uint_as_float(s.keys[0][i]);
        second = x > first ? first : x > second ? x : second;
        first = x > first ? x : first;
      }
      s.group_keys[group] = order_key(a.group_top2 && size > 1 ? first + second : first);
    }
  }
  choice_barrier();
  const int mine = min(expert / size, a.n_group - 1);
  const uint32_t key = s.group_keys[mine];
  int place = 0;
#pragma unroll 8
  for (int group = 0; group < a.n_group; ++group) place += comes_before(s.group_keys[group], group, key, mine);
  return place < a.topk_group;
}

/// Up to 256 experts.
__device__ __forceinline__ void choose(const SelectArgs& a, const float* logits, BlockChoice<8>& s) {
  const int expert = static_cast<int>(threadIdx.x), warp = expert / 32, lane = expert % 32;
  const bool exists = expert < a.experts;
  const float logit = exists ? logits[expert] : -INFINITY, bias = a.bias != nullptr && exists ? a.bias[expert] : 0.0f;
  float of_lane[8] = {};
#pragma unroll
  for (int i = 0; i < 8 && !a.sigmoid; ++i) of_lane[i] = lane + 32 * i < a.experts ? logits[lane + 32 * i] : -INFINITY;
  const Scorer score = scorer_of(a, of_lane);
  float choice = exists ? score(logit) : -INFINITY;
  if (a.bias != nullptr) choice += bias;
  uint32_t key = exists ? order_key(choice) : kTaken;
  if (a.n_group > 1 && !keeps_group(a, choice, s) && exists) key = order_key(-INFINITY);

  uint32_t* const keys = s.keys[0];
  keys[expert] = key;
  __syncwarp();
  int place = 0;
#pragma unroll
  for (int i = 0; i < 32; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(keys + warp * 32 + i);
    const uint32_t others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) place += comes_before(others[j], i + j, key, lane);
  }
  const int wanted = min(a.top_k, 32), pitch = (wanted + 7) / 8 * 8;
  if (place < pitch) {
    s.best[warp * pitch + place] = place < wanted ? key : kTaken;
    s.best_ids[warp * pitch + place] = expert;
  }
  choice_barrier();
#pragma unroll 1
  for (int at = expert / 4; at < kChoiceWarps * pitch; at += kChoiceThreads / 4) {  // the same for a whole warp
    const int part = kChoiceWarps / 4 * pitch, first = lane % 4 * part;
    const uint32_t mine = s.best[at];
    int all = 0;
#pragma unroll 4
    for (int i = 0; i < part; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(s.best + first + i);
      const uint32_t others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) all += comes_before(others[j], first + i + j, mine, at);
    }
    all += __shfl_xor_sync(kFullWarp, all, 1);
    all += __shfl_xor_sync(kFullWarp, all, 2);
    if (lane % 4 == 0 && all < a.top_k && mine != kTaken) {
      const int id = s.best_ids[at];
      s.ids[all] = id;
      s.scores[all] = score(logits[id]);
    }
  }
}

/// Writes ids and weights of one row, whose logits are at `logits`. Afterwards s.ids has the ids for all threads;
/// before the next call there must be a barrier.
template <int kPer>
__device__ __forceinline__ void select_row_by_block(const SelectArgs& a, const float* logits, bool padding,
                                                    int32_t* ids, float* weights, BlockChoice<kPer>& s) {
  const int column = static_cast<int>(threadIdx.x), columns = a.top_k + a.shared;
  if (column < columns && (padding || column >= a.top_k)) s.ids[column] = padding ? -1 : a.experts + column - a.top_k;
  if (!padding) choose(a, logits, s);
  choice_barrier();
  if (column >= columns) return;
  float weight = padding ? 0.0f : 1.0f;
  if (!padding && column < a.top_k) {
    float sum = 0;  // in the order of the choices
    for (int i = 0; i < a.top_k && a.norm_topk; ++i) sum += s.scores[i];
    weight = (a.norm_topk ? s.scores[column] / (sum + 1e-20f) : s.scores[column]) * a.scale;
  }
  ids[column] = s.ids[column];
  weights[column] = weight;
}

}  // namespace mla::cuda
