// product_wgmma_emit.cuh - the parts of product_wgmma.cuh: from sums in registers to rows of y.
#pragma once
#include "cuda/gemm/product_wgmma_device.cuh"

namespace mla::cuda {

/// 4 results from column n on; `whole` if they may be written at once, `residual` is then what to add.
__device__ __forceinline__ void put4(const Product& p, int64_t at, int64_t n, bool whole, uint2 residual, float4 v) {
  if (!whole) {
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < p.n) put(p, at + i, values[i]);
    return;
  }
  v.x += bf16_low(residual.x);
  v.y += bf16_high(residual.x);
  v.z += bf16_low(residual.y);
  v.w += bf16_high(residual.y);
  if (p.y_dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = v;
  } else {
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.y) + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
}

/// gate_up() by the quick functions: within some units of the last float32 place, the result is rounded to bf16.
__device__ __forceinline__ float gate_up_quick(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

/// The warpgroup's 64 rows of w by the tile's tokens. `turn` alternates between its two staging buffers, so that one
/// barrier a piece is enough.
template <class S>
__device__ __forceinline__ void emit_wgmma(const Product& p, const WgmmaShared<S>& shared, const WgmmaTile& tile,
                                           bool wide, int& turn, const float (&d)[S::kMostTokens / 2]) {
  constexpr int N = S::kMostTokens, kPiece = S::kPiece;
  const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int64_t row = tile.group * p.y_group + tile.row0 * p.y_row;
  const int matrix = lane / 8, line = lane % 8;
  if (S::kGathered || p.gated) {
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += S::kGatedPiece) {
      if (t0 >= tile.count) break;
      unsigned char* const buffer = shared.staging(warpgroup) + turn * S::kStagingBytes;
      turn ^= 1;
      // [64 tokens][32 features] bf16; four rows of 64 bytes are two lines of banks
#pragma unroll
      for (int j0 = t0 / 8; j0 < (t0 + S::kGatedPiece) / 8; j0 += 4) {
        uint32_t r[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const float* const v = d + 4 * (j0 + m < N / 8 ? j0 + m : 0);  // a last piece may be a half one
          r[m] = pack_bf16(gate_up_quick(v[0], v[2]), gate_up_quick(v[1], v[3]));
        }
        const int token = 8 * (j0 + matrix) - t0 + line;
        stmatrix_x4_trans(shared_address(buffer) + token * 64 + ((warp ^ (token / 2 % 4)) * 16), r);
      }
      named_barrier_sync(1 + warpgroup, 128);
      const int64_t n = tile.w0 / 2 + warpgroup * 32 + thread % 4 * 8;
#pragma unroll
      for (int i = 0; i < S::kGatedPiece / 32; ++i) {
        const int token = thread / 4 + 32 * i;
        if (t0 + token >= tile.count || n >= p.n / 2) continue;
        const uint4 v = load16(buffer + token * 64 + ((thread % 4 ^ (token / 2 % 4)) * 16));
        Bf16* const to = static_cast<Bf16*>(p.y) + row + (t0 + token) * p.y_row + n;
        if (wide) {
          store16(to, v);
        } else {
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int e = 0; e < 8; ++e) to[e] = Bf16{static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))};
        }
      }
    }
  } else if (p.y_dtype == DType::kBF16 && p.residual == nullptr) {
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += kPiece) {
      if (t0 >= tile.count) break;
      unsigned char* const buffer = shared.staging(warpgroup) + turn * S::kStagingBytes;
      turn ^= 1;
      // [64 tokens][64 weights] bf16
#pragma unroll
      for (int j = t0 / 8; j < (t0 + kPiece) / 8; j += 2) {
        const int token = 8 * (j + matrix / 2) - t0 + line;
        const uint32_t to = shared_address(buffer) + token * 128 + (((2 * warp + matrix % 2) ^ line) * 16);
        const uint32_t r[4] = {pack_bf16(d[4 * j], d[4 * j + 1]), pack_bf16(d[4 * j + 2], d[4 * j + 3]),
                               pack_bf16(d[4 * j + 4], d[4 * j + 5]), pack_bf16(d[4 * j + 6], d[4 * j + 7])};
        stmatrix_x4_trans(to, r);
      }
      named_barrier_sync(1 + warpgroup, 128);
      const int64_t n = tile.w0 + warpgroup * 64 + thread % 8 * 8;
#pragma unroll
      for (int i = 0; i < kPiece / 16; ++i) {
        const int token = thread / 8 + 16 * i;
        if (t0 + token >= tile.count || n >= p.n) continue;
        const uint4 v = load16(buffer + token * 128 + ((thread % 8 ^ token % 8) * 16));
        Bf16* const to = static_cast<Bf16*>(p.y) + row + (t0 + token) * p.y_row + n;
        if (wide && n + 8 <= p.n) {
          store16(to, v);
        } else {
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int e = 0; e < 8; ++e)
            if (n + e < p.n) to[e] = Bf16{static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))};
        }
      }
    }
  } else {
    // [16 or 32 tokens][64 weights] float32, of which tokens 2 q and 2 q + 1 move by 8 q: 4 lanes that write, 4 pairs
    // of banks; 16 threads read a token
    constexpr int kTokens = kPiece / 2;
    const int64_t n = tile.w0 + warpgroup * 64 + thread % 16 * 4;
    const bool whole = wide && n + 4 <= p.n;
    // Residuals are asked for three pieces ahead: they come from far.
    constexpr int kAhead = 3;
    uint2 residual[kAhead][kTokens / 8];
    const auto ask = [&](int t0) {
#pragma unroll
      for (int i = 0; i < kTokens / 8; ++i) {
        const int token = t0 + thread / 16 + 8 * i;
        residual[t0 / kTokens % kAhead][i] = make_uint2(0, 0);
        if (p.residual != nullptr && whole && token < tile.count)
          residual[t0 / kTokens % kAhead][i] =
              *reinterpret_cast<const uint2*>(static_cast<const Bf16*>(p.residual) + row + token * p.y_row + n);
      }
    };
#pragma unroll
    for (int t0 = 0; t0 < N && t0 < kTokens * kAhead; t0 += kTokens) ask(t0);
#pragma unroll
    for (int t0 = 0; t0 < N; t0 += kTokens) {
      if (t0 >= tile.count) break;
      float* const buffer = reinterpret_cast<float*>(shared.staging(warpgroup) + turn * S::kStagingBytes);
      turn ^= 1;
#pragma unroll
      for (int j = t0 / 8; j < (t0 + kTokens) / 8; ++j) {
        float* const to = buffer + (8 * j - t0 + 2 * q) * 64;
        const int low = (16 * warp + g) ^ (8 * q), high = (16 * warp + g + 8) ^ (8 * q);
        to[low] = d[4 * j];
        to[64 + low] = d[4 * j + 1];
        to[high] = d[4 * j + 2];
        to[64 + high] = d[4 * j + 3];
      }
      named_barrier_sync(1 + warpgroup, 128);
#pragma unroll
      for (int i = 0; i < kTokens / 8; ++i) {
        const int token = thread / 16 + 8 * i;
        if (t0 + token >= tile.count || n >= p.n) continue;
        const float4 v =
            *reinterpret_cast<const float4*>(buffer + token * 64 + ((thread % 16 * 4) ^ (token / 2 % 4 * 8)));
        put4(p, row + (t0 + token) * p.y_row + n, n, whole, residual[t0 / kTokens % kAhead][i], v);
      }
      if (t0 + kTokens * kAhead < N) ask(t0 + kTokens * kAhead);
    }
  }
}

}  // namespace mla::cuda
