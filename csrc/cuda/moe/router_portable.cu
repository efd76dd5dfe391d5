// router_portable.cu - moeRoute: norm, router logits, choice of experts, grouping of rows by expert. ops/ops.h has the
// formulas.
//
//   1. normed: norm/norm_rows.cu; zeros for padding.
//   2. logits = normed * gate^T, float32 into the workspace: a warp for one logit, or for 4 rows by 4 experts;
//      for a large gate (V2's and V3's) tensor cores (router_large_portable.cu, or a product).
//   3. ids and weights: a warp per row, router_select.cuh.
//   4. offsets, order and slots: router_group.cuh; up to 16 rows (8 with over 256 experts) by the block of step 3, up
//      to 128 by a block of their own, more by a counting and a placing kernel.
//
// A logit is summed up by 32 lanes, lane l taking elements 8l .. 8l + 8 of each 256, and then over the lanes; that is
// the same in all tile shapes, so a row routes alike among few and among many. So it does with a large gate, whose
// logits have the order of sums of gemm/product.h for any number of rows. Everything but `normed` is float32.
// On Hopper up to 8 rows take router_few_sm90.cu, if they are short, and steps 1 to 3 of up to 128 router_rows_sm90.cu,
// where the gate fits into the shared memory of eight blocks; with the same bits. But 3 to 256 bf16 rows (1 to 256 of
// more than 2048 channels) with bf16 gates of up to 64 experts take router_parts_sm90.cu, and the logits of more bf16
// rows are a product of the tiles of many rows, both with orders of their own; a deterministic model has one order for
// any number of rows. With the bits of the above, one bf16 row with a large gate takes router_large_one_sm90.cu, and
// steps 3 and 4 of up to 64 rows and 65 to 256 experts router_choose_sm90.cu.
//
// Limits: 1024 experts, top_k 64, T * (top_k + shared) < 2^31. Test: test/gpu/router.test.ts.
#include <algorithm>
#include <type_traits>

#include "cuda/device/pdl.cuh"
#include "cuda/device/workspace.h"
#include "cuda/gemm/product.h"
#include "cuda/launch.h"
#include "cuda/moe/router.h"
#include "cuda/moe/router_group.cuh"
#include "cuda/moe/router_select.cuh"
#include "cuda/norm/norm.h"

namespace mla::cuda {
namespace {

constexpr int kLogitThreads = 128;
constexpr int kGroupThreads = 512;
constexpr int64_t kFewLogits = 1024;  // up to here one warp each; they would not fill the GPU in tiles

// ---- logits -------------------------------------------------------------------------------------------------------

struct LogitArgs {
  const void* x;     // [T, d]
  const void* gate;  // [experts, d]
  float* logits;     // [T, experts]
  int64_t rows, d;
  int experts;
};

/// kVector: rows are read by 16 bytes, without a branch at each load, so that many are under way.
template <class Act, class Gate, int kRows, int kExperts, bool kVector>
__global__ __launch_bounds__(kLogitThreads, 4) void route_logits_kernel(LogitArgs a) {
  constexpr int kAtOnce = kVector && kRows * kExperts == 1 ? 8 : 1;  // steps whose loads are asked for together
  const int lane = threadIdx.x % 32;
  const int64_t tile = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int64_t across = div_up<int64_t>(a.experts, kExperts);  // neighbouring warps share rows
  const int64_t row0 = tile / across * kRows, expert0 = tile % across * kExperts;
  const Act* x[kRows];
  const Gate* gate[kExperts];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const Act*>(a.x) + (row0 + r < a.rows ? row0 + r : a.rows - 1) * a.d;
  }
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
    gate[e] = static_cast<const Gate*>(a.gate) + (expert0 + e < a.experts ? expert0 + e : a.experts - 1) * a.d;
  }
  if constexpr (kRows * kExperts == 1) {
    for (int64_t at = lane * (128 / int64_t{sizeof(Gate)}); at < a.d; at += 32 * (128 / int64_t{sizeof(Gate)}))
      prefetch_l2(gate[0] + at);
  }
  pdl_wait();
  pdl_launch_dependents();
  if (row0 >= a.rows) return;
  const auto load = [&](const auto* row, int64_t at, auto& raw) {
    using T = std::remove_cvref_t<decltype(*row)>;
    if constexpr (kVector) {
      raw = *reinterpret_cast<const Eight<T>*>(row + at);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) raw.v[i] = at + i < a.d ? row[at + i] : from_float<T>(0.0f);
    }
  };
  float sum[kRows][kExperts] = {};
  int64_t at = lane * kChunk;
  const auto step = [&](auto count) {
    constexpr int kSteps = decltype(count)::value;
    Eight<Act> v[kSteps][kRows];
    Eight<Gate> w[kSteps][kExperts];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) load(x[r], at + s * 32 * kChunk, v[s][r]);
#pragma unroll
      for (int e = 0; e < kExperts; ++e) load(gate[e], at + s * 32 * kChunk, w[s][e]);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        float one[kExperts];
#pragma unroll
        for (int e = 0; e < kExperts; ++e) one[e] = to_float(w[s][e].v[i]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float other = to_float(v[s][r].v[i]);
#pragma unroll
          for (int e = 0; e < kExperts; ++e) sum[r][e] = fmaf(other, one[e], sum[r][e]);
        }
      }
    }
    at += kSteps * 32 * kChunk;
  };
  if constexpr (kAtOnce > 1) {
    while (at + (kAtOnce - 1) * 32 * kChunk < a.d) step(std::integral_constant<int, kAtOnce>{});
  }
  while (at < a.d) step(std::integral_constant<int, 1>{});
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float total = warp_sum(sum[r][e]);
      if (lane == 0 && row0 + r < a.rows && expert0 + e < a.experts) {
        a.logits[(row0 + r) * a.experts + expert0 + e] = total;
      }
    }
  }
}

using LogitKernel = void (*)(LogitArgs);

template <class Act, class Gate>
LogitKernel logit_kernel_of(int tile, bool vector) {
  if (!vector)
    return tile == 1 ? route_logits_kernel<Act, Gate, 1, 1, false> : route_logits_kernel<Act, Gate, 4, 4, false>;
  return tile == 1 ? route_logits_kernel<Act, Gate, 1, 1, true> : route_logits_kernel<Act, Gate, 4, 4, true>;
}

/// Tiles of 1 or 4 rows by as many experts. Of 8 by 8, loads ahead or not, they are no faster: 47 and 55 us for 4,096
/// rows of V2-Lite, 49 of 4 by 4 (H200, 2026-11).
LogitKernel logit_kernel_of(DType act, DType gate, int tile, bool vector) {
  if (act == DType::kBF16)
    return gate == DType::kBF16 ? logit_kernel_of<Bf16, Bf16>(tile, vector)
                                : logit_kernel_of<Bf16, float>(tile, vector);
  return gate == DType::kBF16 ? logit_kernel_of<float, Bf16>(tile, vector)
                              : logit_kernel_of<float, float>(tile, vector);
}

/// Gates from here on do not fit into the shared memory of eight blocks (router_rows_sm90.cu), whose order of sums the
/// tensor cores cannot follow.
constexpr int64_t kLargeGateBytes = 8 * 200 * 1024;

/// Up to so many rows logits have one order of sums, above that of the tiles of many rows, unless the model is
/// deterministic. H200, 2026-11, all of moeRoute: V2-Lite, 512 and 4,096 rows, 20.2 and 73.6 us without the tiles, 20.4
/// and 39.9 with; V3 49.0 and 166, 45.0 and 93.4.
constexpr int64_t kMostOrderedRows = 256;

bool has_large_gate(const MoeRouteParams& p) { return p.gate.bytes() >= kLargeGateBytes; }

Status launch_logits(const MoeRouteParams& p, float* logits, const Launch& launch) {
  View y = p.x;
  y.data = logits;
  y.dtype = DType::kF32;
  y.shape[1] = p.gate.dim(0);
  const Product product = dense_product(p.normed, p.gate, View{}, false, y);
  const Traits& traits = *launch.traits;
  if (fits_tensor_cores(product)) {
    if (traits.hopper && !traits.deterministic && p.x.dim(0) > kMostOrderedRows)
      return cuda_status(launch_product(product, launch), "moeRoute");
    if (has_large_gate(p)) {
      if (routes_large(p, traits)) return launch_route_large(p, logits, launch);
      Traits one_order = traits;
      one_order.deterministic = true;
      Launch ordered = launch;
      ordered.traits = &one_order;
      return cuda_status(launch_product(product, ordered), "moeRoute");
    }
  }
  LogitArgs args;
  args.x = p.normed.data;
  args.gate = p.gate.data;
  args.logits = logits;
  args.rows = p.x.dim(0);
  args.d = p.x.dim(1);
  args.experts = static_cast<int>(p.gate.dim(0));
  const bool vector = args.d % kChunk == 0 && aligned16(args.x) && aligned16(args.gate);
  const int tile = args.rows * args.experts <= kFewLogits ? 1 : 4;
  const int threads = tile == 1 ? 32 : kLogitThreads;
  const int64_t warps = ceil_div(args.rows, tile) * ceil_div(args.experts, tile);
  const auto kernel = logit_kernel_of(p.x.dtype, p.gate.dtype, tile, vector);
  return cuda_status(launch_pdl(kernel, dim3(static_cast<unsigned>(ceil_div(warps, threads / 32))), dim3(threads), 0,
                                launch.stream, args),
                     "route_logits_kernel");
}

// ---- choice and grouping ------------------------------------------------------------------------------------------

/// Rows that a block of the selecting kernel takes, a warp each.
template <int kPer>
constexpr int kSelectRows = kPer <= 8 ? 16 : 8;

/// With one block, that block groups the pairs as well.
template <int kPer>
__global__ __launch_bounds__(32 * kSelectRows<kPer>) void route_select_kernel(SelectArgs a, GroupArgs grouping) {
  extern __shared__ uint32_t s_words[];
  __shared__ int s_scratch[32];
  pdl_wait();
  pdl_launch_dependents();
  const int warp = threadIdx.x / 32;
  const int64_t row = int64_t{blockIdx.x} * kSelectRows<kPer> + warp;
  if (row < a.rows) select_row<kPer>(a, row, s_words + warp * a.experts);
  if (gridDim.x > 1) return;
  __syncthreads();  // ids are in memory, and s_words may be used again
  place_chunk(grouping, 0, 1, s_words, s_scratch);
}

__global__ __launch_bounds__(kGroupThreads) void route_count_kernel(GroupArgs a) {
  extern __shared__ uint32_t s_words[];
  pdl_wait();
  pdl_launch_dependents();
  const int64_t chunk = blockIdx.x, row0 = chunk * kChunkRows;
  mark_chunk(a, row0, static_cast<int>(a.rows - row0 < kChunkRows ? a.rows - row0 : kChunkRows), s_words);
  for (int group = threadIdx.x; group < a.groups; group += kGroupThreads) {
    a.counts[chunk * a.groups + group] = count_marks(s_words + group * kMaskWords);
  }
}

__global__ __launch_bounds__(kGroupThreads) void route_place_kernel(GroupArgs a) {
  extern __shared__ uint32_t s_words[];
  __shared__ int s_scratch[32];
  pdl_wait();
  pdl_launch_dependents();
  place_chunk(a, blockIdx.x, gridDim.x, s_words, s_scratch);
}

template <int kPer>
Status launch_select(const SelectArgs& select, const GroupArgs& grouping, bool* grouped, const Launch& launch) {
  constexpr int kRows = kSelectRows<kPer>;
  const int64_t blocks = ceil_div(select.rows, kRows);
  *grouped = blocks == 1;
  const int64_t row_words = select.n_group > 1 ? int64_t{kRows} * select.experts * 4 : 0;
  const int64_t shared = std::max(row_words, *grouped ? group_shared_bytes(grouping.groups) : 0);  // at most 32 KB
  return cuda_status(launch_pdl(route_select_kernel<kPer>, dim3(static_cast<unsigned>(blocks)), dim3(32 * kRows),
                                static_cast<size_t>(shared), launch.stream, select, grouping),
                     "route_select_kernel");
}

/// The experts that a lane has to hold: one kernel each.
Status launch_select(const SelectArgs& select, const GroupArgs& grouping, bool* grouped, const Launch& launch) {
  if (select.experts <= 64) return launch_select<2>(select, grouping, grouped, launch);
  if (select.experts <= 256) return launch_select<8>(select, grouping, grouped, launch);
  return launch_select<32>(select, grouping, grouped, launch);
}

Status launch_grouping(const GroupArgs& args, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.rows, kChunkRows)));
  const size_t shared = static_cast<size_t>(group_shared_bytes(args.groups));
  if (grid.x > 1) {
    MLA_RETURN_IF_ERROR(cuda_status(
        launch_pdl(route_count_kernel, grid, dim3(kGroupThreads), shared, launch.stream, args), "route_count_kernel"));
  }
  return cuda_status(launch_pdl(route_place_kernel, grid, dim3(kGroupThreads), shared, launch.stream, args),
                     "route_place_kernel");
}

struct Scratch {
  float* logits;    // [T, experts]
  int32_t* counts;  // [chunks, groups]
};

Scratch scratch_of(const MoeRouteParams& p, Carver* carver) {
  Scratch s;
  const int64_t rows = p.x.dim(0), groups = p.expert_end - p.expert_begin + p.shared;
  s.logits = carver->take<float>(rows * p.gate.dim(0));
  s.counts = carver->take<int32_t>(rows > kChunkRows ? ceil_div(rows, kChunkRows) * groups : 0);
  return s;
}

}  // namespace

int64_t workspace(const MoeRouteParams& p, const Traits& traits) {
  (void)traits;
  Carver carver;
  scratch_of(p, &carver);
  return carver.used;
}

Status moeRoute(const MoeRouteParams& p, const Launch& launch) noexcept {
  const int64_t rows = p.x.dim(0), groups = p.expert_end - p.expert_begin + p.shared;
  if (rows == 0) {
    return cuda_status(cudaMemsetAsync(p.offsets.data, 0, static_cast<size_t>(p.offsets.bytes()), launch.stream),
                       "cudaMemsetAsync");
  }
  Carver carver{launch.workspace.as<char>()};
  const Scratch scratch = scratch_of(p, &carver);
  SelectArgs select;
  select.logits = scratch.logits;
  select.bias = p.bias.present() ? p.bias.as<const float>() : nullptr;
  select.positions = p.positions.as<const int32_t>();
  select.ids = p.ids.as<int32_t>();
  select.weights = p.weights.as<float>();
  select.rows = rows;
  select.experts = static_cast<int>(p.gate.dim(0));
  select.top_k = static_cast<int>(p.top_k);
  select.shared = static_cast<int>(p.shared);
  select.n_group = static_cast<int>(p.n_group);
  select.topk_group = static_cast<int>(p.topk_group);
  select.scale = p.scale;
  select.sigmoid = p.sigmoid;
  select.group_top2 = p.group_top2;
  select.norm_topk = p.norm_topk;
  GroupArgs grouping;
  grouping.ids = p.ids.as<const int32_t>();
  grouping.offsets = p.offsets.as<int32_t>();
  grouping.order = p.order.as<int32_t>();
  grouping.slots = p.slots.as<int32_t>();
  grouping.counts = scratch.counts;
  grouping.rows = rows;
  grouping.columns = static_cast<int>(p.top_k + p.shared);
  grouping.experts = select.experts;
  grouping.begin = static_cast<int>(p.expert_begin);
  grouping.end = static_cast<int>(p.expert_end);
  grouping.groups = static_cast<int>(groups);
  if (routes_parts(p, *launch.traits)) {
    bool grouped = false;
    MLA_RETURN_IF_ERROR(launch_route_parts(p, select, grouping, launch, &grouped));
    return grouped ? Status::Ok() : launch_grouping(grouping, launch);
  }
  if (routes_few(p, *launch.traits)) return launch_route_few(p, select, grouping, launch);
  if (routes_rows(p, *launch.traits)) {
    MLA_RETURN_IF_ERROR(launch_route_rows(p, select, launch));
    return launch_grouping(grouping, launch);
  }

  if (has_large_gate(p) && routes_large_one(p, *launch.traits))
    return launch_route_large_one(p, scratch.logits, select, grouping, launch);

  NormRows norm;
  norm.x = p.x;
  norm.weight = p.norm;
  norm.positions = p.positions;
  norm.out = p.normed;
  norm.eps = p.eps;
  MLA_RETURN_IF_ERROR(launch_norm_rows(norm, launch));
  MLA_RETURN_IF_ERROR(launch_logits(p, scratch.logits, launch));
  if (routes_choose(p, *launch.traits)) return launch_route_choose(p, select, grouping, launch);
  bool grouped = false;
  MLA_RETURN_IF_ERROR(launch_select(select, grouping, &grouped, launch));
  return grouped ? Status::Ok() : launch_grouping(grouping, launch);
}

Status load_router_kernels(const Traits& traits) {
  for (const DType act : {DType::kF32, DType::kBF16}) {
    for (const DType gate : {DType::kF32, DType::kBF16}) {
      for (const bool vector : {false, true}) {
        for (const int tile : {1, 4})
          MLA_RETURN_IF_ERROR(load_kernel(logit_kernel_of(act, gate, tile, vector), "route_logits_kernel"));
      }
    }
  }
  MLA_RETURN_IF_ERROR(load_route_large_kernels(traits));
  MLA_RETURN_IF_ERROR(load_kernel(route_select_kernel<2>, "route_select_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(route_select_kernel<8>, "route_select_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(route_select_kernel<32>, "route_select_kernel"));
  if (traits.hopper) {
    MLA_RETURN_IF_ERROR(load_route_few_kernels());
    MLA_RETURN_IF_ERROR(load_route_parts_kernels());
    MLA_RETURN_IF_ERROR(load_route_rows_kernels());
    MLA_RETURN_IF_ERROR(load_route_large_one_kernels());
    MLA_RETURN_IF_ERROR(load_route_choose_kernels());
  }
  MLA_RETURN_IF_ERROR(load_kernel(route_count_kernel, "route_count_kernel"));
  return load_kernel(route_place_kernel, "route_place_kernel");
}

}  // namespace mla::cuda
