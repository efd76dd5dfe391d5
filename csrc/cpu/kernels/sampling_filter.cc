#include "cpu/kernels/sampling_filter.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int kDigits = 3;
constexpr int kDigitShift[kDigits] = {21, 10, 0};
constexpr int kDigitBits[kDigits] = {11, 11, 10};
constexpr int64_t kBoundBlock = 64;

/// Unsigned integers in the order of the floats; -0 and +0 are the same.
MLA_INLINE uint32_t order_key(float x) {
  const uint32_t u = float_bits(x + 0.0f);
  return u ^ ((u >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

struct Border {
  uint32_t key;  // what lies above it stays
  int64_t ties;  // and of those equal to it the first so many
};

/// Finds where the sum of weights, taken from the largest key down, reaches `target` (a count, or a mass).
/// weight(i) must depend on x[i] only.
template <class Sum, class Weight>
Border find_border(const float* x, int64_t n, Sum target, Weight&& weight) {
  Sum sums[1 << 11];
  Sum above = 0;
  uint32_t prefix = 0;
  int prefix_shift = 32;
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = kDigitShift[digit], size = 1 << kDigitBits[digit];
    const uint32_t mask = static_cast<uint32_t>(size) - 1;
    for (int b = 0; b < size; ++b) sums[b] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t key = order_key(x[i]);
      if (prefix_shift == 32 || key >> prefix_shift == prefix) sums[key >> shift & mask] += weight(i);
    }
    int b = size - 1;
    int lowest = 0;  // rounding may keep the sum of masses just below the target: then everything stays
    while (lowest < size - 1 && !(sums[lowest] > 0)) ++lowest;
    for (; b > lowest && !(sums[b] > 0 && above + sums[b] >= target); --b) above += sums[b];
    prefix = digit == 0 ? static_cast<uint32_t>(b) : (prefix << kDigitBits[digit]) | static_cast<uint32_t>(b);
    prefix_shift = shift;
  }
  int64_t ties = 0;
  for (int64_t i = 0; i < n && !(ties > 0 && above >= target); ++i) {
    if (order_key(x[i]) != prefix) continue;
    above += weight(i);
    ++ties;
  }
  return {prefix, ties};
}

void cut(Candidates* c, Border border) {
  int64_t kept = 0;
  for (int64_t i = 0; i < c->n; ++i) {
    const uint32_t key = order_key(c->x[i]);
    const bool tie = key == border.key && border.ties > 0;
    if (key > border.key || tie) {
      c->x[kept] = c->x[i];
      c->ids[kept++] = c->ids[i];
    }
    if (tie) --border.ties;
  }
  c->n = kept;
}

}  // namespace

void collect(const float* x, int64_t n, float least, Candidates* out) {
  const F low = set1(least), none = set1(-__builtin_inff());
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    const F v = count == kLanes ? load(x + i) : load_tail(x + i, count);
    const I keep = (v >= low) & (v > none);
#if defined(MLA_SIMD_512)
    const __mmask16 bits = static_cast<__mmask16>(_mm512_movepi32_mask((__m512i)keep) & ((1u << count) - 1u));
    if (bits == 0) continue;
    I ids = set1_i(static_cast<int32_t>(i));
    for (int j = 0; j < kLanes; ++j) ids[j] += j;
    _mm512_mask_compressstoreu_ps(out->x + kept, bits, (__m512)v);
    _mm512_mask_compressstoreu_epi32(out->ids + kept, bits, (__m512i)ids);
    kept += __builtin_popcount(bits);
#else
    for (int j = 0; j < count; ++j) {
      if (keep[j] == 0) continue;
      out->x[kept] = x[i + j];
      out->ids[kept++] = static_cast<int32_t>(i + j);
    }
#endif
  }
  out->n = kept;
}

float top_k_bound(const float* x, int64_t n, int64_t k, float* scratch) {
  // The k-th largest of block maxima: k blocks have an element that large.
  const int64_t blocks = n / kBoundBlock;
  if (k * 4 > blocks) return -__builtin_inff();
  for (int64_t block = 0; block < blocks; ++block) {
    const float* p = x + block * kBoundBlock;
    F best = load(p);
    for (int64_t i = kLanes; i < kBoundBlock; i += kLanes) best = vmax(best, load(p + i));
    scratch[block] = hmax(best);
  }
  const Border border = find_border<int64_t>(scratch, blocks, k, [](int64_t) { return 1; });
  for (int64_t block = 0; block < blocks; ++block) {
    if (order_key(scratch[block]) == border.key) return scratch[block];
  }
  return -__builtin_inff();
}

void keep_top_k(Candidates* c, int64_t k) {
  if (k >= c->n) return;
  cut(c, find_border<int64_t>(c->x, c->n, k, [](int64_t) { return 1; }));
}

void keep_top_p(Candidates* c, float top_p, float largest, double total, float* weights) {
  for (int64_t i = 0; i < c->n; i += kLanes) {
    const int count = c->n - i < kLanes ? static_cast<int>(c->n - i) : kLanes;
    const F v = count == kLanes ? load(c->x + i) : load_tail(c->x + i, count);
    store_tail(weights + i, exp(v - set1(largest)), count);
  }
  if (total < 0) {
    total = 0;
    for (int64_t i = 0; i < c->n; ++i) total += static_cast<double>(weights[i]);
  }
  const double target = static_cast<double>(top_p) * total;
  cut(c, find_border<double>(c->x, c->n, target, [&](int64_t i) { return static_cast<double>(weights[i]); }));
}

void keep_min_p(Candidates* c, float min_p, float largest) {
  // As logits, so that nothing depends on how probabilities are added up. The most likely one always stays.
  const float least = largest + __builtin_logf(min_p < 1.0f ? min_p : 1.0f);
  int64_t kept = 0;
  for (int64_t i = 0; i < c->n; ++i) {
    if (!(c->x[i] >= least)) continue;
    c->x[kept] = c->x[i];
    c->ids[kept++] = c->ids[i];
  }
  c->n = kept;
}

}  // namespace mla::cpu::MLA_CPU_ISA
