// resident.h - a run of operations of one row in one kernel that stays on the GPU: parameters, shared by host and
// device.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mla::cuda {

constexpr int kResidentLayers = 64;
constexpr int kResidentUnderWay = 6;
constexpr int kResidentExperts = 64;
constexpr int kResidentColumns = 16;  // experts of a row: chosen and always-on ones

/// What a layer reads, as in ops.h. Dense layers have no gate: w_gate_up and w_down are swiglu's and the gemm's behind
/// it.
struct ResidentLayer {
  const void *norm, *weight, *weight_scale, *latent_norm, *w_uk, *w_uv, *w_o, *o_scale;
  const void *ffn_norm, *gate, *bias, *w_gate_up, *gate_up_scale, *w_down, *down_scale;
  void* cache;
};

/// Plain outputs of the operations (ops.h), one row each, of the last layer in the end, as the operations share them
/// among layers. Nobody in the kernel reads them; null is allowed.
struct ResidentOutputs {
  void *q, *qa, *u, *lse, *o, *normed;
  void *swiglu_h, *h;  // [dense_inner] of dense layers; [top_k + shared, inner], rows as `order` has them
  int32_t *ids, *offsets, *order, *slots;
  float* weights;
};

/// Where each link's words begin, in words from `links`; two buffers of `buffer` words each.
struct ResidentLinks {
  int x, mid, q, y, qa, part, u, o, logits, h, buffer;  // x: what enters a layer; mid: behind o_proj
  int part_block;                                       // words of a block
};

struct Resident {
  int layers, dense_layers;  // the first ones
  int d, heads, c, r, n, v, inner, dense_inner, experts, top_k, shared, vocab;
  bool norm_bf16;  // weights of norms, else float
  float eps, latent_eps, ffn_eps, final_eps, attention_scale, routed_scale;
  bool sigmoid, norm_topk;
  int position_end;  // of cos_sin
  const void* x;     // [d], bf16: of gatherRows
  const int32_t *position, *slot, *length, *block_table;
  int max_pages;         // of block_table; a longer length is cut to them
  const float* cos_sin;  // [position_end, r / 2, 2]
  const void *final_norm, *head;
  float* logits;         // [vocab]
  void* final_normed;    // [d], bf16: what the head multiplies; may be null
  void* x_out;           // [d], bf16: the residual stream behind the last layer
  unsigned char* links;  // resident_link_bytes()
  uint32_t* epoch;       // behind which the links' words are older; the kernel adds `layers + 1`
  int64_t cache_slots;   // of a layer's cache: a slot outside is not written
  bool fp8_weights, fp8_cache;
  ResidentLinks link;
  ResidentOutputs out;
  // Stages of a block that may be on their way at a time, 1 to kResidentUnderWay (ring.cuh): until experts are chosen,
  // and from then on. What all blocks ask for at once is a queue that every look at a link stands in.
  int under_way, stream_under_way;
  ResidentLayer layer[kResidentLayers];
};

/// Does the kernel take these sizes on so many multiprocessors?
bool resident_fits(const Resident& p, int blocks);

/// Fills in p.link; bytes that p.links needs, which begin as zeros.
int64_t resident_link_bytes(Resident* p, int blocks);

/// Enqueues the kernel: one block on each multiprocessor. The _bf16 of bf16 weights takes no fp8 cache, for want of
/// registers.
cudaError_t launch_resident_bf16(const Resident& p, int multiprocessors, cudaStream_t stream);
cudaError_t launch_resident_f8(const Resident& p, int multiprocessors, cudaStream_t stream);
cudaError_t load_resident_bf16();
cudaError_t load_resident_f8();
/// Both.
cudaError_t load_resident();

}  // namespace mla::cuda
