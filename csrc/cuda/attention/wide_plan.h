// wide_plan.h - the layout of the part of decodePlan's tensor that the Hopper kernel for many query rows follows
// (mla_decode_wide_sm90.cu).
//
// The query rows of a sequence are its (token, head) pairs, token after token; `kWideRows` of them are a tile, and a
// worker takes a group of tiles: one block each, which form a cluster where they are two. Team t has the groups t,
// t + teams, ... of every sequence, so that groups that read the same keys are taken at the same time (one team where
// sequences have different numbers of groups); worker w belongs to team w % teams. The pages of a team's groups
// (sequence after sequence, group after group) are dealt out to its workers as one list, in equal shares: a worker has
// parts of at most two groups, and between them whole ones. A whole group is written to `out` at once; a part of one
// leaves a partial result for each tile in the workspace, in f16 (f16_part.cuh), in place (slot * teams + team) * tiles
// + tile, slots in the order of the list.
//
// Deterministic: a row's keys are summed up in fixed parts, which end at the same keys whatever the lengths, and the
// parts are added up in ascending order (fixed_sum.cuh). Workers begin and end at ends of fixed parts; of a group that
// several workers share each fixed part leaves a partial result, in float32, and of a whole group the worker keeps the
// running sum in a slot of its own, behind those of the plan.
//
// part = header [kWideHeader], workers [wide_records][kWideRecord], merges [B + multiprocessors][4]:
//   workers[w]  sequence, group, page that worker w begins with; the slot of its first partial result; sequence, group,
//               page that it ends before; teams; and, so that it need not look further before its first loads, of the
//               first sequence q_start[b], q_start[b + 1] and lengths[b]
//   merges[m]   rows that the merge kernel writes before this entry; first row, of T * H; slot * teams + team of the
//               first part; parts. An entry is a group that several workers have parts of, or (no parts: zeros) a
//               sequence without keys.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace mla::cuda {

constexpr int kWideRows = 64;

constexpr int kWideTeams = 8;  // at most
constexpr int kWideTeamsAt = 0;
constexpr int kWideMerges = 1;     // entries
constexpr int kWideMergeRows = 2;  // of all entries
constexpr int kWideMostParts = 3;  // of one group
constexpr int kWideSlotRows = 4;   // query rows that a slot has room for: with fixed parts no more than a tile has
constexpr int kWideHeader = 8;
constexpr int kWideRecord = 12;

// Fixed parts: kFixedParts of kFixedPages pages each, then as many of twice the pages, and so on, so that a long
// sequence has few of them and a short one is still shared by several workers.
constexpr int kFixedPages = 8, kFixedParts = 16;
constexpr int kFixedSlots = 8;  // for each block; twice as many of a cluster's

/// The fixed part that a page belongs to.
__host__ __device__ constexpr int fixed_part(int page) {
  int level = 0;
  for (int count = page / (kFixedParts * kFixedPages) + 1; count > 1; count /= 2) ++level;
  return kFixedParts * level + (page - kFixedParts * kFixedPages * ((1 << level) - 1)) / (kFixedPages << level);
}
/// Its first page.
__host__ __device__ constexpr int fixed_part_begin(int part) {
  const int level = part / kFixedParts;
  return kFixedPages * (kFixedParts * ((1 << level) - 1) + (part % kFixedParts << level));
}
/// Behind the last page of the part that a page belongs to.
__host__ __device__ constexpr int fixed_part_end(int page) { return fixed_part_begin(fixed_part(page) + 1); }

/// Blocks of a cluster that take neighbouring tiles of the same keys: where all sequences have an even number of tiles.
constexpr int wide_tiles(int64_t heads) { return heads % (2 * kWideRows) == 0 ? 2 : 1; }

/// Workers that run at once: a block takes a whole multiprocessor.
constexpr int wide_workers(const Traits& traits, int64_t heads) { return traits.multiprocessors / wide_tiles(heads); }

/// Partial results of a plan, of one tile each: a worker leaves at most two parts; or fixed parts, of groups that are
/// shared as long as this suffices.
constexpr int64_t wide_slots(const Traits& traits, int64_t heads) {
  const int tiles = wide_tiles(heads);
  return (traits.deterministic ? kFixedSlots * tiles : 2) * wide_workers(traits, heads) * tiles;
}

/// Records of workers that the layout has, whatever the heads: the merges begin behind them.
constexpr int wide_records(const Traits& traits) { return traits.multiprocessors + kWideTeams; }

/// Elements of the part.
constexpr int64_t wide_plan_size(int64_t sequences, const Traits& traits) {
  return kWideHeader + kWideRecord * wide_records(traits) + 4 * (sequences + traits.multiprocessors);
}

}  // namespace mla::cuda
