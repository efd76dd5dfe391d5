// resident_sm90.cu - a whole decode step of one row in one kernel that stays on the GPU.
//
// Grid: a block on each multiprocessor, all resident. Block: 16 warps that multiply, a producer that copies the weights
// of all layers and operations, one after the other, into a ring of stages (ring.cuh), an epilogue that adds up and
// gives results to the other blocks (link.cuh), two helpers: logits, choice of experts, absorption of the query.
// Formulas: ops/ops.h; order of sums: gemm/product.h, norm_rows.cu, router_select.cuh; so results have the bits of the
// separate operations, attention aside.
#include "cuda/resident/resident_device.cuh"
#ifdef MLA_RESIDENT_ATTENTION
#include "cuda/resident/attention.cuh"
#endif

namespace mla::cuda {
namespace {

template <class W>
__device__ __forceinline__ const unsigned char* weights_at(const void* w, int64_t row, int k) {
  return static_cast<const unsigned char*>(w) + row * k * static_cast<int64_t>(sizeof(W));
}

/// Which item of 16 rows of the experts' gate and up is item i of this block: always-on experts' first.
struct GateUpItem {
  int column, item;  // of the row's experts, of the expert
  __device__ GateUpItem(const Resident& p, const Parts& parts, int i) {
    const int each = p.inner / 8;
    const bool always = i < parts.always.count;
    const int at = always ? parts.always.first + i : parts.chosen.first + i - parts.always.count;
    column = at / each;
    item = at - column * each;
    if (always) column += p.top_k;
  }
};

template <class W>
__device__ __forceinline__ void produce(const Resident& p, ResidentShared& shared, const Parts& parts,
                                        const ResidentRing& ring) {
  Producer producer{ring, 0, static_cast<uint32_t>(p.under_way)};
  const auto items = [&](const void* w, int first, int step, int count, int k) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) producer.item(weights_at<W>(w, (first + i * step) * 16ll, k), k * sizeof(W));
  };
  const int hv = p.heads * p.v;
  uint32_t chosen = 0;
#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const ResidentLayer& layer = p.layer[l];
    items(layer.weight, parts.block, parts.blocks, parts.compress, p.d);
    stamp(l, 23);
#ifdef MLA_RESIDENT_ATTENTION
    const int stages = attend_stages(p, *p.length, parts.block);
    for (int i = 0; i < stages; ++i) {
      ring.wait_to_fill(producer.s, producer.under_way);
      attend_fill(p, l, parts.block, i, shared_address(ring.at(producer.s)), ring.full_of(producer.s));
      ++producer.s;
    }
#endif
    if (parts.expand) {
      producer.item(weights_at<Bf16>(layer.w_uv, parts.block * 16ll, p.c), p.c * static_cast<int>(sizeof(Bf16)));
    }
    if (parts.columns) items(layer.w_o, parts.block, 0, 1, hv);
    if (l < p.dense_layers) {
      items(layer.w_gate_up, parts.dense.first, 1, parts.dense.count, p.d);
      if (parts.columns) items(layer.w_down, parts.block, 0, 1, p.dense_inner);
      continue;
    }
    const int all = parts.always.count + parts.chosen.count;
#pragma unroll 1
    for (int i = 0; i < all; ++i) {
      if (i == parts.always.count) {
        stamp(l, 13);
        watched_wait(shared_address(&shared.chosen), chosen++ & 1, Wait::kChosen, l);
        stamp(l, 14);
      }
      const GateUpItem it(p, parts, i);
      const int expert = i < parts.always.count ? p.experts + it.column - p.top_k : shared.ids[it.column];
      items(weights_at<W>(layer.w_gate_up, expert * 2ll * p.inner, p.d), it.item, 0, 1, p.d);
    }
    stamp(l, 15);
    if (parts.columns) {
#pragma unroll 1
      for (int i = 0; i < p.shared + p.top_k; ++i) {
        const int expert = i < p.shared ? p.experts + i : shared.ids[i - p.shared];
        items(weights_at<W>(layer.w_down, static_cast<int64_t>(expert) * p.d, p.inner), parts.block, 0, 1, p.inner);
      }
    }
    stamp(l, 22);
  }
#pragma unroll 1
  for (int i = 0; i < parts.head.count; ++i) {
    producer.item(weights_at<Bf16>(p.head, (parts.head.first + i) * 16ll, p.d), p.d * static_cast<int>(sizeof(Bf16)));
  }
}

template <class W>
__device__ __forceinline__ void consume(const Resident& p, ResidentShared& shared, const Parts& parts,
                                        const ResidentRing& ring, uint32_t base) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Consumer consumer{p,    shared, ring, shared_address(shared.summable), shared_address(shared.summed), warp,
                    lane};
  using S = StageShape<W>;
  using B = StageShape<Bf16>;
  const int hv = p.heads * p.v;
#ifdef MLA_RESIDENT_ATTENTION
  const int stages = attend_stages(p, *p.length, parts.block);
#endif
#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const ResidentLayer& layer = p.layer[l];
    const uint32_t epoch = base + l + 1;
    {
      uint4 x[S::kOwn][4];
      consumer.norm<W>(link_of(p, p.link.x, epoch), epoch, layer.norm, p.eps, Wait::kX, x);
      if (warp == 0) stamp(l, 0);
      consumer.multiply_all<W>(parts.compress, p.d, x);
      if (warp == 0) stamp(l, 1);
    }
#ifdef MLA_RESIDENT_ATTENTION
    attend(p, l, epoch, ring, consumer.s, stages, shared.operands);
    consumer.s += stages;
    consumer.skipped += stages;
    if (warp == 0) stamp(l, 2);
    merge(p, l, epoch, shared.operands);
    if (warp == 0) stamp(l, 3);
    const LinkWord* const u = link_of(p, p.link.u, epoch);
    const Wait what = Wait::kU;
#else
    const LinkWord* const u = link_of(p, p.link.q, epoch);
    const Wait what = Wait::kQ;
#endif
    if (parts.expand) {
      int from = parts.block * 16 / p.v * p.c / 2;
#ifndef MLA_RESIDENT_ATTENTION
      from %= p.heads * (p.n + p.r) / 2;
#endif
      consumer.receive_all<Bf16>(1, p.c, epoch, what, [&](int) { return u + from; });
    }
    if (warp == 0) stamp(l, 4);
    if (parts.columns) {
      const LinkWord* const o = link_of(p, p.link.o, epoch);
      consumer.receive_all<W>(1, hv, epoch, Wait::kO, [&](int) { return o; });
    }
    if (warp == 0) stamp(l, 5);
    const bool dense = l < p.dense_layers;
    {
      uint4 x[S::kOwn][4];
      consumer.norm<W>(link_of(p, p.link.mid, epoch), epoch, layer.ffn_norm, p.ffn_eps, Wait::kMid, x);
      if (warp == 0) stamp(l, 6);
      if (dense) {
        consumer.multiply_all<W>(parts.dense.count, p.d, x);
      } else {
        if (parts.logit >= 0) named_barrier_arrive(kNormedBarrier, kConsumers * 32 + 32);
        consumer.multiply_all<W>(parts.always.count, p.d, x);
        if (warp == 0) stamp(l, 7);
        // The same stages in whatever turn the teams are now: a turn has a whole number of items.
        consumer.multiply_all<W>(parts.chosen.count, p.d, x);
        if (warp == 0) stamp(l, 8);
      }
    }
    if (!parts.columns) continue;
    const LinkWord* const h = link_of(p, p.link.h, epoch);
    if (dense) {
      consumer.receive_all<W>(1, p.dense_inner, epoch, Wait::kH, [&](int) { return h; });
    } else {
      consumer.receive_all<W>(p.shared + p.top_k, p.inner, epoch, Wait::kH, [&](int i) {
        return h + (i < p.shared ? p.top_k + i : i - p.shared) * (p.inner / 2);
      });
    }
    if (warp == 0) stamp(l, 9);
  }
  const uint32_t epoch = base + p.layers + 1;
  uint4 x[B::kOwn][4];
  consumer.norm<Bf16>(link_of(p, p.link.x, epoch), epoch, p.final_norm, p.final_eps, Wait::kX, x);
  consumer.multiply_all<Bf16>(parts.head.count, p.d, x);
}

template <class W>
__device__ __forceinline__ void finish(const Resident& p, ResidentShared& shared, const Parts& parts, uint32_t base) {
  const int lane = threadIdx.x % 32, row = lane % 16, nq = p.heads * (p.n + p.r);
  Epilogue epilogue{p, shared, shared_address(shared.summable), shared_address(shared.summed), 0, lane};
  // The block's columns of the residual stream.
  float residual = 0;
  const int column = parts.block * 16;
  const auto give_x = [&](int link, uint32_t epoch, void* plain) {
    epilogue.give(residual, link_of(p, link, epoch) + column / 2, epoch,
                  plain == nullptr ? nullptr : static_cast<Bf16*>(plain) + column);
  };
  if (parts.columns) {
    residual = to_float(static_cast<const Bf16*>(p.x)[column + row]);
    give_x(p.link.x, base + 1, nullptr);
  }
  const auto plain = [](void* to, int at) { return to == nullptr ? nullptr : static_cast<Bf16*>(to) + at; };
  // Scales of 16 rows from `row` on of a matrix of rows of k; of 8 rows of gate and 8 of up from hidden channel `at` on.
  const auto blocks_of = [](int k) { return (k + kSegment - 1) / kSegment; };
  const auto scales_of = [&](const void* scale, int64_t at, int k) {
    const float* const from = static_cast<const float*>(scale) + at / kSegment * blocks_of(k);
    return ItemScales{from, from};
  };
  const auto gated_scales = [&](const void* scale, int expert, int inner, int at) {
    const int each = blocks_of(inner);
    const float* const from = static_cast<const float*>(scale) + (2ll * expert * each + at / kSegment) * blocks_of(p.d);
    return ItemScales{from, from + static_cast<int64_t>(each) * blocks_of(p.d)};
  };
  uint32_t chosen = 0;
#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const ResidentLayer& layer = p.layer[l];
    const uint32_t epoch = base + l + 1;
    const auto compress_row = [&](int i) { return (parts.block + i * parts.blocks) * 16; };
    const auto compress_scales = [&](int i) { return scales_of(layer.weight_scale, compress_row(i), p.d); };
    epilogue.expect<W>(compress_scales(0), blocks_of(p.d));
#pragma unroll 1
    for (int i = 0; i < parts.compress; ++i) {
      const int n0 = compress_row(i);
      const float value = epilogue.item<W>(p.d, compress_scales(i), [&] {
        if (i + 1 < parts.compress) epilogue.expect<W>(compress_scales(i + 1), blocks_of(p.d));
      });
      if (n0 < nq) {
        epilogue.give(value, link_of(p, p.link.q, epoch) + n0 / 2, epoch, plain(p.out.q, n0));
      } else if (lane < 16) {
        link_store(link_of(p, p.link.y, epoch) + n0 - nq + row, __float_as_uint(value), epoch);
      }
    }
    stamp(l, 16);
    if (parts.expand) {
      const float value = epilogue.item<Bf16>(p.c, {});
      epilogue.give(value, link_of(p, p.link.o, epoch) + column / 2, epoch, plain(p.out.o, column));
    }
    stamp(l, 17);
    if (parts.columns) {
      const int hv = p.heads * p.v;
      residual = rounded_bf16(epilogue.item<W>(hv, scales_of(layer.o_scale, column, hv)) + residual);
      give_x(p.link.mid, epoch, nullptr);
    }
    stamp(l, 18);
    const bool dense = l < p.dense_layers;
    const int items = dense ? parts.dense.count : parts.always.count + parts.chosen.count;
    const auto hidden = [&](int i, ItemScales* scales) {  // the item's first hidden channel, of all columns' channels
      if (dense) {
        const int at = (parts.dense.first + i) * 8;
        if (sizeof(W) == 1) *scales = gated_scales(layer.gate_up_scale, 0, p.dense_inner, at);
        return at;
      }
      const GateUpItem it(p, parts, i);
      if (sizeof(W) == 1) {
        const int expert = i < parts.always.count ? p.experts + it.column - p.top_k : shared.ids[it.column];
        *scales = gated_scales(layer.gate_up_scale, expert, p.inner, it.item * 8);
      }
      return it.column * p.inner + it.item * 8;
    };
#pragma unroll 1
    for (int i = 0; i < items; ++i) {
      // What has not been asked for: the first ones of the phase and of the chosen experts.
      const bool unknown = !dense && i == parts.always.count;
      if (sizeof(W) == 1 && unknown) {
        watched_wait(shared_address(&shared.chosen), chosen++ & 1, Wait::kChosen, l);
      }
      ItemScales scales{};
      const int at = hidden(i, &scales);
      if (i == 0 || unknown) epilogue.expect<W>(scales, blocks_of(p.d));
      const float value = epilogue.item<W>(p.d, scales, [&] {
        if (i + 1 == items || (!dense && i + 1 == parts.always.count)) return;
        ItemScales next{};
        hidden(i + 1, &next);
        epilogue.expect<W>(next, blocks_of(p.d));
      });
      const float h = gate_up(value, __shfl_down_sync(kFullWarp, value, 8));
      const uint32_t pair = pack_bf16(h, __shfl_down_sync(kFullWarp, h, 1));
      if (lane < 8 && lane % 2 == 0) {
        link_store(link_of(p, p.link.h, epoch) + at / 2 + lane / 2, pair, epoch);
        if (p.out.h != nullptr) static_cast<uint32_t*>(p.out.h)[at / 2 + lane / 2] = pair;
      }
      if (i + 1 == parts.always.count) stamp(l, 19);
    }
    stamp(l, 20);
    if (!parts.columns) continue;
    if (dense) {
      residual = rounded_bf16(epilogue.item<W>(p.dense_inner, scales_of(layer.down_scale, column, p.dense_inner)) +
                              residual);
    } else {
      float sum = 0;
      const auto down_scales = [&](int i) {
        if (sizeof(W) == 2) return ItemScales{};
        const int64_t expert = i < p.shared ? p.experts + i : shared.ids[i - p.shared];
        const int64_t first = expert * blocks_of(p.d) * blocks_of(p.inner);
        return scales_of(static_cast<const float*>(layer.down_scale) + first, column, p.inner);
      };
      epilogue.expect<W>(down_scales(0), blocks_of(p.inner));
#pragma unroll 1
      for (int i = 0; i < p.shared + p.top_k; ++i) {
        const float part = rounded_bf16(epilogue.item<W>(p.inner, down_scales(i), [&] {
          if (i + 1 < p.shared + p.top_k) epilogue.expect<W>(down_scales(i + 1), blocks_of(p.inner));
        }));
        if (i == 0) stamp(l, 21);
        if (i < p.shared) {
          shared.parts[i][row] = part;
        } else {
          sum = fmaf(shared.weights[i - p.shared], part, sum);
        }
      }
      for (int i = 0; i < p.shared; ++i) sum = fmaf(shared.weights[p.top_k + i], shared.parts[i][row], sum);
      residual = rounded_bf16(sum + residual);
    }
    give_x(p.link.x, epoch + 1, l + 1 == p.layers ? p.x_out : nullptr);
    stamp(l, 24);
  }
#pragma unroll 1
  for (int i = 0; i < parts.head.count; ++i) {
    const float value = epilogue.item<Bf16>(p.d, {});
    if (lane < 16) p.logits[(parts.head.first + i) * 16 + row] = value;
  }
}

/// The gate's row of this block, if it has one, times the normed row: helper 0.
__device__ __forceinline__ void give_logit(const Resident& p, const ResidentShared& shared, const Parts& parts,
                                           const uint4 (&gate)[8], uint32_t epoch, int l) {
  if (parts.logit < 0) return;
  const int lane = threadIdx.x % 32;
  named_barrier_sync(kNormedBarrier, kConsumers * 32 + 32);
  float sum = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int at = c * 256 + lane * 8;
    if (at >= p.d) break;
    const uint4 x = load16(shared.normed + at);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, gs[4] = {gate[c].x, gate[c].y, gate[c].z, gate[c].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(bf16_low(xs[i]), bf16_low(gs[i]), sum);
      sum = fmaf(bf16_high(xs[i]), bf16_high(gs[i]), sum);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) link_store(link_of(p, p.link.logits, epoch) + parts.logit, __float_as_uint(sum), epoch);
  stamp(l, 25);
}

/// The choice of experts, by each block for itself: helper 1.
__device__ __forceinline__ void choose_experts(const Resident& p, ResidentShared& shared, const ResidentLayer& layer,
                                               uint32_t epoch, int l) {
  const int lane = threadIdx.x % 32;
  uint32_t logits[2] = {};
  if (2 * lane < p.experts) link_load<1>(link_of(p, p.link.logits, epoch) + 2 * lane, 2, epoch, logits, Wait::kLogits);
  stamp(l, 26);
  shared.logits[2 * lane] = __uint_as_float(logits[0]);
  shared.logits[2 * lane + 1] = __uint_as_float(logits[1]);
  __syncwarp();
  SelectArgs a;
  a.logits = shared.logits;
  a.bias = static_cast<const float*>(layer.bias);
  a.positions = &shared.position;
  a.ids = shared.ids;
  a.weights = shared.weights;
  a.rows = 1;
  a.experts = p.experts, a.top_k = p.top_k, a.shared = p.shared, a.n_group = p.n_group, a.topk_group = p.topk_group;
  a.scale = p.routed_scale;
  a.sigmoid = p.sigmoid, a.group_top2 = p.group_top2, a.norm_topk = p.norm_topk;
  select_row<kMostExperts / 32>(a, 0, shared.select_scratch);
  __syncwarp();
  const int columns = p.top_k + p.shared;
  if (lane < columns) {
    const int id = shared.ids[lane];
    if (blockIdx.x == 0 && p.out.ids != nullptr) p.out.ids[lane] = id;
    if (blockIdx.x == 0 && p.out.weights != nullptr) p.out.weights[lane] = shared.weights[lane];
    // A row of no position chooses none, with weights of zero: something has to be read all the same.
    shared.ids[lane] = min(max(id, 0), p.experts + p.shared - 1);
  }
  __syncwarp();
  if (lane == 0) mbarrier_arrive(shared_address(&shared.chosen));
  stamp(l, 27);
}

__device__ __forceinline__ void help(const Resident& p, ResidentShared& shared, const Parts& parts, uint32_t base) {
  const int lane = threadIdx.x % 32, helper = threadIdx.x / 32 - kHelperWarp;
#ifdef MLA_RESIDENT_ATTENTION
  AbsorbWeights w;
#endif
#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const uint32_t epoch = base + l + 1;
    const ResidentLayer& layer = p.layer[l];
#ifdef MLA_RESIDENT_ATTENTION
    absorb_load(p, l, helper, w);
    absorb(p, l, epoch, helper, w);
#endif
    if (l < p.dense_layers) continue;
    if (helper == 0) {
      uint4 gate[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int at = c * 256 + lane * 8;
        gate[c] = parts.logit >= 0 && at < p.d
                      ? load16(static_cast<const Bf16*>(layer.gate) + static_cast<int64_t>(parts.logit) * p.d + at)
                      : make_uint4(0, 0, 0, 0);
      }
      give_logit(p, shared, parts, gate, epoch, l);
    } else {
      choose_experts(p, shared, layer, epoch, l);
    }
  }
}

template <class W>
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
    mbarrier_fence_init();
    shared.epoch = *p.epoch;
    shared.position = *p.position;
  }
  __syncthreads();
  const Parts parts(p);
  const ResidentRing ring{shared.stages, shared_address(shared.full), shared_address(shared.empty)};
  const uint32_t base = shared.epoch;
  if (warp < kConsumers) {
    consume<W>(p, shared, parts, ring, base);
  } else if (warp == kProducerWarp) {
    produce<W>(p, shared, parts, ring);
  } else if (warp == kEpilogueWarp) {
    finish<W>(p, shared, parts, base);
    // Every block has begun, or x of the last layer would not be there.
    if (parts.block == 0 && threadIdx.x % 32 == 0) *p.epoch = base + p.layers + 1;
  } else {
    help(p, shared, parts, base);
  }
}

}  // namespace

int64_t resident_link_bytes(Resident* p, int blocks) {
  int at = 0;
  const auto place = [&](int* link, int words) {
    *link = at;
    at += (words + 15) / 16 * 16;
  };
  ResidentLinks& link = p->link;
  place(&link.x, p->d / 2);
  place(&link.mid, p->d / 2);
  place(&link.q, p->heads * (p->n + p->r) / 2);
  place(&link.y, p->c + p->r);
  place(&link.qa, p->heads * (p->c + p->r) / 2);
  link.part_block = 4128;
  place(&link.part, blocks * link.part_block);
  place(&link.u, p->heads * p->c / 2);
  place(&link.o, p->heads * p->v / 2);
  place(&link.logits, p->experts);
  const int h = (p->top_k + p->shared) * p->inner;
  place(&link.h, (h > p->dense_inner ? h : p->dense_inner) / 2);
  link.buffer = at;
  return int64_t{2} * at * static_cast<int64_t>(sizeof(LinkWord));
}

template <class W>
cudaError_t launch_resident(const Resident& p, int multiprocessors, cudaStream_t stream) {
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
  return cudaLaunchKernelEx(&config, resident_kernel<W>, p);
}

cudaError_t launch_resident_bf16(const Resident& p, int multiprocessors, cudaStream_t stream) {
  return launch_resident<Bf16>(p, multiprocessors, stream);
}

cudaError_t launch_resident_f8(const Resident& p, int multiprocessors, cudaStream_t stream) {
  return launch_resident<F8E4M3>(p, multiprocessors, stream);
}

cudaError_t load_resident() {
  for (const auto kernel : {resident_kernel<Bf16>, resident_kernel<F8E4M3>}) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(sizeof(ResidentShared)));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

#ifdef MLA_RESIDENT_WATCH
cudaError_t watch_resident(unsigned* out) {
  const Watched w{out};
  return cudaMemcpyToSymbol(watched, &w, sizeof w);
}
#endif
#ifdef MLA_RESIDENT_STAMPS
cudaError_t stamp_resident(unsigned long long* to) { return cudaMemcpyToSymbol(stamps, &to, sizeof to); }
#endif

}  // namespace mla::cuda
