// product_ring.cuh - products of few rows on Hopper: bounded by the bytes of the weights, which the copy engine streams
// through a ring in shared memory, as far as it holds them before the kernel ahead has ended.
//
// Formula and order of sums: product.h; combined (moeDown): out[t] = residual[t] + sum over j ascending of
//   weight[t, j] * part[slot[t, j]].
// Work: an item is 16 weight rows times a tile of up to 8 or 16 rows of x, over all of k. A block takes a share of the
//   items that are known from the start (all of even groups; the always-on experts of uneven ones) and a share of the
//   rest. Combined, a cluster of two blocks takes 16 columns of the output; its blocks take turns with the tiles of all
//   experts, and the first one sums up.
// Block: 10 warps, two blocks a multiprocessor, so that the next kernel's blocks move in and load while the last ones
//   of this kernel finish.
//   warp 8, the producer, cuts items into pieces of 16 rows by 1024 bytes and copies one after the other into the ring,
//     across items. Where the launcher found the weights settled it fills the ring without pdl_wait(), a few pieces
//     at a time: what all blocks together ask for at once is a queue in front of the memory, in which rows and lists
//     would stand behind it.
//   warps 0 to 7 multiply: four share a piece, a segment of 128 k at a time each, and the other four take the next one:
//     weights are the 16 rows of A, rows of x the 8 columns of B. The sums go to shared memory. A piece has four
//     segments with bf16 weights, eight with fp8, or as many as the rows if those are at most 12.
//   warp 9, the epilogue, adds segments in ascending order, eight (or those 12) a step, and writes results.
// x lies in shared memory where it is small, else it comes through L1.
// Shared memory: rows of a piece lie 64 bytes more than a multiple of 128 apart, which spreads a quarter-warp's 16-byte
//   loads over all banks; 17 KB a stage (whole rows 25 KB at most), at most 6 stages; sums 8 or 16 KB (12 or 24 KB); x,
//   lists of uneven groups; combined also 64 bytes a pair.
// Test: test/gpu/matrix.test.ts and matrix-experts.test.ts.
#pragma once
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_ring_device.cuh"

namespace mla::cuda {

template <class W, int kTiles, bool kCombine>
__global__ void __launch_bounds__(kRingThreads, 2)
    product_ring_kernel(const __grid_constant__ Product p, const __grid_constant__ Combine combine,
                        const __grid_constant__ RingPlan plan) {
  using S = Ring<W, kTiles, kCombine>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t barrier_words[2 * kMaxStages + 4];
  __shared__ int listed[2];  // tiles, rows that have a group
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const uint32_t barriers = shared_address(barrier_words);
  S s{.p = p,
      .plan = plan,
      .shared = shared,
      .barriers = {barriers, barriers + 8 * kMaxStages, barriers + 16 * kMaxStages, barriers + 16 * kMaxStages + 16},
      .row_blocks = static_cast<int>((p.n + kItemRows - 1) / kItemRows),
      .segments = static_cast<int>((p.k + kSegment - 1) / kSegment),
      .pieces = 0,
      .steps = 0};
  s.pieces = (s.segments + s.piece_segments() - 1) / s.piece_segments();
  s.steps = (s.pieces + S::kStepPieces - 1) / S::kStepPieces;
  const bool uneven = p.offsets != nullptr;
  if constexpr (!kCombine) {
    const int64_t tiles = uneven ? plan.always : p.groups * plan.per_group;
    s.items = s.known = S::share(static_cast<uint32_t>(tiles * s.row_blocks), blockIdx.x, &s.first_known);
  }
  const bool producer = warp == kRingConsumers;
  // The producer does not wait for the others, who wait for the barriers.
  if (producer) {
    if (lane == 0) {
      for (int i = 0; i < plan.stages; ++i) {
        mbarrier_init(RingBarriers::at(s.barriers.full, i), 1);
        mbarrier_init(RingBarriers::at(s.barriers.empty, i), S::kTurnWarps);
      }
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(RingBarriers::at(s.barriers.summable, i), S::kTurnWarps * S::kStepPieces);
        mbarrier_init(RingBarriers::at(s.barriers.summed, i), 1);
      }
      mbarrier_fence_init();
    }
    __syncwarp();
    named_barrier_arrive(kStartBarrier, kRingThreads);
  } else {
    named_barrier_sync(kStartBarrier, kRingThreads);
  }
  // Lists of uneven groups, and how many items they make.
  const auto make_lists = [&] {
    if (producer) {
      named_barrier_sync(kListBarrier, kRingThreads);  // the others only arrive
    } else {
      if (warp > kRingConsumers) {
        list_tiles(s, listed);
      } else {
        list_rows(s, combine, [&] {
          if constexpr (kCombine) return;
          if (plan.x_pitch > 0) {
            hold_rows(p, plan, shared);
          } else if (p.x_rows <= kTouchedRows) {
            touch_x(p);
          }
        });
      }
      named_barrier_arrive(kListBarrier, kRingThreads);
      named_barrier_sync(kListedBarrier, kRingThreads - 32);
    }
    s.tiles = listed[0];
    if constexpr (kCombine) {
      s.items = (s.tiles + 1 - static_cast<int>(blockIdx.x & 1)) / 2;
    } else {
      // Blocks with more of the known items do not get more of the others.
      const uint32_t more = static_cast<uint32_t>(plan.always * s.row_blocks) % gridDim.x;
      const uint32_t turn = blockIdx.x < more ? blockIdx.x + gridDim.x - more : blockIdx.x - more;
      s.items = s.known + S::share(static_cast<uint32_t>((s.tiles - plan.always) * s.row_blocks), turn, &s.first);
      s.first += plan.always * s.row_blocks;
    }
  };
  if constexpr (kCombine) {
    // The operation before left the lists alone, as a rule: then all weights are known before the wait.
    if (!plan.lists_settled) pdl_wait();
    make_lists();
    cluster_sync();  // its blocks run: the first one's shared memory may be written
  }

  RingPlace at;
  if (s.items > 0) at.item = s.item(0);
  if (!producer) {
    pdl_wait();
    if (warp > kRingConsumers) pdl_launch_dependents();
  } else if (!plan.weights_settled) {
    pdl_wait();
  } else {
    // The ring as far as it goes and weights are known, while the others wait and read lists and rows.
    for (int asked = 0; asked < plan.stages && at.item.i < s.items; ++asked) {
      if (asked >= plan.early_pieces) mbarrier_wait(RingBarriers::at(s.barriers.full, asked - plan.early_pieces), 0);
      s.load(at, s.item_weights(at.item), s.item_rows(at.item));
      s.advance(at, 1);
    }
  }
  if constexpr (!kCombine) {
    if (uneven) {
      make_lists();
      if (s.items > 0 && (!producer || at.item.i == s.known)) at.item = s.item(at.item.i);
    }
  }

  if (producer) {
    int loaded = -1, rows = 0;
    const W* w = nullptr;
#pragma unroll 1
    while (at.item.i < s.items) {
      if (loaded != at.item.i) {
        loaded = at.item.i;
        rows = s.item_rows(at.item);
        w = s.item_weights(at.item);
      }
      mbarrier_wait(RingBarriers::at(s.barriers.empty, at.stage), at.filled ^ 1);
      s.load(at, w, rows);
      s.advance(at, 1);
    }
  } else if (warp < kRingConsumers) {
    if (plan.x_pitch > 0 && !uneven) hold_x(p, plan, shared);
    const int turn = warp / S::kTurnWarps, member = warp % S::kTurnWarps, g = lane / 4, q = lane % 4;
    const unsigned char* const weights = shared + g * s.pitch() + q * 16;
    if (s.items > 0) s.advance(at, turn);
    const Bf16* x_rows[kTiles];
    int reach[kTiles], aimed = -1, used = 1;
#pragma unroll 1
    while (at.item.i < s.items) {
      if (aimed != at.item.i) {
        const RingRows rows = s.rows_of(at.item);
        s.aim_x(rows, g, q, x_rows, reach);
        used = rows.count > 8 ? 2 : 1;
        aimed = at.item.i;
      }
      const int first = at.piece * s.piece_segments();
      const int segments = min(s.piece_segments(), s.segments - first);
      const int step = at.item.i * s.steps + at.piece / S::kStepPieces;
      float4* const sums = s.sums(step, lane) + at.piece % S::kStepPieces * s.piece_segments() * (kTiles * 32);
      uint4 x[kTiles][4], low[S::kChunks], high[S::kChunks];
      const auto wait_for_sums = [&] {
        mbarrier_wait(RingBarriers::at(s.barriers.summed, step & 1), (step >> 1 & 1) ^ 1);
      };
      if (member < segments) s.load_x(x_rows, reach, first + member, x);
      mbarrier_wait(RingBarriers::at(s.barriers.full, at.stage), at.filled);
#pragma unroll 1
      for (int i = member; i < segments; i += S::kTurnWarps) {
        const int segment = first + i;
        const int left = static_cast<int>(p.k) - segment * kSegment - q * (16 / static_cast<int>(sizeof(W)));
        if (i != member) s.load_x(x_rows, reach, segment, x);
        s.load_weights(weights + at.stage * s.stage_bytes() + i * S::kSegmentBytes, left, low, high);
        float acc[kTiles][4] = {};
        s.multiply(low, high, used, x, acc);
        if (i == member) wait_for_sums();
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          if (t == 0 || t < used) sums[(i * kTiles + t) * 32] = make_float4(acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        }
      }
      if (member >= segments) wait_for_sums();  // else this warp's next step could count for this one
      __syncwarp();
      if (lane == 0) {
        mbarrier_arrive(RingBarriers::at(s.barriers.empty, at.stage));
        // A step that ends with the item may lack the other turn's piece.
        for (int i = s.step_pieces(at.piece); i <= S::kStepPieces; i += i)
          mbarrier_arrive(RingBarriers::at(s.barriers.summable, step & 1));
      }
      s.advance(at, S::kTurns);
    }
  } else {
    int step = 0;
    float scale = 1, scale_ahead = 1;  // of the segments that come next: memory is far
    if constexpr (S::kScaled) {
      if (s.items > 0) scale_ahead = s.scale_of(at.item, 0, lane);
    }
#pragma unroll 1
    while (at.item.i < s.items) {
      const RingItem it = at.item;
      s.next(at.item);
      const RingRows rows = s.rows_of(it);
      const int used = rows.count > 8 ? 2 : 1;
      float total[kTiles][4] = {}, residual[kTiles][4];
      const bool adds = !kCombine && p.residual != nullptr && !p.gated;
      if (adds) s.load_residual(it, rows, lane, residual);
#pragma unroll 1
      for (int s0 = 0; s0 < s.segments; s0 += s.step_segments(), ++step) {
        const float4* const sums = s.sums(step, lane);
        if constexpr (S::kScaled) {
          if (s0 % kScaleSegments == 0) {
            scale = scale_ahead;
            if (s0 + kScaleSegments < s.segments) {
              scale_ahead = s.scale_of(it, s0 + kScaleSegments, lane);
            } else if (at.item.i < s.items) {
              scale_ahead = s.scale_of(at.item, 0, lane);
            }
          }
        }
        mbarrier_wait(RingBarriers::at(s.barriers.summable, step & 1), step >> 1 & 1);
        const int count = min(s.step_segments(), s.segments - s0);
#pragma unroll
        for (int j = 0; j < S::kMaxStep; ++j) {
          if (j >= count) break;
          float low = 1, high = 1;
          if constexpr (S::kScaled) {
            low = __shfl_sync(kFullWarp, scale, s0 % kScaleSegments + j);
            high = __shfl_sync(kFullWarp, scale, kScaleSegments + s0 % kScaleSegments + j);
          }
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            if (t > 0 && t >= used) break;
            const float4 v = sums[(j * kTiles + t) * 32];
            if constexpr (S::kScaled) {
              total[t][0] = fmaf(low, v.x, total[t][0]);
              total[t][1] = fmaf(low, v.y, total[t][1]);
              total[t][2] = fmaf(high, v.z, total[t][2]);
              total[t][3] = fmaf(high, v.w, total[t][3]);
            } else {
              total[t][0] += v.x;
              total[t][1] += v.y;
              total[t][2] += v.z;
              total[t][3] += v.w;
            }
          }
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(RingBarriers::at(s.barriers.summed, step & 1));
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (adds) {
#pragma unroll
          for (int j = 0; j < 4; ++j) total[t][j] += residual[t][j];
        }
        s.emit(it, rows, t, lane, total[t]);
      }
    }
  }
  if constexpr (kCombine) {
    const int block = static_cast<int>(blockIdx.x >> 1);
    const float residual = (blockIdx.x & 1) == 0 ? combine_residual(combine, block, threadIdx.x) : 0.0f;
    __syncwarp();
    cluster_sync();
    if ((blockIdx.x & 1) == 0) combine_parts(s, combine, block, listed[1], residual);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W, int kTiles, bool kCombine>
cudaError_t launch_ring_kernel(const Product& p, const Combine& c, const RingLaunch& launch) {
  const dim3 grid(static_cast<unsigned>(launch.blocks)), block(kRingThreads);
  const size_t bytes = static_cast<size_t>(launch.plan.bytes);
  const auto kernel = product_ring_kernel<W, kTiles, kCombine>;
  if constexpr (kCombine) {
    return launch_clusters(kernel, grid, block, 2, bytes, launch.stream, p, c, launch.plan);
  } else {
    return launch_pdl(kernel, grid, block, bytes, launch.stream, p, c, launch.plan);
  }
}

template <class W>
cudaError_t launch_ring(const Product& p, const Combine* c, const RingLaunch& launch) {
  if (c == nullptr) {
    return launch.row_tiles == 1 ? launch_ring_kernel<W, 1, false>(p, Combine{}, launch)
                                 : launch_ring_kernel<W, 2, false>(p, Combine{}, launch);
  }
  return launch.row_tiles == 1 ? launch_ring_kernel<W, 1, true>(p, *c, launch)
                               : launch_ring_kernel<W, 2, true>(p, *c, launch);
}

template <class W>
cudaError_t load_ring(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_ring_kernel<W, 1, false>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 2, false>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 1, true>);
  if (error == cudaSuccess) error = load(product_ring_kernel<W, 2, true>);
  return error;
}

}  // namespace mla::cuda
