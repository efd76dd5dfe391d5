// router_group.cuh - grouping of (row, expert) pairs by expert: a stable counting sort without atomics that could
// change an order.
//
// Rows are cut into chunks of kChunkRows. A row has at most one pair per expert, so a chunk's pairs of one expert are a
// bit mask over its rows, whose bits may be set in any order; a pair's place is where its expert begins, plus the
// expert's pairs in earlier chunks, plus the bits before its row. One chunk is grouped by one block in one go; several
// are first counted, [chunks, groups], and each block then adds up what it needs.
#pragma once
#include <cstdint>

#include "cuda/device/rows.cuh"

namespace mla::cuda {

constexpr int kChunkRows = 128;
constexpr int kMaskWords = kChunkRows / 32;

struct GroupArgs {
  const int32_t* ids;  // [rows, columns]; < 0: no expert
  int32_t* offsets;    // [groups + 1]
  int32_t* order;      // [rows * columns]
  int32_t* slots;      // [rows, columns]
  int32_t* counts;     // [chunks, groups]; not used with one chunk
  int64_t rows;
  int columns;
  int experts;     // ids from here on are always-on experts
  int begin, end;  // the experts of this device
  int groups;      // end - begin + always-on experts
};

/// Bytes of shared memory that grouping needs: a mask and a start for each group.
inline int64_t group_shared_bytes(int64_t groups) { return groups * (kMaskWords + 1) * 4; }

/// The group of an expert id on this device, or -1.
__device__ __forceinline__ int group_of(const GroupArgs& a, int32_t id) {
  if (id >= a.experts) {
    const int group = a.end - a.begin + (id - a.experts);
    return group < a.groups ? group : -1;
  }
  return id >= a.begin && id < a.end ? id - a.begin : -1;
}

/// masks[group * kMaskWords + word]: which rows of the chunk have a pair in the group. Ends with a barrier.
__device__ __forceinline__ void mark_chunk(const GroupArgs& a, int64_t row0, int rows, uint32_t* masks) {
  for (int i = threadIdx.x; i < a.groups * kMaskWords; i += blockDim.x) masks[i] = 0;
  __syncthreads();
  const int32_t* const ids = a.ids + row0 * a.columns;
  for (int i = threadIdx.x; i < rows * a.columns; i += blockDim.x) {
    const int group = group_of(a, ids[i]), row = i / a.columns;
    if (group >= 0) atomicOr(&masks[group * kMaskWords + row / 32], 1u << (row % 32));
  }
  __syncthreads();
}

__device__ __forceinline__ int count_marks(const uint32_t* mask) {
  int count = 0;
#pragma unroll
  for (int word = 0; word < kMaskWords; ++word) count += __popc(mask[word]);
  return count;
}

/// Marks set for rows before `row`.
__device__ __forceinline__ int count_marks_before(const uint32_t* mask, int row) {
  int count = 0;
#pragma unroll
  for (int word = 0; word < kMaskWords; ++word) {
    const int bits = row - 32 * word;
    const uint32_t before = bits <= 0 ? 0 : bits >= 32 ? ~0u : (1u << bits) - 1;
    count += __popc(mask[word] & before);
  }
  return count;
}

/// One chunk's groups by one warp: where each group of `marks`, a word of rows each, begins, to `starts` and to
/// a.offsets. Returns the pairs in all.
__device__ __forceinline__ int start_groups(const GroupArgs& a, const uint32_t* marks, int* starts) {
  const int lane = threadIdx.x % 32, each = (a.groups + 31) / 32;
  const int first = min(lane * each, a.groups), end = min(first + each, a.groups);
  int mine = 0;
  for (int group = first; group < end; ++group) mine += __popc(marks[group]);
  int through = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kFullWarp, through, step);
    if (lane >= step) through += before;
  }
  int start = through - mine;
  for (int group = first; group < end; ++group) {
    starts[group] = start;
    a.offsets[group] = start;
    start += __popc(marks[group]);
  }
  const int total = __shfl_sync(kFullWarp, through, 31);
  if (lane == 0) a.offsets[a.groups] = total;
  return total;
}

/// Groups the pairs of up to 32 rows by one warp. `marks`, `starts`: one for each group.
__device__ __forceinline__ void group_few(const GroupArgs& a, int pairs, uint32_t* marks, int* starts) {
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < a.groups; i += 32) marks[i] = 0;
  __syncwarp();
  for (int i = lane; i < pairs; i += 32) {
    const int group = group_of(a, a.ids[i]);
    if (group >= 0) atomicOr(&marks[group], 1u << (i / a.columns));
  }
  __syncwarp();
  const int total = start_groups(a, marks, starts);
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < pairs; i += 32) {
    const int group = group_of(a, a.ids[i]);
    int slot = -1;
    if (group >= 0) {
      slot = starts[group] + __popc(marks[group] & ((1u << (i / a.columns)) - 1));
      a.order[slot] = i;
    }
    a.slots[i] = slot;
    if (i >= total) a.order[i] = -1;
  }
}

/// Groups the pairs of one row, whose experts all differ, by the first `threads` threads of a block. `ids` has -1
/// behind the last column up to a multiple of 8.
__device__ __forceinline__ void group_row(const GroupArgs& a, const int32_t* ids, int threads) {
  for (int i = static_cast<int>(threadIdx.x); i <= a.groups || i < a.columns; i += threads) {
    const int mine = i < a.columns ? group_of(a, ids[i]) : -1;
    int start = 0, slot = 0, total = 0;
    for (int j0 = 0; j0 < a.columns; j0 += 8) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int other = group_of(a, ids[j0 + j]);
        start += other >= 0 && other < i;
        slot += other >= 0 && other < mine;
        total += other >= 0;
      }
    }
    if (i <= a.groups) a.offsets[i] = start;
    if (i >= a.columns) continue;
    a.slots[i] = mine >= 0 ? slot : -1;
    if (mine >= 0) a.order[slot] = i;
    if (i >= total) a.order[i] = -1;
  }
}

/// Writes order and slots of one chunk; the first chunk also writes the offsets, and all share what lies past the last
/// pair. `shared` has group_shared_bytes, `scratch` 32 integers. All threads of the block.
__device__ __forceinline__ void place_chunk(const GroupArgs& a, int64_t chunk, int64_t chunks, uint32_t* shared,
                                            int* scratch) {
  const int64_t row0 = chunk * kChunkRows;
  const int rows = static_cast<int>(a.rows - row0 < kChunkRows ? a.rows - row0 : kChunkRows);
  uint32_t* const masks = shared;
  int* const starts = reinterpret_cast<int*>(shared + a.groups * kMaskWords);
  mark_chunk(a, row0, rows, masks);

  int base = 0;  // pairs of the groups before
  for (int first = 0; first < a.groups; first += blockDim.x) {
    const int group = first + threadIdx.x;
    int total = 0, before = 0;
    if (group < a.groups) {
      if (chunks == 1) {
        total = count_marks(masks + group * kMaskWords);
      } else {
#pragma unroll 8
        for (int64_t c = 0; c < chunks; ++c) {
          const int count = a.counts[c * a.groups + group];
          if (c < chunk) before += count;
          total += count;
        }
      }
    }
    const int through = block_scan_of(total, scratch);  // this group and those of the pass before it
    if (group < a.groups) {
      const int start = base + through - total;
      starts[group] = start + before;
      if (chunk == 0) a.offsets[group] = start;
    }
    base += block_sum_of(total, scratch);
  }
  if (chunk == 0 && threadIdx.x == 0) a.offsets[a.groups] = base;
  __syncthreads();

  for (int i = threadIdx.x; i < rows * a.columns; i += blockDim.x) {
    const int64_t pair = row0 * a.columns + i;
    const int group = group_of(a, a.ids[pair]);
    int slot = -1;
    if (group >= 0) {
      slot = starts[group] + count_marks_before(masks + group * kMaskWords, i / a.columns);
      a.order[slot] = static_cast<int32_t>(pair);
    }
    a.slots[pair] = slot;
  }
  for (int64_t i = base + chunk * blockDim.x + threadIdx.x; i < a.rows * a.columns; i += chunks * blockDim.x) {
    a.order[i] = -1;
  }
}

}  // namespace mla::cuda
