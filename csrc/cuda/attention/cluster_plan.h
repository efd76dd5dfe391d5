// cluster_plan.h - the layout of decodePlan's second part, which the Hopper kernels read; decode_plan.h has the first.
//
// Query rows and row tiles are those of decode_plan.h, with another size of tile. The keys of a sequence are cut into
// groups of `group_keys`, the last one shorter. A work item is one group against one row tile, done by one cluster of
// `cluster` blocks; the group's keys are dealt out evenly to the cluster's blocks (cluster_rank_keys). Item i of
// sequence b is group (i - item_start[b]) / row tiles and row tile (i - item_start[b]) % row tiles. A sequence of no
// keys has one group of none. Where a sequence has several groups, each leaves a partial result in slot
// slot_start[b] + (i - item_start[b]) of the workspace, and the block that comes last merges them.
//
// part = header [kClusterHeader], item_start [B + 1], slot_start [B + 1], arrived [kClusterSlots, 8]:
//   arrived[s, j]   for s the first slot of a (sequence, row tile): how many groups have left channels 64 j .. 64 j
//   + 63.
//                   Zeros between two launches: the last to arrive resets it. So two mlaDecode at the same time on two
//                   streams need a plan each.
#pragma once
#include <cstdint>

#include "cuda/attention/decode_plan.h"

namespace mla::cuda {

constexpr int kClusterRowTile = 0;  // query rows of a row tile, a multiple of 8
constexpr int kClusterKeys = 1;     // keys of a group, a multiple of 64
constexpr int kClusterItems = 2;
constexpr int kClusterHeader = 8;

constexpr int kClusterSlots = 256;     // partial results that a plan may ask for
constexpr int kMaxClusterGroups = 32;  // of one sequence
constexpr int kMaxClusterRows = 64;    // of a row tile
constexpr int kMaxOutTiles = 8;        // of 64 output channels

constexpr int64_t cluster_plan_size(int64_t sequences) {
  return kClusterHeader + 2 * (sequences + 1) + kClusterSlots * kMaxOutTiles;
}

/// Where the part begins in the plan's tensor.
constexpr int64_t cluster_plan_offset(int64_t sequences) { return decode_plan_size(sequences); }

/// Where the plan for tiles of 64 rows begins: a third part (wide_plan.h).
constexpr int64_t wide_plan_offset(int64_t sequences) {
  return cluster_plan_offset(sequences) + cluster_plan_size(sequences);
}

/// Blocks of a cluster. Few sequences are cut into many groups, whose parts are cheaper to merge within a cluster; but
/// larger clusters leave more multiprocessors without one.
constexpr int cluster_size(int64_t sequences) {
  return sequences <= 4 ? 8 : sequences <= 16 ? 4 : sequences <= 132 ? 2 : 1;
}

/// Clusters of this size that run at once, of blocks that take half a multiprocessor.
constexpr int clusters_at_once(const Traits& traits, int cluster) {
  return traits.clusters[cluster == 8 ? 3 : cluster == 4 ? 2 : cluster == 2 ? 1 : 0];
}

/// Whether a block for row tiles of so many rows takes a multiprocessor of its own.
__host__ __device__ constexpr bool cluster_block_fills(int row_tile) { return row_tile > 16; }

/// Query rows of a tile: as many as a sequence has on average, which all have in a step of generation.
__host__ __device__ constexpr int cluster_row_tile(int64_t tokens, int64_t sequences, int64_t heads) {
  const int64_t rows = sequences > 0 ? (tokens + sequences - 1) / sequences * heads : heads;
  return rows >= kMaxClusterRows ? kMaxClusterRows : rows <= 8 ? 8 : static_cast<int>((rows + 7) / 8 * 8);
}

/// Keys of a group that each block of the cluster takes but the last, which takes what is left: whole pages, or half
/// or a quarter of one.
__host__ __device__ constexpr int cluster_rank_keys(int keys, int cluster) {
  const int share = (keys + cluster - 1) / cluster;
  return share <= 16 ? 16 : share <= 32 ? 32 : (share + 63) / 64 * 64;
}

}  // namespace mla::cuda
