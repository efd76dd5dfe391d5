// router_select.cuh - the choice of experts for one row, by one warp. router_select_block.cuh has the same by a block.
//
// Lane l has experts l, l + 32, ... in registers, as unsigned integers in the order of their scores; 0 is taken. So the
// largest of all is one reduction over the warp, and the lowest index among equals another.
#pragma once
#include <cstdint>

#include "cuda/device/rows.cuh"

namespace mla::cuda {

struct SelectArgs {
  const float* logits;       // [T, experts]
  const float* bias;         // [experts], may be null
  const int32_t* positions;  // [T]
  int32_t* ids;              // [T, top_k + shared]
  float* weights;            // [T, top_k + shared]
  int64_t rows;
  int experts, top_k, shared, n_group, topk_group;
  float scale;
  bool sigmoid, group_top2, norm_topk;
};

constexpr uint32_t kTaken = 0;

/// 1 / y for y from 1 on, as a division rounds it but for rare cases, without the branch that a division has. Infinity
/// gives next to nothing.
__device__ __forceinline__ float reciprocal(float y) {
  y = fminf(y, 8e37f);
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(y));
  return fmaf(r, fmaf(-y, r, 1.0f), r);
}

/// A logit's score. The same expression wherever a score is needed, so that it has the same bits.
struct Scorer {
  bool sigmoid;
  float largest, part;  // softmax: 1 / sum
  __device__ __forceinline__ float operator()(float logit) const {
    return sigmoid ? reciprocal(1.0f + expf(-logit)) : expf(logit - largest) * part;
  }
};

/// The largest of the lanes' keys, and the lowest index that has it.
__device__ __forceinline__ int warp_best_key(uint32_t key, int index, uint32_t* best) {
  *best = __reduce_max_sync(kFullWarp, key);
  return static_cast<int>(__reduce_min_sync(kFullWarp, key == *best ? static_cast<unsigned>(index) : ~0u));
}

/// The largest of a lane's keys.
template <int kPer>
__device__ __forceinline__ uint32_t largest_key(const uint32_t (&keys)[kPer]) {
  uint32_t best[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) best[i] = keys[i];
#pragma unroll
  for (int half = kPer / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) best[i] = max(best[i], best[i + half]);
  }
  return best[0];
}

/// Keeps the experts of the topk_group best groups; the others' keys become that of -inf. Groups of 32: one register of
/// all lanes each.
template <int kPer>
__device__ __forceinline__ void keep_groups_of_32(const SelectArgs& a, const float (&choice)[kPer],
                                                  uint32_t (&keys)[kPer]) {
  const int lane = threadIdx.x % 32;
  uint32_t group_key = kTaken;  // of the group of this lane's number
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (i >= a.n_group) continue;
    const uint32_t key = order_key(fmaxf(choice[i], -INFINITY));  // NaN is least
    uint32_t score = __reduce_max_sync(kFullWarp, key);
    if (a.group_top2) {
      const int owner = __ffs(__ballot_sync(kFullWarp, key == score)) - 1;
      const uint32_t second = __reduce_max_sync(kFullWarp, lane == owner ? kTaken : key);
      score = order_key(from_order_key(score) + from_order_key(second));
    }
    if (lane == i) group_key = score;
  }
  int better = 0;  // groups before this one in the order of their scores
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const uint32_t other = __shfl_sync(kFullWarp, group_key, i);
    better += i < a.n_group && (other > group_key || (other == group_key && i < lane));
  }
  const uint32_t kept = __ballot_sync(kFullWarp, better < a.topk_group);  // one bit for each group
  const uint32_t none = order_key(-INFINITY);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (i < a.n_group && (kept >> i & 1) == 0) keys[i] = none;
  }
}

/// The same for groups of any size. `s_row` holds one word per expert.
template <int kPer>
__device__ __forceinline__ void keep_groups(const SelectArgs& a, const float (&choice)[kPer], uint32_t (&keys)[kPer],
                                            uint32_t* s_row) {
  const int lane = threadIdx.x % 32, size = a.experts / a.n_group;
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    if (lane + 32 * i < a.experts) s_row[lane + 32 * i] = __float_as_uint(choice[i]);
  }
  __syncwarp();
  // A group's score goes to the place of its first expert, which only the lane of that group still reads.
  for (int group = lane; group < a.n_group; group += 32) {
    float first = -INFINITY, second = -INFINITY;
    for (int i = group * size; i < (group + 1) * size; ++i) {
      const float x = __uint_as_float(s_row[i]);
      if (x > first) {
        second = first;
        first = x;
      } else if (x > second) {
        second = x;
      }
    }
    s_row[group * size] = order_key(a.group_top2 && size > 1 ? first + second : first);
  }
  for (int kept = 0; kept < a.topk_group; ++kept) {
    uint32_t key = kTaken;
    int index = a.n_group;
    for (int group = lane; group < a.n_group; group += 32) {
      if (s_row[group * size] > key) {
        key = s_row[group * size];
        index = group;
      }
    }
    uint32_t best;
    const int winner = warp_best_key(key, index, &best);
    if (winner % 32 == lane) s_row[winner * size] = kTaken;
  }
  __syncwarp();
  const uint32_t none = order_key(-INFINITY);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int expert = lane + 32 * i;
    if (expert < a.experts && s_row[expert / size * size] != kTaken) keys[i] = none;
  }
  __syncwarp();
}

/// What scores a row of which lane l of a warp has logits l, l + 32, ...
template <int kPer>
__device__ __forceinline__ Scorer scorer_of(const SelectArgs& a, const float (&logits)[kPer]) {
  Scorer score{a.sigmoid, -INFINITY, 1};
  if (a.sigmoid) return score;
#pragma unroll
  for (int i = 0; i < kPer; ++i) score.largest = fmaxf(score.largest, logits[i]);
  score.largest = from_order_key(__reduce_max_sync(kFullWarp, order_key(score.largest)));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPer; ++i)
    sum += static_cast<int>(threadIdx.x) % 32 + 32 * i < a.experts ? score(logits[i]) : 0.0f;
  score.part = 1.0f / warp_sum(sum);
  return score;
}

/// The keys of one row's experts, by one warp. Returns what scores them. `s_row` is used with n_group > 1 only; where
/// there are no groups, kGroups leaves their code out.
template <int kPer, bool kGroups = true>
__device__ __forceinline__ Scorer score_row(const SelectArgs& a, const float* logits, uint32_t (&keys)[kPer],
                                            uint32_t* s_row) {
  const int lane = threadIdx.x % 32;
  float choice[kPer], bias[kPer];  // loads that do not wait for each other
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int expert = lane + 32 * i;
    choice[i] = expert < a.experts ? logits[expert] : -INFINITY;
    bias[i] = a.bias != nullptr && expert < a.experts ? a.bias[expert] : 0.0f;
  }
  const Scorer score = scorer_of(a, choice);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int expert = lane + 32 * i;
    keys[i] = kTaken;
    if (expert >= a.experts) continue;
    choice[i] = score(choice[i]);
    if (a.bias != nullptr) choice[i] += bias[i];
    keys[i] = order_key(choice[i]);
  }
  if (kGroups && a.n_group > 1) {
    if (a.experts == 32 * a.n_group) {
      keep_groups_of_32(a, choice, keys);
    } else {
      keep_groups(a, choice, keys, s_row);
    }
  }
  return score;
}

/// What a row's lanes have chosen: lane j the choices j and j + 32.
struct RowChoice {
  Scorer score;
  int low, high;
};

/// The choice of one row, of top_k experts. `s_row` and kGroups as in score_row().
template <int kPer, bool kGroups = true>
__device__ __forceinline__ RowChoice choose_row(const SelectArgs& a, const float* logits, uint32_t* s_row) {
  const int lane = threadIdx.x % 32;
  uint32_t keys[kPer];
  RowChoice choice{score_row<kPer, kGroups>(a, logits, keys, s_row), 0, 0};
#pragma unroll 1
  for (int j = 0; j < a.top_k; ++j) {
    const uint32_t best = __reduce_max_sync(kFullWarp, largest_key(keys));
    unsigned index = ~0u;  // the lane's lowest that has it
#pragma unroll
    for (int i = kPer - 1; i >= 0; --i) index = keys[i] == best ? lane + 32 * i : index;
    const int expert = static_cast<int>(__reduce_min_sync(kFullWarp, index));
#pragma unroll
    for (int i = 0; i < kPer; ++i) keys[i] = expert == lane + 32 * i ? kTaken : keys[i];
    if (j == lane) choice.low = expert;
    if (j == lane + 32) choice.high = expert;
  }
  return choice;
}

/// The weights of a lane's two choices; no number where there is none. kMost: of top_k.
template <int kMost = 64>
__device__ __forceinline__ float2 weigh_choice(const SelectArgs& a, const float* logits, const RowChoice& choice) {
  const int lane = threadIdx.x % 32;
  const float low = lane < a.top_k ? choice.score(logits[choice.low]) : 0.0f;
  const float high = kMost > 32 && lane + 32 < a.top_k ? choice.score(logits[choice.high]) : 0.0f;
  float sum = 0;
  const auto add = [&](float of_lane, int count) {  // in the order of the choices; lanes behind them have 0
#pragma unroll 1
    for (int j0 = 0; j0 < count; j0 += 8) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += __shfl_sync(kFullWarp, of_lane, j0 + j);
    }
  };
  if (a.norm_topk) {
    add(low, min(a.top_k, 32));
    if (kMost > 32) add(high, a.top_k - 32);
  }
  const auto scaled = [&](float weight) { return (a.norm_topk ? weight / (sum + 1e-20f) : weight) * a.scale; };
  return make_float2(scaled(low), scaled(high));
}

/// Writes ids and weights of one row. `s_row` is used with n_group > 1 only.
template <int kPer>
__device__ __forceinline__ void select_row(const SelectArgs& a, int64_t row, uint32_t* s_row) {
  const int lane = threadIdx.x % 32, columns = a.top_k + a.shared;
  int32_t* const ids = a.ids + row * columns;
  float* const weights = a.weights + row * columns;
  if (a.positions[row] < 0) {
    for (int j = lane; j < columns; j += 32) {
      ids[j] = -1;
      weights[j] = 0;
    }
    return;
  }

  const float* const logits = a.logits + row * a.experts;
  const RowChoice choice = choose_row<kPer>(a, logits, s_row);
  const float2 weight = weigh_choice(a, logits, choice);
  const auto write = [&](int j, int id, float weight) {
    if (j >= a.top_k) return;
    ids[j] = id;
    weights[j] = weight;
  };
  write(lane, choice.low, weight.x);
  write(lane + 32, choice.high, weight.y);
  for (int j = lane; j < a.shared; j += 32) {
    ids[a.top_k + j] = a.experts + j;
    weights[a.top_k + j] = 1.0f;
  }
}

}  // namespace mla::cuda
