// sample.cu - one token per row of logits. ops/ops.h has the settings, their order and the noise; common/philox.h its
// bits.
//
//   1  sample_scan_kernel     a block per kPiece logits: the largest, the sum for the log-probability, the largest one
//                             after penalties and mask; for rows that are not filtered the largest of
//                             logit / temperature + noise, for the others the scaled logits
//   2  sample_choose_kernel   a block of 1024 per row puts the pieces together; filtered rows go through
//                             sample_filter.cuh
//
// The host does not know the settings, so both kernels run always; a greedy row costs them one look at its logits.
// Choices are those of the CPU bit for bit (penalties, temperature and noise have the same bits) unless two sums of
// probabilities differ at top_p's border. A row that leaves nothing to choose (NaN or +infinity among its logits,
// everything masked, settings out of range) gives id -1 and log-probability 0. Workspace: partial results, and
// [B, vocab] float32. Bandwidth-bound as far as rows are not filtered. Test: test/gpu/sampling.test.ts.
#include "cuda/device/pdl.cuh"
#include "cuda/device/workspace.h"
#include "cuda/sampling/kernels.h"
#include "cuda/sampling/sample_filter.cuh"

namespace mla::cuda {
namespace {

constexpr int kScanThreads = 256;
/// Four logits a thread: little code, which no cache has any more, and few registers, so that a block finds a place
/// beside the head's. It lets the next kernel start at once. A step of V2-Lite, H200, 2026-11, 1 sequence, us: 1913
/// with pieces of 4096, 1905 with 1024, 1900 eager as well; fp8 weights 1630, 1616, 1615; 32 sequences: no difference.
constexpr int64_t kPiece = kScanThreads * 4;

/// Four values from 4 * quad on; `missing` past n.
template <class T, class T4>
__device__ __forceinline__ void load_quad(const T* row, int64_t quad, int64_t n, bool vector, T missing, T (&v)[4]) {
  if (vector && 4 * quad + 4 <= n) {
    const T4 four = reinterpret_cast<const T4*>(row)[quad];
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = 4 * quad + i < n ? row[4 * quad + i] : missing;
}

__global__ __launch_bounds__(kScanThreads) void sample_scan_kernel(SampleArgs a) {
  __shared__ float s_floats[kScanThreads / 32];
  __shared__ Best s_bests[32];
  pdl_launch_dependents();
  pdl_wait();
  const int64_t row = blockIdx.x / a.pieces, quad = blockIdx.x % a.pieces * kScanThreads + threadIdx.x;
  const int32_t position = a.positions[row];
  const SampleSettings settings(a, row);
  if (position < 0 || !settings.sane(a.counts != nullptr)) return;
  const bool filters = settings.filters(a.vocab);
  const bool store = settings.temperature > 0 && filters, noisy = settings.temperature > 0 && !filters;

  float raw[4];
  load_quad<float, float4>(a.logits + row * a.width, quad, a.width, a.vector, -INFINITY, raw);
  float raw_largest = -INFINITY;
  bool bad = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bad |= !(raw[i] < INFINITY);
    raw_largest = fmaxf(raw_largest, raw[i]);
  }
  raw_largest = block_max<kScanThreads>(raw_largest, s_floats);
  float raw_sum = 0;
  if (a.logprobs != nullptr && raw_largest > -INFINITY) {
#pragma unroll
    for (int i = 0; i < 4; ++i) raw_sum += expf(raw[i] - raw_largest);
    raw_sum = block_sum<kScanThreads>(raw_sum, s_floats);
  }

  Best best{-INFINITY, kNoId}, best_noisy{-INFINITY, kNoId};
  if (4 * quad < a.vocab) {
    int32_t counts[4] = {};
    if (a.counts != nullptr) {
      load_quad<int32_t, int4>(a.counts + row * a.width, quad, a.width, a.vector, 0, counts);
    }
    float bias[4] = {};
    if (a.bias != nullptr) {
      load_quad<float, float4>(a.bias + row * a.width, quad, a.width, a.vector, 0.0f, bias);
    }
    uint32_t allowed = 15;
    if (a.mask != nullptr) allowed = a.mask[row * a.mask_words + quad / 8] >> (quad % 8 * 4);
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = raw[i];
      if (a.counts != nullptr) x[i] = settings.penalised(x[i], counts[i]);
      if (a.bias != nullptr) x[i] = __fadd_rn(x[i], bias[i]);
      if ((allowed >> i & 1) == 0 || 4 * quad + i >= a.vocab) x[i] = -INFINITY;
      bad |= !(x[i] < INFINITY);
      best = better(best, {x[i], static_cast<int32_t>(4 * quad + i)});
      if (store || noisy) x[i] = x[i] / settings.temperature;
    }
    if (store) {
      reinterpret_cast<float4*>(a.scaled + row * a.stride)[quad] = make_float4(x[0], x[1], x[2], x[3]);
    }
    if (noisy) {
      const QuadNoise noise(a.seeds[row], position, quad);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        best_noisy = better(best_noisy, {x[i] + noise.v[i], static_cast<int32_t>(4 * quad + i)});
    }
  }
  best = block_best_of(best, s_bests);
  best_noisy = block_best_of(best_noisy, s_bests);
  bad = __syncthreads_or(bad) != 0;
  if (threadIdx.x == 0) a.partials[blockIdx.x] = {best, best_noisy, raw_largest, raw_sum, bad, 0};
}

/// The chosen id, or -1.
__device__ __forceinline__ int32_t choose(const SampleArgs& a, int64_t row, const SampleSettings& settings, Best best,
                                          Best noisy, bool bad, FilterShared& s) {
  if (bad || !(best.value > -INFINITY)) return -1;
  // Where the temperature is so low that the largest logit overflows, sampling has become greedy.
  const float largest = best.value / settings.temperature;
  if (settings.temperature == 0 || fabsf(largest) == INFINITY) return best.index;
  if (!settings.filters(a.vocab)) return noisy.index;
  const FilteredRow filtered{a.scaled + row * a.stride, a.stride, largest, s};
  return filtered.draw(filtered.border(settings, a.vocab), a.seeds[row], a.positions[row]).index;
}

__global__ __launch_bounds__(kFilterThreads) void sample_choose_kernel(SampleArgs a) {
  extern __shared__ FilterShared s_filter[];
  __shared__ float s_floats[32];
  FilterShared& s = s_filter[0];
  pdl_wait();
  pdl_launch_dependents();
  const int64_t row = blockIdx.x;
  const SampleSettings settings(a, row);
  int32_t id = -1;
  float logprob = 0;
  if (a.positions[row] >= 0 && settings.sane(a.counts != nullptr)) {
    const SamplePartial* const partials = a.partials + row * a.pieces;
    Best best{-INFINITY, kNoId}, noisy{-INFINITY, kNoId};
    float largest = -INFINITY, sum = 0;
    bool bad = false;
    for (int64_t i = threadIdx.x; i < a.pieces; i += kFilterThreads) {
      best = better(best, partials[i].best);
      noisy = better(noisy, partials[i].noisy);
      largest = fmaxf(largest, partials[i].raw_largest);
      bad |= partials[i].bad != 0;
    }
    best = block_best_of(best, s.bests);
    noisy = block_best_of(noisy, s.bests);
    bad = __syncthreads_or(bad) != 0;
    largest = block_max<kFilterThreads>(largest, s_floats);
    if (a.logprobs != nullptr && largest > -INFINITY) {
      for (int64_t i = threadIdx.x; i < a.pieces; i += kFilterThreads) {
        sum += partials[i].raw_sum * expf(partials[i].raw_largest - largest);
      }
      sum = block_sum_of(sum, s_floats);
    }
    id = choose(a, row, settings, best, noisy, bad, s);
    if (id >= 0 && a.logprobs != nullptr) logprob = a.logits[row * a.width + id] - largest - logf(sum);
  }
  if (threadIdx.x != 0) return;
  a.ids[row] = id;
  if (a.logprobs != nullptr) a.logprobs[row] = logprob;
}

SampleArgs args_of(const SampleParams& p, Carver* carver) {
  SampleArgs args;
  const int64_t rows = p.logits.dim(0);
  args.width = p.logits.dim(1);
  args.vocab = p.vocab < args.width ? p.vocab : args.width;
  args.stride = round_up(args.vocab, 4);
  args.pieces = ceil_div(args.width, kPiece);
  args.partials = carver->take<SamplePartial>(rows * args.pieces);
  args.scaled = carver->take<float>(rows * args.stride);
  args.logits = p.logits.as<const float>();
  args.settings = p.settings.as<const float>();
  args.seeds = p.seeds.as<const int64_t>();
  args.positions = p.positions.as<const int32_t>();
  args.counts = p.counts.present() ? p.counts.as<const int32_t>() : nullptr;
  args.bias = p.bias.present() ? p.bias.as<const float>() : nullptr;
  args.mask = p.mask.present() ? p.mask.as<const uint32_t>() : nullptr;
  args.mask_words = p.mask.present() ? p.mask.dim(1) : 0;
  args.ids = p.ids.as<int32_t>();
  args.logprobs = p.logprobs.present() ? p.logprobs.as<float>() : nullptr;
  args.vector = args.width % 4 == 0 && aligned16(args.logits) && aligned16(args.counts) && aligned16(args.bias);
  return args;
}

}  // namespace

int64_t workspace(const SampleParams& p, const Traits& traits) {
  (void)traits;
  Carver carver;
  args_of(p, &carver);
  return carver.used;
}

Status sample(const SampleParams& p, const Launch& launch) noexcept {
  const int64_t rows = p.logits.dim(0);
  if (rows == 0) return Status::Ok();
  Carver carver{launch.workspace.as<char>()};
  const SampleArgs args = args_of(p, &carver);
  MLA_RETURN_IF_ERROR(cuda_status(launch_eager(sample_scan_kernel, dim3(static_cast<unsigned>(rows * args.pieces)),
                                               dim3(kScanThreads), 1, 0, launch.stream, args),
                                  "sample_scan_kernel"));
  return cuda_status(launch_pdl(sample_choose_kernel, dim3(static_cast<unsigned>(rows)), dim3(kFilterThreads),
                                sizeof(FilterShared), launch.stream, args),
                     "sample_choose_kernel");
}

Status load_sample_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(sample_scan_kernel, "sample_scan_kernel"));
  return load_kernel(sample_choose_kernel, "sample_choose_kernel", static_cast<int>(sizeof(FilterShared)));
}

}  // namespace mla::cuda
