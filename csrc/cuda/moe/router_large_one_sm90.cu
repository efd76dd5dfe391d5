// router_large_one_sm90.cu - moeRoute of one row where the gate is large (V2, V3), in one launch, on Hopper. ops/ops.h
// has the formulas.
//
// A block norms the row into its shared memory and multiplies it by 4 experts, whose gate rows are there before
// pdl_wait(): a warp every sixteenth segment of 128 k, experts the rows of A, the row of x the first column of B. The
// last block to arrive at a counter (Launch::counters) chooses (router_select_block.cuh) and groups (router_group.cuh).
//
// Instructions are in no cache when the kernel starts, so all blocks go through all of it once before pdl_wait(), with
// zeros and to nowhere. Sums have the order, and so the bits, of norm_rows.cu and router_large_portable.cu.
// Grid: experts / 4. Shared memory: gate rows, the row, the norm's weights; V3 112 KB. Latency-bound.
// Test: test/gpu/router.test.ts.
#include "common/checked.h"
#include "cuda/device/arrive.cuh"
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select_block.cuh"
#include "cuda/norm/norm_row.cuh"

namespace mla::cuda {
namespace {

using Choice = BlockChoice<8>;

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kSegment = 128;
constexpr int kChunks = kSegment / 32;  // a lane's loads of a row
constexpr int kMostSegments = 64;
constexpr int kMostD = kMostSegments * kSegment;
constexpr int kExperts = 4;       // of a block
constexpr int kThreadChunks = 2;  // of the norm, at most
constexpr int kMostGroups = Choice::kExperts + Choice::kMostColumns;

struct LargeOneArgs {
  const Bf16* x;            // [d]
  Bf16* normed;             // [d]
  const Bf16* gate;         // [experts, d]
  const void* weight;       // [d], of the norm
  const int32_t* position;  // [1]
  float* logits;            // [experts]
  unsigned* arrived;        // blocks
  float eps;
  int d;
  int norm_threads;  // that norm_rows.cu has for a row
  int pitch;         // bytes of a row in shared memory
  bool weight_bf16;
  bool settled;  // gate, norm weights and bias
};

struct Shared {
  float sums[kMostSegments][kExperts];
  alignas(16) float squares[kWarps];
  float logits[Choice::kExperts], bias[Choice::kExperts];
  Choice choice;
  float nowhere_weights[Choice::kMostColumns];
  int32_t nowhere[Choice::kMostColumns], nowhere_offsets[kMostGroups + 1];
  bool last;
};

__global__ void __launch_bounds__(kThreads, 1)
    route_large_one_kernel(const __grid_constant__ LargeOneArgs a, const __grid_constant__ SelectArgs choice,
                           const __grid_constant__ GroupArgs grouping) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  unsigned char* const held = memory + sizeof(Shared);
  unsigned char* const gates = held + a.pitch;
  unsigned char* const weight = gates + kExperts * a.pitch;  // [d], as it comes
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int segments = (a.d + kSegment - 1) / kSegment, expert0 = static_cast<int>(blockIdx.x) * kExperts;
  // Places of the row that this thread norms.
  const auto place = [&](int h) { return (static_cast<int>(threadIdx.x) + h * a.norm_threads) * kChunk; };
  const auto exists = [&](int h) { return static_cast<int>(threadIdx.x) < a.norm_threads && place(h) < a.d; };
  const auto chunk = [&](int h) { return reinterpret_cast<Eight<Bf16>*>(held + place(h) * 2); };

  pdl_launch_dependents();
  if (!a.settled) pdl_wait();
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
    const Bf16* const row = a.gate + static_cast<int64_t>(min(expert0 + e, choice.experts - 1)) * a.d;
    for (int i = threadIdx.x; i < a.d / kChunk; i += kThreads)
      cp_async16(shared_address(gates + e * a.pitch + i * 16), row + i * kChunk, true);
  }
  for (int i = threadIdx.x; i < a.d * (a.weight_bf16 ? 2 : 4) / 16; i += kThreads)
    cp_async16(shared_address(weight + i * 16), static_cast<const char*>(a.weight) + i * 16, true);
  if (choice.bias != nullptr && static_cast<int>(threadIdx.x) < choice.experts)
    cp_async4(shared_address(&s.bias[threadIdx.x]), choice.bias + threadIdx.x);
  cp_async_commit();
  for (int i = threadIdx.x; i < a.pitch / 16; i += kThreads) store16(held + i * 16, make_uint4(0, 0, 0, 0));
  if (threadIdx.x < Choice::kExperts) s.logits[threadIdx.x] = 0;
  if (threadIdx.x < Choice::kMostColumns) s.choice.ids[threadIdx.x] = -1;
  __syncthreads();

#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool real = pass == 1;
    bool padding = false;
    if (real) {
      pdl_wait();
#pragma unroll
      for (int h = 0; h < kThreadChunks; ++h) {
        if (exists(h)) cp_async16(shared_address(chunk(h)), a.x + place(h), true);
      }
      cp_async_commit();
      padding = *a.position < 0;
      cp_async_wait<0>();
    }
    float sum = 0;
#pragma unroll
    for (int h = 0; h < kThreadChunks; ++h) {
      if (!exists(h)) continue;
      const Eight<Bf16> v = *chunk(h);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sum = fmaf(to_float(v.v[i]), to_float(v.v[i]), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) s.squares[warp] = sum;
    __syncthreads();
    float total = s.squares[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) total += i < a.norm_threads / 32 ? s.squares[i] : 0.0f;
    const float factor = 1.0f / sqrtf(total / static_cast<float>(a.d) + a.eps);
#pragma unroll
    for (int h = 0; h < kThreadChunks; ++h) {
      if (!exists(h)) continue;
      Eight<Bf16> v = *chunk(h);
      float w[kChunk] = {};
      if (real) load_weight_chunk(weight, a.weight_bf16, place(h), a.d, true, w);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v.v[i] = from_float<Bf16>(padding ? 0.0f : to_float(v.v[i]) * factor * w[i]);
      *chunk(h) = v;
      if (real && blockIdx.x == 0) *reinterpret_cast<Eight<Bf16>*>(a.normed + place(h)) = v;
    }
    __syncthreads();

    const unsigned char* const gate = real ? gates + min(g, kExperts - 1) * a.pitch : held;
#pragma unroll 1
    for (int segment = warp; segment < segments; segment += kWarps) {
      float sums[4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int k = segment * kSegment + c * 32 + q * kChunk;
        const uint4 v = k < a.d && g == 0 ? load16(held + k * 2) : make_uint4(0, 0, 0, 0);
        const uint4 w = k < a.d && g < kExperts ? load16(gate + k * 2) : make_uint4(0, 0, 0, 0);
        mma_bf16(sums, {w.x, 0, w.y, 0}, {v.x, v.y});
        mma_bf16(sums, {w.z, 0, w.w, 0}, {v.z, v.w});
      }
      if (q == 0 && g < kExperts) s.sums[segment][g] = sums[0];
    }
    __syncthreads();
    if (threadIdx.x < kExperts) {
      const int expert = expert0 + static_cast<int>(threadIdx.x);
      float logit = 0;
#pragma unroll 16
      for (int segment = 0; segment < segments; ++segment) logit += s.sums[segment][threadIdx.x];
      if (real && expert < choice.experts) a.logits[expert] = logit;
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      s.last = !real || arrive(a.arrived) == gridDim.x - 1;
      if (real && s.last) *a.arrived = 0;
    }
    __syncthreads();
    if (!s.last || threadIdx.x >= kChoiceThreads) continue;
    if (real && static_cast<int>(threadIdx.x) < choice.experts) s.logits[threadIdx.x] = __ldcg(a.logits + threadIdx.x);
    choice_barrier();
    SelectArgs select = choice;
    if (choice.bias != nullptr) select.bias = real ? s.bias : s.logits;  // which is on its way before
    select_row_by_block(select, s.logits, padding, real ? choice.ids : s.nowhere,
                        real ? choice.weights : s.nowhere_weights, s.choice);
    GroupArgs group = grouping;
    if (!real) {
      group.offsets = s.nowhere_offsets;
      group.order = group.slots = s.nowhere;
    }
    group_row(group, s.choice.ids, kChoiceThreads);
  }
}

int pitch_of(int64_t d) { return static_cast<int>(round_up(d * 2, 128)) + 64; }

int64_t bytes_of(int64_t d) { return static_cast<int64_t>(sizeof(Shared)) + (1 + kExperts) * pitch_of(d) + d * 4; }

}  // namespace

bool routes_large_one(const MoeRouteParams& p, const Traits& traits) {
  const int64_t d = p.x.dim(1);
  return traits.hopper && p.x.dtype == DType::kBF16 && p.gate.dtype == DType::kBF16 && p.x.dim(0) == 1 &&
         p.gate.dim(0) <= Choice::kExperts && d <= kMostD && d % kChunk == 0 &&
         ceil_div(d, int64_t{kChunk}) <= kThreadChunks * norm_threads(d) &&
         p.top_k + p.shared <= Choice::kMostColumns && aligned16(p.x.data) && aligned16(p.norm.data) &&
         aligned16(p.gate.data) && aligned16(p.normed.data);
}

Status launch_route_large_one(const MoeRouteParams& p, float* logits, const SelectArgs& select,
                              const GroupArgs& grouping, const Launch& launch) {
  LargeOneArgs a;
  a.x = p.x.as<const Bf16>();
  a.normed = p.normed.as<Bf16>();
  a.gate = p.gate.as<const Bf16>();
  a.weight = p.norm.data;
  a.position = p.positions.as<const int32_t>();
  a.logits = logits;
  a.arrived = launch.counters;
  a.eps = p.eps;
  a.d = static_cast<int>(p.x.dim(1));
  a.norm_threads = norm_threads(p.x.dim(1));
  a.pitch = pitch_of(p.x.dim(1));
  a.weight_bf16 = p.norm.dtype == DType::kBF16;
  a.settled = launch.settled(p.gate) && launch.settled(p.norm) && (!p.bias.present() || launch.settled(p.bias));
  const dim3 grid(static_cast<unsigned>(ceil_div(select.experts, kExperts)));
  return cuda_status(launch_eager(route_large_one_kernel, grid, dim3(kThreads), 1,
                                  static_cast<size_t>(bytes_of(p.x.dim(1))), launch.stream, a, select, grouping),
                     "route_large_one_kernel");
}

Status load_route_large_one_kernels() {
  return load_kernel(route_large_one_kernel, "route_large_one_kernel", static_cast<int>(bytes_of(kMostD)));
}

}  // namespace mla::cuda
