// mha_decode.cu - plain multi-head attention of one row per sequence over a paged cache of per-head keys and values:
// what the latent cache is compared with (mla bench cache), so it must be as fast as memory.
//
//   s = scale * q . key; p = softmax(s); out = sum p * value, in float32; p rounded to the activations' type
//
// Each key is read by one head alone: 2 operations a byte, so plain arithmetic keeps up with memory and tensor cores
// would idle. Eight lanes share a key and its value; a warp looks at 8 keys at once (4 where rows are wide, because
// they wait in registers), and its four groups of lanes keep softmax states of their own until the end, so that a key
// costs three shuffles.
//
// Grid: (blocks of 8 heads, splits of the keys, sequences); block 256, a head per warp. The splits of a row are then
// merged, a warp per head. Limits: n + r and v up to 256, multiples of 8, 16-byte aligned. Test:
// test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "cuda/attention/kernels.h"
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/device/workspace.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kLanesPerKey = 8;
constexpr int kGroups = 32 / kLanesPerKey;
constexpr int kChunk = kLanesPerKey * 8;  // channels that a key's lanes take at once, 8 each
constexpr int kBlocksPerSm = 2;
constexpr int kMaxSplits = 64;
constexpr int kMaxRounds = 4;  // of blocks; more splits than that balance no better

struct MhaArgs {
  const void* q;               // [B, H, head]
  const void* cache;           // [pages, 64, H, head + v]
  const int32_t* block_table;  // [B, max_pages]
  const int32_t* lengths;      // [B]
  void* out;                   // [B, H * v]
  float* partial;              // [B, H, splits, v], not divided by the sums
  float2* max_sum;             // [B, H, splits]: the largest score in powers of two, and the sum relative to it
  int64_t pages;
  int heads, head, v, max_pages, splits;
  float scale_log2;
};

/// Eight neighbouring elements as they lie in memory.
template <class T>
struct Raw;
template <>
struct Raw<Bf16> {
  uint4 bits;
  __device__ __forceinline__ void load(const Bf16* p) { bits = load16(p); }
  __device__ __forceinline__ void clear() { bits = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ void widen(float (&v)[8]) const {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = bf16_low(words[i]);
      v[2 * i + 1] = bf16_high(words[i]);
    }
  }
};
template <>
struct Raw<float> {
  float values[8];
  __device__ __forceinline__ void load(const float* p) { load8(p, values); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = 0;
  }
  __device__ __forceinline__ void widen(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = values[i];
  }
};

/// Loads `width` channels of a row, those of this lane: 8 of each chunk. What lies behind them, and all of an absent
/// row, is zero.
template <class T, int kChunks>
__device__ __forceinline__ void load_channels(const T* row, int width, int part, bool present, Raw<T> (&out)[kChunks]) {
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int channel = c * kChunk + part * 8;
    if (present && channel < width) {
      out[c].load(row + channel);
    } else {
      out[c].clear();
    }
  }
}

/// kKeyChunks and kValueChunks: how many chunks n + r and v have at most.
template <class T, int kKeyChunks, int kValueChunks>
__global__ __launch_bounds__(32 * kWarps, sizeof(T) == 2 ? kBlocksPerSm : 1) void mha_decode_kernel(MhaArgs a) {
  constexpr int kUnroll = sizeof(T) * (kKeyChunks + kValueChunks) <= 10 ? 2 : 1;
  constexpr int kStep = kGroups * kUnroll;  // keys of a warp; divides a page
  const int lane = threadIdx.x % 32, group = lane / kLanesPerKey, part = lane % kLanesPerKey;
  const int h = blockIdx.x * kWarps + threadIdx.x / 32, split = blockIdx.y, b = blockIdx.z;
  pdl_wait();
  pdl_launch_dependents();
  if (h >= a.heads) return;
  const int64_t pair = int64_t{b} * a.heads + h;
  const int length = max(0, min(a.lengths[b], a.max_pages * kPageTokens));
  const int per_split = div_up(div_up(length, a.splits), kStep) * kStep;
  const int begin = min(split * per_split, length), end = min(begin + per_split, length);
  const int32_t* table = a.block_table + int64_t{b} * a.max_pages;
  const int64_t width = a.head + a.v, token = a.heads * width;
  const T* cache = static_cast<const T*>(a.cache) + h * width;

  float q[kKeyChunks][8];
  {
    Raw<T> raw[kKeyChunks];
    load_channels<T, kKeyChunks>(static_cast<const T*>(a.q) + pair * a.head, a.head, part, true, raw);
#pragma unroll
    for (int c = 0; c < kKeyChunks; ++c) {
      raw[c].widen(q[c]);
#pragma unroll
      for (int i = 0; i < 8; ++i) q[c][i] *= a.scale_log2;
    }
  }
  float largest = -INFINITY, sum = 0, out[kValueChunks][8];
#pragma unroll
  for (int c = 0; c < kValueChunks; ++c) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[c][i] = 0;
  }

  for (int key = begin; key < end; key += kStep) {
    const int page = table[key / kPageTokens];
    const bool exists = page >= 0 && page < a.pages;
    const T* rows = cache + (int64_t{exists ? page : 0} * kPageTokens + key % kPageTokens) * token;
    Raw<T> keys[kUnroll][kKeyChunks], values[kUnroll][kValueChunks];
    bool seen[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int mine = u * kGroups + group;
      seen[u] = exists && key + mine < end;
      load_channels<T, kKeyChunks>(rows + mine * token, a.head, part, seen[u], keys[u]);
      load_channels<T, kValueChunks>(rows + mine * token + a.head, a.v, part, seen[u], values[u]);
    }
    float score[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float dot = 0;
#pragma unroll
      for (int c = 0; c < kKeyChunks; ++c) {
        float k[8];
        keys[u][c].widen(k);
#pragma unroll
        for (int i = 0; i < 8; ++i) dot = fmaf(q[c][i], k[i], dot);
      }
#pragma unroll
      for (int offset = kLanesPerKey / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(kFullWarp, dot, offset);
      score[u] = seen[u] ? dot : -INFINITY;
    }
    float most = largest;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) most = fmaxf(most, score[u]);
    const float shift = softmax_shift(most), keep = exp2_approx(largest - shift);
    largest = most;
    sum *= keep;
#pragma unroll
    for (int c = 0; c < kValueChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out[c][i] *= keep;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float p = exp2_approx(score[u] - shift);
      sum += p;
      const float weight = to_float(from_float<T>(p));
#pragma unroll
      for (int c = 0; c < kValueChunks; ++c) {
        float v[8];
        values[u][c].widen(v);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[c][i] = fmaf(weight, v[i], out[c][i]);
      }
    }
  }

  // The four groups become one.
  float most = largest;
#pragma unroll
  for (int offset = kLanesPerKey; offset < 32; offset *= 2) {
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, offset));
  }
  const float keep = exp2_approx(largest - softmax_shift(most));
  sum *= keep;
#pragma unroll
  for (int offset = kLanesPerKey; offset < 32; offset *= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
#pragma unroll
  for (int c = 0; c < kValueChunks; ++c) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float x = out[c][i] * keep;
#pragma unroll
      for (int offset = kLanesPerKey; offset < 32; offset *= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
      out[c][i] = x;
    }
  }
  const int64_t slot = pair * a.splits + split;
  if (a.splits > 1 && lane == 0) a.max_sum[slot] = make_float2(most, sum);
  if (group > 0) return;
  const float inverse = inverse_sum(sum);
#pragma unroll
  for (int c = 0; c < kValueChunks; ++c) {
    const int channel = c * kChunk + part * 8;
    if (channel >= a.v) continue;
    if (a.splits > 1) {
      store8(a.partial + slot * a.v + channel, out[c]);
      continue;
    }
    float x[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = out[c][i] * inverse;
    store8(static_cast<T*>(a.out) + pair * a.v + channel, x);
  }
}

/// A warp per (sequence, head). A split without keys has left its sum alone.
template <class T>
__global__ __launch_bounds__(32 * kWarps) void mha_decode_merge_kernel(MhaArgs a, int64_t pairs) {
  pdl_wait();
  pdl_launch_dependents();
  const int lane = threadIdx.x % 32;
  const int64_t pair = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (pair >= pairs) return;
  const float2* max_sum = a.max_sum + pair * a.splits;
  float most = -INFINITY;
  for (int s = lane; s < a.splits; s += 32) most = fmaxf(most, max_sum[s].x);
  most = warp_max(most);
  const float shift = softmax_shift(most);
  float sum = 0;
  for (int s = lane; s < a.splits; s += 32) sum += max_sum[s].y * exp2_approx(max_sum[s].x - shift);
  const float inverse = inverse_sum(warp_sum(sum));
  for (int channel = lane * 8; channel < a.v; channel += 32 * 8) {
    float x[8] = {};
    for (int s = 0; s < a.splits; ++s) {
      if (max_sum[s].y == 0) continue;
      const float weight = exp2_approx(max_sum[s].x - shift);
      float part[8];
      load8(a.partial + (pair * a.splits + s) * a.v + channel, part);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = fmaf(part[i], weight, x[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= inverse;
    store8(static_cast<T*>(a.out) + pair * a.v + channel, x);
  }
}

/// Of the numbers of splits that need at most kMaxRounds rounds of blocks, the one whose last round is fullest.
int splits_for(const MhaDecodeParams& p, const Traits& traits) {
  const int64_t blocks = p.q.dim(0) * div_up<int64_t>(p.q.dim(1), kWarps);
  const int64_t at_once = std::max(1, traits.multiprocessors) * kBlocksPerSm;
  const int64_t most = std::clamp<int64_t>(p.block_table.dim(1), 1, kMaxSplits);
  int best = 1;
  double fullest = 0;
  for (int splits = 1; splits <= most; ++splits) {
    const int64_t rounds = div_up(blocks * splits, at_once);
    if (splits > 1 && rounds > kMaxRounds) break;
    const double full = static_cast<double>(blocks * splits) / static_cast<double>(rounds * at_once);
    if (full < fullest) continue;
    fullest = full;
    best = splits;
  }
  return best;
}

struct Scratch {
  float* partial = nullptr;
  float2* max_sum = nullptr;
};

Scratch cut(const MhaDecodeParams& p, int splits, Carver* carver) {
  Scratch scratch;
  if (splits == 1) return scratch;
  const int64_t slots = p.q.dim(0) * p.q.dim(1) * splits;
  scratch.partial = carver->take<float>(slots * (p.cache.dim(3) - p.q.dim(2)));
  scratch.max_sum = carver->take<float2>(slots);
  return scratch;
}

template <class T, int kKeyChunks, int kValueChunks>
Status launch_one(const MhaArgs& args, dim3 grid, int64_t pairs, const Launch& launch) {
  MLA_RETURN_IF_ERROR(cuda_status(
      launch_pdl(mha_decode_kernel<T, kKeyChunks, kValueChunks>, grid, dim3(32 * kWarps), 0, launch.stream, args),
      "mha_decode_kernel"));
  if (args.splits == 1) return Status::Ok();
  const dim3 merge(static_cast<unsigned>(div_up<int64_t>(pairs, kWarps)));
  return cuda_status(launch_pdl(mha_decode_merge_kernel<T>, merge, dim3(32 * kWarps), 0, launch.stream, args, pairs),
                     "mha_decode_merge_kernel");
}

template <class T>
Status launch_width(const MhaArgs& args, dim3 grid, int64_t pairs, const Launch& launch) {
  if (args.head <= 3 * kChunk && args.v <= 2 * kChunk) return launch_one<T, 3, 2>(args, grid, pairs, launch);
  return launch_one<T, 4, 4>(args, grid, pairs, launch);
}

constexpr int64_t kMaxWidth = 4 * kChunk;

}  // namespace

int64_t workspace(const MhaDecodeParams& p, const Traits& traits) {
  Carver count;
  cut(p, splits_for(p, traits), &count);
  return count.used == 0 ? 0 : count.used + 256;  // the tensor may begin anywhere
}

Status mhaDecode(const MhaDecodeParams& p, const Launch& launch) noexcept {
  const int64_t sequences = p.q.dim(0), heads = p.q.dim(1), head = p.q.dim(2), v = p.cache.dim(3) - head;
  if (sequences == 0) return Status::Ok();
  if (head > kMaxWidth || v > kMaxWidth || head % 8 != 0 || v % 8 != 0 || !aligned16(p.q.data) ||
      !aligned16(p.cache.data) || !aligned16(p.out.data)) {
    return Status::Error(Code::kUnsupported,
                         "mhaDecode: keys of " + std::to_string(head) + " and values of " + std::to_string(v) +
                             " channels; this GPU's kernels take multiples of 8 up to " + std::to_string(kMaxWidth) +
                             ", aligned to 16 bytes. Use the CPU backend.");
  }
  MhaArgs args;
  args.q = p.q.data;
  args.cache = p.cache.data;
  args.block_table = p.block_table.as<int32_t>();
  args.lengths = p.lengths.as<int32_t>();
  args.out = p.out.data;
  args.pages = p.cache.dim(0);
  args.heads = static_cast<int>(heads);
  args.head = static_cast<int>(head);
  args.v = static_cast<int>(v);
  args.max_pages = static_cast<int>(p.block_table.dim(1));
  args.splits = splits_for(p, *launch.traits);
  args.scale_log2 = p.scale * kLog2E;
  Carver carver{reinterpret_cast<char*>(
      round_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(launch.workspace.data)), int64_t{256}))};
  const Scratch scratch = cut(p, args.splits, &carver);
  args.partial = scratch.partial;
  args.max_sum = scratch.max_sum;
  const dim3 grid(static_cast<unsigned>(div_up<int64_t>(heads, kWarps)), static_cast<unsigned>(args.splits),
                  static_cast<unsigned>(sequences));
  return p.q.dtype == DType::kBF16 ? launch_width<Bf16>(args, grid, sequences * heads, launch)
                                   : launch_width<float>(args, grid, sequences * heads, launch);
}

Status load_mha_decode_kernels() {
  constexpr const char* kName = "mha_decode_kernel";
  MLA_RETURN_IF_ERROR(load_kernel(mha_decode_kernel<Bf16, 3, 2>, kName));
  MLA_RETURN_IF_ERROR(load_kernel(mha_decode_kernel<Bf16, 4, 4>, kName));
  MLA_RETURN_IF_ERROR(load_kernel(mha_decode_kernel<float, 3, 2>, kName));
  MLA_RETURN_IF_ERROR(load_kernel(mha_decode_kernel<float, 4, 4>, kName));
  MLA_RETURN_IF_ERROR(load_kernel(mha_decode_merge_kernel<Bf16>, kName));
  return load_kernel(mha_decode_merge_kernel<float>, kName);
}

}  // namespace mla::cuda
