// product_e4m3_emit.cuh - the parts of product_e4m3_sm90.cu: from sums in registers to rows of y.
//
// Each warp turns its 16 rows into whole lines in 4 KB of shared memory of its own, 128 bytes of each row at a time.
// total[c][4 j ..] are columns 8 j + 2 q and the next of row g, then of row g + 8, of the c-th 128 columns.
#pragma once
#include "cuda/device/fp8_chunk.cuh"
#include "cuda/gemm/product_e4m3_device.cuh"
#include "cuda/ptx/bulk.cuh"
#include "ops/fp8_row.h"

namespace mla::cuda {

constexpr float kLog2e = 1.4426950408889634f;

/// 2^x and 1 / x, within some units of the last place; what is subnormal counts as 0.
__device__ __forceinline__ float exp2_quick(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_quick(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <int kParts>
struct E4m3Emit {
  const Product& p;
  const E4m3Shared& shared;
  const WgmmaTile tile;
  const float (&total)[2][64];
  const CUtensorMap* y_map;
  int lane, g, q;
  E4m3Part part;
  int first, rows;        // row of y of this warp's first one, and how many of its 16 there are
  unsigned char* buffer;  // of this warp

  __device__ __forceinline__ E4m3Emit(const Product& p, const E4m3Shared& shared, const float (&total)[2][64],
                                      const CUtensorMap* y_map)
      : p(p), shared(shared), tile(shared.tile_of_warp()), total(total), y_map(y_map), part(tile.count <= 64) {
    lane = threadIdx.x % 32;
    g = lane / 4;
    q = lane % 4;
    const int warp = threadIdx.x / 32 % 4, row = part.row + warp * 16;
    first = tile.row0 + row;
    rows = tile.count - row;
    buffer = shared.staging(threadIdx.x / 128) + warp * 4096;
    reuse<0>();
  }

  __device__ __forceinline__ void emit() {
    if (p.gated && p.y_dtype == DType::kF8E4M3) {
      quantized();
    } else if (p.gated) {
      gated();
    } else if (p.y_dtype == DType::kF32) {
      float32();
    } else {
      plain();
    }
  }

 private:
  /// Address of 16 bytes of a row of the buffer.
  __device__ __forceinline__ unsigned char* place(int turn, int row, int piece) const {
    return buffer + turn * 2048 + row * 128 + ((piece ^ row % 8) * 16);
  }
  /// Where this lane's row of an stmatrix or ldmatrix of four lies: rows 0 and 8, then the same of the next piece.
  __device__ __forceinline__ uint32_t matrix(int turn, int piece) const {
    return shared_address(place(turn, lane / 8 % 2 * 8 + lane % 8, piece + lane / 16));
  }

  __device__ __forceinline__ int64_t row_at(int row) const { return tile.group * p.y_group + (first + row) * p.y_row; }

  /// Waits until of what was written no more than kLeft pieces are still read from the buffer.
  template <int kLeft>
  __device__ __forceinline__ void reuse() const {
    if (lane == 0) bulk_wait_read<kLeft>();
    __syncwarp();
  }

  /// 64 columns of bf16 from column n on, of `width` there are: all 16 rows by the copy engine, which does so while the
  /// warp goes on.
  __device__ __forceinline__ void write(int turn, int64_t n, int64_t width) {
    if (rows >= 16) {
      fence_proxy_async();
      __syncwarp();
      if (lane == 0) {
        tile_store(y_map, shared_address(buffer + turn * 2048), static_cast<int>(n), first);
        bulk_commit();
      }
      return;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 8 + 4 * i;
      const int64_t column = n + lane % 8 * 8;
      if (row >= rows || column >= width) continue;
      store16(static_cast<Bf16*>(p.y) + row_at(row) + column, load16(place(turn, row, lane % 8)));
    }
  }

  /// Features 8 i + 2 q and the next of the c-th part, of row g (high 0) or g + 8, as bf16.
  __device__ __forceinline__ uint32_t features(int c, int i, int high) const {
    const float* const v = total[c] + 8 * i + 2 * high;
    // gate * up / ((1 + e^-gate)(1 + e^-gate')) * (1 + e^-gate'): one reciprocal for two, below 2^126
    const float a = 1 + exp2_quick(fminf(-kLog2e * v[0], 62)), b = 1 + exp2_quick(fminf(-kLog2e * v[1], 62));
    const float by = reciprocal_quick(a * b);
    return pack_bf16(v[0] * v[4] * (b * by), v[1] * v[5] * (a * by));
  }

  __device__ __forceinline__ void gated() {
#pragma unroll
    for (int c = 0; c < kParts; ++c) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const uint32_t r[4] = {features(c, i, 0), features(c, i, 1), features(c, i + 1, 0), features(c, i + 1, 1)};
        stmatrix_x4(matrix(c, i), r);
      }
      write(c, (tile.w0 + part.column) / 2 + c * 64, p.n / 2);
    }
  }

  /// The 128 features of a row share an exponent. Where the warpgroups have 64 features each, they tell each other
  /// their largest.
  __device__ __forceinline__ void quantized() {
    uint32_t h[kParts][8][2], largest[2] = {0, 0};
#pragma unroll
    for (int c = 0; c < kParts; ++c)
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          h[c][i][high] = features(c, i, high);
          largest[high] = __vmaxu2(largest[high], h[c][i][high] & 0x7fff7fff);
        }
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      largest[high] = max(largest[high] >> 16, largest[high] & 0xffff);
      largest[high] = max(largest[high], __shfl_xor_sync(kFullWarp, largest[high], 1));
      largest[high] = max(largest[high], __shfl_xor_sync(kFullWarp, largest[high], 2));
    }
    if (kParts == 1 && part.narrow) {
      const int half = threadIdx.x / 128, row = threadIdx.x / 32 % 4 * 16 + g;
      if (q < 2) shared.largest(half)[row + 8 * q] = static_cast<uint16_t>(q == 0 ? largest[0] : largest[1]);
      named_barrier_sync(kBothLargest, kMathThreads);
#pragma unroll
      for (int high = 0; high < 2; ++high)
        largest[high] = max(largest[high], static_cast<uint32_t>(shared.largest(1 - half)[row + 8 * high]));
      named_barrier_sync(kBothLargest, kMathThreads);  // both have read
    }
    uint32_t scale[2];
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      scale[high] = row_scale_bits(largest[high] << 16);
      const int row = g + 8 * high;
      if (q == 0 && row < rows && part.column == 0)
        p.y_exponents[(first + row) * p.y_exponents_row + tile.w0 / kE4m3Weights] =
            static_cast<uint8_t>(scale[high] >> 23);
    }
    const auto codes = [&](int c, int i, int high) {
      const float by = __uint_as_float(row_inverse_bits(scale[high]));
      const auto pair = [&](uint32_t two) { return pack_e4m3(bf16_low(two) * by, bf16_high(two) * by); };
      // 2 features of 8, and 2 of the next 8: the reader sorts them
      const uint32_t four = pair(h[c][i][high]) | pair(h[c][i + 1][high]) << 16;
      return scale[high] == kRowNoScale ? 0x7f7f7f7fu : four;
    };
#pragma unroll
    for (int c = 0; c < kParts; ++c)
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const uint32_t r[4] = {codes(c, i, 0), codes(c, i, 1), codes(c, i + 2, 0), codes(c, i + 2, 1)};
        stmatrix_x4(matrix(0, c * 4 + i / 2), r);
      }
    __syncwarp();
    constexpr int kPieces = 4 * kParts, kAtOnce = 32 / kPieces;
#pragma unroll
    for (int i = 0; i < 16 / kAtOnce; ++i) {
      const int row = lane / kPieces + kAtOnce * i, piece = lane % kPieces;
      const int64_t n = (tile.w0 + part.column) / 2 + piece * 16;
      if (row >= rows || n >= p.n / 2) continue;
      const uint4 v = load16(place(0, row, piece));
      store16(static_cast<unsigned char*>(p.y) + row_at(row) + n,
              make_uint4(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.z, v.w, 0x5410), __byte_perm(v.x, v.y, 0x7632),
                         __byte_perm(v.z, v.w, 0x7632)));
    }
  }

  __device__ __forceinline__ void float32() {
#pragma unroll
    for (int c = 0; c < kParts; ++c)
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int64_t n = tile.w0 + part.column + c * 128 + 8 * j + 2 * q;
          if (g + 8 * high < rows && n < p.n)
            *reinterpret_cast<float2*>(static_cast<float*>(p.y) + row_at(g + 8 * high) + n) =
                make_float2(total[c][4 * j + 2 * high], total[c][4 * j + 2 * high + 1]);
        }
  }

  /// The residual passes through the same buffer, asked for one piece ahead.
  __device__ __forceinline__ void plain() {
    constexpr int kPieces = 2 * kParts;  // of 64 columns
    const auto column_of = [&](int piece) { return tile.w0 + part.column + piece * int64_t{64}; };
    const auto ask = [&](int piece) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 8 + 4 * i;
        const int64_t n = column_of(piece) + lane % 8 * 8;
        const bool valid = row < rows && n < p.n;
        cp_async16(shared_address(place(piece % 2, row, lane % 8)),
                   static_cast<const Bf16*>(p.residual) + (valid ? row_at(row) + n : 0), valid);
      }
      cp_async_commit();
    };
    const bool adds = p.residual != nullptr;
    if (adds) ask(0);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int turn = piece % 2;
      const float* const v = total[piece / 2] + piece % 2 * 32;
      if (piece >= 2 && !adds) reuse<1>();
      if (adds) {
        reuse<0>();
        if (piece + 1 < kPieces) {
          ask(piece + 1);
          cp_async_wait<1>();
        } else {
          cp_async_wait<0>();
        }
        __syncwarp();
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t r[4], add[4] = {0, 0, 0, 0};
        if (adds) ldmatrix_x4(add, matrix(turn, j));
#pragma unroll
        for (int m = 0; m < 4; ++m)
          r[m] = pack_bf16(v[4 * j + 2 * m] + bf16_low(add[m]), v[4 * j + 2 * m + 1] + bf16_high(add[m]));
        if (adds) __syncwarp();
        stmatrix_x4(matrix(turn, j), r);
      }
      write(turn, column_of(piece), p.n);
    }
  }
};

}  // namespace mla::cuda
