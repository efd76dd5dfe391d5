// router_rows_sm90.cu - norm, logits and choice of moeRoute for up to 128 rows in one launch, on Hopper; grouping is
// router_portable.cu's. ops/ops.h has the formulas.
//
// A cluster of 8 blocks, 8 warps each, takes 8 rows, or 4 where that still is one block a multiprocessor. Every block
// norms all of them into its shared memory, a warp each, and computes their logits for an eighth of the experts, whose
// gate rows it copied before pdl_wait() where they are settled; a warp takes 2 rows by 4 experts. The logits of a row
// are sent to the block of its number, of which one warp chooses (router_select.cuh) and which also writes the normed
// row.
// Sums and choices have the order, and so the bits, of norm_rows.cu and router_portable.cu: a warp plays the warps of
// the norm one after the other; lane l of a logit takes elements 8l .. 8l + 8 of each 256.
// Shared memory: gate rows, rows of x, norm weights, logits. Latency-bound. Test: test/gpu/router.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_select.cuh"
#include "cuda/norm/norm_row.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kBlocks = 8;  // of a cluster, and the rows it takes
constexpr int kWarps = kBlocks;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpRows = 2, kWarpExperts = 4;
constexpr int64_t kMostRows = 128;
constexpr int64_t kMostBytes = 200 * 1024;

struct RowsArgs {
  const Bf16* x;             // [rows, d]
  Bf16* normed;              // [rows, d]
  const void* gate;          // [experts, d]
  const void* weight;        // [d], of the norm
  const int32_t* positions;  // [rows]
  float eps;
  int rows, d, experts, per_block;
  int per_cluster;  // rows
  int norm_warps;   // that norm_rows.cu has for a row
  bool weight_bf16, settled;
  int held, pitch, weights, logits, words, bytes;  // in shared memory; gate rows come first
};

/// One row by one warp, into shared memory and, if `out` is given, to memory.
__device__ __forceinline__ void norm_by_warp(const RowsArgs& a, int row, unsigned char* held, const void* weight,
                                             Bf16* out) {
  constexpr int kAtOnce = 8;  // loads under way
  const int lane = threadIdx.x % 32, step = a.norm_warps * 32 * kChunk;
  const Bf16* const x = a.x + static_cast<int64_t>(row) * a.d;
  const bool padding = a.positions[row] < 0;
  float total = 0;
  for (int w0 = 0; w0 < a.norm_warps; w0 += kAtOnce) {
    float sum[kAtOnce] = {};
    for (int k0 = 0; k0 < a.d; k0 += step) {
      uint4 raw[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = k0 + ((w0 + i) * 32 + lane) * kChunk;
        if (w0 + i < a.norm_warps && at < a.d) raw[i] = load16(x + at);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = k0 + ((w0 + i) * 32 + lane) * kChunk;
        if (w0 + i >= a.norm_warps || at >= a.d) continue;
        store16(held + at * 2, raw[i]);
        const uint32_t words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i] = fmaf(bf16_low(words[j]), bf16_low(words[j]), sum[i]);
          sum[i] = fmaf(bf16_high(words[j]), bf16_high(words[j]), sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float one = warp_sum(sum[i]);
      if (w0 + i < a.norm_warps) total = w0 + i == 0 ? one : total + one;
    }
  }
  const float factor = 1.0f / sqrtf(total / static_cast<float>(a.d) + a.eps);
#pragma unroll 4
  for (int at = lane * kChunk; at < a.d; at += 32 * kChunk) {
    float v[kChunk], w[kChunk];
    // What this lane put there itself.
    load_chunk(reinterpret_cast<const Bf16*>(held), at, a.d, true, v);
    load_weight_chunk(weight, a.weight_bf16, at, a.d, true, w);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = padding ? 0.0f : v[j] * factor * w[j];
    store_chunk(reinterpret_cast<Bf16*>(held), at, a.d, true, v);
    if (out != nullptr) store_chunk(out, at, a.d, true, v);
  }
}

template <int kPer, class Gate>
__global__ void __launch_bounds__(kThreads, 1)
    route_rows_kernel(const __grid_constant__ RowsArgs a, const __grid_constant__ SelectArgs choice) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ __align__(8) uint64_t s_logits;  // the barrier of the logits
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = static_cast<int>(cluster_rank());
  const int row0 = static_cast<int>(blockIdx.x) / kBlocks * a.per_cluster, rows = min(a.per_cluster, a.rows - row0);
  const int first = rank * a.per_block, mine = max(0, min(a.per_block, a.experts - first));
  const Gate* const gates = reinterpret_cast<const Gate*>(shared);
  const uint32_t barrier = shared_address(&s_logits);
  const auto copy = [&](unsigned char* to, const void* from, int bytes) {
    for (int i = threadIdx.x * 16; i < bytes; i += kThreads * 16)
      cp_async16_stream(shared_address(to + i), static_cast<const char*>(from) + i);
  };
  if (!a.settled) pdl_wait();
  copy(shared + a.weights, a.weight, a.d * (a.weight_bf16 ? 2 : 4));
  copy(shared, static_cast<const Gate*>(a.gate) + static_cast<int64_t>(first) * a.d,
       mine * a.d * static_cast<int>(sizeof(Gate)));
  cp_async_commit();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(barrier, a.experts * static_cast<int>(sizeof(float)));
  }
  cluster_sync();  // the other blocks run and have their barriers: logits may be sent
  pdl_wait();
  pdl_launch_dependents();
  cp_async_wait<0>();
  __syncthreads();
  unsigned char* const held = shared + a.held;
  if (warp < rows)
    norm_by_warp(a, row0 + warp, held + warp * a.pitch, shared + a.weights,
                 warp == rank ? a.normed + static_cast<int64_t>(row0 + warp) * a.d : nullptr);
  __syncthreads();

  const int across = (mine + kWarpExperts - 1) / kWarpExperts, tasks = across * ((rows + kWarpRows - 1) / kWarpRows);
  for (int task = warp; task < tasks; task += kWarps) {
    const int r0 = task / across * kWarpRows, e0 = task % across * kWarpExperts;
    // Places that do not exist repeat the last one.
    const Bf16* x[kWarpRows];
    const Gate* gate[kWarpExperts];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) x[r] = reinterpret_cast<const Bf16*>(held + min(r0 + r, rows - 1) * a.pitch);
#pragma unroll
    for (int e = 0; e < kWarpExperts; ++e) gate[e] = gates + min(e0 + e, mine - 1) * a.d;
    float sum[kWarpRows][kWarpExperts] = {};
#pragma unroll 2
    for (int at = lane * kChunk; at < a.d; at += 32 * kChunk) {
      float v[kWarpRows][kChunk];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) load_chunk(x[r], at, a.d, true, v[r]);
#pragma unroll
      for (int e = 0; e < kWarpExperts; ++e) {
        float w[kChunk];
        load_chunk(gate[e], at, a.d, true, w);
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
          for (int i = 0; i < kChunk; ++i) sum[r][e] = fmaf(v[r][i], w[i], sum[r][e]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
      for (int e = 0; e < kWarpExperts; ++e) {
        const float total = warp_sum(sum[r][e]);
        if (lane == 0 && r0 + r < rows && e0 + e < mine) {
          const int at = (first + e0 + e) * static_cast<int>(sizeof(float));
          cluster_send(cluster_address(shared_address(shared + a.logits + at), r0 + r),
                       cluster_address(barrier, r0 + r), total);
        }
      }
    }
  }
  if (rank < rows && warp == 0) {
    SelectArgs select = choice;
    const int64_t row = row0 + rank, columns = select.top_k + select.shared;
    select.logits = reinterpret_cast<const float*>(shared + a.logits);
    select.positions += row;
    select.ids += row * columns;
    select.weights += row * columns;
    mbarrier_wait_cluster(barrier, 0);
    select_row<kPer>(select, 0, reinterpret_cast<uint32_t*>(shared + a.words));
  }
  // A block that has no row of its own is sent nothing; the others have got all that they are sent.
}

template <class Gate>
auto kernel_of(int experts) {
  return experts <= 64 ? route_rows_kernel<2, Gate> : route_rows_kernel<8, Gate>;
}

RowsArgs args_of(const MoeRouteParams& p, const Traits& traits) {
  RowsArgs a;
  a.x = p.x.as<const Bf16>();
  a.normed = p.normed.as<Bf16>();
  a.gate = p.gate.data;
  a.weight = p.norm.data;
  a.positions = p.positions.as<const int32_t>();
  a.eps = p.eps;
  a.rows = static_cast<int>(p.x.dim(0));
  a.d = static_cast<int>(p.x.dim(1));
  a.experts = static_cast<int>(p.gate.dim(0));
  a.per_block = static_cast<int>(ceil_div(a.experts, kBlocks));
  a.per_cluster = 2 * a.rows <= traits.multiprocessors ? kBlocks / 2 : kBlocks;
  a.norm_warps = norm_threads(a.d) / 32;
  a.weight_bf16 = p.norm.dtype == DType::kBF16;
  a.settled = false;
  a.pitch = a.d * 2 + 16;
  int64_t end = a.per_block * int64_t{a.d} * dtype_bytes(p.gate.dtype);
  const auto take = [&](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 16);
    return static_cast<int>(std::min(at, kMostBytes));
  };
  a.held = take(int64_t{a.per_cluster} * a.pitch);
  a.weights = take(int64_t{a.d} * dtype_bytes(p.norm.dtype));
  a.logits = take(a.experts * 4);
  a.words = take(p.n_group > 1 ? a.experts * 4 : 0);
  a.bytes = static_cast<int>(std::min(end, kMostBytes + 1));
  return a;
}

}  // namespace

bool routes_rows(const MoeRouteParams& p, const Traits& traits) {
  return traits.hopper && p.x.dtype == DType::kBF16 && p.x.dim(0) <= kMostRows && p.gate.dim(0) <= 256 &&
         p.x.dim(1) % kChunk == 0 && p.x.dim(1) < (1 << 20) && aligned16(p.x.data) && aligned16(p.norm.data) &&
         aligned16(p.gate.data) && aligned16(p.normed.data) && args_of(p, traits).bytes <= kMostBytes;
}

Status launch_route_rows(const MoeRouteParams& p, const SelectArgs& select, const Launch& launch) {
  RowsArgs args = args_of(p, *launch.traits);
  args.settled = launch.settled(p.gate) && launch.settled(p.norm);
  const auto kernel = p.gate.dtype == DType::kBF16 ? kernel_of<Bf16>(args.experts) : kernel_of<float>(args.experts);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, args.per_cluster) * kBlocks));
  return cuda_status(launch_clusters(kernel, grid, dim3(kThreads), kBlocks, static_cast<size_t>(args.bytes),
                                     launch.stream, args, select),
                     "route_rows_kernel");
}

Status load_route_rows_kernels() {
  for (const int experts : {64, 256}) {
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of<Bf16>(experts), "route_rows_kernel", kMostBytes));
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of<float>(experts), "route_rows_kernel", kMostBytes));
  }
  return Status::Ok();
}

}  // namespace mla::cuda
