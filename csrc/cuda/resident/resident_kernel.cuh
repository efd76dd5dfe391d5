// resident_kernel.cuh - a whole decode step of one row in one kernel that stays on the GPU.
//
// Grid: a block on each multiprocessor, all resident. Block: 16 warps that multiply, a producer that copies the weights
// of all layers and operations, one after the other, into a ring of stages (ring.cuh), an epilogue that adds up and
// gives results to the other blocks (link.cuh), two helpers: logits, choice of experts, absorption of the query, half
// of the feed-forward network's sums.
// Formulas: ops/ops.h; order of sums: gemm/product.h, norm_rows.cu, router_select.cuh; so results have the bits of the
// separate operations, attention aside.
#pragma once
#include "cuda/device/launches.h"
#include "cuda/resident/attention.cuh"
#include "cuda/resident/resident_device.cuh"

namespace mla::cuda {

/// Where the block's item i of a phase begins, of rows of row_bytes; anything behind the last item.
__device__ __forceinline__ uint64_t item_begins(const Resident& p, const ResidentLayer& layer, const Parts& parts,
                                                int phase, bool dense, bool last, int i, const int32_t* ids,
                                                int row_bytes) {
  const void* w = layer.w_down;
  int64_t row = parts.block * 16;
  switch (phase) {
    case kCompress:
      w = last ? p.head : layer.weight;
      row = last ? (parts.head.first + i) * 16ll : (parts.block + i * parts.blocks) * 16ll;
      break;
    case kExpand: w = layer.w_uv; break;
    case kOut: w = layer.w_o; break;
    case kAlways:
    case kChosen:
      w = layer.w_gate_up;
      if (dense) {
        row = (parts.dense.first + i) * 16ll;
      } else {
        const GateUpItem it = parts.gate_up(phase).behind(i, p.inner / 8);
        const int expert = phase == kAlways ? p.experts + it.column - p.top_k : ids[min(it.column, p.top_k - 1)];
        row = expert * 2ll * p.inner + it.item * 16;
      }
      break;
    case kAlwaysDown:
      if (!dense) row += static_cast<int64_t>(p.experts + i) * p.d;
      break;
    default: row += static_cast<int64_t>(ids[min(i, p.top_k - 1)]) * p.d;
  }
  return reinterpret_cast<uint64_t>(w) + row * row_bytes;
}

template <class W, class Cache>
__device__ __forceinline__ void produce(const Resident& p, ResidentShared& shared, const Parts& parts,
                                        const ResidentRing& ring) {
  const auto bounded = [](int stages) { return static_cast<uint32_t>(min(max(stages, 1), kResidentUnderWay)); };
  const uint32_t ahead = bounded(p.under_way), streaming = bounded(p.stream_under_way);
  Producer producer{ring, 0, streaming};
  const int lane = threadIdx.x % 32;
  const CacheRange& range = shared.range;
  const bool fresh = NewestToken(p, range.length).fresh;
  uint32_t choices = 0;
#pragma unroll 1
  for (int l = 0; l <= p.layers; ++l) {
    const bool last = l == p.layers, dense = l < p.dense_layers;
    const ResidentLayer& layer = p.layer[min(l, p.layers - 1)];
    const int32_t* const ids = shared.ids[l & 1];
#pragma unroll 1
    for (int phase = 0; phase < (last ? 1 : kPhases); ++phase) {
      if (phase == kExpand) {
#pragma unroll 1
        for (int first = 0; first < range.pages; first += 32) {
          const int mine = first + lane, number = mine < range.pages ? page_number(p, range.page_of(mine)) : 0;
#pragma unroll 1
          for (int i = first; i < min(first + 32, range.pages); ++i) {
            const int page = range.page_of(i), of_page = __shfl_sync(kFullWarp, number, i - first);
#pragma unroll 1
            for (int stage = 0; stage < range.stages_of(page); ++stage) {
              producer.wait();
              attend_fill<Cache>(p, l, range, fresh, page, of_page, stage, shared_address(ring.at(producer.s)),
                                 ring.full_of(producer.s));
              ++producer.s;
            }
          }
        }
      }
      // Bytes come first where they are what is waited for: of the head, and from the choice on; of bf16 before it too,
      // since the ring does not hold what the always-on experts need.
      if (phase == (sizeof(W) == 2 ? kAlwaysDown : kChosen) || last) producer.under_way = streaming;
      if (phase == kChosen && !dense) {
        mbarrier_wait(shared_address(&shared.chosen), choices++ & 1);
      }
      const Work work = shared.work[work_kind(dense, last)][phase];
      const int row_bytes = work.k * static_cast<int>(last || phase == kExpand ? sizeof(Bf16) : sizeof(W));
      // A lane works out where an item begins: one after the other they would take longer than their copies.
#pragma unroll 1
      for (int first = 0; first < work.items; first += 32) {
        const uint64_t begins = item_begins(p, layer, parts, phase, dense, last, first + lane, ids, row_bytes);
#pragma unroll 1
        for (int i = first; i < min(first + 32, work.items); ++i) {
          producer.item(reinterpret_cast<const unsigned char*>(__shfl_sync(kFullWarp, begins, i - first)), row_bytes);
        }
      }
      if (phase == kCompress) producer.under_way = ahead;
    }
  }
}

template <class W, class Cache>
__device__ __forceinline__ void consume(const Resident& p, ResidentShared& shared, const Parts& parts,
                                        const ResidentRing& ring) {
  Consumer consumer{p, shared, ring, shared_address(shared.summable), shared_address(shared.summed)};
  // Place by place through all layers: one number to keep.
#pragma unroll 1
  for (int place = 0; place <= p.layers * kPhases; ++place) {
    if (place % kPhases == kExpand) {
      // Attention needs all registers.
      int2& kept = shared.kept[threadIdx.x / 32];
      kept = make_int2(place, static_cast<int>(consumer.s) + parts.attended);
      const auto layer = [&] { return kept.x / kPhases; };
      attend<Cache>(p, layer(), shared.epoch + layer() + 1, ring, consumer.s, shared.operands);
      merge<Cache>(p, shared, layer(), shared.epoch + layer() + 1);
      place = kept.x;
      consumer.s = kept.y;
    }
    const int l = place / kPhases, phase = place - l * kPhases;
    const bool last = l == p.layers, dense = l < p.dense_layers;
    const ResidentLayer& layer = p.layer[min(l, p.layers - 1)];
    const uint32_t epoch = shared.epoch + l + 1;
    const Work work = shared.work[work_kind(dense, last)][phase];
    const LinkWord* from = nullptr;
    int step = 0;
    if (phase == kCompress || phase == kAlways) {
      const bool first = phase == kCompress;
      consumer.norm(link_of(p, first ? p.link.x : p.link.mid, epoch), epoch,
                    last    ? p.final_norm
                    : first ? layer.norm
                            : layer.ffn_norm,
                    last    ? p.final_eps
                    : first ? p.eps
                            : p.ffn_eps,
                    last    ? p.final_normed
                    : first ? nullptr
                            : p.out.normed,
                    sizeof(W) == 1 && !last);
      // bf16: nobody else reads shared memory until the helper has the row out of it, which the choice of experts waits
      // for. fp8's always-on experts take longer than the choice.
      if (!first) {
        named_barrier_arrive(kNormedBarrier, kConsumers * 32 + 32);
        if (sizeof(W) == 2 && !dense && parts.logit >= 0) named_barrier_sync(kTakenBarrier, kConsumers * 32 + 32);
      }
    } else if (phase == kExpand) {
      from = link_of(p, p.link.u, epoch) + parts.block * 16 / p.v * p.c / 2;
    } else if (phase == kOut) {
      from = link_of(p, p.link.o, epoch);
    } else if (phase != kChosen) {
      step = p.inner / 2;
      from = link_of(p, p.link.h, epoch) + (phase == kAlwaysDown && !dense ? p.top_k * step : 0);
    }
    if (sizeof(W) == 1 && (last || phase == kExpand)) {
      consumer.run<Bf16>(work, from, step, epoch, l, phase);
    } else {
      consumer.run<W>(work, from, step, epoch, l, phase);
    }
  }
}

__device__ __forceinline__ int blocks_of(int k) { return (k + kSegment - 1) / kSegment; }

/// Scales of the block's item i, of rows of k; `it` in kAlways and kChosen. Blocks of 128 rows and columns: those of
/// the experts before, and those before the item's.
__device__ __forceinline__ ItemScales item_scales(const Resident& p, const ResidentShared& shared, int l, int phase,
                                                  int i, const GateUpItem& it, int k) {
  const ResidentLayer& layer = p.layer[l];
  const bool dense = l < p.dense_layers;
  const Parts& parts = shared.products;
  const int32_t* const ids = shared.ids[l & 1];
  const int segments = blocks_of(k);
  ItemScales out;
  if (phase == kAlways || phase == kChosen) {
    const int expert = dense ? 0 : phase == kAlways ? p.experts + it.column - p.top_k : ids[it.column];
    const int of_half = blocks_of(dense ? p.dense_inner : p.inner);
    out.low = static_cast<const float*>(layer.gate_up_scale) +
              static_cast<int64_t>(2 * expert * of_half + it.item / 16) * segments;
    out.high = out.low + of_half * segments;
    return out;
  }
  int block = parts.block * 16 / kSegment;
  const void* from = layer.down_scale;
  if (phase == kCompress) {
    from = layer.weight_scale, block = (parts.block + i * parts.blocks) * 16 / kSegment;
  } else if (phase == kOut) {
    from = layer.o_scale;
  } else if (!dense) {
    block += (phase == kAlwaysDown ? p.experts + i : ids[i]) * blocks_of(p.d);
  }
  out.low = out.high = static_cast<const float*>(from) + static_cast<int64_t>(block) * segments;
  return out;
}

/// Asks for the scales from layer l's chosen experts to the next layer's always-on ones, so that the epilogue finds
/// them in L2. By one warp, a lane an item, of kAlways and kChosen the first and the last one.
__device__ __forceinline__ void prefetch_scales(const Resident& p, const ResidentShared& shared, int l) {
  const Parts& parts = shared.products;
#pragma unroll 1
  for (int place = l * kPhases + kChosen; place < min((l + 1) * kPhases + kChosen, p.layers * kPhases); ++place) {
    const int layer = place / kPhases, phase = place - layer * kPhases, lane = in_place(threadIdx.x) % 32;
    const bool dense = layer < p.dense_layers, hidden = phase == kAlways || phase == kChosen;
    const Work work = shared.work[work_kind(dense, false)][phase];
    if (phase == kExpand || lane >= (hidden ? 2 : work.items) || work.items == 0) continue;
    const int i = hidden ? lane * (work.items - 1) : lane;
    GateUpItem it(0, parts.dense.first + i);
    if (hidden && !dense) it = parts.gate_up(phase).behind(i, p.inner / 8);
    const ItemScales scales = item_scales(p, shared, layer, phase, i, it, work.k);
    prefetch_l2(scales.low);
    prefetch_l2(scales.low + min(blocks_of(work.k), 32) - 1);
    if (hidden) prefetch_l2(scales.high);
  }
}

__device__ __forceinline__ Bf16* plain_at(void* to, int at) {
  return to == nullptr ? nullptr : static_cast<Bf16*>(to) + at;
}

/// Stages of this block's items in a phase.
template <class W>
__device__ __forceinline__ int stages_of(const ResidentShared& shared, int phase, bool dense) {
  const Work work = shared.work[work_kind(dense, false)][phase];
  return work.items * (phase == kExpand ? StageShape<Bf16>::stages(work.k) : StageShape<W>::stages(work.k));
}

/// Every second item of layer l's feed-forward network, from `turn` on: the epilogue has those of turn 0, helper 0 the
/// others, since a block's last ones are what all blocks wait for. Hidden rows go to the other blocks, what an expert
/// adds to the block's columns of x into shared.parts; returns the sum of the last item.
///
/// A sum's barrier tells a phase from its neighbours only, so who waits for stage s must know that the sums of stage
/// s - kSumStages are there. A warp that has seen stage a's knows it of all stages of a's team before a, and of all up
/// to a - ResidentRing::kStages: those have been left, behind their sums, or a could not have been filled. The other
/// warp's items between two of its own are few enough for that in the sizes that resident_fits() takes.
template <class W>
__device__ __forceinline__ float finish_ffn(const Resident& p, ResidentShared& shared, const Parts& parts,
                                            Epilogue& epilogue, int l, int turn) {
  const int row = epilogue.lane % 16;
  const bool dense = l < p.dense_layers;
  const uint32_t epoch = shared.epoch + l + 1;
  LinkWord* const h = link_of(p, p.link.h, epoch);
  // The place in the hidden channels: items of 8, `each` of an expert.
  const int each = (dense ? p.dense_inner : p.inner) / 8;
  float value = 0;
#pragma unroll 1
  for (int phase = kAlways; phase < kPhases; ++phase) {
    if (phase == kChosen && !dense) mbarrier_wait(shared_address(&shared.weighed), (l - p.dense_layers) & 1);
    const Work work = shared.work[work_kind(dense, false)][phase];
    const bool hidden = phase == kAlways || phase == kChosen;
    GateUpItem it(0, parts.dense.first + turn);
    if (hidden && !dense) it = parts.gate_up(phase).behind(turn, each);
    const int segments = blocks_of(work.k), stages = StageShape<W>::stages(work.k);
    const auto scales = [&](int i, const GateUpItem& it) {
      return sizeof(W) == 2 ? ItemScales{} : item_scales(p, shared, l, phase, i, it, work.k);
    };
    ItemScales of_item = scales(turn, it);
    if (turn < work.items) epilogue.expect<W>(of_item, segments);
    const uint32_t end = epilogue.s + work.items * stages;
    epilogue.s += turn * stages;
#pragma unroll 1
    for (int i = turn; i < work.items; i += 2) {
      const GateUpItem behind = it.behind(2, each);
      ItemScales of_next{};
      value = epilogue.item<W>(work.k, of_item, [&] {
        if (i + 2 >= work.items) return;
        of_next = scales(i + 2, behind);
        epilogue.expect<W>(of_next, segments);
      });
      epilogue.s += stages;  // of the other one's item
      if (hidden) {
        const int at = it.column * each + it.item, slot = phase == kChosen ? shared.slots[l & 1][it.column] : it.column;
        epilogue.give_hidden(value, h + at * 4, epoch,
                             dense ? plain_at(p.out.swiglu_h, at * 8) : plain_at(p.out.h, (slot * each + it.item) * 8));
      } else if (!dense) {
        shared.parts[(phase == kAlwaysDown ? p.top_k : 0) + i][row] = rounded_bf16(value);
      }
      it = behind;
      of_item = of_next;
    }
    epilogue.s = end;
  }
  return value;
}

template <class W>
__device__ __forceinline__ void finish(const Resident& p, ResidentShared& shared, const Parts& parts) {
  const int lane = threadIdx.x % 32, row = lane % 16, nq = p.heads * (p.n + p.r);
  Epilogue epilogue(p, shared);
  // The block's columns of the residual stream.
  float residual = 0;
  const int column = parts.block * 16;
  const auto give_x = [&](int link, uint32_t epoch, void* to) {
    epilogue.give(residual, link_of(p, link, epoch) + column / 2, epoch, plain_at(to, column));
  };
  if (parts.columns) {
    residual = to_float(static_cast<const Bf16*>(p.x)[column + row]);
    give_x(p.link.x, shared.epoch + 1, nullptr);
  }
#pragma unroll 1
  for (int l = 0; l <= p.layers; ++l) {
    const bool last = l == p.layers, dense = l < p.dense_layers;
    const uint32_t epoch = shared.epoch + l + 1;
#pragma unroll 1
    for (int phase = 0; phase < (last ? 1 : kAlways); ++phase) {
      const Work work = shared.work[work_kind(dense, last)][phase];
      const bool wide = sizeof(W) == 1 && (last || phase == kExpand);  // bf16 where other weights are fp8
      const int segments = blocks_of(work.k);
      const auto scales = [&](int i) {
        if (sizeof(W) == 2 || wide) return ItemScales{};
        return item_scales(p, shared, l, phase, i, GateUpItem(0, 0), work.k);
      };
      ItemScales of_item = scales(0);
      if (work.items > 0 && !wide) epilogue.expect<W>(of_item, segments);
#pragma unroll 1
      for (int i = 0; i < work.items; ++i) {
        ItemScales of_next{};
        float value;
        if (wide) {
          value = epilogue.item<Bf16>(work.k, of_item, [] {});
        } else {
          value = epilogue.item<W>(work.k, of_item, [&] {
            if (i + 1 == work.items) return;
            of_next = scales(i + 1);
            epilogue.expect<W>(of_next, segments);
          });
        }
        if (phase == kCompress) {
          const int n0 = (parts.block + i * parts.blocks) * 16;
          if (last) {
            if (lane < 16) p.logits[(parts.head.first + i) * 16 + row] = value;
          } else if (n0 < nq) {
            epilogue.give(value, link_of(p, p.link.q, epoch) + n0 / 2, epoch, plain_at(p.out.q, n0));
          } else if (lane < 16) {
            link_store(link_of(p, p.link.y, epoch) + n0 - nq + row, __float_as_uint(value), epoch);
          }
        } else if (phase == kExpand) {
          epilogue.give(value, link_of(p, p.link.o, epoch) + column / 2, epoch, plain_at(p.out.o, column));
        } else {
          residual = rounded_bf16(value + residual);
          give_x(p.link.mid, epoch, nullptr);
        }
        of_item = of_next;
      }
    }
    if (last) break;
    float sum = finish_ffn<W>(p, shared, parts, epilogue, l, 0);
    named_barrier_sync(kPartsBarrier, 64);  // helper 0's parts are there
    if (!parts.columns) continue;
    if (!dense) {
      sum = 0;
#pragma unroll 1
      for (int j = 0; j < p.top_k + p.shared; ++j) sum = fmaf(shared.weights[l & 1][j], shared.parts[j][row], sum);
    }
    residual = rounded_bf16(sum + residual);
    give_x(p.link.x, epoch + 1, l + 1 == p.layers ? p.x_out : nullptr);
  }
}

/// The gate's row of this block, if it has one, times the normed row: helper 0.
template <class W>
__device__ __forceinline__ void give_logit(const Resident& p, const ResidentShared& shared, const Parts& parts,
                                           uint32_t epoch, int l) {
  const int lane = in_place(threadIdx.x) % 32;
  const bool gives = parts.logit >= 0 && l >= p.dense_layers;
  uint4 gate[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int at = c * 256 + lane * 8;
    gate[c] = gives && at < p.d
                  ? load16(static_cast<const Bf16*>(p.layer[l].gate) + static_cast<int64_t>(parts.logit) * p.d + at)
                  : make_uint4(0, 0, 0, 0);
  }
  // Helper 0 waits for it where it has no logit too: all sums before the feed-forward network's are there (finish_ffn).
  named_barrier_sync(kNormedBarrier, kConsumers * 32 + 32);
  if (!gives) return;
  uint4 row[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int at = c * 256 + lane * 8;
    row[c] = at < p.d ? load16(shared.normed + at) : make_uint4(0, 0, 0, 0);
  }
  if (sizeof(W) == 2) named_barrier_arrive(kTakenBarrier, kConsumers * 32 + 32);
  float sum = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const uint32_t xs[4] = {row[c].x, row[c].y, row[c].z, row[c].w},
                   gs[4] = {gate[c].x, gate[c].y, gate[c].z, gate[c].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(bf16_low(xs[i]), bf16_low(gs[i]), sum);
      sum = fmaf(bf16_high(xs[i]), bf16_high(gs[i]), sum);
    }
  }
  sum = warp_sum(sum) * (sizeof(W) == 1 ? kLogitScale : 1.0f);
  if (lane == 0) link_store(link_of(p, p.link.logits, epoch) + parts.logit, __float_as_uint(sum), epoch);
}

/// The choice of experts, by each block for itself: helper 1.
__device__ __forceinline__ void choose_experts(const Resident& p, ResidentShared& shared, const ResidentLayer& layer,
                                               uint32_t epoch, int l) {
  const int lane = in_place(threadIdx.x) % 32, columns = p.top_k + p.shared;
  int32_t* const ids = shared.ids[l & 1];
  float* const weights = shared.weights[l & 1];
  SelectArgs a;
  a.bias = static_cast<const float*>(layer.bias);
  a.experts = p.experts, a.top_k = p.top_k, a.shared = p.shared, a.n_group = 1;
  a.scale = p.routed_scale;
  a.sigmoid = p.sigmoid, a.norm_topk = p.norm_topk;
  RowChoice choice;
  // Every few looks the choice is made of what is there, so that its instructions are at hand when all logits are.
#pragma unroll 1
  for (int look = 0;; ++look) {
    uint32_t logits[2] = {};
    const bool mine = 2 * lane < p.experts;
    const bool there =
        __all_sync(kFullWarp, !mine || link_look(link_of(p, p.link.logits, epoch) + 2 * lane, epoch, logits));
    if (!there && look % 4 != 0) continue;
    shared.logits[2 * lane] = __uint_as_float(logits[0]);
    shared.logits[2 * lane + 1] = __uint_as_float(logits[1]);
    __syncwarp();
    choice = choose_row<kMostExperts / 32, false>(a, shared.logits, nullptr);
    if (there) break;
    __syncwarp();
  }
  // A row of no position chooses none, with weights of zero: something has to be read all the same.
  const bool padding = shared.position < 0;
  const int id = padding || lane >= columns ? -1 : lane < p.top_k ? choice.low : p.experts + lane - p.top_k;
  if (lane < columns) ids[lane] = max(id, 0);
  __syncwarp();
  if (lane == 0) mbarrier_arrive(shared_address(&shared.chosen));
  // The producer is on its way; the epilogue needs the rest later.
  const float of_choice = weigh_choice<kMostColumns>(a, shared.logits, choice).x;
  const float weight = padding ? 0.0f : lane < p.top_k ? of_choice : 1.0f;
  int slot = 0, pairs = 0;  // where the column stands by expert, and how many there are
#pragma unroll 1
  for (int j = 0; j < columns; ++j) {
    const int other = __shfl_sync(kFullWarp, id, j);
    slot += other >= 0 && other < id;
    pairs += other >= 0;
  }
  if (lane < columns) {
    weights[lane] = weight;
    shared.slots[l & 1][lane] = slot;
  }
  __syncwarp();
  if (lane == 0) mbarrier_arrive(shared_address(&shared.weighed));
  if (blockIdx.x == 0) {
    if (lane < columns) {
      if (p.out.ids != nullptr) p.out.ids[lane] = id;
      if (p.out.weights != nullptr) p.out.weights[lane] = weight;
      if (p.out.slots != nullptr) p.out.slots[lane] = id >= 0 ? slot : -1;
      if (p.out.order != nullptr && id >= 0) p.out.order[slot] = lane;
      if (p.out.order != nullptr && lane >= pairs) p.out.order[lane] = -1;
    }
    for (int group = lane; p.out.offsets != nullptr && group < (p.experts + p.shared + 32) / 32 * 32; group += 32) {
      int before = 0;
      for (int j = 0; j < columns; ++j) {
        const int other = __shfl_sync(kFullWarp, id, j);
        before += other >= 0 && other < group;
      }
      if (group <= p.experts + p.shared) p.out.offsets[group] = before;
    }
  }
}

template <class W>
__device__ __forceinline__ void help(const Resident& p, ResidentShared& shared, const Parts& parts) {
  // The layer: not in a register while a helper has its weights there.
  const auto here = [&]() -> int& { return shared.kept[kConsumers + in_place(threadIdx.x) / 32 - kHelperWarp].x; };
  here() = 0;
  shared.kept[kConsumers].y = 0;  // helper 0: stages that have sums
#pragma unroll 1
  while (here() < p.layers) {
    {
      AbsorbWeights w;
      absorb_load(p, here(), in_place(threadIdx.x) / 32 - kHelperWarp, w);
      absorb(p, shared.epoch + here() + 1, w);
    }
    const int l = here(), helper = in_place(threadIdx.x) / 32 - kHelperWarp;
    const uint32_t epoch = shared.epoch + l + 1;
    if (helper == 0) {
      give_logit<W>(p, shared, parts, epoch, l);
      Epilogue epilogue(p, shared);
      epilogue.s = static_cast<uint32_t>(shared.kept[kConsumers].y);
      for (int phase = 0; phase < kAlways; ++phase) epilogue.s += stages_of<W>(shared, phase, l < p.dense_layers);
      finish_ffn<W>(p, shared, parts, epilogue, l, 1);
      shared.kept[kConsumers].y = static_cast<int>(epilogue.s);
      named_barrier_arrive(kPartsBarrier, 64);
    } else if (l >= p.dense_layers) {
      choose_experts(p, shared, p.layer[l], epoch, l);
    }
    if (sizeof(W) == 1 && helper == 1) prefetch_scales(p, shared, l);
    __syncwarp();
    here() = l + 1;
    __syncwarp();
  }
}

template <class W, class Cache>
__global__ void __launch_bounds__(kResidentThreads, 1) resident_kernel(const __grid_constant__ Resident p) {
  extern __shared__ __align__(128) unsigned char memory[];
  ResidentShared& shared = *reinterpret_cast<ResidentShared*>(memory);
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < ResidentRing::kStages; ++i) {
      mbarrier_init(shared_address(&shared.full[i]), 1);
      mbarrier_init(shared_address(&shared.empty[i]), ResidentRing::kTeams * ResidentRing::kTeamWarps);
    }
    for (int i = 0; i < kSumStages; ++i) {
      mbarrier_init(shared_address(&shared.summable[i]), ResidentRing::kTeamWarps);
      mbarrier_init(shared_address(&shared.summed[i]), 1);
    }
    mbarrier_init(shared_address(&shared.chosen), 1);
    mbarrier_init(shared_address(&shared.weighed), 1);
    mbarrier_fence_init();
    shared.epoch = *p.epoch;
    shared.position = *p.position;
    shared.range = CacheRange(p, blockIdx.x, gridDim.x);
    shared.products = Parts(p);
    shared.products.attended = shared.range.stages();
    for (int kind = 0; kind < kWorkKinds; ++kind) {
      for (int phase = 0; phase < kPhases; ++phase)
        shared.work[kind][phase] = Work(p, shared.products, phase, kind == kDenseLayer, kind == kHead);
    }
  }
  __syncthreads();
  const Parts& parts = shared.products;
  const ResidentRing ring{shared.stages, shared_address(shared.full), shared_address(shared.empty)};
  if (warp < kConsumers) {
    consume<W, Cache>(p, shared, parts, ring);
  } else if (warp == kProducerWarp) {
    produce<W, Cache>(p, shared, parts, ring);
  } else if (warp == kEpilogueWarp) {
    finish<W>(p, shared, parts);
    // Every block has begun, or x of the last layer would not be there.
    if (parts.block == 0 && threadIdx.x % 32 == 0) *p.epoch = shared.epoch + p.layers + 1;
  } else {
    help<W>(p, shared, parts);
  }
}

// ---- host ----------------------------------------------------------------------------------------------------------

template <class W, class Cache>
cudaError_t launch_resident(const Resident& p, int multiprocessors, cudaStream_t stream) {
  note_launch(reinterpret_cast<const void*>(resident_kernel<W, Cache>));
  late_trigger = true;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(multiprocessors));
  config.blockDim = dim3(kResidentThreads);
  config.dynamicSmemBytes = sizeof(ResidentShared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, resident_kernel<W, Cache>, p);
}

template <class W, class Cache>
cudaError_t load_resident() {
  cudaFuncAttributes attributes;
  const auto kernel = resident_kernel<W, Cache>;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  return error != cudaSuccess ? error
                              : cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(sizeof(ResidentShared)));
}

}  // namespace mla::cuda
