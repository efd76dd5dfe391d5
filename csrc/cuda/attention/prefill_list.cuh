// prefill_list.cuh - which query tiles the blocks of the persistent prefill kernel take, and in which order.
//
// The tiles that see the most keys come first, so that what is left at the end is short: tiles are sorted by their
// level, the keys that they see in units of `level_keys`. Tiles of one level are neighbours head by head: blocks that
// run together then read the same keys, which L2 serves. No sort is needed for that: how many tiles of a sequence lie
// above a level follows from its lengths, and a warp sums that up over the sequences. The sorted tiles are dealt to the
// blocks forth and back, which evens out what the blocks get.
#pragma once
#include "cuda/attention/prefill_tile.cuh"
#include "cuda/device/reduce.cuh"

namespace mla::cuda {

struct PrefillWork {
  PrefillTile tile;
  int head;  // -1: nothing is left
};

/// Number `round` of this block's tiles of `rows` queries, to shared memory. One warp calls it.
__device__ inline void list_prefill_work(const PrefillArgs& a, int round, int rows, int level_keys,
                                         PrefillWork* s_out) {
  // Code that runs once comes from memory: it is short rather than unrolled.
  const int lane = threadIdx.x % 32, segments = a.sequences + 2;
  const PrefillTile mine = lane < segments ? prefill_segment(a, lane) : PrefillTile{};  // all that there are, as a rule
  const auto segment_at = [&](int i) {
    if (i == lane) return mine;
    return i < segments ? prefill_segment(a, i) : PrefillTile{};
  };
  // Tiles of a segment that see more than `level` units of keys; all of them above level -1.
  const auto above = [=](const PrefillTile& segment, int level) {
    const int tiles = div_up(segment.rows, rows), seen = level * level_keys;
    if (level < 0) return tiles;
    if (min(segment.keys, segment.rows + segment.shift) <= seen) return 0;
    return tiles - min(max((seen - segment.shift) / rows, 0), tiles);
  };

  const int blocks = gridDim.x;
  const int item = round * blocks + (round % 2 == 0 ? int(blockIdx.x) : blocks - 1 - int(blockIdx.x));
  // The lowest level that has no more than `item` tiles above it, and what is above it and the one before.
  int level = div_up(a.key_rows, level_keys), before = -2, higher = 0, all = 0;
#pragma unroll 1
  for (int middle = -1; before + 1 < level; middle = (before + level) / 2) {
    int count = 0;
#pragma unroll 1
    for (int first = 0; first < segments; first += 32) count += above(segment_at(first + lane), middle);
    count = __reduce_add_sync(kFullWarp, count);
    if (count * a.heads <= item) {
      level = middle;
      higher = count;
    } else {
      before = middle;
      all = count;
    }
  }
  if (level < 0) {
    if (lane == 0) *s_out = {{}, -1};
    return;
  }
  const int count = all - higher, in_level = item - higher * a.heads;
  int rest = in_level % count;
#pragma unroll 1
  for (int first = 0; first < segments && rest >= 0; first += 32) {
    const PrefillTile segment = segment_at(first + lane);
    const int end = div_up(segment.rows, rows) - above(segment, level);  // this level's tiles end there
    const int here = end - div_up(segment.rows, rows) + above(segment, level - 1);
    int sum = here;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int others = __shfl_up_sync(kFullWarp, sum, offset);
      if (lane >= offset) sum += others;
    }
    const int number = rest - (sum - here);
    if (number >= 0 && number < here) *s_out = {prefill_tile(segment, end - 1 - number, rows), in_level / count};
    rest -= __shfl_sync(kFullWarp, sum, 31);
  }
}

}  // namespace mla::cuda
