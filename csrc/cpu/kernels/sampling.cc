// sampling.cc - one token per row of logits. Settings, their order and the noise are described in ops/ops.h and
// common/philox.h. Test: test/cpu/reference-sample.test.ts.
//
// A row's work: penalties and temperature into a scratch row; if there are filters, a list of candidates that they
// shorten; then the largest of x + noise. The log-probability is taken from the logits as they came, all V of them.
#include "cpu/errors.h"
#include "cpu/kernels.h"
#include "cpu/kernels/attention_workspace.h"
#include "cpu/kernels/random_lanes.h"
#include "cpu/kernels/sampling_filter.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

/// Above this share of the vocabulary, noise for all tokens by vectors is cheaper than token by token.
constexpr int64_t kManyCandidates = 8;

enum class Fault { kNone, kNotFinite, kNothingAllowed, kSettings };

struct Row {
  const float* logits;
  const int32_t* counts;  // may be null
  const float* bias;      // may be null
  const uint32_t* mask;   // may be null
  const float* settings;
  int64_t width, vocab;  // vocab <= width
  uint64_t seed;
  int32_t position;
};

struct Pick {
  float value = -__builtin_inff();
  int32_t id = -1;
};

/// The largest of n floats; false where one is NaN or +inf.
bool find_largest(const float* x, int64_t n, float* largest) {
  const F inf = set1(__builtin_inff());
  F best = set1(-__builtin_inff());
  I bad = I{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F v = load(x + i);
    bad |= ~(v < inf);
    best = vmax(best, v);
  }
  for (; i < n; ++i) {
    bad[0] |= x[i] < __builtin_inff() ? 0 : -1;
    best[0] = x[i] > best[0] ? x[i] : best[0];
  }
  int32_t any = 0;
  for (int j = 0; j < kLanes; ++j) any |= bad[j];
  *largest = hmax(best);
  return any == 0;
}

/// Sum of e^(x - largest), in a fixed order.
double sum_exp(const float* x, int64_t n, float largest) {
  constexpr int64_t kRun = 64;  // vectors that are added up in float32
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun * kLanes) {
    const int64_t end = begin + kRun * kLanes < n ? begin + kRun * kLanes : n;
    F sum = zero();
    for (int64_t i = begin; i < end; i += kLanes) {
      const int count = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
      F e;
      if (count == kLanes) {
        e = exp(load(x + i) - set1(largest));
      } else {
        e = zero();
        for (int j = 0; j < count; ++j) e[j] = exp1(x[i + j] - largest);
      }
      sum += e;
    }
    total += static_cast<double>(hsum(sum));
  }
  return total;
}

/// The first index of `value`, the largest of n floats.
int32_t find_first(const float* x, int64_t n, float value) {
  constexpr int64_t kSkip = 4 * kLanes;
  int64_t i = 0;
  for (; i + kSkip <= n; i += kSkip) {
    const F a = vmax(load(x + i), load(x + i + kLanes));
    const F b = vmax(load(x + i + 2 * kLanes), load(x + i + 3 * kLanes));
    if (hmax(vmax(a, b)) == value) break;  // value is the largest of all
  }
  for (; i < n; ++i) {
    if (x[i] == value) return static_cast<int32_t>(i);
  }
  return -1;
}

/// A logit after the penalties on an id with this count.
float penalised(float x, int32_t count, const float* settings) {
  if (count <= 0) return x;
  const float repeated = x > 0 ? x / settings[4] : x * settings[4];
  const int32_t n = count & (kInPrompt - 1);
  if (n == 0) return repeated;
  return __builtin_fmaf(-settings[6], static_cast<float>(n), repeated - settings[5]);
}

/// The vocab's logits after penalties and bias, with -inf where the mask forbids. Uses `out` only if something changes.
const float* apply_penalties(const Row& row, float* out) {
  if (row.counts == nullptr && row.bias == nullptr && row.mask == nullptr) return row.logits;
  for (int64_t i = 0; i < row.vocab; ++i) {
    const bool allowed = row.mask == nullptr || (row.mask[i / 32] >> (i % 32) & 1) != 0;
    float x = row.counts == nullptr ? row.logits[i] : penalised(row.logits[i], row.counts[i], row.settings);
    if (row.bias != nullptr) x += row.bias[i];
    out[i] = allowed ? x : -__builtin_inff();
  }
  return out;
}

const float* apply_temperature(const float* x, int64_t n, float temperature, float* out) {
  if (temperature == 1.0f) return x;
  const F divisor = set1(temperature);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) / divisor);
  for (; i < n; ++i) out[i] = x[i] / temperature;
  return out;
}

/// argmax of x + noise over ids [0, n), ties to the lowest.
Pick pick_among_all(const float* x, int64_t n, uint64_t seed, int32_t position) {
  constexpr int64_t kBlock = 4 * kLanes;
  float noise[kBlock], last[kBlock];
  F best = set1(-__builtin_inff());
  I best_block = set1_i(-1);
  for (int64_t block = 0; block < n; block += kBlock) {
    gumbel_block(seed, position, static_cast<int32_t>(block), noise);
    const float* from = x + block;
    if (block + kBlock > n) {
      for (int64_t i = 0; i < kBlock; ++i) last[i] = block + i < n ? x[block + i] : -__builtin_inff();
      from = last;
    }
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const F v = load(from + i) + load(noise + i);
      const I better = v > best;
      best = better ? v : best;
      best_block = better ? set1_i(static_cast<int32_t>(block + i)) : best_block;
    }
  }
  Pick pick;
  for (int j = 0; j < kLanes; ++j) {
    const int32_t id = best_block[j] + j;
    if (best_block[j] < 0) continue;
    if (best[j] > pick.value || (best[j] == pick.value && id < pick.id)) pick = {best[j], id};
  }
  return pick;
}

Pick pick_among(const Candidates& c, uint64_t seed, int32_t position) {
  Pick pick;
  for (int64_t i = 0; i < c.n; ++i) {
    const uint32_t id = static_cast<uint32_t>(c.ids[i]);
    const PhiloxWords words = philox4x32_10(seed, static_cast<uint32_t>(position), id / 4, 0, 0);
    const float value = c.x[i] + philox_gumbel(words.w[id % 4]);
    if (value > pick.value) pick = {value, c.ids[i]};
  }
  return pick;
}

/// Filters and noise. x is scaled; `largest` is its maximum, finite.
int32_t draw(const Row& row, const float* x, float largest, const SampleScratch& scratch) {
  const int64_t n = row.vocab;
  const float top_k = row.settings[1], top_p = row.settings[2], min_p = row.settings[3];
  const bool by_k = top_k >= 1 && top_k < static_cast<float>(n), by_p = top_p<1, by_min = min_p> 0;
  if (!by_k && !by_p && !by_min) return pick_among_all(x, n, row.seed, row.position).id;

  Candidates c{scratch.candidates, scratch.ids, 0};
  double total = -1;
  float least = -__builtin_inff();
  if (by_k) {
    least = top_k_bound(x, n, static_cast<int64_t>(top_k), scratch.weights);
  } else if (by_p) {
    // All candidates below this bound together hold less than half of what top_p leaves out.
    total = sum_exp(x, n, largest);
    const double share = 0.5 * (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(n);
    least = largest + __builtin_logf(static_cast<float>(share));
  } else {
    least = largest + __builtin_logf(min_p < 1.0f ? min_p : 1.0f);
  }
  collect(x, n, least, &c);
  if (by_k) keep_top_k(&c, static_cast<int64_t>(top_k));
  if (by_p) keep_top_p(&c, top_p, largest, total, scratch.weights);
  if (by_min) keep_min_p(&c, min_p, largest);
  if (c.n < n / kManyCandidates) return pick_among(c, row.seed, row.position).id;

  float* all = scratch.weights;
  for (int64_t i = 0; i < n; ++i) all[i] = -__builtin_inff();
  for (int64_t i = 0; i < c.n; ++i) all[c.ids[i]] = c.x[i];
  return pick_among_all(all, n, row.seed, row.position).id;
}

Fault sample_row(const Row& row, const SampleScratch& scratch, int32_t* id, float* logprob) {
  const float temperature = row.settings[0];
  bool sane = temperature >= 0 && temperature < __builtin_inff();
  for (int i = 1; i < 4; ++i) sane = sane && row.settings[i] == row.settings[i];
  if (row.counts != nullptr) {
    sane = sane && row.settings[4] > 0 && row.settings[4] < __builtin_inff();
    for (int i = 5; i < 7; ++i) sane = sane && __builtin_fabsf(row.settings[i]) < __builtin_inff();
  }
  if (!sane) return Fault::kSettings;

  float raw_largest, largest;
  if (!find_largest(row.logits, row.width, &raw_largest)) return Fault::kNotFinite;
  const float* x = apply_penalties(row, scratch.x);
  if (!find_largest(x, row.vocab, &largest)) return Fault::kNotFinite;
  if (!(largest > -__builtin_inff())) return Fault::kNothingAllowed;

  // Where the temperature is so low that the largest logit overflows, sampling has become greedy.
  const bool greedy = temperature == 0 || __builtin_fabsf(largest / temperature) == __builtin_inff();
  if (greedy) {
    *id = find_first(x, row.vocab, largest);
  } else {
    x = apply_temperature(x, row.vocab, temperature, scratch.x);
    *id = draw(row, x, largest / temperature, scratch);
  }
  if (logprob != nullptr) {
    const double sum = sum_exp(row.logits, row.width, raw_largest);
    *logprob = row.logits[*id] - raw_largest - __builtin_logf(static_cast<float>(sum));
  }
  return Fault::kNone;
}

}  // namespace

Status sample(const SampleParams& p, Context& ctx) {
  const int64_t rows = p.logits.dim(0), width = p.logits.dim(1);
  const int32_t* positions = p.positions.as<int32_t>();
  int32_t* ids = p.ids.as<int32_t>();
  float* logprobs = p.logprobs.present() ? p.logprobs.as<float>() : nullptr;
  int64_t failed = rows;  // the first row that failed, whoever finds it
  ctx.pool->parallel_for(rows, 1, [&](int64_t begin, int64_t end, int worker) {
    Carver carver{ctx.workspace.as<uint8_t>()};
    const SampleScratch scratch = sample_scratch(p, worker, &carver);
    for (int64_t b = begin; b < end; ++b) {
      ids[b] = -1;
      if (logprobs != nullptr) logprobs[b] = 0;
      if (positions[b] < 0) continue;
      Row row;
      row.logits = p.logits.as<float>() + b * width;
      row.counts = p.counts.present() ? p.counts.as<int32_t>() + b * width : nullptr;
      row.bias = p.bias.present() ? p.bias.as<float>() + b * width : nullptr;
      row.mask = p.mask.present() ? p.mask.as<uint32_t>() + b * p.mask.dim(1) : nullptr;
      row.settings = p.settings.as<float>() + b * kSamplingColumns;
      row.width = width;
      row.vocab = p.vocab < width ? p.vocab : width;
      row.seed = static_cast<uint64_t>(p.seeds.as<int64_t>()[b]);
      row.position = positions[b];
      const Fault fault = sample_row(row, scratch, ids + b, logprobs == nullptr ? nullptr : logprobs + b);
      if (fault == Fault::kNone) continue;
      // Which fault it was stands in the id until the error is made below.
      ids[b] = -1 - static_cast<int32_t>(fault);
      int64_t seen = __atomic_load_n(&failed, __ATOMIC_RELAXED);
      while (b < seen && !__atomic_compare_exchange_n(&failed, &seen, b, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
    }
  });
  if (failed == rows) return Status::Ok();
  const Fault fault = static_cast<Fault>(-1 - ids[failed]);
  for (int64_t b = 0; b < rows; ++b) ids[b] = ids[b] < 0 ? -1 : ids[b];
  switch (fault) {
    case Fault::kNotFinite:
      return invalid_row("sample", "logits", failed, "has NaN or +infinity; expected finite logits or -infinity");
    case Fault::kNothingAllowed:
      return invalid_row("sample", "logits", failed,
                         "leaves no token to choose; expected one that is above -infinity "
                         "and allowed by the mask");
    default:
      return invalid_row("sample", "settings", failed,
                         "is out of range; expected temperature >= 0, repetition > 0, "
                         "and no NaN");
  }
}

}  // namespace mla::cpu::MLA_CPU_ISA
