// sample_row.cuh - what the kernels of sample share: a row's settings, its logits after the penalties, and the results
// that the scanning kernel leaves for the choosing one.
#pragma once
#include <cstdint>

#include "common/philox.h"
#include "cuda/device/rows.cuh"

namespace mla::cuda {

/// What one piece of a row's logits contributes.
struct SamplePartial {
  Best best;   // the largest logit after penalties and mask, with its id
  Best noisy;  // the largest of logit / temperature + noise; only where nothing is filtered
  float raw_largest;
  float raw_sum;  // of e^(logit - raw_largest)
  int32_t bad;    // a NaN or +infinity among them
  int32_t padding;
};

struct SampleArgs {
  const float* logits;       // [B, width]
  const float* settings;     // [B, kSamplingColumns]
  const int64_t* seeds;      // [B]
  const int32_t* positions;  // [B]
  const int32_t* counts;     // [B, width], may be null
  const float* bias;         // [B, width], may be null
  const uint32_t* mask;      // [B, mask_words], may be null
  int32_t* ids;              // [B]
  float* logprobs;           // [B], may be null
  SamplePartial* partials;   // [B, pieces]
  float* scaled;             // [B, stride]: logits after penalties and temperature; only of rows that are filtered
  int64_t width, vocab, stride, mask_words, pieces;
  bool vector;  // logits, counts and bias may be read by 16 bytes
};

constexpr int32_t kNoId = INT32_MAX;

struct SampleSettings {
  float temperature, top_k, top_p, min_p, repetition, presence, frequency;

  __device__ __forceinline__ SampleSettings(const SampleArgs& a, int64_t row) {
    const float* const s = a.settings + row * kSamplingColumns;
    temperature = s[0], top_k = s[1], top_p = s[2], min_p = s[3], repetition = s[4], presence = s[5], frequency = s[6];
  }

  /// Settings out of range give no token; repetition and the others count only where counts are given.
  __device__ __forceinline__ bool sane(bool counts) const {
    bool ok = temperature >= 0 && temperature < INFINITY && top_k == top_k && top_p == top_p && min_p == min_p;
    if (counts) {
      ok = ok && repetition > 0 && repetition < INFINITY && fabsf(presence) < INFINITY && fabsf(frequency) < INFINITY;
    }
    return ok;
  }

  __device__ __forceinline__ bool by_k(int64_t vocab) const { return top_k >= 1 && top_k < static_cast<float>(vocab); }
  __device__ __forceinline__ bool by_p() const { return top_p < 1; }
  __device__ __forceinline__ bool by_min() const { return min_p > 0; }
  __device__ __forceinline__ bool filters(int64_t vocab) const { return by_k(vocab) || by_p() || by_min(); }

  /// A logit after the penalties on an id with this count. The compiler must not fuse the product with the subtraction:
  /// the CPU does not.
  __device__ __forceinline__ float penalised(float x, int32_t count) const {
    if (count <= 0) return x;
    const float repeated = x > 0 ? x / repetition : __fmul_rn(x, repetition);
    const int32_t n = count & (kInPrompt - 1);
    if (n == 0) return repeated;
    return fmaf(-frequency, static_cast<float>(n), __fsub_rn(repeated, presence));
  }
};

/// The Gumbel noise of ids 4 * quad .. 4 * quad + 4.
struct QuadNoise {
  float v[4];
  __device__ __forceinline__ QuadNoise(int64_t seed, int32_t position, int64_t quad) {
    const PhiloxWords words =
        philox4x32_10(static_cast<uint64_t>(seed), static_cast<uint32_t>(position), static_cast<uint32_t>(quad), 0, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = philox_gumbel(words.w[i]);
  }
};

}  // namespace mla::cuda
