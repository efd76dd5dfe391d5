// router_choose_sm90.cu - choice and grouping of up to 64 rows and 65 to 256 experts whose logits are there, in one
// launch, on Hopper. ops/ops.h has the formulas.
//
// A block chooses for a row (router_select_block.cuh); the last one to arrive at a counter (Launch::counters) groups
// (router_group.cuh). Instructions are in no cache when the kernel starts, so all blocks go through both once before
// pdl_wait(), with zeros and to nowhere. Latency-bound. Test: test/gpu/router.test.ts.
#include "cuda/device/arrive.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select_block.cuh"

namespace mla::cuda {
namespace {

constexpr int kExperts = BlockChoice<8>::kExperts;
constexpr int kMostColumns = BlockChoice<8>::kMostColumns;
/// More rows are faster by a warp each. H200, 2026-11, V3, all of moeRoute, 64 and 128 rows: 17.3 and 32.0 us by
/// blocks, 19.2 and 25.1 by warps.
constexpr int64_t kMostRows = 64;
static_assert(kMostRows <= kChunkRows);
constexpr int kMostGroups = kExperts + kMostColumns;

struct Shared {
  float logits[kExperts], bias[kExperts];
  BlockChoice<8> choice;
  uint32_t marks[kMostGroups * (kMaskWords + 1)];  // and starts
  int scratch[32];
  float nowhere_weights[kMostColumns];
  int32_t nowhere[kMostColumns], nowhere_order[kMostColumns], nowhere_offsets[kMostGroups + 1];
  bool last;
};

__global__ void __launch_bounds__(kChoiceThreads)
    route_choose_kernel(const __grid_constant__ SelectArgs choice, const __grid_constant__ GroupArgs grouping,
                        unsigned* arrived, bool bias_settled) {
  __shared__ Shared s;
  const int i = static_cast<int>(threadIdx.x), columns = grouping.columns;
  const int64_t row = blockIdx.x;
  if (!bias_settled) pdl_wait();
  s.bias[i] = choice.bias != nullptr && i < choice.experts ? choice.bias[i] : 0.0f;
  s.logits[i] = 0;
  if (i < kMostColumns) s.choice.ids[i] = -1;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    bool padding = false;
    if (real) {
      pdl_wait();
      pdl_launch_dependents();
      if (i < choice.experts) s.logits[i] = choice.logits[row * choice.experts + i];
      padding = choice.positions[row] < 0;
    }
    __syncthreads();
    SelectArgs select = choice;
    if (choice.bias != nullptr) select.bias = s.bias;
    select_row_by_block(select, s.logits, padding, real ? choice.ids + row * columns : s.nowhere,
                        real ? choice.weights + row * columns : s.nowhere_weights, s.choice);
    __syncthreads();
    if (i == 0) {
      s.last = !real || arrive(arrived) == gridDim.x - 1;
      if (real && s.last) *arrived = 0;
    }
    __syncthreads();
    if (!s.last) break;
    GroupArgs group = grouping;
    if (!real) {
      group.ids = s.nowhere;
      group.rows = 1;
      group.offsets = s.nowhere_offsets;
      group.order = group.slots = s.nowhere_order;
    }
    place_chunk(group, 0, 1, s.marks, s.scratch);
  }
}

}  // namespace

bool routes_choose(const MoeRouteParams& p, const Traits& traits) {
  return traits.hopper && p.x.dim(0) <= kMostRows && p.gate.dim(0) > BlockChoice<2>::kExperts &&
         p.gate.dim(0) <= kExperts && p.top_k + p.shared <= kMostColumns;
}

Status launch_route_choose(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                           const Launch& launch) {
  return cuda_status(
      launch_pdl(route_choose_kernel, dim3(static_cast<unsigned>(select.rows)), dim3(kChoiceThreads), 0, launch.stream,
                 select, grouping, launch.counters, p.bias.present() && launch.settled(p.bias)),
      "route_choose_kernel");
}

Status load_route_choose_kernels() { return load_kernel(route_choose_kernel, "route_choose_kernel"); }

}  // namespace mla::cuda
