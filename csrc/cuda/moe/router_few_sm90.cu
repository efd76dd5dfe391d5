// router_few_sm90.cu - moeRoute for up to 16 rows in one launch, on Hopper. ops/ops.h has the formulas.
//
// One cluster of 8 blocks, 16 warps each. Every block norms all rows into its shared memory (norm/hold_normed.cuh) and
// computes the logits of an eighth of the experts, whose gate rows it copied before pdl_wait() where they are settled;
// the logits are sent to the first block's shared memory, which then chooses (router_select.cuh, a warp per row) and
// groups (router_group.cuh), with ids and marks in shared memory. Block b also writes the normed rows b and b + 8.
// Sums and choices have the order, and so the bits, of router_portable.cu: a warp for one logit, lane l taking elements
// 8l .. 8l + 8 of each 256.
// Shared memory: gate rows of the block, rows of x, logits; at most 112 KB, so that a block fits beside one of the
// kernel before. Latency-bound. Test: test/gpu/router.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select.cuh"
#include "cuda/norm/hold_normed.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kBlocks = 8;
constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int64_t kMostBytes = 112 * 1024;

struct FewArgs {
  const Bf16* x;     // [rows, d]
  Bf16* normed;      // [rows, d]
  const void* gate;  // [experts, d]
  HeldNorm norm;
  int rows, d, experts, per_block;
  bool gate_settled;
  int held, pitch, sums, logits, words, ids, marks, starts;  // in shared memory; gate rows come first
  int bytes;
};

template <int kPer, class Gate>
__global__ void __launch_bounds__(kThreads)
    route_few_kernel(const __grid_constant__ FewArgs a, SelectArgs select, GroupArgs grouping) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ __align__(8) uint64_t s_logits;  // the barrier of the logits
  __shared__ int s_pairs;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = static_cast<int>(cluster_rank());
  const int first = rank * a.per_block, mine = max(0, min(a.per_block, a.experts - first));
  const auto load_gate = [&] {
    const char* const from = static_cast<const char*>(a.gate) + static_cast<int64_t>(first) * a.d * sizeof(Gate);
    for (int i = threadIdx.x; i < mine * a.d * static_cast<int>(sizeof(Gate)) / 16; i += kThreads)
      cp_async16_stream(shared_address(shared + i * 16), from + i * 16);
    cp_async_commit();
  };
  if (a.gate_settled) load_gate();
  const uint32_t barrier = shared_address(&s_logits);
  uint32_t* const marks = reinterpret_cast<uint32_t*>(shared + a.marks);
  if (rank == 0) {
    for (int i = threadIdx.x; i < grouping.groups; i += kThreads) marks[i] = 0;
    if (threadIdx.x == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_fence_init();
      mbarrier_arrive_expect(barrier, a.rows * a.experts * static_cast<int>(sizeof(float)));
    }
  }
  cluster_sync();  // the first block runs and has its barrier: logits may be sent
  pdl_wait();
  pdl_launch_dependents();
  if (!a.gate_settled) load_gate();
  unsigned char* const held = shared + a.held;
  hold_normed<kWarps>(a.norm, a.x, a.d, a.rows, a.d, held, a.pitch, reinterpret_cast<float*>(shared + a.sums), warp,
                      [] { __syncthreads(); });
  cp_async_wait<0>();
  __syncthreads();

  for (int task = warp; task < mine * a.rows; task += kWarps) {
    const int e = task % mine, row = task / mine;
    const Gate* const gate = reinterpret_cast<const Gate*>(shared) + e * a.d;
    const Bf16* const x = reinterpret_cast<const Bf16*>(held + row * a.pitch);
    float sum = 0;
    for (int at = lane * kChunk; at < a.d; at += 32 * kChunk) {
      float v[kChunk], w[kChunk];
      load_chunk(x, at, a.d, true, v);
      load_chunk(gate, at, a.d, true, w);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum = fmaf(v[i], w[i], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      const int at = (row * a.experts + first + e) * static_cast<int>(sizeof(float));
      cluster_send(cluster_address(shared_address(shared + a.logits + at), 0), cluster_address(barrier, 0), sum);
    }
  }
  for (int row = rank; row < a.rows; row += kBlocks) {
    for (int i = threadIdx.x; i < a.d / kChunk; i += kThreads)
      store16(a.normed + static_cast<int64_t>(row) * a.d + i * kChunk, load16(held + row * a.pitch + i * 16));
  }
  if (rank != 0) return;

  const int columns = grouping.columns, pairs = a.rows * columns;
  int32_t* const ids = reinterpret_cast<int32_t*>(shared + a.ids);
  int* const starts = reinterpret_cast<int*>(shared + a.starts);
  if (warp < a.rows) {
    mbarrier_wait_cluster(barrier, 0);
    int32_t* const out = select.ids;
    select.logits = reinterpret_cast<const float*>(shared + a.logits);
    select.ids = ids;
    select_row<kPer>(select, warp, reinterpret_cast<uint32_t*>(shared + a.words) + warp * a.experts);
    __syncwarp();
    for (int i = warp * columns + lane; i < (warp + 1) * columns; i += 32) {
      const int group = group_of(grouping, ids[i]);
      if (group >= 0) atomicOr(&marks[group], 1u << warp);
      out[i] = ids[i];
    }
  }
  __syncthreads();
  if (warp == 0) {
    const int total = start_groups(grouping, marks, starts);
    if (lane == 0) s_pairs = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const int group = group_of(grouping, ids[i]);
    int slot = -1;
    if (group >= 0) {
      slot = starts[group] + __popc(marks[group] & ((1u << (i / columns)) - 1));
      grouping.order[slot] = i;
    }
    grouping.slots[i] = slot;
    if (i >= s_pairs) grouping.order[i] = -1;
  }
}

template <class Gate>
auto kernel_of(int experts) {
  return experts <= 64 ? route_few_kernel<2, Gate> : route_few_kernel<8, Gate>;
}

FewArgs args_of(const MoeRouteParams& p) {
  FewArgs a;
  a.x = p.x.as<const Bf16>();
  a.normed = p.normed.as<Bf16>();
  a.gate = p.gate.data;
  a.rows = static_cast<int>(p.x.dim(0));
  a.d = static_cast<int>(p.x.dim(1));
  a.experts = static_cast<int>(p.gate.dim(0));
  a.per_block = static_cast<int>(ceil_div(a.experts, kBlocks));
  a.norm.weight = p.norm.data;
  a.norm.weight_bf16 = p.norm.dtype == DType::kBF16;
  a.norm.eps = p.eps;
  a.norm.threads = norm_threads(a.d);
  a.norm.positions = p.positions.as<const int32_t>();
  a.gate_settled = false;
  a.pitch = a.d * 2 + 16;
  const int64_t groups = p.expert_end - p.expert_begin + p.shared;
  int64_t end = a.per_block * int64_t{a.d} * dtype_bytes(p.gate.dtype);
  const auto take = [&](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 16);
    return static_cast<int>(at);
  };
  a.held = take(int64_t{a.rows} * a.pitch);
  a.sums = take(int64_t{a.rows} * kHeldNormWarps * 4);
  a.logits = take(int64_t{a.rows} * a.experts * 4);
  a.words = take(p.n_group > 1 ? int64_t{a.rows} * a.experts * 4 : 0);
  a.ids = take(a.rows * (p.top_k + p.shared) * 4);
  a.marks = take(groups * 4);
  a.starts = take(groups * 4);
  a.bytes = static_cast<int>(std::min<int64_t>(end, kMostBytes + 1));
  return a;
}

}  // namespace

bool routes_few(const MoeRouteParams& p, const Traits& traits) {
  return traits.hopper && p.x.dtype == DType::kBF16 && p.x.dim(0) <= kHeldNormRows && p.gate.dim(0) <= 256 &&
         p.x.dim(1) % kChunk == 0 && aligned16(p.x.data) && aligned16(p.norm.data) && aligned16(p.gate.data) &&
         aligned16(p.normed.data) && args_of(p).bytes <= kMostBytes;
}

Status launch_route_few(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                        const Launch& launch) {
  FewArgs args = args_of(p);
  args.gate_settled = launch.settled(p.gate);
  const auto kernel = p.gate.dtype == DType::kBF16 ? kernel_of<Bf16>(args.experts) : kernel_of<float>(args.experts);
  return cuda_status(launch_clusters(kernel, dim3(kBlocks), dim3(kThreads), kBlocks, static_cast<size_t>(args.bytes),
                                     launch.stream, args, select, grouping),
                     "route_few_kernel");
}

Status load_route_few_kernels() {
  for (const int experts : {64, 256}) {
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of<Bf16>(experts), "route_few_kernel", kMostBytes));
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of<float>(experts), "route_few_kernel", kMostBytes));
  }
  return Status::Ok();
}

}  // namespace mla::cuda
