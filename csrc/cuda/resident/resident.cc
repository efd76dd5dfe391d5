// resident.cc - what the host works out for the resident kernel: which sizes it takes, where its links lie.
#include "cuda/resident/resident.h"

namespace mla::cuda {

bool resident_fits(const Resident& p, int blocks) {
  const int nq = p.heads * (p.n + p.r);
  const bool row = p.d % 128 == 0 && p.d <= 2048 && p.d / 16 <= blocks && p.vocab % 16 == 0;
  const bool attention = p.heads <= 16 && p.c == 512 && p.r == 64 && p.n == 128 && nq % 16 == 0 && p.v % 16 == 0 &&
                         p.heads * p.v / 16 <= blocks && p.heads * 16 <= 2 * blocks && blocks <= 160;  // kMaxParts
  // Each block takes part in each layer's feed-forward network: so none is a layer ahead of another (links).
  const auto all_take_part = [&](int inner) { return inner % 16 == 0 && inner / 8 >= blocks; };
  const bool dense = p.dense_layers == 0 || all_take_part(p.dense_inner);
  // Of stages that one warp leaves to the other while it adds up sums there are few (finish_ffn in
  // resident_kernel.cuh): a stage an item; or four (of fp8 two) and up to three, with at least two of a block's items
  // among the chosen experts'.
  const bool near =
      (p.d <= 512 && p.inner <= 512) || (p.d > 1536 && p.inner <= 1536 && p.top_k * (p.inner / 8) >= 2 * blocks);
  const bool experts =
      p.dense_layers == p.layers ||
      (near && p.experts % 2 == 0 && p.experts <= kResidentExperts && p.experts <= blocks && p.inner % 16 == 0 &&
       p.top_k + p.shared <= kResidentColumns && all_take_part(p.top_k * p.inner));
  const bool types = p.fp8_weights || !p.fp8_cache;
  return types && p.layers > 0 && p.layers <= kResidentLayers && row && attention && dense && experts;
}

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
  place(&link.qa, p->heads * (p->c + p->r) / 3);  // six values in a wide word of 16 bytes
  link.part_block = 4128;
  place(&link.part, blocks * link.part_block);
  place(&link.u, p->heads * p->c / 2);
  place(&link.o, p->heads * p->v / 2);
  place(&link.logits, p->experts);
  const int h = (p->top_k + p->shared) * p->inner;
  place(&link.h, (h > p->dense_inner ? h : p->dense_inner) / 2);
  link.buffer = at;
  constexpr int64_t kWordBytes = 8;  // link.cuh
  return 2 * at * kWordBytes;
}

cudaError_t load_resident() {
  const cudaError_t error = load_resident_bf16();
  return error == cudaSuccess ? load_resident_f8() : error;
}

}  // namespace mla::cuda
