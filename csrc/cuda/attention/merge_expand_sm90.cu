// merge_expand_sm90.cu - what mla_decode_merge.cu does behind the kernel for few rows, and the valueExpand that reads
// it, in one kernel on Hopper, for few tokens: two kernels of a few microseconds each are mostly the end of one and the
// start of the other.
//
//   u = merged partial results (mla_decode_merge.cu), rounded;  out[t, h] = u[t, h] * w_uv[h]^T
//
// Grid: a cluster of 8 blocks for each head. Each merges 64 of the 512 latent channels, with that kernel's teams and
// order of sums, sends them to all blocks of the cluster, and multiplies the head's rows by 16 of its 128 weight rows,
// which wait in shared memory (gemm/product_held_device.cuh). So all results, which are all still written, have the
// bits of the two kernels. Test: test/gpu/attention.test.ts.
#include <cuda_runtime.h>

#include "cuda/attention/merge_expand.h"
#include "cuda/attention/mla_decode_merge.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/expand.h"
#include "cuda/gemm/product_held.h"
#include "cuda/gemm/product_held_device.cuh"
#include "cuda/ptx/warpgroup.cuh"

namespace mla::cuda {
namespace {

constexpr int kBlocks = 8;  // of a cluster
constexpr int kLatent = kBlocks * kMergeColumns;
constexpr int kValues = kBlocks * kHeldItemRows;  // of a head
constexpr int kSegments = kLatent / kSegment;
static_assert(kSegments * 32 == kMergeThreads && kMergeThreads == kHeldSums);

enum class Left { kNothing, kResult, kParts };  // of a row, by the kernel ahead

struct HeadRow {
  Left left;
  int groups;  // of teams that share its parts
  MergeRow merge;
};

struct Shared {
  HeldShared held;
  Part parts[kMergeTeams][kMergeLanes];
  alignas(16) Bf16 u[kExpandTokens][kLatent];
  HeadRow rows[kExpandTokens];
  alignas(8) uint64_t sent;
};

/// What is left of this head's rows. By all threads; complete after a barrier.
__device__ __forceinline__ void find_rows(const DecodeArgs& a, int head, HeadRow* rows) {
  if (threadIdx.x < a.tokens) rows[threadIdx.x] = {Left::kNothing, 1, {}};
  const int32_t* const page_start = a.plan + kFewHeader;
  const int row_tile = a.plan[kFewRowTile], share = a.plan[kFewShare];
  __syncthreads();
  for (int b = threadIdx.x; b < a.sequences; b += kMergeThreads) {
    const MergeSequence s =
        merge_sequence<true>(a, page_start[b], a.q_start[b], a.q_start[b + 1], a.lengths[b], row_tile, share);
    const int first = static_cast<int>(s.row) / a.heads;
    for (int t = 0; t * a.heads < s.rows; ++t) {
      HeadRow row{Left::kResult, 1, {}};
      if (merge_row<true>(s, t * a.heads + head, a.slots, &row.merge)) {
        row.left = Left::kParts;
        row.groups = merge_groups(s.parts);
      }
      rows[first + t] = row;
    }
  }
}

__global__ void __launch_bounds__(kMergeThreads)
    merge_expand_kernel(const __grid_constant__ DecodeArgs a, const __grid_constant__ Product p, bool weights_settled) {
  extern __shared__ __align__(128) unsigned char held[];
  __shared__ Shared shared;
  pdl_launch_dependents();
  const int rank = static_cast<int>(cluster_rank()), head = blockIdx.y, tokens = a.tokens;
  const int team = threadIdx.x / kMergeLanes, column = rank * kMergeColumns + threadIdx.x % kMergeLanes * 4;
  const uint32_t sent = shared_address(&shared.sent);
  const HeldWeights<Bf16> weights{shared.held, held, kLatent};
  const auto load_weights = [&] {
    weights.load(static_cast<const Bf16*>(p.w) + head * p.w_group + rank * (kHeldItemRows * kLatent), kHeldItemRows);
  };
  if (threadIdx.x == 0) mbarrier_init(sent, 1);
  weights.begin();  // shows that barrier as well
  if (threadIdx.x == 0) mbarrier_arrive_expect(sent, tokens * kLatent * static_cast<int>(sizeof(Bf16)));
  if (weights_settled) load_weights();
  // The kernel ahead has waited for the operation before: plan, starts and lengths are settled.
  find_rows(a, head, shared.rows);
  cluster_sync();  // rows are there; the other blocks run and have their barriers
  pdl_wait();
  if (!weights_settled) load_weights();

#pragma unroll 1
  for (int t = 0; t < tokens; ++t) {
    const HeadRow row = shared.rows[t];
    const int64_t at = int64_t{t} * a.heads + head;
    uint2* const out = reinterpret_cast<uint2*>(static_cast<Bf16*>(a.out) + at * kLatent + column);
    uint2 u = make_uint2(0, 0);
    if (row.left == Left::kResult) {
      if (team == 0) u = __ldcg(out);
    } else {
      Part part{-INFINITY, 0, make_float4(0, 0, 0, 0)};
      const int share = (row.merge.parts + row.groups - 1) / row.groups;
      if (row.left == Left::kParts && team < row.groups)
        part = sum_parts<true>(a, row.merge, team * share, min((team + 1) * share, row.merge.parts), column);
      if (row.groups > 1) {
        shared.parts[team][threadIdx.x % kMergeLanes] = part;
        __syncthreads();
        if (team == 0) {
          for (int g = 1; g < row.groups; ++g) part = added(part, shared.parts[g][threadIdx.x % kMergeLanes]);
        }
        if (t + 1 < tokens) __syncthreads();
      }
      if (team == 0) {
        const float inverse = inverse_sum(part.sum);
        u = make_uint2(pack_bf16(part.out.x * inverse, part.out.y * inverse),
                       pack_bf16(part.out.z * inverse, part.out.w * inverse));
        *out = u;
        if (column == 0) a.lse[at] = natural_lse(part.largest, part.sum);
      }
    }
    if (team == 0) {
      const uint32_t to = shared_address(&shared.u[t][column]);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const uint32_t block_to = cluster_address(to, i), barrier = cluster_address(sent, i);
        cluster_send(block_to, barrier, __uint_as_float(u.x));
        cluster_send(block_to + 4, barrier, __uint_as_float(u.y));
      }
    }
  }

  const int segment = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  mbarrier_wait_cluster(sent, 0);
  uint4 x[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int k = segment * kSegment + q * HeldWeights<Bf16>::kOwn + HeldWeights<Bf16>::x_at(j);
    x[j] = g < tokens ? load16(&shared.u[g % kExpandTokens][k]) : make_uint4(0, 0, 0, 0);
  }
  float acc[4] = {};
  weights.multiply(x, acc);
  give_sums(shared.held, acc);
  __syncthreads();
  const int i = threadIdx.x, t = held_row(i);
  if (t >= tokens) return;
  static_cast<Bf16*>(p.y)[t * p.y_row + head * p.y_group + rank * kHeldItemRows + held_column(i)] =
      from_float<Bf16>(held_sum<false>(shared.held, kSegments, i));
}

}  // namespace

bool merge_expands(const MlaDecodeParams& p, const ValueExpandParams& e, const Traits& traits) {
  return p.q.dim(0) > 0 && p.q.dim(0) <= kExpandTokens && p.lengths.dim(0) > 0 && decode_few_fits(p, traits) &&
         p.out.dim(2) == kLatent && e.u.data == p.out.data && e.u.dim(0) == p.out.dim(0) &&
         e.u.dim(1) == p.out.dim(1) && e.w_uv.dtype == DType::kBF16 && e.w_uv.dim(1) == kValues &&
         holds_weights(expand_product(e), traits);
}

Status launch_merge_expand(const MlaDecodeParams& p, const DecodePartials& partials, const ValueExpandParams& e,
                           const Launch& launch) {
  const Product product = expand_product(e);
  const DecodeArgs args = make_decode_args(p, partials);
  return cuda_status(
      launch_eager(merge_expand_kernel, dim3(kBlocks, static_cast<unsigned>(args.heads)), dim3(kMergeThreads), kBlocks,
                   held_bytes(product), launch.stream, args, product, weights_settled(product, launch)),
      "merge_expand_kernel");
}

Status load_merge_expand_kernels() { return load_kernel(merge_expand_kernel, "merge_expand_kernel"); }

}  // namespace mla::cuda
