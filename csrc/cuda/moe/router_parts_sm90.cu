// router_parts_sm90.cu - moeRoute for 3 to 256 rows, of more than 2048 channels 1 to 256, with a model that is
// deterministic any number, and up to 64 experts on Hopper, in one launch up to 128. ops/ops.h has the formulas.
//
// A cluster of 8 blocks, 8 warps each, takes 8 rows, or more where there are more than 128: each block its eighth of
// the channels, of which it has the gates in shared memory before pdl_wait() where they are settled. A block squares
// its part of the rows, a warp each, and sends the sums to all; norms its part; and multiplies it (m16n8k16, experts by
// rows). Block r % 8 adds up the parts of row r and chooses (router_select.cuh); its ids go to the first block. One
// cluster's first block then groups; of several the one that is the last to arrive at a counter (router_group.cuh).
//
// All of this is latency, and a good part of it that of instructions that no cache has any more: nothing but weights
// passed since the layer before. So all warps go through their part once before pdl_wait(), with what happens to be
// there and to nowhere, while gates and weights are on their way.
//
// The order of sums depends on d alone, so a row routes alike in every batch:
//   square sum   lane l of a warp has chunks l, l + 32, ... (of 8 channels) of a part, one chain of fused
//                multiply-adds; lanes by butterflies; parts in ascending order
//   logit        a part is one chain of tensor core products of 16 channels, ascending, from zero; parts in ascending
//                order
//
// Shared memory: gates and rows of a part; V2-Lite, 8
// rows: 54 KB; with the registers, a block fits beside one of the kernel before. Test: test/gpu/router.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/device/arrive.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select.cuh"
#include "cuda/norm/norm_row.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kParts = 8;      // of the channels: blocks of a cluster
constexpr int kPartUnit = 64;  // channels
constexpr int kMostPart = 1024;
constexpr int kWarpChannels = 256;  // that a warp loads at a time
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kExperts = 64;
constexpr int kExpertTiles = kExperts / 16;
constexpr int kMostClusterRows = kWarps * kParts;  // a warp chooses for one row
/// One and two rows are router_few_sm90.cu's where they are short enough for it: it takes 5.1 us where this takes 5.8;
/// 8 rows 10.8 and 5.8. H200, 2026-11.
constexpr int64_t kLeastRows = 3;
constexpr int64_t kMostRows = 256;
constexpr int kMostColumns = 96;  // top_k is at most kExperts
constexpr int kMostGroups = kExperts + kMostColumns;
constexpr int kMostBytes = 226 * 1024;
constexpr float kPadding = -1;  // the factor of a row that is none

/// Who groups: nobody here, the first block of the only cluster, or that of the last cluster to arrive.
enum class Grouping { kNone, kOne, kLast };

struct PartsArgs {
  const Bf16* x;             // [rows, d]
  Bf16* normed;              // [rows, d]
  const Bf16* gate;          // [experts, d]
  const void* weight;        // [d], of the norm
  const int32_t* positions;  // [rows]
  unsigned* arrived;         // clusters
  float eps;
  int rows, d, experts;
  int part;         // channels
  int per_cluster;  // rows
  bool weight_bf16;
  bool settled;  // gate, norm weights and bias
  Grouping grouping;
  int pitch, x_at, weight_at, squares_at, sums_at;  // in shared memory behind Shared; gates come first
};

struct Shared {
  alignas(16) float bias[kExperts];
  uint32_t words[kWarps][kExperts];
  int32_t chosen[kWarps][kMostColumns];
  int32_t positions[kWarps];                       // of the rows that this block chooses for
  int32_t ids[kParts * kMostColumns];              // of the cluster's 8 rows, in its first block
  uint32_t marks[kMostGroups * (kMaskWords + 1)];  // and starts
  int scratch[32];
  float nowhere_weights[kMostColumns];
  int32_t nowhere[kParts * kMostColumns], nowhere_offsets[kMostGroups + 1];
  bool last;
  alignas(8) uint64_t squares_sent, ids_sent;
};

__device__ __forceinline__ float cluster_load(uint32_t address) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}

/// What the first block of a cluster does behind its choices; all of its threads. `ids`: of the cluster's rows.
__device__ __forceinline__ void group_choices(const PartsArgs& a, const GroupArgs& grouping, int32_t* ids, Shared& s,
                                              int rows, bool real) {
  GroupArgs group = grouping;
  group.ids = s.ids;
  if (!real) {
    group.rows = 1;
    group.offsets = s.nowhere_offsets;
    group.order = group.slots = s.nowhere;
  }
  const int pairs = rows * grouping.columns;
  if (a.grouping == Grouping::kOne) {
    if (threadIdx.x / 32 != kWarps - 1) return;  // a warp that has nothing to choose
    if (real) mbarrier_wait_cluster(shared_address(&s.ids_sent), 0);
    group_few(group, real ? pairs : grouping.columns, s.marks, reinterpret_cast<int*>(s.marks) + grouping.groups);
    return;
  }
  if (real) {
    mbarrier_wait_cluster(shared_address(&s.ids_sent), 0);
    for (int i = threadIdx.x; i < pairs; i += kThreads) ids[i] = s.ids[i];
    __syncthreads();
    if (threadIdx.x == 0) {
      s.last = arrive(a.arrived) == gridDim.x / kParts - 1;
      if (s.last) *a.arrived = 0;
    }
    __syncthreads();
    if (!s.last) return;
    group.ids = grouping.ids;
  }
  place_chunk(group, 0, 1, s.marks, s.scratch);
}

/// kSteps: loads of 256 channels that a part takes, at most.
template <int kSteps>
__global__ void __launch_bounds__(kThreads, 2)
    route_parts_kernel(const __grid_constant__ PartsArgs a, const __grid_constant__ SelectArgs choice,
                       const __grid_constant__ GroupArgs grouping) {
  constexpr int kTileWarps = kWarps / kExpertTiles;  // warps with the same experts
  constexpr int kWarpTiles = 2;                      // of 8 rows, that a warp multiplies with the same gates
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  unsigned char* const gates = memory + sizeof(Shared);
  unsigned char* const held = gates + a.x_at;
  unsigned char* const weight = gates + a.weight_at;                      // [part], as it comes
  float* const squares = reinterpret_cast<float*>(gates + a.squares_at);  // [rows][parts]
  float* const sums = reinterpret_cast<float*>(gates + a.sums_at);        // [rows][experts], of this part
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = static_cast<int>(cluster_rank());
  const int row0 = static_cast<int>(blockIdx.x) / kParts * a.per_cluster, all_rows = min(a.per_cluster, a.rows - row0);
  const int k0 = rank * a.part, chunks = a.part / kChunk, columns = grouping.columns;
  const int row_tiles = (all_rows + 7) / 8, owned = (all_rows - rank + kParts - 1) / kParts;
  const auto channel = [&](int step) { return k0 + (step * 32 + lane) * kChunk; };
  const auto exists = [&](int step) { return (step * 32 + lane < chunks) & (channel(step) < a.d); };
  const uint32_t squares_sent = shared_address(&s.squares_sent), ids_sent = shared_address(&s.ids_sent);
  if (threadIdx.x == 0) {
    mbarrier_init(squares_sent, 1);
    mbarrier_init(ids_sent, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(squares_sent, all_rows * kParts * static_cast<int>(sizeof(float)));
    if (a.grouping != Grouping::kNone)
      mbarrier_arrive_expect(ids_sent, all_rows * columns * static_cast<int>(sizeof(int32_t)));
  }
  for (int i = threadIdx.x; i < kParts * kMostColumns; i += kThreads) s.ids[i] = -1;
  if (!a.settled) pdl_wait();
  for (int e = warp; e < kExperts; e += kWarps) {
    for (int c = lane; c < chunks; c += 32) {
      const int k = k0 + c * kChunk;
      cp_async16(shared_address(gates + e * a.pitch + c * 16), a.gate + static_cast<int64_t>(e) * a.d + k,
                 e < a.experts && k < a.d);
    }
  }
  const int weight_bytes = a.weight_bf16 ? 2 : 4, pieces = a.part * weight_bytes / 16;
  for (int i = threadIdx.x; i < pieces; i += kThreads) {
    const bool valid = k0 + i * 16 / weight_bytes < a.d;
    cp_async16(shared_address(weight + i * 16), static_cast<const char*>(a.weight) + k0 * weight_bytes + i * 16, valid);
  }
  for (int i = threadIdx.x; i < a.experts && choice.bias != nullptr; i += kThreads)
    cp_async4(shared_address(&s.bias[i]), choice.bias + i);
  cp_async_commit();
  __syncthreads();

#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    if (real) {
      cp_async_wait<0>();
      cluster_sync();  // the other blocks run and have their barriers: they may be sent to
      // The next kernel asks for megabytes, and whatever is asked for after that stands behind them; here rows and
      // positions only, which are asked for before its blocks have begun.
      pdl_launch_dependents();
      pdl_wait();
    }
    const int rows = real ? all_rows : kWarps;
    const auto chunk_of = [&](int row, int step) { return held + row * a.pitch + (step * 32 + lane) * 16; };
    if (real) {
      for (int row = warp; row < rows; row += kWarps) {
        const Bf16* const x = a.x + static_cast<int64_t>(row0 + row) * a.d;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          if (i * 32 + lane < chunks) cp_async16(shared_address(chunk_of(row, i)), x + channel(i), exists(i));
        }
      }
      cp_async_commit();
    }
    // Lane l has the position, and then the factor, of its warp's row l.
    const int mine = min(warp + lane * kWarps, rows - 1);
    const bool padding = real && a.positions[row0 + mine] < 0;
    if (lane == 0 && warp < owned) s.positions[warp] = real ? a.positions[row0 + warp * kParts + rank] : 0;
    cp_async_wait<0>();
#pragma unroll 2
    for (int row = warp; row < rows; row += kWarps) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const uint4 raw = i * 32 + lane < chunks ? load16(chunk_of(row, i)) : make_uint4(0, 0, 0, 0);
        const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum = fmaf(bf16_low(words[j]), bf16_low(words[j]), sum);
          sum = fmaf(bf16_high(words[j]), bf16_high(words[j]), sum);
        }
      }
      sum = warp_sum(sum);
      if (real && lane < kParts)
        cluster_send(cluster_address(shared_address(squares + row * kParts + rank), lane),
                     cluster_address(squares_sent, lane), sum);
    }
    float w[kSteps][kChunk] = {};
#pragma unroll
    for (int i = 0; i < kSteps && real; ++i)
      load_weight_chunk(weight, a.weight_bf16, min(i * 32 + lane, chunks - 1) * kChunk, a.part, true, w[i]);
    if (real) mbarrier_wait_cluster(squares_sent, 0);
    const float4 low = *reinterpret_cast<const float4*>(squares + mine * kParts);
    const float4 high = *reinterpret_cast<const float4*>(squares + mine * kParts + 4);
    const float total = low.x + low.y + low.z + low.w + high.x + high.y + high.z + high.w;
    const float all_factors = padding ? kPadding : 1.0f / sqrtf(total / static_cast<float>(a.d) + a.eps);
#pragma unroll 1
    for (int row = warp; row < rows; row += kWarps) {
      const float factor = __shfl_sync(kFullWarp, all_factors, row / kWarps);
      uint4 raw[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        raw[i] = i * 32 + lane < chunks ? load16(chunk_of(row, i)) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i * 32 + lane >= chunks) continue;
        const uint32_t words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
        uint32_t out[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          out[j] = factor == kPadding ? 0
                                      : pack_bf16(bf16_low(words[j]) * factor * w[i][2 * j],
                                                  bf16_high(words[j]) * factor * w[i][2 * j + 1]);
        const uint4 v = make_uint4(out[0], out[1], out[2], out[3]);
        store16(chunk_of(row, i), v);
        if (real && exists(i)) store16(a.normed + static_cast<int64_t>(row0 + row) * a.d + channel(i), v);
      }
    }
    __syncthreads();

    const int tiles = real ? row_tiles : 1, m = warp % kExpertTiles;
#pragma unroll 1
    for (int first = warp / kExpertTiles; first < tiles; first += kTileWarps * kWarpTiles) {
      float d[kWarpTiles][4] = {};
      const uint32_t from =
          shared_address((real ? gates + (16 * m + lane % 16) * a.pitch : held + lane % 8 * a.pitch) + lane / 16 * 16);
      uint32_t rows_from[kWarpTiles];
#pragma unroll
      for (int t = 0; t < kWarpTiles; ++t)  // tiles that do not exist repeat the last one
        rows_from[t] =
            shared_address(held + (8 * min(first + t * kTileWarps, tiles - 1) + lane % 8) * a.pitch + lane / 8 * 16);
#pragma unroll 2
      for (int at = 0; at < a.part * 2; at += 64) {
        uint32_t even[4], odd[4];
        ldmatrix_x4(even, from + at);
        ldmatrix_x4(odd, from + at + 32);
#pragma unroll
        for (int t = 0; t < kWarpTiles; ++t) {
          uint32_t x[4];
          ldmatrix_x4(x, rows_from[t] + at);
          mma_bf16(d[t], even, {x[0], x[1]});
          mma_bf16(d[t], odd, {x[2], x[3]});
        }
      }
#pragma unroll
      for (int t = 0; t < kWarpTiles; ++t) {
        const int row_tile = first + t * kTileWarps;
        float* const to = sums + (8 * row_tile + lane % 4 * 2) * kExperts + 16 * m + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (row_tile < tiles) to[i % 2 * kExperts + i / 2 * 8] = d[t][i];
        }
      }
    }
    if (real) {
      cluster_sync();  // all parts' sums are there
    } else {
      __syncthreads();
    }

    if (warp < (real ? owned : 1)) {
      const int own = real ? warp * kParts + rank : 0;
      float* const logits = sums + own * kExperts;  // which no other block reads
#pragma unroll
      for (int i = 0; i < kExperts / 32; ++i) {
        const uint32_t at = shared_address(logits + lane + 32 * i);
        float part[kParts];
#pragma unroll
        for (int p = 0; p < kParts; ++p) part[p] = cluster_load(cluster_address(at, real ? p : rank));
#pragma unroll
        for (int p = 1; p < kParts; ++p) part[0] += part[p];
        logits[lane + 32 * i] = part[0];
      }
      __syncwarp();
      SelectArgs select = choice;
      if (choice.bias != nullptr) select.bias = real ? s.bias : logits;  // which is on its way before
      select.logits = logits;
      select.positions = &s.positions[warp];
      select.ids = s.chosen[warp];
      select.weights = real ? choice.weights + static_cast<int64_t>(row0 + own) * columns : s.nowhere_weights;
      select_row<kExperts / 32>(select, 0, s.words[warp]);
      __syncwarp();
      for (int i = lane; i < columns && real; i += 32) {
        const int32_t id = s.chosen[warp][i];
        if (a.grouping != Grouping::kNone)
          cluster_send(cluster_address(shared_address(&s.ids[own * columns + i]), 0), cluster_address(ids_sent, 0),
                       __int_as_float(id));
        if (a.grouping != Grouping::kLast) choice.ids[static_cast<int64_t>(row0 + own) * columns + i] = id;
      }
    }
    if (real) cluster_arrive_relaxed();  // this block reads no more sums
    if (a.grouping != Grouping::kNone && rank == 0)
      group_choices(a, grouping, choice.ids + row0 * columns, s, all_rows, real);
  }
  __syncwarp();
  cluster_wait();  // nobody leaves while others read its sums
}

auto kernel_of(int part) {
  return part <= kWarpChannels ? route_parts_kernel<1> : route_parts_kernel<kMostPart / kWarpChannels>;
}

}  // namespace

bool routes_parts(const MoeRouteParams& p, const Traits& traits) {
  const int64_t rows = p.x.dim(0);
  const bool some = rows <= kMostRows && (rows >= kLeastRows || !routes_few(p, traits));
  return traits.hopper && (some || traits.deterministic) && p.x.dtype == DType::kBF16 && p.gate.dtype == DType::kBF16 &&
         p.gate.dim(0) <= kExperts && p.x.dim(1) % kChunk == 0 && p.x.dim(1) <= kParts * kMostPart &&
         p.top_k + p.shared <= kMostColumns && aligned16(p.x.data) && aligned16(p.norm.data) &&
         aligned16(p.gate.data) && aligned16(p.normed.data);
}

Status launch_route_parts(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                          const Launch& launch, bool* grouped) {
  PartsArgs a;
  a.x = p.x.as<const Bf16>();
  a.normed = p.normed.as<Bf16>();
  a.gate = p.gate.as<const Bf16>();
  a.weight = p.norm.data;
  a.positions = p.positions.as<const int32_t>();
  a.arrived = launch.counters;
  a.eps = p.eps;
  a.rows = static_cast<int>(p.x.dim(0));
  a.d = static_cast<int>(p.x.dim(1));
  a.experts = static_cast<int>(p.gate.dim(0));
  a.part = static_cast<int>(round_up(ceil_div(int64_t{a.d}, int64_t{kParts}), int64_t{kPartUnit}));
  a.weight_bf16 = p.norm.dtype == DType::kBF16;
  a.settled = launch.settled(p.gate) && launch.settled(p.norm) && (!p.bias.present() || launch.settled(p.bias));
  a.pitch = a.part * 2 + 16;
  a.x_at = kExperts * a.pitch;
  // As many clusters as may well run at once.
  a.per_cluster = static_cast<int>(
      std::min(round_up(ceil_div(int64_t{a.rows}, kChunkRows / kParts), kParts), int64_t{kMostClusterRows}));
  int64_t bytes = 0;
  for (;; a.per_cluster -= kParts) {
    a.weight_at = a.x_at + a.per_cluster * a.pitch;
    a.squares_at = a.weight_at + a.part * 4;
    a.sums_at = a.squares_at + a.per_cluster * kParts * 4;
    bytes = static_cast<int64_t>(sizeof(Shared)) + a.sums_at + a.per_cluster * kExperts * 4;
    if (bytes <= kMostBytes) break;
  }
  const int64_t clusters = ceil_div(int64_t{a.rows}, int64_t{a.per_cluster});
  a.grouping = a.rows > kChunkRows ? Grouping::kNone : clusters == 1 ? Grouping::kOne : Grouping::kLast;
  *grouped = a.grouping != Grouping::kNone;
  return cuda_status(launch_eager(kernel_of(a.part), dim3(static_cast<unsigned>(clusters * kParts)), dim3(kThreads),
                                  kParts, static_cast<size_t>(bytes), launch.stream, a, select, grouping),
                     "route_parts_kernel");
}

Status load_route_parts_kernels() {
  for (const int part : {kWarpChannels, kMostPart})
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of(part), "route_parts_kernel", kMostBytes));
  return Status::Ok();
}

}  // namespace mla::cuda
