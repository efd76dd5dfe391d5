// wide_worker.cuh - how a block of the Hopper kernel for many query rows finds its work in the plan (wide_plan.h).
#pragma once
#include "cuda/attention/decode_item.cuh"
#include "cuda/attention/wide_plan.h"
#include "cuda/device/numeric.cuh"

namespace mla::cuda {

/// A part of a sequence: some of its pages against one row tile.
struct Segment {
  DecodeItem item;
  int first_page;  // in the sequence
  int pages;       // none: the worker has no more
  int seen_pages;  // from the first one on, that every row sees all keys of
  bool adds;       // to what the worker has kept of the same row tile
  bool keeps;      // the sum, for its next segment
};

/// Goes through the segments of a worker. Every value is made safe: rows lie within T * H, keys within the row of the
/// block table. kFixed: the keys in fixed parts; apart, as all that belongs to them costs the others 6 % otherwise (128
/// heads, H200, 2026-11-26).
template <int kBlocks, bool kFixed>
class Worker {
 public:
  __device__ explicit Worker(const DecodeArgs& args) : a(args) {
    const int32_t* record = a.plan + kWideHeader + kWideRecord * (blockIdx.x / kBlocks);
    sequence = max(record[0], 0);
    group = max(record[1], 0);
    begin = max(record[2], 0);
    slot = max(record[3], 0);
    last_sequence = record[4];
    last_group = record[5];
    last_page = record[6];
    teams = min(max(record[7], 1), kWideTeams);
    q_begin = max(record[8], 0);
    q_end = min(max(record[9], 0), a.tokens);
    length = min(max(record[10], 0), a.max_pages * kPageTokens);
  }

  /// The next segment is pages [begin, end) of a group of the sequence.
  __device__ bool next() {
    if (kFixed && end > 0 && end < until()) {
      if (part()) ++slot;
      begin = end;
      end = segment_end();
      return true;
    }
    if (end > 0) step();
    while (sequence < a.sequences && (sequence < last_sequence || (sequence == last_sequence && group <= last_group))) {
      if (length == 0 || group >= div_up(rows(), kBlocks * kWideRows)) {
        take(sequence + 1);
        continue;
      }
      from = begin;
      end = segment_end();
      if (begin < end) return true;
      step();
    }
    return false;
  }
  __device__ int pages() const { return end - begin; }
  __device__ const int32_t* table() const { return a.block_table + int64_t{sequence} * a.max_pages + begin; }
  __device__ void describe(Segment* segment) const {
    const int first = (group * kBlocks + rank()) * kWideRows;
    DecodeItem& item = segment->item;
    item.sequence = sequence;
    item.first = first;
    item.row = q_begin * a.heads + first;
    // A cluster's tiles are whole ones.
    const int slot_rows = kFixed && kBlocks == 1 && part() ? min(max(a.plan[kWideSlotRows], 1), kWideRows) : kWideRows;
    item.slot = part() ? (slot * teams + team()) * kBlocks + rank() : -1;
    item.rows = item.slot < a.slots * kWideRows / slot_rows ? min(max(rows() - first, 0), slot_rows) : 0;
    item.slot *= slot_rows;  // where its rows begin
    item.visible_offset = length - (q_end - q_begin) + 1;
    item.key_begin = begin * kPageTokens;
    item.key_end = min(end * kPageTokens, length);
    segment->first_page = begin;
    segment->pages = end - begin;
    segment->seen_pages = visible_keys(item, 0, a.heads) / kPageTokens - begin;
    segment->adds = kFixed && !part() && begin > from;
    segment->keeps = kFixed && !part() && end < until();
  }

 private:
  __device__ void step() {
    if (begin < end && part()) ++slot;
    group += teams;
    begin = 0;
  }
  __device__ void take(int next) {
    sequence = next;
    group = team();
    begin = 0;
    if (sequence >= a.sequences) return;
    q_begin = max(a.q_start[sequence], 0);
    q_end = min(max(a.q_start[sequence + 1], 0), a.tokens);
    length = min(max(a.lengths[sequence], 0), a.max_pages * kPageTokens);
  }

  // Not kept: registers are short.
  __device__ int team() const { return static_cast<int>(blockIdx.x) / kBlocks % teams; }
  __device__ int rows() const { return max(q_end - q_begin, 0) * a.heads; }
  /// Behind the worker's pages of the group, and of its next segment.
  __device__ int until() const {
    const int pages = div_up(length, kPageTokens);
    return sequence == last_sequence && group == last_group ? min(last_page, pages) : pages;
  }
  __device__ int segment_end() const { return kFixed ? min(fixed_part_end(begin), until()) : until(); }
  /// Whether other workers have parts of the group.
  __device__ bool part() const { return from > 0 || until() < div_up(length, kPageTokens); }
  __device__ static int rank() { return static_cast<int>(blockIdx.x) % kBlocks; }

  const DecodeArgs& a;
  int teams;
  int sequence, group, begin, slot;
  int end = 0, from = 0;  // from: the worker's first page of the group
  int last_sequence, last_group, last_page;
  int q_begin, q_end, length;  // of the sequence
};

}  // namespace mla::cuda
