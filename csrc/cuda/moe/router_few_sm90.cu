// router_few_sm90.cu - moeRoute for up to 8 rows of up to 2048 channels and up to 64 experts in one launch, on Hopper.
// ops/ops.h has the formulas.
//
// One cluster of 8 blocks, 8 warps each. Every block norms all rows into its shared memory and computes the logits of
// an eighth of the experts, a warp each, whose gate row it holds in registers. The logits of a row are sent to the
// block of its number. If there is but one row, that block chooses (router_select_block.cuh) and groups; of more a warp
// chooses (router_select.cuh) and sends the ids to the first block, of which one warp groups (router_group.cuh). Block
// b also writes normed row b. All of this is latency, and a good part of it that of instructions that no cache has any
// more: nothing but weights passed since the layer before. So all warps go through their part once before pdl_wait(),
// with zeros. Sums and choices have the order, and so the bits, of norm_rows.cu and router_portable.cu: thread i of a
// row's norm has elements 8i .. 8i + 8; lane l of a logit takes elements 8l .. 8l + 8 of each 256. Shared memory: 36
// KB; with the registers, a block fits beside one of the kernel before. Test: test/gpu/router.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select_block.cuh"
#include "cuda/norm/norm_row.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kBlocks = 8;  // and the most rows
constexpr int kWarps = 8;   // of a block, and the experts it takes
constexpr int kThreads = kWarps * 32;
constexpr int kMostD = kThreads * kChunk;  // so that a thread norms one chunk, as in norm_rows.cu
constexpr int kExperts = kBlocks * kWarps;
constexpr int kSteps = kMostD / (32 * kChunk);  // of a logit
constexpr int kMostGroups = 128;
constexpr int kMostColumns = BlockChoice<2>::kMostColumns;
constexpr int kPitch = kMostD * 2 + 16;

struct FewArgs {
  const Bf16* x;             // [rows, d]
  Bf16* normed;              // [rows, d]
  const void* gate;          // [experts, d]
  const void* weight;        // [d], of the norm
  const int32_t* positions;  // [rows]
  float eps;
  int rows, d;
  int norm_warps;  // that norm_rows.cu has for a row
  bool weight_bf16;
  bool settled;  // gate, norm weights and bias
};

struct Shared {
  alignas(16) unsigned char held[kBlocks * kPitch];
  alignas(16) float sums[kBlocks][kWarps];  // of a row's squares
  alignas(16) float logits[kExperts];
  float bias[kExperts];
  float weights[kMostColumns];
  BlockChoice<2> choice;
  int32_t ids[kBlocks * kMostColumns], nowhere[kBlocks * kMostColumns];
  uint32_t marks[kMostGroups];
  int starts[kMostGroups + 1];
  int32_t position;
  alignas(8) uint64_t logits_sent, ids_sent;
};

template <class Gate>
__global__ void __launch_bounds__(kThreads, 2)
    route_few_kernel(const __grid_constant__ FewArgs a, const __grid_constant__ SelectArgs choice,
                     const __grid_constant__ GroupArgs grouping) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = static_cast<int>(cluster_rank());
  const int expert = rank * kWarps + warp, at = threadIdx.x * kChunk;
  const int pairs = a.rows * grouping.columns;
  const uint32_t logits_sent = shared_address(&s.logits_sent), ids_sent = shared_address(&s.ids_sent);
  if (threadIdx.x == 0) {
    mbarrier_init(logits_sent, 1);
    mbarrier_init(ids_sent, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expect(logits_sent, choice.experts * static_cast<int>(sizeof(float)));
    mbarrier_arrive_expect(ids_sent, pairs * static_cast<int>(sizeof(int32_t)));
    s.position = 0;
  }
  if (!a.settled) pdl_wait();
  Eight<Gate> raw_gate[kSteps];
#pragma unroll
  for (int c = 0; c < kSteps; ++c) {
    const int k = (c * 32 + lane) * kChunk;
    if (expert < choice.experts && k < a.d) {
      raw_gate[c] = *reinterpret_cast<const Eight<Gate>*>(static_cast<const Gate*>(a.gate) +
                                                          static_cast<int64_t>(expert) * a.d + k);
    } else {
      raw_gate[c] = {};
    }
  }
  float weight[kChunk];
  load_weight_chunk(a.weight, a.weight_bf16, at < a.d ? at : 0, a.d, true, weight);
  for (int i = threadIdx.x; i < choice.experts; i += kThreads) s.bias[i] = choice.bias == nullptr ? 0 : choice.bias[i];
  for (int i = threadIdx.x; i < kBlocks * kPitch / 16; i += kThreads) store16(s.held + i * 16, make_uint4(0, 0, 0, 0));
  for (int i = threadIdx.x; i < kBlocks * kMostColumns; i += kThreads) s.ids[i] = -1;
  for (int i = threadIdx.x; i < kMostColumns; i += kThreads) s.choice.ids[i] = -1;
  for (int i = threadIdx.x; i < kExperts; i += kThreads) s.logits[i] = 0;
  __syncthreads();

#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    int position = 0;
    if (real) {
      cluster_sync();  // the other blocks run and have their barriers: logits and ids may be sent
      // The next kernel asks for megabytes, and whatever is asked for after that stands behind them; here rows and
      // positions only, which are asked for before its blocks have begun.
      pdl_launch_dependents();
      pdl_wait();
      if (at < a.d) {
#pragma unroll
        for (int row0 = 0; row0 < kBlocks; row0 += 4) {
          if (row0 >= a.rows) break;
          uint4 raw[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (row0 + i < a.rows) raw[i] = load16(a.x + static_cast<int64_t>(row0 + i) * a.d + at);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (row0 + i < a.rows) store16(s.held + (row0 + i) * kPitch + at * 2, raw[i]);
          }
        }
      }
      if (lane < a.rows) position = a.positions[lane];
    }
    const int rows = real ? a.rows : 1;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const Eight<Bf16> raw = *reinterpret_cast<const Eight<Bf16>*>(s.held + row * kPitch + at * 2);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(raw.v[i]), to_float(raw.v[i]), sum);
      sum = warp_sum(sum);
      if (lane == 0) s.sums[row][warp] = sum;
    }
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      float sum = s.sums[row][0];
#pragma unroll
      for (int i = 1; i < kWarps; ++i) sum += i < a.norm_warps ? s.sums[row][i] : 0.0f;
      const float factor = 1.0f / sqrtf(sum / static_cast<float>(a.d) + a.eps);
      const bool padding = __shfl_sync(kFullWarp, position, row) < 0;
      Eight<Bf16>* const place = reinterpret_cast<Eight<Bf16>*>(s.held + row * kPitch + at * 2);
      Eight<Bf16> v = *place;
      if (at < a.d) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          v.v[i] = padding ? from_float<Bf16>(0.0f) : from_float<Bf16>(to_float(v.v[i]) * factor * weight[i]);
        }
        *place = v;
        if (real && row == rank) *reinterpret_cast<Eight<Bf16>*>(a.normed + static_cast<int64_t>(row) * a.d + at) = v;
      }
    }
    if (real && threadIdx.x == rank) s.position = position;
    __syncthreads();
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const unsigned char* const x = s.held + row * kPitch + lane * kChunk * 2;
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kSteps; ++c) {
        const Eight<Bf16> v = *reinterpret_cast<const Eight<Bf16>*>(x + c * 32 * kChunk * 2);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(v.v[i]), to_float(raw_gate[c].v[i]), sum);
      }
      sum = warp_sum(sum);
      if (real && lane == 0 && expert < choice.experts)
        cluster_send(cluster_address(shared_address(&s.logits[expert]), row), cluster_address(logits_sent, row), sum);
    }

    GroupArgs group = grouping;
    if (!real) {
      group.offsets = s.starts;
      group.order = group.slots = s.nowhere;
    }
    int32_t* const ids = real ? choice.ids + rank * grouping.columns : s.nowhere;
    SelectArgs select = choice;
    select.weights = real ? choice.weights + rank * grouping.columns : s.weights;
    if (choice.bias != nullptr) select.bias = s.bias;
    if (a.rows == 1) {
      if (rank > 0) continue;
      if (real) mbarrier_wait_cluster(logits_sent, 0);
      select_row_by_block(select, s.logits, s.position < 0, ids, select.weights, s.choice);
      group_row(group, s.choice.ids, kThreads);
      continue;
    }
    if (warp == 0 && rank < a.rows) {
      select.logits = s.logits;
      select.positions = &s.position;
      select.ids = s.choice.ids;
      if (real) mbarrier_wait_cluster(logits_sent, 0);
      select_row<kExperts / 32>(select, 0, s.choice.keys[0]);
      __syncwarp();
      for (int i = lane; i < grouping.columns && real; i += 32) {
        const int to = rank * grouping.columns + i;
        cluster_send(cluster_address(shared_address(&s.ids[to]), 0), cluster_address(ids_sent, 0),
                     __int_as_float(s.choice.ids[i]));
        ids[i] = s.choice.ids[i];
      }
    } else if (warp == 1 && rank == 0) {
      group.ids = s.ids;
      if (real) mbarrier_wait_cluster(ids_sent, 0);
      group_few(group, pairs, s.marks, s.starts);
    }
  }
  // Blocks that are sent something have got all of it.
}

}  // namespace

bool routes_few(const MoeRouteParams& p, const Traits& traits) {
  return traits.hopper && p.x.dtype == DType::kBF16 && p.x.dim(0) <= kBlocks && p.gate.dim(0) <= kExperts &&
         p.x.dim(1) <= kMostD && p.x.dim(1) % kChunk == 0 && p.top_k + p.shared <= kMostColumns &&
         p.expert_end - p.expert_begin + p.shared <= kMostGroups && aligned16(p.x.data) && aligned16(p.norm.data) &&
         aligned16(p.gate.data) && aligned16(p.normed.data);
}

Status launch_route_few(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                        const Launch& launch) {
  FewArgs a;
  a.x = p.x.as<const Bf16>();
  a.normed = p.normed.as<Bf16>();
  a.gate = p.gate.data;
  a.weight = p.norm.data;
  a.positions = p.positions.as<const int32_t>();
  a.eps = p.eps;
  a.rows = static_cast<int>(p.x.dim(0));
  a.d = static_cast<int>(p.x.dim(1));
  a.norm_warps = norm_threads(a.d) / 32;
  a.weight_bf16 = p.norm.dtype == DType::kBF16;
  a.settled = launch.settled(p.gate) && launch.settled(p.norm) && (!p.bias.present() || launch.settled(p.bias));
  const auto kernel = p.gate.dtype == DType::kBF16 ? route_few_kernel<Bf16> : route_few_kernel<float>;
  return cuda_status(
      launch_eager(kernel, dim3(kBlocks), dim3(kThreads), kBlocks, sizeof(Shared), launch.stream, a, select, grouping),
      "route_few_kernel");
}

Status load_route_few_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(route_few_kernel<Bf16>, "route_few_kernel", sizeof(Shared)));
  return load_kernel(route_few_kernel<float>, "route_few_kernel", sizeof(Shared));
}

}  // namespace mla::cuda
