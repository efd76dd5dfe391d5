// mla_prefill_sm90.cu - causal attention over up-projected keys with warpgroup products and the copy engine, for
// Hopper.
//
//   s = scale * q . [k_nope(head) ; k_rope];  p = softmax(s over keys at the query's position and before)
//   out = sum p * value;  lse = log sum exp(s)
//
// Grid: as many blocks as run at once; each takes tiles of 128 queries of one head, in the order of prefill_list.cuh.
// Block 384: one thread loads, two warpgroups compute 64 queries each. Keys are walked from the last visible tile
// down to the first, so that only the first few need masks. While a warpgroup takes the softmax of a tile's scores its
// product with the values of the tile before runs, and the products of the other warpgroup: the two take turns in
// issuing.
//
// Shared memory: stages of keys and two of values, all as the copy engine lays them down with a 128-byte swizzle.
// 192/128 (n + r / v; tiles of 128 keys) and 128/128 have three stages of keys, through which the queries come as well,
// on their way to registers: 208 and 160 KB. 256/256 (tiles of 80 keys) has two, and the queries stay beside them: 224
// KB. Scores, probabilities and the output stay in registers.
//
// Precision: products of bf16 accumulate in float32, softmax in float32, p rounded to bf16 before the second product.
// (Raising what p is relative to only when a score passes it by far spares rescaling, but then the largest p is not 1
// and is rounded too: rows that a few keys dominate get twice the error, for 1 to 3 % of speed.) Values past the end of
// the keys count as zeros with p = 0. A key or value that is not finite reaches the queries of a tile that it comes
// after as well.
//
// Limits: bf16; n/v as above, r = 64; scale > 0. Test: test/gpu/attention.test.ts. Figures:
// docs/kernels/mla-prefill.md.
#include <cuda_runtime.h>

#include "cuda/attention/kernels.h"
#include "cuda/attention/prefill_list.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tensor_map.h"
#include "cuda/ptx/warpgroup.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace mla::cuda {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kThreads = 3 * kWarpgroup;
constexpr int kRows = 128;  // queries of a tile
constexpr int kRope = 64;
constexpr int kStages = 2;      // of values
constexpr int kWorks = 64;      // the most tiles of a block
constexpr int kRowBytes = 128;  // of a swizzled row: 64 elements
constexpr int kColumns = kRowBytes / 2;
constexpr int kSteps = kColumns / 16;  // of products, in a row
constexpr int kMathRegisters = 240, kLoadRegisters = 24;
// Blocks that should read the same keys together, for L2 to serve them. 128 heads of 4096 tokens on an H100, in
// TFLOP/s: 1: 461, 4: 641, 8: 655 (2026-11).
constexpr int kSharing = 8;

// Named barriers.
constexpr int kTurn = 1;        // and 2: warpgroup 0 or 1 may issue
constexpr int kZeroedTail = 3;  // and 4

template <int kNope_, int kV_, int kKeys_>
struct Sizes {
  static constexpr int kNope = kNope_, kV = kV_, kKeys = kKeys_;  // kKeys of a tile
  static constexpr int kWidth = kNope + kRope;
  static constexpr int kQueryBytes = kRows * kWidth * 2;
  static constexpr int kKeyBytes = kKeys * kWidth * 2;
  static constexpr int kValueBytes = kKeys * kV * 2;
  static constexpr bool kHeld = kV <= 128;  // queries in registers, by way of a stage of keys
  static_assert(!kHeld || kQueryBytes == kKeyBytes);
  static constexpr int kKeyStages = kHeld ? 3 : 2;
  // A thread's scores of a tile that become powers before it waits for the product with the tile before; the others do
  // beside packing. TFLOP/s of 192/128 in chains on an H200 (2026-11), 16 x 4096, 128 x 4096, 16 x 16384: all 576, 552,
  // 635; half 578, 564, 647; a quarter 574, 563, 634; none 577, 557, 634. 256/256, 20 x 4096: 547, 545, 538, 530.
  static constexpr int kEarly = kHeld ? kKeys / 4 : kKeys / 2;
  static constexpr int kKeysAt = kHeld ? 0 : kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kKeyStages * kKeyBytes;
  static constexpr int kBarriersAt = kValuesAt + kStages * kValueBytes;
  static constexpr int kBarriers = 2 + 2 * kKeyStages + 2 * kStages;
  static constexpr int kWorkAt = kBarriersAt + kBarriers * 8;
  static constexpr int kSharedBytes = kWorkAt + kWorks * static_cast<int>(sizeof(PrefillWork));
};

/// The barriers of a block: queries (if not held), keys and values are there, or have been read.
template <class S>
struct Barriers {
  uint32_t base;
  __device__ uint32_t queries() const { return base; }
  __device__ uint32_t queries_read() const { return base + 8; }
  __device__ uint32_t keys(int stage) const { return base + 16 + stage * 8; }
  __device__ uint32_t keys_read(int stage) const { return keys(S::kKeyStages + stage); }
  __device__ uint32_t values(int stage) const { return keys(2 * S::kKeyStages + stage); }
  __device__ uint32_t values_read(int stage) const { return values(kStages + stage); }

  /// By one thread.
  __device__ void init() const {
    constexpr int kReaders = 2 * kWarpgroup / 32;  // a lane of each warp that computes
    mbarrier_init(queries(), 1);
    mbarrier_init(queries_read(), kReaders);
    for (int i = 0; i < S::kKeyStages; ++i) {
      mbarrier_init(keys(i), 1);
      mbarrier_init(keys_read(i), kReaders);
    }
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(values(i), 1);
      mbarrier_init(values_read(i), kReaders);
    }
    mbarrier_fence_init();
  }
};

/// The thread that loads: for each tile of keys it fills the next free stages.
template <class S>
__device__ __forceinline__ void load_tiles(const CUtensorMap* q_map, const CUtensorMap* nope_map,
                                           const CUtensorMap* rope_map, const CUtensorMap* value_map, uint32_t s_base,
                                           const PrefillWork* s_work) {
  const Barriers<S> barriers{s_base + S::kBarriersAt};
  RingCursor<1> queries_at;
  RingCursor<S::kKeyStages> keys_at;
  RingCursor<kStages> values_at;

  const auto load_queries = [&](int row, int head) {
    const uint32_t full = S::kHeld ? barriers.keys(keys_at.stage) : barriers.queries();
    const uint32_t to = s_base + (S::kHeld ? S::kKeysAt + keys_at.stage * S::kKeyBytes : 0);
    if constexpr (S::kHeld) {
      mbarrier_wait(barriers.keys_read(keys_at.stage), keys_at.filled ^ 1);
      keys_at.advance();
    } else {
      mbarrier_wait(barriers.queries_read(), queries_at.filled ^ 1);
      queries_at.advance();
    }
    mbarrier_arrive_expect(full, S::kQueryBytes);
#pragma unroll
    for (int i = 0; i < S::kWidth / kColumns; ++i)
      tile_load(to + i * kRows * kRowBytes, q_map, full, i * kColumns, head, row);
  };
  const auto load_keys = [&](int key, int head) {
    const uint32_t full = barriers.keys(keys_at.stage), to = s_base + S::kKeysAt + keys_at.stage * S::kKeyBytes;
    mbarrier_wait(barriers.keys_read(keys_at.stage), keys_at.filled ^ 1);
    mbarrier_arrive_expect(full, S::kKeyBytes);
#pragma unroll
    for (int i = 0; i < S::kNope / kColumns; ++i)
      tile_load(to + i * S::kKeys * kRowBytes, nope_map, full, i * kColumns, head, key, kEvictLast);
    tile_load(to + S::kNope / kColumns * S::kKeys * kRowBytes, rope_map, full, 0, key, kEvictLast);
    keys_at.advance();
  };
  const auto load_values = [&](int key, int head) {
    const uint32_t full = barriers.values(values_at.stage);
    const uint32_t to = s_base + S::kValuesAt + values_at.stage * S::kValueBytes;
    mbarrier_wait(barriers.values_read(values_at.stage), values_at.filled ^ 1);
    mbarrier_arrive_expect(full, S::kValueBytes);
#pragma unroll
    for (int i = 0; i < S::kV / kColumns; ++i)
      tile_load(to + i * S::kKeys * kRowBytes, value_map, full, i * kColumns, head, key, kEvictLast);
    values_at.advance();
  };

  for (int round = 0; round < kWorks; ++round) {
    const PrefillWork& work = s_work[round];
    const int row = work.tile.row, head = work.head, tiles = div_up(work.tile.keys, S::kKeys);
    if (head < 0) break;
    if (tiles == 0) continue;
    int key = work.tile.key + (tiles - 1) * S::kKeys;
    if (S::kHeld) load_queries(row, head);
    load_keys(key, head);
    if (!S::kHeld) load_queries(row, head);  // they wait for the tile before, keys do not
    for (int i = 1; i < tiles; ++i, key -= S::kKeys) {
      load_keys(key - S::kKeys, head);
      load_values(key, head);
    }
    load_values(key, head);
  }
}

/// The running softmax of a thread's two rows, 16 * warp + lane / 4 and 8 after it.
template <int kKeys>
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY};  // of the unscaled scores
  float sum[2] = {0, 0};                      // of this thread's columns
  float factor[2];                            // for what was summed up before
  float shift[2];                             // `largest`, scaled

  /// Takes a tile's scores into `largest`; columns from visible[h] on count as unseen.
  template <bool kMasked>
  __device__ __forceinline__ void see(float (&score)[kKeys / 2], float scale_log2, const int (&visible)[2]) {
    if constexpr (kMasked) {
      const int first = threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (i / 4 * 8 + i % 2 + first >= visible[i % 4 / 2]) score[i] = -INFINITY;
      }
    }
    // Two chains for each row, of even and of odd columns: one would wait for itself.
    float most[2][2] = {{largest[0], -INFINITY}, {largest[1], -INFINITY}};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) most[i % 4 / 2][i % 2] = fmaxf(most[i % 4 / 2][i % 2], score[i]);
    float x[2] = {fmaxf(most[0][0], most[0][1]), fmaxf(most[1][0], most[1][1])};
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
      for (int h = 0; h < 2; ++h) x[h] = fmaxf(x[h], __shfl_xor_sync(kFullWarp, x[h], lanes));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      shift[h] = softmax_shift(x[h]) * scale_log2;
      factor[h] = exp2_approx(fmaf(largest[h], scale_log2, -shift[h]));
      largest[h] = x[h];
      sum[h] *= factor[h];
    }
  }

  /// Scores kFrom to kTo of that tile become powers of two relative to `largest`.
  template <int kFrom, int kTo>
  __device__ __forceinline__ void raise(float (&score)[kKeys / 2], float scale_log2) {
    float part[2][2] = {};
#pragma unroll
    for (int i = kFrom; i < kTo; ++i) {
      score[i] = exp2_approx(fmaf(score[i], scale_log2, -shift[i % 4 / 2]));
      part[i % 4 / 2][i % 2] += score[i];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) sum[h] += part[h][0] + part[h][1];
  }

  __device__ __forceinline__ bool rescales() const {
    return __any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f);
  }
};

/// A warpgroup's part of the tiles: 64 queries of each.
template <class S>
__device__ __forceinline__ void compute_tiles(const PrefillArgs& a, uint32_t s_base, const PrefillWork* s_work,
                                              int group) {
  constexpr int kKeys = S::kKeys, kV = S::kV;
  const Barriers<S> barriers{s_base + S::kBarriersAt};
  const int lane = threadIdx.x % 32;
  const int my_row = group * 64 + threadIdx.x % kWarpgroup / 32 * 16 + lane / 4;
  const uint64_t q_tile = wgmma_tile(s_base + group * 64 * kRowBytes, 16, 1024);

  float score[kKeys / 2], out[kV / 2];
  uint32_t p[kKeys / 16][4];
  uint32_t q[S::kHeld ? S::kWidth / 16 : 1][4];

  RingCursor<1> queries_at;
  RingCursor<S::kKeyStages> keys_at;
  // Stages of values are numbered from the first of the block.
  const auto filled = [](uint32_t number) { return number / kStages % 2; };
  // Products are issued in turns; each one's registers are left alone until its wait.
  const auto issue_scores = [&] {
    const uint64_t k_tile = wgmma_tile(s_base + S::kKeysAt + keys_at.stage * S::kKeyBytes, 16, 1024);
#pragma unroll
    for (int k = 0; k < S::kWidth / 16; ++k) {
      const uint64_t k_part = wgmma_advance(k_tile, k / kSteps * kKeys * kRowBytes + k % kSteps * 32);
      if constexpr (S::kHeld) {
        Wgmma<kKeys>::bf16(score, q[k], k_part, k > 0);
      } else {
        Wgmma<kKeys>::bf16(score, wgmma_advance(q_tile, k / kSteps * kRows * kRowBytes + k % kSteps * 32), k_part,
                           k > 0);
      }
    }
    wgmma_commit();
  };
  const auto issue_values = [&](uint32_t number) {
    const uint64_t v_tile =
        wgmma_tile(s_base + S::kValuesAt + number % kStages * S::kValueBytes, kKeys * kRowBytes, 1024);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      Wgmma<kV>::template bf16<Major::kTransposed>(out, p[k], wgmma_advance(v_tile, k * 16 * kRowBytes), 1);
    wgmma_commit();
  };
  const auto release = [&](uint32_t barrier) {
    if (lane == 0) mbarrier_arrive(barrier);
  };
  const auto release_keys = [&] {
    release(barriers.keys_read(keys_at.stage));
    keys_at.advance();
  };
  const auto wait_keys = [&] { mbarrier_wait(barriers.keys(keys_at.stage), keys_at.filled); };
  // Queries of my warp, from the stage of keys they came in.
  const auto hold_queries = [&] {
    const int row = group * 64 + threadIdx.x % kWarpgroup / 32 * 16 + lane % 16;
    const uint32_t at = s_base + S::kKeysAt + keys_at.stage * S::kKeyBytes + row * kRowBytes;
#pragma unroll
    for (int k = 0; k < S::kWidth / 16; ++k)
      ldmatrix_x4(q[k], at + k / kSteps * kRows * kRowBytes + ((k % kSteps * 2 + lane / 16) ^ row % 8) * 16);
    __syncwarp();
    release_keys();
  };
  // What the first product leaves of two neighbouring key octets is what the second takes as its operand.
  const auto pack_scores = [&] {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack_bf16(score[8 * k + 2 * i], score[8 * k + 2 * i + 1]);
    }
  };

  if (group == 1) named_barrier_arrive(kTurn, 2 * kWarpgroup);  // warpgroup 0 begins
  uint32_t number = 0;                                          // of the stage of values that comes next
  for (int round = 0; round < kWorks; ++round) {
    // Read again where it is needed: registers are short.
    const PrefillWork& work = s_work[round];
    if (work.head < 0) break;
    Softmax<kKeys> softmax;
#pragma unroll
    for (int i = 0; i < kV / 2; ++i) out[i] = 0;

    int i = div_up(work.tile.keys, kKeys) - 1;
    const auto see_scores = [&]<bool kMasked>(std::bool_constant<kMasked>) {
      int visible[2] = {};
      if constexpr (kMasked) {
        const int sees = my_row + work.tile.shift + 1;
        visible[0] = min(sees, work.tile.keys) - i * kKeys;
        visible[1] = min(sees + 8, work.tile.keys) - i * kKeys;
      }
      softmax.template see<kMasked>(score, a.scale_log2, visible);
    };
    if (i >= 0) {
      if constexpr (S::kHeld) {
        wait_keys();
        hold_queries();
      } else {
        mbarrier_wait(barriers.queries(), queries_at.filled);
      }
      wait_keys();
      named_barrier_sync(kTurn + group, 2 * kWarpgroup);
      wgmma_fence();
      issue_scores();
      named_barrier_arrive(kTurn + (group ^ 1), 2 * kWarpgroup);
      wgmma_wait<0>();
      keep(score);
      release_keys();
      see_scores(std::true_type{});
      softmax.template raise<0, kKeys / 2>(score, a.scale_log2);
      pack_scores();

      // 0 * NaN is NaN: what stands behind the keys may be anything. Both warpgroups write the same zeros.
      mbarrier_wait(barriers.values(number % kStages), filled(number));
      if (work.tile.keys % kKeys != 0) {
        const uint32_t at = s_base + S::kValuesAt + number % kStages * S::kValueBytes + threadIdx.x % 8 * 16;
        for (int row = work.tile.keys % kKeys + threadIdx.x % kWarpgroup / 8; row < kKeys; row += kWarpgroup / 8) {
#pragma unroll
          for (int j = 0; j < kV / kColumns; ++j)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at + (j * kKeys + row) * kRowBytes), "r"(0)
                         : "memory");
        }
        fence_proxy_async();
        named_barrier_sync(kZeroedTail + group, kWarpgroup);
      }

      const auto step = [&](auto masked) {
        wait_keys();
        named_barrier_sync(kTurn + group, 2 * kWarpgroup);
        wgmma_fence();
        issue_scores();
        mbarrier_wait(barriers.values(number % kStages), filled(number));
        wgmma_fence();
        issue_values(number);
        named_barrier_arrive(kTurn + (group ^ 1), 2 * kWarpgroup);
        wgmma_wait<1>();
        keep(score);
        release_keys();
        see_scores(masked);
        softmax.template raise<0, S::kEarly>(score, a.scale_log2);
        keep(score);  // before the wait, not after it
        wgmma_wait<0>();
        keep(out);
        release(barriers.values_read(number % kStages));
        if (softmax.rescales()) {
#pragma unroll
          for (int j = 0; j < kV / 2; ++j) out[j] *= softmax.factor[j % 4 / 2];
        }
        softmax.template raise<S::kEarly, kKeys / 2>(score, a.scale_log2);
        pack_scores();
        ++number;
      };
      // Tiles that the first of my rows sees wholly need no mask.
      const auto masked = [&] { return (i + 1) * kKeys > min(group * 64 + work.tile.shift + 1, work.tile.keys); };
      for (--i; i >= 0 && masked(); --i) step(std::true_type{});
      for (; i >= 0; --i) step(std::false_type{});

      if (!S::kHeld) {
        release(barriers.queries_read());
        queries_at.advance();
      }
      mbarrier_wait(barriers.values(number % kStages), filled(number));
      wgmma_fence();
      issue_values(number);
      wgmma_wait<0>();
      keep(out);
      release(barriers.values_read(number % kStages));
      ++number;
    }

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = softmax.sum[h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      const int row = my_row + 8 * h;
      if (row >= work.tile.rows) continue;
      const int64_t at = int64_t{work.tile.row + row} * a.heads + work.head;
      if (lane % 4 == 0) a.lse[at] = natural_lse(softmax.largest[h] * a.scale_log2, total);
      const float inverse = inverse_sum(total);
#pragma unroll
      for (int n = 0; n < kV / 8; ++n) {
        const float x = out[4 * n + 2 * h] * inverse, y = out[4 * n + 2 * h + 1] * inverse;
        const int64_t column = at * kV + n * 8 + lane % 4 * 2;
        if (a.out_is_f32) {
          *reinterpret_cast<float2*>(static_cast<float*>(a.out) + column) = make_float2(x, y);
        } else {
          *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(a.out) + column) = pack_bf16(x, y);
        }
      }
    }
  }
  if (group == 0) named_barrier_sync(kTurn, 2 * kWarpgroup);  // the turn that nobody took
}

template <class S>
__global__ __launch_bounds__(kThreads, 1) void mla_prefill_sm90_kernel(PrefillArgs a, int level_keys, bool early,
                                                                       const __grid_constant__ CUtensorMap q_map,
                                                                       const __grid_constant__ CUtensorMap nope_map,
                                                                       const __grid_constant__ CUtensorMap rope_map,
                                                                       const __grid_constant__ CUtensorMap value_map) {
  extern __shared__ __align__(1024) uint8_t s_memory[];
  const uint32_t s_base = shared_address(s_memory);
  PrefillWork* const s_work = reinterpret_cast<PrefillWork*>(s_memory + S::kWorkAt);
  // The compiler is to know that it is the same in all lanes.
  const int warpgroup = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (threadIdx.x == 0) Barriers<S>{s_base + S::kBarriersAt}.init();
  if (threadIdx.x == 2 * kWarpgroup) {
    for (const CUtensorMap* map : {&q_map, &nope_map, &rope_map, &value_map}) prefetch_tensor_map(map);
  }
  // With starts and positions that are settled, tiles are found while the kernel before this one ends.
  if (!early) pdl_wait();
  for (int round = threadIdx.x / 32; round < kWorks; round += kThreads / 32) {
    list_prefill_work(a, round, kRows, level_keys, s_work + round);
    __syncwarp();
    if (s_work[round].head < 0) break;
  }
  if (early) pdl_wait();
  pdl_launch_dependents();
  __syncthreads();
  if (warpgroup == 2) {
    give_registers<kLoadRegisters>();
    if (threadIdx.x == 2 * kWarpgroup) load_tiles<S>(&q_map, &nope_map, &rope_map, &value_map, s_base, s_work);
  } else {
    take_registers<kMathRegisters>();
    compute_tiles<S>(a, s_base, s_work, warpgroup);
  }
}

/// Calls f<sizes>() for the dimensions that there is a kernel for.
template <class F, class R>
R with_dimensions(int64_t n, int64_t v, F&& f, R none) {
  if (n == 128 && v == 128) return f.template operator()<Sizes<128, 128, 128>>();
  if (n == 192 && v == 256) return f.template operator()<Sizes<192, 256, 80>>();
  if (n == 64 && v == 128) return f.template operator()<Sizes<64, 128, 128>>();
  return none;
}

/// A map of rows of heads of `width` elements, for boxes of 64 elements of one head of `box` rows.
Status head_map(const View& rows, int box, CUtensorMap* out) {
  const int64_t heads = rows.dim(1), width = rows.dim(2);
  const int64_t dims[] = {width, heads, rows.dim(0)}, strides[] = {width, heads * width};
  const int boxes[] = {kColumns, 1, box};
  return make_tensor_map(rows.data, DType::kBF16, dims, strides, boxes, Swizzle::k128, out);
}

template <class S>
Status launch_one(const MlaPrefillParams& p, const Launch& launch) {
  CUtensorMap q_map, nope_map, rope_map, value_map;
  MLA_RETURN_IF_ERROR(head_map(p.q, kRows, &q_map));
  MLA_RETURN_IF_ERROR(head_map(p.k_nope, S::kKeys, &nope_map));
  MLA_RETURN_IF_ERROR(head_map(p.value, S::kKeys, &value_map));
  const int64_t dims[] = {kRope, p.k_rope.dim(0)}, strides[] = {kRope};
  const int box[] = {kColumns, S::kKeys};
  MLA_RETURN_IF_ERROR(make_tensor_map(p.k_rope.data, DType::kBF16, dims, strides, box, Swizzle::k128, &rope_map));
  const PrefillArgs args = make_prefill_args(p);
  const bool early =
      launch.settled(p.q_start) && launch.settled(p.k_start) && launch.settled(p.q_pos) && launch.settled(p.k_pos);
  const int64_t tiles = int64_t{prefill_tiles(p, kRows)} * args.heads;
  int64_t blocks = tiles < launch.traits->multiprocessors ? tiles : launch.traits->multiprocessors;
  if (blocks * kWorks < tiles) blocks = div_up<int64_t>(tiles, kWorks);
  const int level_keys = S::kKeys * div_up(kSharing * args.heads, launch.traits->multiprocessors);
  return cuda_status(
      launch_pdl(mla_prefill_sm90_kernel<S>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), S::kSharedBytes,
                 launch.stream, args, level_keys, early, q_map, nope_map, rope_map, value_map),
      "mla_prefill_sm90_kernel");
}

}  // namespace

bool prefill_sm90_fits(const MlaPrefillParams& p, const Traits& traits) {
  if (!traits.hopper || p.q.dtype != DType::kBF16 || p.k_rope.dim(1) != kRope || !(p.scale > 0)) return false;
  if (p.k_rope.dim(0) == 0) return false;
  for (const View& view : {p.q, p.k_nope, p.k_rope, p.value, p.out}) {
    if (!aligned16(view.data)) return false;
  }
  return with_dimensions(
      p.k_nope.dim(2), p.value.dim(2), [&]<class S>() { return S::kSharedBytes > 0; }, false);
}

Status launch_prefill_sm90(const MlaPrefillParams& p, const Launch& launch) {
  return with_dimensions(
      p.k_nope.dim(2), p.value.dim(2), [&]<class S>() { return launch_one<S>(p, launch); }, Status::Ok());
}

Status load_prefill_sm90_kernels(const Traits& traits) {
  if (!traits.hopper) return Status::Ok();
  const auto load = [](int64_t n, int64_t v) {
    return with_dimensions(
        n, v,
        [&]<class S>() { return load_kernel(mla_prefill_sm90_kernel<S>, "mla_prefill_sm90_kernel", S::kSharedBytes); },
        Status::Ok());
  };
  MLA_RETURN_IF_ERROR(load(128, 128));
  MLA_RETURN_IF_ERROR(load(192, 256));
  return load(64, 128);
}

}  // namespace mla::cuda
