// sample_filter.cuh - top_k, top_p and min_p over one row of scaled logits, by one block of 1024 threads.
//
// An element is a 64-bit rank: the logit as an ordered integer above, the id, negated, below. Ranks differ, and sorting
// by them is sorting by likelihood with ties to the lowest id. So what a filter keeps is all ranks from a border on,
// and all three filters together are the highest of their borders.
//
// How a border is found: logits are counted in buckets of 1/64 by their distance from the largest one. For top_k the
// bucket of the border is known from the counts. For top_p the masses of buckets are bounded from counts and from the
// sums of the positions within the bucket, to about 1e-4 of themselves, which leaves a few buckets. Their elements are
// listed and sorted, and the border is found by adding up: exact sums of what lies above, in a fixed order. Where too
// many elements are in question (thousands of equal logits, say) the border is searched bit by bit with one pass over
// the row for each bit: slow, but always right.
#pragma once
#include <cstdint>

#include "cuda/sampling/sample_row.cuh"

namespace mla::cuda {

constexpr int kFilterThreads = 1024;
constexpr int kBuckets = 2 * kFilterThreads;
constexpr float kBucketsPerUnit = 64;
constexpr int kDeepBucket = kBuckets - 1;  // all that is further away; not counted
constexpr float kFractionSteps = 16384;
constexpr int kListSize = 4 * kFilterThreads;

struct FilterShared {
  uint64_t list[kListSize];
  uint32_t counts[kBuckets];
  uint32_t fractions[kBuckets];  // sums of positions within the bucket, in steps
  double sums[32];
  uint32_t integers[32];
  Best bests[32];
  uint32_t listed;
  uint32_t first, last;  // buckets
  uint32_t before;       // elements above bucket `first`
  uint32_t index;
};

/// One row of scaled logits. All threads of the block call its functions together.
struct FilteredRow {
  const float* x;  // [stride]
  int64_t stride;  // a multiple of 4; -inf behind the vocabulary
  float largest;   // of x, finite
  FilterShared& s;

  /// f(x, id) for this thread's share of the elements above -inf, in a fixed order.
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    for (int64_t quad = threadIdx.x; quad < stride / 4; quad += kFilterThreads) {
      const float4 four = reinterpret_cast<const float4*>(x)[quad];
      const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (v[i] > -INFINITY) f(v[i], static_cast<uint32_t>(4 * quad + i));
      }
    }
  }

  __device__ __forceinline__ static uint64_t rank(float x, uint32_t id) {
    return static_cast<uint64_t>(order_key(x)) << 32 | (~0u - id);
  }

  __device__ __forceinline__ float weight(float x) const { return expf(x - largest); }

  /// In buckets from the largest logit down; more than kBuckets for what is deep.
  __device__ __forceinline__ float depth(float x) const { return (largest - x) * kBucketsPerUnit; }

  __device__ __forceinline__ static int bucket_of(float depth) {
    return depth < kDeepBucket ? static_cast<int>(depth) : kDeepBucket;
  }

  /// Fills the buckets. Returns the elements above -inf, and the sum of their weights if asked.
  __device__ __forceinline__ uint32_t count_buckets(bool sum_weights, double* total) const {
    for (int i = threadIdx.x; i < kBuckets; i += kFilterThreads) s.counts[i] = s.fractions[i] = 0;
    __syncthreads();
    uint32_t elements = 0;
    float sum = 0;
    each([&](float v, uint32_t) {
      ++elements;
      if (sum_weights) sum += weight(v);
      const float d = depth(v);
      const int bucket = bucket_of(d);
      if (bucket == kDeepBucket) return;
      atomicAdd(&s.counts[bucket], 1u);
      if (sum_weights) {
        atomicAdd(&s.fractions[bucket], static_cast<uint32_t>((d - static_cast<float>(bucket)) * kFractionSteps));
      }
    });
    *total = block_sum_of(static_cast<double>(sum), s.sums);
    return block_sum_of(elements, s.integers);
  }

  /// The sum of the weights of all ranks from `border` on.
  __device__ __forceinline__ double weight_from(uint64_t border) const {
    float sum = 0;
    each([&](float v, uint32_t id) {
      if (rank(v, id) >= border) sum += weight(v);
    });
    return block_sum_of(static_cast<double>(sum), s.sums);
  }

  /// No bucket holds more weight than this, and none less than 0.9998 of it.
  __device__ __forceinline__ double bucket_weight(int bucket) const {
    const float count = static_cast<float>(s.counts[bucket]);
    const float inside = static_cast<float>(s.fractions[bucket]) * (1 / (kFractionSteps * kBucketsPerUnit));
    // e^-z <= 1 - z + z^2 / 2 with z <= 1/64
    const float curve = count * (0.5f / (kBucketsPerUnit * kBucketsPerUnit));
    return static_cast<double>(expf(static_cast<float>(-bucket) / kBucketsPerUnit) * (count - inside + curve));
  }

  /// Lists the ranks in buckets s.first to s.last, largest first. Returns how many, or 0 if they are too many. `above`
  /// receives the sum of weights in the buckets before, if asked.
  __device__ __forceinline__ uint32_t list_buckets(bool sum_weights, double* above) const {
    const uint32_t first = s.first, last = s.last;
    uint32_t mine = 0;
    for (uint32_t i = first + threadIdx.x; i <= last; i += kFilterThreads) mine += s.counts[i];
    const uint32_t n = block_sum_of(mine, s.integers);
    if (n > kListSize) return 0;
    if (threadIdx.x == 0) s.listed = 0;
    __syncthreads();
    float sum = 0;
    each([&](float v, uint32_t id) {
      const uint32_t bucket = static_cast<uint32_t>(bucket_of(depth(v)));
      if (bucket < first && sum_weights) sum += weight(v);
      if (bucket < first || bucket > last) return;
      const uint32_t place = atomicAdd(&s.listed, 1u);  // in any order: they are sorted
      if (place < kListSize) s.list[place] = rank(v, id);
    });
    *above = block_sum_of(static_cast<double>(sum), s.sums);
    sort(n);
    return n;
  }

  /// Sorts list[0, n) in descending order (bitonic).
  __device__ __forceinline__ void sort(uint32_t n) const {
    uint32_t size = 2;
    while (size < n) size *= 2;
    for (uint32_t i = n + threadIdx.x; i < size; i += kFilterThreads) s.list[i] = 0;
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2) {
      for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
        for (uint32_t i = threadIdx.x; i < size / 2; i += kFilterThreads) {
          const uint32_t at = 2 * i - (i & (distance - 1));
          const uint64_t a = s.list[at], b = s.list[at + distance];
          if ((a < b) == ((at & run) == 0)) {
            s.list[at] = b;
            s.list[at + distance] = a;
          }
        }
        __syncthreads();
      }
    }
  }

  /// The highest border from which on the weights sum up to `target`, bit by bit; 0 if nothing does.
  template <class Weight>
  __device__ __forceinline__ uint64_t search(double target, Weight&& weight_of) const {
    const int id_bits = 32 - __clz(static_cast<int>(stride - 1));
    uint64_t border = 0;
    for (int bit = 63; bit >= 0; --bit) {
      const uint64_t candidate = border | uint64_t{1} << bit;
      if (bit < 32 && bit >= id_bits) {
        border = candidate;  // set in all ranks
        continue;
      }
      float sum = 0;
      each([&](float v, uint32_t id) {
        if (rank(v, id) >= candidate) sum += weight_of(v);
      });
      if (block_sum_of(static_cast<double>(sum), s.sums) >= target) border = candidate;
    }
    return border;
  }

  /// The border of the k largest, k at most the number of elements. The buckets are filled.
  __device__ __forceinline__ uint64_t border_of_count(uint32_t k) const {
    if (threadIdx.x == 0) s.first = kDeepBucket;
    const uint32_t count0 = s.counts[2 * threadIdx.x], count1 = s.counts[2 * threadIdx.x + 1];
    const uint32_t through = block_scan_of(count0 + count1, s.integers);
    const uint32_t before = through - count0 - count1;
    if (before < k && through >= k) {
      const bool second = before + count0 < k;
      s.first = s.last = 2 * threadIdx.x + second;
      s.before = second ? before + count0 : before;
    }
    __syncthreads();
    if (s.first != kDeepBucket) {
      double unused;
      if (list_buckets(false, &unused) > 0) return s.list[k - s.before - 1];
    }
    return search(k, [](float) { return 1.0f; });
  }

  /// The border from which on the weights sum up to `target`; `total` is the sum of all. The buckets are filled.
  __device__ __forceinline__ uint64_t border_of_weight(double target, double total) const {
    constexpr double kSlack = 1.0003;
    if (threadIdx.x == 0) {
      s.first = s.last = kBuckets;
      s.index = kListSize;
    }
    // From the front: before this bucket the border cannot lie.
    const double weight0 = bucket_weight(2 * threadIdx.x), weight1 = bucket_weight(2 * threadIdx.x + 1);
    const double through = block_scan_of(weight0 + weight1, s.sums);
    if (through * kSlack >= target) {
      atomicMin(&s.first, 2 * threadIdx.x + ((through - weight1) * kSlack >= target ? 0 : 1));
    }
    // From the back: behind this bucket less is left than what the filter leaves out.
    const int mirrored = kFilterThreads - 1 - threadIdx.x;
    const double back0 = bucket_weight(2 * mirrored), back1 = bucket_weight(2 * mirrored + 1);
    const double deep = static_cast<double>(stride) * 1.4e-14;                   // e^-(kDeepBucket / 64) each
    const double behind = block_scan_of(back0 + back1, s.sums) - back0 - back1;  // buckets after this thread's pair
    if ((behind + back1) * kSlack + deep <= total - target) {
      atomicMin(&s.last, static_cast<uint32_t>(2 * mirrored));
    } else if (behind * kSlack + deep <= total - target) {
      atomicMin(&s.last, static_cast<uint32_t>(2 * mirrored + 1));
    }
    __syncthreads();
    if (threadIdx.x == 0 && s.last < s.first) s.last = s.first;
    __syncthreads();
    double above;
    const uint32_t n = s.last < kDeepBucket ? list_buckets(true, &above) : 0;
    if (n == 0) return search(target, [this](float v) { return weight(v); });

    constexpr int kEach = kListSize / kFilterThreads;
    double sums[kEach], sum = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t at = kEach * threadIdx.x + i;
      if (at < n) sum += static_cast<double>(weight(from_order_key(static_cast<uint32_t>(s.list[at] >> 32))));
      sums[i] = sum;
    }
    const double before = above + (block_scan_of(sum, s.sums) - sum);
#pragma unroll
    for (int i = kEach - 1; i >= 0; --i) {
      const uint32_t at = kEach * threadIdx.x + i;
      if (at < n && before + sums[i] >= target) atomicMin(&s.index, at);
    }
    __syncthreads();
    return s.list[s.index < n ? s.index : n - 1];
  }

  /// The border of all three filters. `vocab` ids take part.
  __device__ __forceinline__ uint64_t border(const SampleSettings& settings, int64_t vocab) const {
    uint64_t border = 0;
    if (settings.by_min()) {
      const float least = largest + logf(settings.min_p < 1.0f ? settings.min_p : 1.0f);
      border = static_cast<uint64_t>(order_key(least)) << 32;
    }
    if (!settings.by_k(vocab) && !settings.by_p()) return border;
    double total;
    const uint32_t elements = count_buckets(settings.by_p(), &total);
    double kept = total;
    if (settings.by_k(vocab)) {
      const uint32_t k = static_cast<uint32_t>(settings.top_k);
      const uint64_t by_k = k < elements ? border_of_count(k) : 0;
      border = by_k > border ? by_k : border;
      if (settings.by_p() && by_k > 0) kept = weight_from(by_k);
    }
    if (settings.by_p()) {
      const uint64_t by_p = border_of_weight(static_cast<double>(settings.top_p) * kept, total);
      border = by_p > border ? by_p : border;
    }
    return border;
  }

  /// argmax of x + noise over the ranks from `border` on.
  __device__ __forceinline__ Best draw(uint64_t border, int64_t seed, int32_t position) const {
    Best best{-INFINITY, kNoId};
    for (int64_t quad = threadIdx.x; quad < stride / 4; quad += kFilterThreads) {
      const float4 four = reinterpret_cast<const float4*>(x)[quad];
      const float v[4] = {four.x, four.y, four.z, four.w};
      bool kept[4], any = false;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        kept[i] = v[i] > -INFINITY && rank(v[i], static_cast<uint32_t>(4 * quad + i)) >= border;
        any |= kept[i];
      }
      if (!any) continue;
      const QuadNoise noise(seed, position, quad);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kept[i]) best = better(best, {v[i] + noise.v[i], static_cast<int32_t>(4 * quad + i)});
      }
    }
    return block_best_of(best, s.bests);
  }
};

}  // namespace mla::cuda
