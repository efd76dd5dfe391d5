// attention.cuh - absorbed attention of one row within a resident kernel, up to 16 heads.
//
//   s = qa K^T;  p = 2^(s - m);  acc += p V,  by every block over its pages of the cache (cache_range.cuh)
//   u = sum of all blocks' acc 2^(m - M) / L,  by every block for 64 channels of a head
//
// The 16 consumer warps share a page of 64 tokens, four stages: a team of four warps multiplies a stage's keys, each
// warp a quarter of the channels (sums through shared memory); a warp does the softmax of a head; each warp multiplies
// the values of 32 channels, all tokens. Heads are the 16 rows of the matrix units. So nothing has to be merged within
// a block, and what a block has found goes from registers into its part of the link: accumulators as floats of 24 bits
// (their last 8 are cut off: an error of 2^-15, where the result is rounded to bf16), four in a wide word.
//
// The block that has the newest token norms its latent and rotates its key out of y, with the bits of
// latent/latent_few_sm90.cu, and puts them into the stage and into the cache.
// Up to half as many pages as blocks, two blocks share a page, each with 8 heads (cache_range.cuh): of the query, sums,
// probabilities and the part to write each has half, of keys and values all.
// Tried: keys in registers before the query is there, values before the probabilities are, half of a page's tokens for
// each of two blocks. From q to u of a chain of layers, H200, 2026-11, us, as here / so: 4096 tokens 10.5 / 11.3,
// 131,072 tokens 53.6 / 66.2. Sums are in an order that follows from the length alone. Precision: float32 but for the
// probabilities (bf16).
#pragma once
#include "cuda/attention/softmax.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/device/shared.cuh"
#include "cuda/resident/absorb.cuh"
#include "cuda/resident/cache_rows.cuh"

namespace mla::cuda {

struct Attention {
  static constexpr int kC = kLatentC, kR = kKeyR, kRow = kCacheRow, kHeads = 16, kWarps = 16, kThreads = kWarps * 32;
  static constexpr int kBarrier = 8;  // named, of the consumers
  static constexpr int kSteps = 9;    // of 16 channels that a warp multiplies for s: 8 of the latent, 1 of the key
  static constexpr int kWarpChannels = kC / kWarps;
  static constexpr int kPageTokens = CacheRange::kPage, kStageTokens = ResidentRing::kRows;
  // Shared memory. The query's place is that of the sums and probabilities as soon as it is in registers.
  static constexpr int kQueryPitch = kRow * 2 + 16;                 // bytes; spreads ldmatrix over all banks
  static constexpr int kTeamSums = 4 * kHeads * kStageTokens + 16;  // floats; likewise for reads of neighbouring teams
  static constexpr int kProbs = 4 * kTeamSums * 4, kProbPitch = kPageTokens * 2 + 16;
  static constexpr int kFactors = kProbs + kHeads * kProbPitch;
  static constexpr int kMerge = 0, kMergeStats = kWarps * 64 * 4;  // behind the sums' last use
  static constexpr int kSharedBytes = 20480;
  static_assert(kHeads * kQueryPitch <= kSharedBytes && kFactors + kHeads * 4 <= kSharedBytes);
  static_assert(kMergeStats + kWarps * 8 <= kSharedBytes);
  // A block's part of the link, in wide words: accumulators [warp][half of the heads][pair of tiles][lane]; {m, l} of
  // each head.
  static constexpr int kPartAcc = kWarps * 2 * 2 * 32, kPartWords = (kPartAcc + kHeads) * 2;
  static constexpr int kMergeColumns = 64;
  static constexpr int kMaxParts = 160;  // blocks; a thread of merge() has every 32nd

  /// Where a head's sum for a token lies, in an order that spreads what a warp writes over all banks.
  static __device__ __forceinline__ int sum_at(int h, int token) { return h * kStageTokens + (token ^ (h & 2) << 2); }

  static __device__ __forceinline__ void sync() { named_barrier_sync(kBarrier, kThreads); }
};

/// Two floats' upper 24 bits and more: four in three words.
__device__ __forceinline__ uint3 pack_floats24(float a, float b, float c, float d) {
  const uint32_t x = __float_as_uint(a), y = __float_as_uint(b), z = __float_as_uint(c), w = __float_as_uint(d);
  return make_uint3(__byte_perm(x, y, 0x5321), __byte_perm(y, z, 0x6532), __byte_perm(z, w, 0x7653));
}
__device__ __forceinline__ float4 unpack_floats24(uint32_t x, uint32_t y, uint32_t z) {
  return make_float4(__uint_as_float(x << 8), __uint_as_float(__byte_perm(x, y, 0x5430) & 0xffffff00u),
                     __uint_as_float(__byte_perm(y, z, 0x4320) & 0xffffff00u), __uint_as_float(z & 0xffffff00u));
}

/// The largest of a warp's numbers; NaN counts as the largest.
__device__ __forceinline__ float warp_max_fast(float x) {
  const auto ordered = [](int bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; };
  return __int_as_float(ordered(__reduce_max_sync(kFullWarp, ordered(__float_as_int(x)))));
}

/// Eight channels of a latent, normed, as bf16 or as codes, whose scale 16 lanes share.
template <class Cache, class Put>
__device__ __forceinline__ void put_latent(int channel, const float (&v)[kChunk], Put&& put) {
  if constexpr (sizeof(Cache) == 2) {
    put(channel * 2,
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])));
  } else {
    static_assert(kRowScaleChannels == 16 * kChunk);
    uint32_t largest = 0, codes[2] = {};
#pragma unroll
    for (int i = 0; i < kChunk; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
#pragma unroll
    for (int i = 1; i < 16; i *= 2) largest = max(largest, __shfl_xor_sync(kFullWarp, largest, i));
    const uint32_t scale = row_scale_bits(largest);
    const float inverse = __uint_as_float(row_inverse_bits(scale));
#pragma unroll
    for (int i = 0; i < kChunk; ++i) codes[i / 4] |= uint32_t{from_float<F8E4M3>(v[i] * inverse).bits} << 8 * (i % 4);
    put(channel, make_uint2(codes[0], codes[1]));
    if (channel % kRowScaleChannels == 0) put(CacheRow<Cache>::kScaleAt + channel / kRowScaleChannels * 4, scale);
  }
}

/// The newest token's row, of a warp: a lane's channels of the latent, normed, and its pair of the key, rotated.
struct NewestRow {
  float v[2][kChunk];
  uint32_t key;
};

/// By one warp: the newest token's row out of y.
__device__ __forceinline__ void take_newest(const Resident& p, const ResidentLayer& layer, uint32_t epoch, int position,
                                            NewestRow& to) {
  constexpr int kHalf = 32 * kChunk;  // channels of a warp of latent_few's
  const int lane = in_place(threadIdx.x) % 32;
  float weight[2][kChunk];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    load_weight_chunk(layer.latent_norm, p.norm_bf16, i * kHalf + lane * kChunk, Attention::kC, true, weight[i]);
  const float2 angle =
      *reinterpret_cast<const float2*>(p.cos_sin + static_cast<int64_t>(position) * Attention::kR + 2 * lane);
  const LinkWord* const y = link_of(p, p.link.y, epoch);
  uint32_t raw[2][kChunk], key[2];
  link_load<kChunk / 2>(y + lane * kChunk, 2, epoch, raw[0]);
  link_load<kChunk / 2>(y + kHalf + lane * kChunk, 2, epoch, raw[1]);
  link_load<1>(y + Attention::kC + 2 * lane, 2, epoch, key);
  float sums[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      to.v[i][j] = __uint_as_float(raw[i][j]);
      sum = fmaf(to.v[i][j], to.v[i][j], sum);
    }
    sums[i] = warp_sum(sum);
  }
  const float factor = 1.0f / sqrtf((sums[0] + sums[1]) / static_cast<float>(Attention::kC) + p.latent_eps);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) to.v[i][j] = to.v[i][j] * factor * weight[i][j];
  }
  const float first = __uint_as_float(key[0]), second = __uint_as_float(key[1]);
  to.key = pack_bf16(fmaf(first, angle.x, -(second * angle.y)), fmaf(first, angle.y, second * angle.x));
}

/// By one warp of a block that has the sequence's last page: the newest token, of which it has taken `row`, and zeros
/// behind it, which will be multiplied by zero. `s` is that page's first stage. Of the blocks that have the page, the
/// first one writes the row to the cache.
template <class Cache>
__device__ __forceinline__ void settle_last_page(const Resident& p, const ResidentLayer& layer, const CacheRange& range,
                                                 const ResidentRing& ring, uint32_t s, const NewestRow& row) {
  const NewestToken newest(p, range.length);
  unsigned char* stage_row = nullptr;
  if (range.pages > 0) {
    const int last = range.length - 1, page = range.first + range.pages - 1;
    const int stage = range.stages_of(page) - 1, at = last % Attention::kStageTokens;
    ring.wait(s + stage);
    unsigned char* const rows = ring.at(s + stage);
    if (newest.fresh) stage_row = rows + at * CacheRow<Cache>::kPitch;
    for (int zero = at + 1; zero < Attention::kStageTokens; ++zero) {
      for (int i = threadIdx.x % 32 * 16; i < CacheRow<Cache>::kKeyAt; i += 32 * 16)
        store16(rows + zero * CacheRow<Cache>::kPitch + i, make_uint4(0, 0, 0, 0));
    }
  }
  if (newest.written) {
    const int lane = in_place(threadIdx.x) % 32;
    unsigned char* const cache_row =
        static_cast<unsigned char*>(layer.cache) + static_cast<int64_t>(newest.slot) * CacheRow<Cache>::kBytes;
    const bool writes = range.share(blockIdx.x) == 0;
    const auto put = [&](int at, auto value) {
      if (writes) *reinterpret_cast<decltype(value)*>(cache_row + at) = value;
      if (stage_row != nullptr) *reinterpret_cast<decltype(value)*>(stage_row + at) = value;
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) put_latent<Cache>(i * 32 * kChunk + lane * kChunk, row.v[i], put);
    put(CacheRow<Cache>::kKeyAt + 4 * lane, row.key);
  }
  fence_proxy_async();  // the copy engine writes there next
}

/// The query of `rows` heads from `head` on into shared memory, zeros for heads that do not exist. By all consumers.
/// For keys of 8 bits the 16 channels of a step are in the order that a lane's four codes have as operands: 4i, 4i + 1
/// in place 2i, the others 8 behind.
template <class Cache>
__device__ __forceinline__ void hold_query(const Resident& p, uint32_t epoch, int head, int rows,
                                           unsigned char* operands) {
  constexpr int kRowWords = kAbsorbPieces * kPieceWords;
  constexpr int kEach = div_up(Attention::kHeads * kRowWords, Attention::kThreads);
  const uint4* const qa = reinterpret_cast<const uint4*>(link_of(p, p.link.qa, epoch)) + head * kRowWords;
  const int all = rows * kRowWords, there = min(rows, p.heads - head) * kRowWords, thread = in_place(threadIdx.x);
  uint4 words[kEach];
  for (bool again = true; again;) {
    again = false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = thread + i * Attention::kThreads;
      words[i] = make_uint4(0, 0, 0, epoch);
      if (at < there) words[i] = link_look_wide(qa + at);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) again |= words[i].w != epoch;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = thread + i * Attention::kThreads;
    if (at >= all) break;
    const int word = at % kRowWords % kPieceWords, piece = at % kRowWords / kPieceWords;
    unsigned char* const row = operands + at / kRowWords * Attention::kQueryPitch;
    const uint32_t three[3] = {words[i].x, words[i].y, words[i].z};
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      int pair = piece * kPiecePairs + 3 * word + j;
      if (3 * word + j >= kPiecePairs) {
        pair = Attention::kC / 2 + piece * kAbsorbPairs + (3 * word + j - kPiecePairs);
      } else if (sizeof(Cache) == 1) {
        pair = pair / 8 * 8 + pair % 2 * 4 + pair % 8 / 2;
      }
      *reinterpret_cast<uint32_t*>(row + pair * 4) = three[j];
    }
  }
}

/// Operands of two steps of 16 columns, side by side from `from` on, of rows `pitch` bytes apart: of 16 rows; or of the
/// first 8 by one load, with anything in the rows behind them.
__device__ __forceinline__ void load_steps(bool all, uint32_t (&a)[4], uint32_t (&b)[4], uint32_t from, int pitch,
                                           int lane) {
  from += lane / 16 * 16 + (all ? lane % 16 * pitch : lane % 8 * pitch + lane / 8 % 2 * 32);
  ldmatrix_x4(a, from);
  b[0] = b[1] = b[2] = b[3] = 0;
  asm volatile(
      "{ .reg .pred all;\n"
      "setp.ne.s32 all, %5, 0;\n"
      "@all ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4]; }"
      : "+r"(b[0]), "+r"(b[1]), "+r"(b[2]), "+r"(b[3])
      : "r"(from + 32), "r"(static_cast<int>(all))
      : "memory");
  b[0] = all ? b[0] : a[1];
  b[2] = all ? b[2] : a[3];
}

/// part += query * keys of a stage, both tiles of 8 tokens, over a quarter of the channels.
template <class Cache>
__device__ __forceinline__ void score(uint32_t stage, int quarter, int lane,
                                      const uint32_t (&query)[Attention::kSteps][4], float (&part)[2][4]) {
  using Row = CacheRow<Cache>;
  const uint32_t keys = stage + (lane % 8 + lane / 16 * 8) * Row::kPitch + lane / 8 % 2 * 16;
  const auto multiply = [&](const uint32_t(&a)[4], uint32_t at) {
    uint32_t b[4];
    ldmatrix_x4(b, keys + at);
    mma_bf16(part[0], a, {b[0], b[1]});
    mma_bf16(part[1], a, {b[2], b[3]});
  };
  if constexpr (sizeof(Cache) == 2) {
#pragma unroll
    for (int k = 0; k < 8; ++k) multiply(query[k], quarter * 256 + k * 32);
  } else {
    // Of 16 codes a lane has four: the operands of a step.
#pragma unroll
    for (int k = 0; k < 8; k += 2) {
      uint32_t codes[4];
      ldmatrix_x4(codes, keys + quarter * 128 + k * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t b[2];
        f8_to_bf16(codes[i], b[0], b[1]);
        mma_bf16(part[i / 2], query[k + i % 2], b);
      }
    }
    const uint32_t scales = stage + lane % 4 * 2 * Row::kPitch + Row::kScaleAt + quarter * 4;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float scale = __uint_as_float(shared_load1(scales + (tile * 8 + e) * Row::kPitch));
        part[tile][e] *= scale;
        part[tile][2 + e] *= scale;
      }
    }
  }
  multiply(query[8], Row::kKeyAt + quarter * 32);
}

/// acc += probabilities * values of a stage: the 32 channels of a warp. Tile 2j has, of channels 16j to 16j + 15, the
/// first 8; or, of 8 bits, the even ones.
template <class Cache>
__device__ __forceinline__ void weigh(uint32_t stage, int warp, int lane, uint32_t (&prob)[4], float (&acc)[4][4]) {
  using Row = CacheRow<Cache>;
  constexpr int kBytes = Attention::kWarpChannels * static_cast<int>(sizeof(Cache));
  const uint32_t values = stage + lane % 16 * Row::kPitch + warp * kBytes + lane / 16 * 16;
  if constexpr (sizeof(Cache) == 2) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, values + j * 32);
      mma_bf16(acc[2 * j], prob, {b[0], b[1]});
      mma_bf16(acc[2 * j + 1], prob, {b[2], b[3]});
    }
  } else {
    const uint32_t scales = stage + lane % 4 * 2 * Row::kPitch + Row::kScaleAt + warp / 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t low = shared_load1(scales + half * 8 * Row::kPitch),
                     high = shared_load1(scales + (half * 8 + 1) * Row::kPitch);
      const uint32_t pair = __byte_perm(low, high, 0x7632);  // a power of two has no further bits
#pragma unroll
      for (int row = 0; row < 2; ++row) prob[2 * half + row] = scale_bf16(prob[2 * half + row], pair);
    }
    uint32_t codes[4];
    ldmatrix_x4_trans(codes, values);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // Two channels of two tokens a lane.
      uint32_t even[2], odd[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t x = codes[2 * j + half];
        f8_to_bf16(__byte_perm(x, x, 0x3120), even[half], odd[half]);
      }
      mma_bf16(acc[2 * j], prob, even);
      mma_bf16(acc[2 * j + 1], prob, odd);
    }
  }
}

/// What the block finds in its pages, to its part of the link. By all consumers; `s` is the first of the block's
/// attend_stages(). Nobody reads `operands` any more when all of them have come here.
template <class Cache>
__device__ __forceinline__ void attend(const Resident& p, int layer, uint32_t epoch, const ResidentRing& ring,
                                       uint32_t s, unsigned char* operands) {
  using A = Attention;
  // Not ResidentShared::range: read from there it takes registers that the pages need.
  const CacheRange range(p, blockIdx.x, gridDim.x);
  // Else the block's heads are rows 0 to 7 of all operands. The rows behind them are multiplied and not used, so what
  // stands there does not matter.
  const bool all_heads = range.sharers == 1;
  const int heads = all_heads ? A::kHeads : A::kHeads / 2;
  const int thread = in_place(threadIdx.x);
  const int warp = __shfl_sync(kFullWarp, thread / 32, 0), lane = thread % 32;
  const int team = warp / 4, quarter = warp % 4;
  // The newest token is taken before the warps meet, or its warp would come late to the query.
  const bool settles = warp == A::kWarps - 1 && range.newest(blockIdx.x);
  NewestRow row{};  // with a value on every path, or it goes to the stack
  if (settles) {
    const NewestToken newest(p, range.length);
    if (newest.written) take_newest(p, p.layer[layer], epoch, newest.position, row);
  }
  // All teams have seen all stages before: none takes an earlier turn of a stage's barrier for what it waits for.
  A::sync();
  if (settles) settle_last_page<Cache>(p, p.layer[layer], range, ring, s, row);
  if (range.pages == 0) return;
  hold_query<Cache>(p, epoch, range.share(blockIdx.x) * heads, heads, operands);
  A::sync();

  const uint32_t shared = shared_address(operands);
  const auto channel = [&](int step) { return step < 8 ? quarter * 128 + step * 16 : A::kC + quarter * 16; };
  uint32_t query[A::kSteps][4];
#pragma unroll
  for (int i = 0; i < 8; i += 2)
    load_steps(all_heads, query[i], query[i + 1], shared + channel(i) * 2, A::kQueryPitch, lane);
  ldmatrix_x4(query[8], shared + lane % 16 * A::kQueryPitch + channel(8) * 2 + lane / 16 * 16);
  float* const sums = reinterpret_cast<float*>(operands);
  float* const factors = reinterpret_cast<float*>(operands + A::kFactors);
  float acc[4][4] = {};
  float largest = -INFINITY, sum = 0;  // of head `warp`; sum: of this lane
  const float scale = p.attention_scale * kLog2E;

  for (int i = 0; i < range.pages; ++i) {
    const int page = range.page_of(i), stages = range.stages_of(page);
    const int lane = in_place(threadIdx.x) % 32, g = lane / 4, q = lane % 4;  // registers are few
    float part[2][4] = {};
    if (team < stages) {
      ring.wait(s + team);
      score<Cache>(shared_address(ring.at(s + team)), quarter, lane, query, part);
    }
    if (i == 0) A::sync();  // the query is in registers everywhere
    float* const to = sums + team * A::kTeamSums + quarter * (A::kHeads * A::kStageTokens);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !all_heads) break;
        *reinterpret_cast<float2*>(to + A::sum_at(g + 8 * half, 8 * tile + 2 * q)) =
            make_float2(part[tile][2 * half], part[tile][2 * half + 1]);
      }
    }
    A::sync();
    if (warp < heads) {  // two tokens of the head a lane
      const float* const from = sums + lane / 8 * A::kTeamSums + A::sum_at(warp, lane % 8 * 2);
      float2 x = *reinterpret_cast<const float2*>(from);
#pragma unroll
      for (int j = 1; j < 4; ++j) {
        const float2 more = *reinterpret_cast<const float2*>(from + j * (A::kHeads * A::kStageTokens));
        x.x += more.x;
        x.y += more.y;
      }
      const int token = page * A::kPageTokens + lane * 2;
      x.x = token < range.length ? x.x * scale : -INFINITY;
      x.y = token + 1 < range.length ? x.y * scale : -INFINITY;
      const float before = largest;
      largest = fmaxf(before, warp_max_fast(fmaxf(x.x, x.y)));
      const float shift = softmax_shift(largest), factor = exp2_approx(before - shift);
      x.x = exp2_approx(x.x - shift);
      x.y = exp2_approx(x.y - shift);
      sum = sum * factor + (x.x + x.y);
      *reinterpret_cast<uint32_t*>(operands + A::kProbs + warp * A::kProbPitch + lane * 4) = pack_bf16(x.x, x.y);
      if (lane == 0) factors[warp] = factor;
    }
    A::sync();
    const float low = factors[g], high = factors[g + 8];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      acc[j][0] *= low;
      acc[j][1] *= low;
      acc[j][2] *= high;
      acc[j][3] *= high;
    }
#pragma unroll
    for (int stage = 0; stage < CacheRange::kPageStages; ++stage) {
      if (stage >= stages) break;
      uint32_t prob[4];
      ldmatrix_x4(prob, shared + A::kProbs + (lane % 16) * A::kProbPitch + (stage * 16 + lane / 16 * 8) * 2);
      weigh<Cache>(shared_address(ring.at(s + stage)), warp, lane, prob, acc);
    }
    __syncwarp();
    if (lane == 0) {
      for (int stage = 0; stage < stages; ++stage) mbarrier_arrive(ring.empty_of(s + stage));
    }
    s += stages;
  }

  uint4* const to = reinterpret_cast<uint4*>(link_of(p, p.link.part, epoch) + blockIdx.x * A::kPartWords);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half == 1 && !all_heads) break;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint3 x = pack_floats24(acc[2 * j][2 * half], acc[2 * j][2 * half + 1], acc[2 * j + 1][2 * half],
                                    acc[2 * j + 1][2 * half + 1]);
      link_store_wide(to + ((warp * 2 + half) * 2 + j) * 32 + lane, x.x, x.y, x.z, epoch);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0 && warp < heads)
    link_store_wide(to + A::kPartAcc + warp, __float_as_uint(largest), __float_as_uint(sum), 0, epoch);
}

/// u of 64 channels of a head out of all blocks' parts. By all consumers, right behind attend().
template <class Cache>
__device__ __forceinline__ void merge(const Resident& p, ResidentShared& resident, int layer, uint32_t epoch) {
  unsigned char* const operands = resident.operands;
  using A = Attention;
  constexpr int kGroups = A::kThreads / 16, kEach = A::kMaxParts / kGroups;
  constexpr int kBlocks = A::kC / A::kMergeColumns;  // of a head
  const CacheRange& range = resident.range;
  const int parts = range.parts, step = range.sharers * (A::kPartWords / 2);
  const int thread = in_place(threadIdx.x), warp = thread / 32, lane = thread % 32, word = lane % 16,
            group = thread / 16;
  const uint4* const all = reinterpret_cast<const uint4*>(link_of(p, p.link.part, epoch));
  float* const sums = reinterpret_cast<float*>(operands + A::kMerge);
  float2* const stats = reinterpret_cast<float2*>(operands + A::kMergeStats);
  for (int item = blockIdx.x; item < p.heads * kBlocks; item += gridDim.x) {
    const int h = item / kBlocks, column = item % kBlocks * A::kMergeColumns;
    // Of two sharers the second one has heads 8 to 15, as the lower half of its part.
    const int block = range.sharers == 2 ? h / 8 : 0, upper = range.sharers == 2 ? 0 : h / 8;
    const int tiles = ((column / A::kWarpChannels + word / 8) * 2 + upper) * 2 + word / 4 % 2;
    const int at = block * (A::kPartWords / 2) + tiles * 32 + h % 8 * 4 + word % 4,
              stat_at = block * (A::kPartWords / 2) + A::kPartAcc + upper * 8 + h % 8;
    // A thread has four channels of every 32nd part; the order of all sums follows from that.
    uint4 x[kEach], stat[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      x[i] = make_uint4(0, 0, 0, epoch);
      stat[i] = make_uint4(__float_as_uint(-INFINITY), 0, 0, epoch);
    }
    for (bool there = false, first = true; !there; first = false) {
      there = true;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (i * kGroups >= parts) break;
        const int part = group + i * kGroups;
        if (part < parts && (first || x[i].w != epoch || stat[i].w != epoch)) {
          const uint4* const from = all + part * step;
          x[i] = link_look_wide(from + at);
          stat[i] = link_look_wide(from + stat_at);
        }
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) there &= x[i].w == epoch && stat[i].w == epoch;
    }
    __syncwarp();
    float largest = -INFINITY, sum = 0;
    float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kEach; ++i) largest = fmaxf(largest, __uint_as_float(stat[i].x));
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 16));
    const float shift = softmax_shift(largest);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i * kGroups >= parts) break;
      const float weight = exp2_approx(__uint_as_float(stat[i].x) - shift);
      const float4 v = unpack_floats24(x[i].x, x[i].y, x[i].z);
      sum = fmaf(weight, __uint_as_float(stat[i].y), sum);
      out.x = fmaf(weight, v.x, out.x);
      out.y = fmaf(weight, v.y, out.y);
      out.z = fmaf(weight, v.z, out.z);
      out.w = fmaf(weight, v.w, out.w);
    }
    const auto add_other = [](float v) { return v + __shfl_xor_sync(kFullWarp, v, 16); };
    sum = add_other(sum);
    out = make_float4(add_other(out.x), add_other(out.y), add_other(out.z), add_other(out.w));
    if (lane < 16) {
      float* const to = sums + warp * A::kMergeColumns + word / 4 * 16;
      if constexpr (sizeof(Cache) == 2) {
        *reinterpret_cast<float2*>(to + word % 4 * 2) = make_float2(out.x, out.y);
        *reinterpret_cast<float2*>(to + word % 4 * 2 + 8) = make_float2(out.z, out.w);
      } else {
        *reinterpret_cast<float4*>(to + word % 4 * 4) = make_float4(out.x, out.z, out.y, out.w);
      }
      if (lane == 0) stats[warp] = make_float2(largest, sum);
    }
    A::sync();
    if (warp == 0) {  // two channels a lane, which works out all weights for itself: no exchange behind the barrier
      float2 stat_of[A::kWarps], u = make_float2(0, 0);
      float most = -INFINITY, total = 0;
#pragma unroll
      for (int w = 0; w < A::kWarps; w += 2) {
        const float4 two = *reinterpret_cast<const float4*>(stats + w);
        stat_of[w] = make_float2(two.x, two.y);
        stat_of[w + 1] = make_float2(two.z, two.w);
        most = fmaxf(most, fmaxf(two.x, two.z));
      }
      const float most_shift = softmax_shift(most);
#pragma unroll
      for (int w = 0; w < A::kWarps; ++w) {
        const float weight = exp2_approx(stat_of[w].x - most_shift);
        const float2 v = *reinterpret_cast<const float2*>(sums + w * A::kMergeColumns + 2 * lane);
        total = fmaf(weight, stat_of[w].y, total);
        u.x = fmaf(weight, v.x, u.x);
        u.y = fmaf(weight, v.y, u.y);
      }
      const float inverse = inverse_sum(total);
      const uint32_t pair = pack_bf16(u.x * inverse, u.y * inverse);
      link_store(link_of(p, p.link.u, epoch) + (h * A::kC + column) / 2 + lane, pair, epoch);
      if (p.out.u != nullptr)
        *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(p.out.u) + h * A::kC + column + 2 * lane) = pair;
      if (p.out.lse != nullptr && column == 0 && lane == 0)
        static_cast<float*>(p.out.lse)[h] = natural_lse(most, total);
    }
    if (item + gridDim.x < p.heads * kBlocks) A::sync();
  }
}

}  // namespace mla::cuda
