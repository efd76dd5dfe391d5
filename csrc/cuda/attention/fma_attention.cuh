// fma_attention.cuh - attention of 16 query rows over tiles of 16 keys with plain float32 arithmetic: for float32
// activations, where tensor cores would round, and for dimensions that the tensor core kernels do not have.
//
// A block of 256 threads. Thread (row = tid / 16, key = tid % 16) has one score of a tile, so that a row's softmax
// needs half a warp; for the second product a thread has columns tid and tid + 256 of all 16 rows. Sums run in
// ascending order.
#pragma once
#include "cuda/attention/softmax.cuh"
#include "cuda/device/numeric.cuh"

namespace mla::cuda {

constexpr int kFmaThreads = 256;
constexpr int kFmaRows = 16;
constexpr int kFmaKeys = 16;
constexpr int kFmaColumns = 2;  // per thread
constexpr int kFmaMaxValues = kFmaColumns * kFmaThreads;
constexpr int kFmaProbStride = kFmaKeys + 1;

/// Pieces of dynamic shared memory; rows are `width` floats and one more, which keeps lanes on different banks.
struct FmaMemory {
  float* q;       // [kFmaRows][width + 1]
  float* k;       // [kFmaKeys][width + 1]
  float* p;       // [kFmaRows][kFmaProbStride]
  float* factor;  // [kFmaRows]
  float* v;       // [kFmaKeys][values], if it is not a part of k

  __device__ FmaMemory(float* memory, int width) {
    q = memory;
    k = q + kFmaRows * (width + 1);
    p = k + kFmaKeys * (width + 1);
    factor = p + kFmaRows * kFmaProbStride;
    v = factor + kFmaRows;
  }
  static int64_t bytes(int64_t width, int64_t separate_values) {
    return 4 * ((kFmaRows + kFmaKeys) * (width + 1) + kFmaRows * (kFmaProbStride + 1) + kFmaKeys * separate_values);
  }
};

/// Running result of a block; largest and sum are those of the thread's row, sum only this thread's part of it.
struct FmaState {
  float largest = -INFINITY;
  float sum = 0;
  float out[kFmaColumns][kFmaRows] = {};
};

/// Takes one tile of keys. `visible`: how many of its keys this thread's row sees. Barriers: before it the tile must be
/// in shared memory for all; after it another barrier must come before the tile is overwritten.
template <class Act>
__device__ void fma_attend(const FmaMemory& m, int width, const float* v, int v_stride, int values, int visible,
                           float scale_log2, FmaState* s) {
  const int tid = threadIdx.x, row = tid / kFmaKeys, key = tid % kFmaKeys;
  float score = 0;
  for (int d = 0; d < width; ++d) score = fmaf(m.q[row * (width + 1) + d], m.k[key * (width + 1) + d], score);
  score = key < visible ? score * scale_log2 : -INFINITY;
  float largest = score;
#pragma unroll
  for (int i = kFmaKeys / 2; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, i));
  const float before = s->largest;
  s->largest = fmaxf(before, largest);
  const float shift = softmax_shift(s->largest);
  const float factor = exp2f(before - shift), p = exp2f(score - shift);
  s->sum = s->sum * factor + p;
  m.p[row * kFmaProbStride + key] = to_float(from_float<Act>(p));
  if (key == 0) m.factor[row] = factor;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kFmaColumns; ++i) {
    const int column = i * kFmaThreads + tid;
    if (column >= values) continue;
#pragma unroll
    for (int r = 0; r < kFmaRows; ++r) s->out[i][r] *= m.factor[r];
    for (int j = 0; j < kFmaKeys; ++j) {
      const float x = v[j * v_stride + column];
#pragma unroll
      for (int r = 0; r < kFmaRows; ++r) {
        // A key that a row does not see may be anything, and 0 * NaN is NaN.
        const float weight = m.p[r * kFmaProbStride + j];
        if (weight != 0) s->out[i][r] = fmaf(weight, x, s->out[i][r]);
      }
    }
  }
}

/// The sum of the thread's row, in all of its 16 threads.
__device__ inline float fma_row_sum(float sum) {
#pragma unroll
  for (int i = kFmaKeys / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
  return sum;
}

/// `columns` elements of each of `rows` rows to shared memory as float32, rounded to Act; zeros up to `all` rows.
template <class Act, class T>
__device__ void fma_load_rows(const T* from, int64_t from_stride, int columns, int rows, int all, float* to,
                              int to_stride) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < all; row += kFmaThreads / 32) {
    for (int i = lane; i < columns; i += 32) {
      to[row * to_stride + i] = row < rows ? to_float(from_float<Act>(to_float(from[row * from_stride + i]))) : 0.0f;
    }
  }
}

}  // namespace mla::cuda
