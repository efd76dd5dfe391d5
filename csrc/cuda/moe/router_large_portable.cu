// router_large_portable.cu - router logits of some rows where the gate is large (V2, V3), by the tensor cores.
//
//   logits[row, e] = normed[row] . gate[e], in the order of sums of gemm/product.h
//
// Few rows by few experts are too little for the products' own kernels, in which one block sums up all of k. Here a
// block takes 16 experts by 8, 16 or 32 rows, its 16 warps every sixteenth segment of 128 k each; then the segments are
// added in ascending order. Gate rows are the rows of A, rows of x the columns of B, read by 16 bytes from where they
// lie; the first ones of the gate before pdl_wait() where it is settled.
// Shared memory: the sums of all segments. Bound by L2: a block reads the gate rows again for its rows.
// Test: test/gpu/router.test.ts.
#include "common/checked.h"
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/moe/router.h"

namespace mla::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kSegment = 128;
constexpr int kChunks = kSegment / 32;  // a lane's loads of a row
constexpr int kExperts = 16;
/// Above, the products' own kernels are faster. H200, 2026-11, V3, 64, 128, 256 and 512 rows: 7.1, 8.5, 12.1 and 23.7
/// us here, 15, 56, 56 and 57 there.
constexpr int64_t kMostRows = 1024;

struct LargeArgs {
  const Bf16* x;     // [rows, d]
  const Bf16* gate;  // [experts, d]
  float* logits;     // [rows, experts]
  int rows, d, experts;
  bool settled;  // the gate
};

template <int kTiles>
__global__ void __launch_bounds__(kThreads) route_large_kernel(LargeArgs a) {
  extern __shared__ float2 s_sums[];  // [segments][kTiles][16 experts][8 rows / 2]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int segments = (a.d + kSegment - 1) / kSegment;
  const int expert0 = static_cast<int>(blockIdx.x) * kExperts, row0 = static_cast<int>(blockIdx.y) * 8 * kTiles;
  // Places that do not exist repeat the last one.
  const Bf16* const low = a.gate + static_cast<int64_t>(min(expert0 + g, a.experts - 1)) * a.d + q * 8;
  const Bf16* const high = a.gate + static_cast<int64_t>(min(expert0 + g + 8, a.experts - 1)) * a.d + q * 8;
  const auto load = [&](const Bf16* row, int segment, uint4(&to)[kChunks]) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int k = segment * kSegment + c * 32;
      to[c] = k + q * 8 < a.d ? load16(row + k) : make_uint4(0, 0, 0, 0);
    }
  };
  uint4 lows[kChunks], highs[kChunks];
  if (!a.settled) pdl_wait();
  load(low, warp, lows);
  load(high, warp, highs);
  pdl_wait();
  pdl_launch_dependents();
  for (int segment = warp; segment < segments; segment += kWarps) {
    float sums[kTiles][4] = {};
    uint4 x[kTiles][kChunks];
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      load(a.x + static_cast<int64_t>(min(row0 + 8 * t + g, a.rows - 1)) * a.d + q * 8, segment, x[t]);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const uint32_t first[4] = {lows[c].x, highs[c].x, lows[c].y, highs[c].y};
      const uint32_t second[4] = {lows[c].z, highs[c].z, lows[c].w, highs[c].w};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) mma_bf16(sums[t], first, {x[t][c].x, x[t][c].y});
#pragma unroll
      for (int t = 0; t < kTiles; ++t) mma_bf16(sums[t], second, {x[t][c].z, x[t][c].w});
    }
    load(low, segment + kWarps, lows);
    load(high, segment + kWarps, highs);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float2* const to = s_sums + (segment * kTiles + t) * (kExperts * 4) + lane;
      to[0] = make_float2(sums[t][0], sums[t][1]);
      to[32] = make_float2(sums[t][2], sums[t][3]);
    }
  }
  __syncthreads();
  const float* const sums = reinterpret_cast<const float*>(s_sums);
  for (int i = threadIdx.x; i < kTiles * kExperts * 8; i += kThreads) {
    float total = 0;
#pragma unroll 8
    for (int segment = 0; segment < segments; ++segment) total += sums[segment * (kTiles * kExperts * 8) + i];
    const int row = row0 + i / (kExperts * 8) * 8 + i % 8, expert = expert0 + i / 8 % kExperts;
    if (row < a.rows && expert < a.experts) a.logits[static_cast<int64_t>(row) * a.experts + expert] = total;
  }
}

/// Rows of a block in eights: as many blocks as a GPU has multiprocessors are best (V3: 16 tiles of experts).
int tiles_of(int64_t rows) { return rows <= 32 ? 1 : rows <= 128 ? 2 : 4; }

int64_t bytes_of(const MoeRouteParams& p) {
  return ceil_div(p.x.dim(1), int64_t{kSegment}) * tiles_of(p.x.dim(0)) * kExperts * 8 * 4;
}

auto kernel_of(int tiles) {
  return tiles == 1 ? route_large_kernel<1> : tiles == 2 ? route_large_kernel<2> : route_large_kernel<4>;
}

}  // namespace

bool routes_large(const MoeRouteParams& p, const Traits& traits) {
  return p.x.dim(0) <= kMostRows && p.x.dim(1) < (1 << 20) && bytes_of(p) <= traits.shared_bytes_per_block - 1024;
}

Status launch_route_large(const MoeRouteParams& p, float* logits, const Launch& launch) {
  LargeArgs args;
  args.x = p.normed.as<const Bf16>();
  args.gate = p.gate.as<const Bf16>();
  args.logits = logits;
  args.rows = static_cast<int>(p.x.dim(0));
  args.d = static_cast<int>(p.x.dim(1));
  args.experts = static_cast<int>(p.gate.dim(0));
  args.settled = launch.settled(p.gate);
  const int tiles = tiles_of(args.rows);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.experts, kExperts)),
                  static_cast<unsigned>(ceil_div(args.rows, 8 * tiles)));
  return cuda_status(
      launch_pdl(kernel_of(tiles), grid, dim3(kThreads), static_cast<size_t>(bytes_of(p)), launch.stream, args),
      "route_large_kernel");
}

Status load_route_large_kernels(const Traits& traits) {
  for (const int tiles : {1, 2, 4})
    MLA_RETURN_IF_ERROR(load_kernel(kernel_of(tiles), "route_large_kernel", traits.shared_bytes_per_block - 1024));
  return Status::Ok();
}

}  // namespace mla::cuda
