// product_stream.cuh - products of few rows and few weights: bounded by the bytes of the weights, which are read once.
//
// Formula: product.h, equal groups. Work: an item is 16 weight rows times a tile of up to 8, 16 or 32 rows of x, over
//   all of k. Blocks stay and take a run of neighbouring items each.
// Block: 8 warps, 2 blocks a multiprocessor (1 for 32 rows). All segments of a block's items, one after the other, are
//   dealt to the warps in turn. A warp streams its own: each lane copies 16-byte pieces of two weight rows into its
//   private ring in shared memory (8 KB a warp, cp.async, no barrier: a lane reads back what it copied itself) and goes
//   on loading across item boundaries. x comes through L1. Segments lie in shared memory as accumulator fragments;
//   after a barrier one warp per row tile, in turn, adds them in ascending order and writes results while the others go
//   on.
// Tensor cores: weights are the 16 rows of A, rows of x the 8 columns of B.
// Shared memory: ring 64 KB, fragments 16 to 32 KB.
// Test: test/gpu/matrix.test.ts.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/gemm/load_kernel.cuh"
#include "cuda/gemm/product_device.cuh"

namespace mla::cuda {

constexpr int kStreamWarps = 8;
constexpr int kStreamThreads = kStreamWarps * 32;
constexpr int kItemRows = 16;    // weight rows of an item
constexpr int kWarpRing = 8192;  // bytes
constexpr int kRingBytes = kStreamWarps * kWarpRing;

/// Segments between two barriers.
__host__ __device__ constexpr int step_segments(int row_tiles) { return row_tiles == 1 ? 16 : 8; }

/// Blocks of a multiprocessor. The rows of 4 tiles do not fit into half of its registers.
__host__ __device__ constexpr int stream_blocks(int row_tiles) { return row_tiles == 4 ? 1 : 2; }

__host__ __device__ constexpr int stream_bytes(int row_tiles) {
  return kRingBytes + 2 * step_segments(row_tiles) * row_tiles * 512;
}

/// One item of a block: which rows, which weights.
struct Item {
  RowTile tile;
  int block;  // 16-row block of w
};

template <class W, int kRowTiles>
struct Stream {
  static constexpr int kHeight = 8 * kRowTiles;
  static constexpr int kChunks = kSegment / Chunk<W>::kWidth;  // 4 with bf16, 2 with fp8
  static constexpr int kLoads = 2 * kChunks;                   // of a lane, per segment
  static constexpr int kStages = kWarpRing / (kLoads * 512);   // 2 with bf16, 4 with fp8
  static constexpr int kStep = step_segments(kRowTiles);
  static constexpr bool kScaled = sizeof(W) == 1;

  const Product& p;
  int tiles, per_group;  // tiles in all; of each group
  int row_blocks;
  int segments;
  int items;  // of this block
  int first;  // its first item; combined, its first 16-row block of w
  int lane, g, q;

  __device__ Item item(int i) const {
    const int at = first + i, index = at / row_blocks;
    return {even_tile(index, per_group, kHeight, p.rows), at - index * row_blocks};
  }

  __device__ const W* weight_row(const Item& it, int row) const {
    const int64_t at = it.block * kItemRows + row;
    return at < p.n ? static_cast<const W*>(p.w) + it.tile.group * p.w_group + at * p.k : nullptr;
  }

  /// The place of one warp in the sequence of all segments of the block.
  struct Cursor {
    int i, segment;
    __device__ void normalize(int segments) {
      while (segment >= segments) {
        segment -= segments;
        ++i;
      }
    }
  };

  /// What has been asked for.
  struct Loader {
    Cursor at;
    const W* low;  // rows g and g + 8 of the item, from this lane's first k on; null past the end of w
    const W* high;
    bool whole;  // all 16 rows exist
  };

  __device__ void aim(Loader& loader) const {
    loader.low = loader.high = nullptr;
    if (loader.at.i >= items) return;
    const Item it = item(loader.at.i);
    loader.low = weight_row(it, g);
    loader.high = weight_row(it, g + 8);
    loader.whole = (it.block + 1) * kItemRows <= p.n;
    if (loader.low != nullptr) loader.low += q * Chunk<W>::kLoad;
    if (loader.high != nullptr) loader.high += q * Chunk<W>::kLoad;
  }

  /// Asks for the loader's segment (zeros for what does not exist) and moves on.
  __device__ void load(Loader& loader, uint32_t ring) const {
    if (loader.at.i < items) {
      const int k0 = loader.at.segment * kSegment;
      if (loader.whole && k0 + kSegment <= p.k) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          cp_async16_stream(ring + (2 * c) * 512, loader.low + k0 + c * Chunk<W>::kWidth);
          cp_async16_stream(ring + (2 * c + 1) * 512, loader.high + k0 + c * Chunk<W>::kWidth);
        }
      } else {
        const int left = static_cast<int>(p.k) - k0 - q * Chunk<W>::kLoad;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const bool inside = c * Chunk<W>::kWidth < left;
          const int k = k0 + c * Chunk<W>::kWidth;
          const bool low = inside && loader.low != nullptr, high = inside && loader.high != nullptr;
          cp_async16(ring + (2 * c) * 512, low ? static_cast<const void*>(loader.low + k) : p.w, low);
          cp_async16(ring + (2 * c + 1) * 512, high ? static_cast<const void*>(loader.high + k) : p.w, high);
        }
      }
      const int i = loader.at.i;
      loader.at.segment += kStreamWarps;
      loader.at.normalize(segments);
      if (loader.at.i != i) aim(loader);
    }
    cp_async_commit();
  }

  /// Points x[t] to this lane's row of each row tile; null where there is none.
  __device__ void aim_x(const Item& it, const Bf16* (&x)[kRowTiles]) const {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      x[t] = nullptr;
      const int r = 8 * t + g;
      if (r >= it.tile.count) continue;
      x[t] = static_cast<const Bf16*>(p.x) + it.tile.group * p.x_group + (it.tile.row0 + r) * p.x_row +
             q * (kScaled ? 16 : 8);
    }
  }

  /// This lane's four loads of x in a segment: the k of its weights. Zeros for what does not exist.
  __device__ void load_x(const Bf16* const (&rows)[kRowTiles], int segment, uint4 (&x)[kRowTiles][4]) const {
    const int k0 = segment * kSegment;
    const int left = static_cast<int>(p.k) - k0 - q * (kScaled ? 16 : 8);
    const bool whole = k0 + kSegment <= p.k;
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = kScaled ? j / 2 * 64 + j % 2 * 8 : j * 32;
        x[t][j] = rows[t] != nullptr && (whole || k < left) ? load16(rows[t] + k0 + k) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  /// acc += the segment in the ring times x.
  __device__ void multiply(const uint4* ring, const uint4 (&x)[kRowTiles][4], float (&acc)[kRowTiles][4]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const uint4 low = ring[(2 * c) * 32], high = ring[(2 * c + 1) * 32];
      if constexpr (!kScaled) {
        const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) mma_bf16(acc[t], a0, {x[t][c].x, x[t][c].y});
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) mma_bf16(acc[t], a1, {x[t][c].z, x[t][c].w});
      } else {
        const uint32_t lows[4] = {low.x, low.y, low.z, low.w}, highs[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          uint32_t a[4];
          f8_to_bf16(lows[s], a[0], a[2]);
          f8_to_bf16(highs[s], a[1], a[3]);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            const uint4& v = x[t][2 * c + s / 2];
            if (s % 2 == 0) {
              mma_bf16(acc[t], a, {v.x, v.y});
            } else {
              mma_bf16(acc[t], a, {v.z, v.w});
            }
          }
        }
      }
    }
  }

  /// The scale that this lane keeps for the step that begins with segment s0: of the item's first 8 rows in lanes 0 to
  /// 15, of the other 8 in lanes 16 to 31.
  __device__ float step_scale(const Item& it, int s0) const {
    const int segment = s0 + lane % 16;
    if (segment >= segments) return 0;
    const int first_row = p.gated ? it.block * (kItemRows / 2) : it.block * kItemRows;
    int64_t block = first_row / kSegment;
    if (p.gated && lane >= 16) block += div_up<int64_t>(p.n / 2, kSegment);
    return p.scale[it.tile.group * p.scale_group + block * segments + segment];
  }

  /// Writes the results of row tile t: rows of w g and g + 8, rows of the tile 2q and 2q + 1.
  __device__ void emit(const Item& it, int t, const float (&total)[4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = 8 * t + 2 * q + j;
      if (r >= it.tile.count) continue;
      const int64_t row = it.tile.group * p.y_group + (it.tile.row0 + r) * p.y_row;
      if (p.gated) {
        put(p, row + it.block * 8 + g, gate_up(total[j], total[2 + j]));
      } else {
        const int64_t n = it.block * kItemRows + g;
        if (n < p.n) put(p, row + n, total[j]);
        if (n + 8 < p.n) put(p, row + n + 8, total[2 + j]);
      }
    }
  }
};

template <class W, int kRowTiles>
__global__ void __launch_bounds__(kStreamThreads, stream_blocks(kRowTiles))
    product_stream_kernel(const __grid_constant__ Product p) {
  using S = Stream<W, kRowTiles>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4* const ring = reinterpret_cast<uint4*>(shared + warp * kWarpRing) + lane;
  float4* const fragments = reinterpret_cast<float4*>(shared + kRingBytes) + lane;

  const int per_group = static_cast<int>((p.rows + S::kHeight - 1) / S::kHeight);
  S s{.p = p,
      .tiles = per_group * static_cast<int>(p.groups),
      .per_group = per_group,
      .row_blocks = static_cast<int>((p.n + kItemRows - 1) / kItemRows),
      .segments = static_cast<int>((p.k + kSegment - 1) / kSegment),
      .items = 0,
      .first = 0,
      .lane = lane,
      .g = lane / 4,
      .q = lane % 4};
  const int64_t all = static_cast<int64_t>(s.tiles) * s.row_blocks;
  s.first = static_cast<int>(all * blockIdx.x / gridDim.x);
  s.items = static_cast<int>(all * (blockIdx.x + 1) / gridDim.x) - s.first;
  {
    // The first weights start on their way while the kernel before still runs: 16 rows of up to 256 bytes.
    typename S::Cursor at{0, warp};
    at.normalize(s.segments);
#pragma unroll 1
    for (int stage = 0; stage < S::kStages && at.i < s.items; ++stage) {
      const Item it = s.item(at.i);
      const W* const row = s.weight_row(it, lane / 2);
      const int64_t k = at.segment * kSegment + lane % 2 * (kSegment / 2);
      if (row != nullptr && k < p.k) prefetch_l2(row + k);
      at.segment += kStreamWarps;
      at.normalize(s.segments);
    }
  }
  pdl_wait();

  // What the loader asks for runs kStages segments ahead of what is multiplied.
  typename S::Loader loader{{0, warp}, nullptr, nullptr, false};
  loader.at.normalize(s.segments);
  s.aim(loader);
#pragma unroll 1
  for (int stage = 0; stage < S::kStages; ++stage) s.load(loader, shared_address(ring + stage * S::kLoads * 32));
  pdl_launch_dependents();

  typename S::Cursor at{0, warp};
  at.normalize(s.segments);
  int stage = 0, side = 0, aimed = -1;
  const Bf16* x_rows[kRowTiles];
#pragma unroll 1
  for (int i = 0; i < s.items; ++i) {
    const Item it = s.item(i);
    const int my_tile = (warp - i * kRowTiles) & (kStreamWarps - 1);  // < kRowTiles: this warp adds up that row tile
    float total[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (int s0 = 0; s0 < s.segments; s0 += S::kStep) {
      const int count = min(S::kStep, s.segments - s0);
      float4* const side_fragments = fragments + side * (S::kStep * kRowTiles * 32);
      float scale = 1;
      if constexpr (S::kScaled) {
        if (my_tile < kRowTiles) scale = s.step_scale(it, s0);
      }
      while (at.i == i && at.segment < s0 + count) {
        if (aimed != i) {
          s.aim_x(it, x_rows);
          aimed = i;
        }
        uint4 x[kRowTiles][4];
        s.load_x(x_rows, at.segment, x);
        cp_async_wait<S::kStages - 1>();
        float acc[kRowTiles][4] = {};
        s.multiply(ring + stage * S::kLoads * 32, x, acc);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          side_fragments[((at.segment - s0) * kRowTiles + t) * 32] =
              make_float4(acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        }
        s.load(loader, shared_address(ring + stage * S::kLoads * 32));
        stage = (stage + 1) % S::kStages;
        at.segment += kStreamWarps;
        at.normalize(s.segments);
      }
      // Fragments of this step are complete; those of the step before have been added up.
      __syncthreads();
      if (my_tile < kRowTiles) {
#pragma unroll 4
        for (int j = 0; j < count; ++j) {
          const float4 v = side_fragments[(j * kRowTiles + my_tile) * 32];
          if constexpr (S::kScaled) {
            const float low = __shfl_sync(kFullWarp, scale, j), high = __shfl_sync(kFullWarp, scale, 16 + j);
            total[0] = fmaf(low, v.x, total[0]);
            total[1] = fmaf(low, v.y, total[1]);
            total[2] = fmaf(high, v.z, total[2]);
            total[3] = fmaf(high, v.w, total[3]);
          } else {
            total[0] += v.x;
            total[1] += v.y;
            total[2] += v.z;
            total[3] += v.w;
          }
        }
      }
      side ^= 1;
    }
    if (my_tile < kRowTiles) s.emit(it, my_tile, total);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W, int kRowTiles>
cudaError_t launch_stream(const Product& p, int multiprocessors, cudaStream_t stream) {
  const int64_t items = p.groups * div_up<int64_t>(p.rows, 8 * kRowTiles) * div_up<int64_t>(p.n, kItemRows);
  const int64_t resident = static_cast<int64_t>(stream_blocks(kRowTiles)) * multiprocessors;
  return launch_pdl(product_stream_kernel<W, kRowTiles>,
                    dim3(static_cast<unsigned>(items < resident ? items : resident)), dim3(kStreamThreads),
                    stream_bytes(kRowTiles), stream, p);
}

template <class W>
cudaError_t launch_product_stream(const Product& p, int row_tiles, int multiprocessors, cudaStream_t stream) {
  switch (row_tiles) {
    case 1: return launch_stream<W, 1>(p, multiprocessors, stream);
    case 2: return launch_stream<W, 2>(p, multiprocessors, stream);
    default: return launch_stream<W, 4>(p, multiprocessors, stream);
  }
}

template <class W>
cudaError_t load_product_stream(int shared_bytes_per_block) {
  const auto load = [&](auto kernel) { return load_into_context(kernel, shared_bytes_per_block); };
  cudaError_t error = load(product_stream_kernel<W, 1>);
  if (error == cudaSuccess) error = load(product_stream_kernel<W, 2>);
  if (error == cudaSuccess) error = load(product_stream_kernel<W, 4>);
  return error;
}

}  // namespace mla::cuda
