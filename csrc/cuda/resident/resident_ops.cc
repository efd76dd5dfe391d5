#include "cuda/resident/resident_ops.h"

#include <initializer_list>
#include <variant>

#include "common/checked.h"
#include "cuda/resident/resident.h"

namespace mla::cuda {
namespace {

/// Links of the largest model that the kernel takes: those of the parts of attention, twice 33 KB a multiprocessor, and
/// less than 2 MB for all others.
constexpr int64_t kPartBytes = 68 << 10, kOtherBytes = 2 << 20;
constexpr int64_t kAlignment = 256;

int64_t link_bytes(int64_t heads, const Traits& traits) {
  if (!traits.hopper || traits.deterministic || heads > 16) return 0;
  return kOtherBytes + traits.multiprocessors * kPartBytes;
}

/// Reads operations one after the other.
class Reader {
 public:
  explicit Reader(std::span<const Op> ops) : ops_(ops) {}
  size_t done() const { return done_; }

  /// The next operation if it is of this kind; null leaves it where it is.
  template <class Params>
  const Params* take() {
    const Params* const p = done_ < ops_.size() ? std::get_if<Params>(&ops_[done_]) : nullptr;
    if (p != nullptr) ++done_;
    return p;
  }

 private:
  std::span<const Op> ops_;
  size_t done_ = 0;
};

bool same_shape(const View& a, const View& b) {
  if (a.dtype != b.dtype || a.rank != b.rank) return false;
  for (int i = 0; i < a.rank; ++i) {
    if (a.dim(i) != b.dim(i)) return false;
  }
  return true;
}

bool same(const View& a, const View& b) { return a.data == b.data && same_shape(a, b); }

/// The same memory as so many values, whatever its shape.
bool flat(const View& a, const View& b) { return a.data == b.data && a.dtype == b.dtype && a.numel() == b.numel(); }

bool all_bf16(std::initializer_list<const View*> views) {
  for (const View* view : views) {
    if (view->dtype != DType::kBF16) return false;
  }
  return true;
}

/// What the whole run has in common, from its first layer.
struct Shared {
  const LatentCompressParams* compress;
  const QueryAbsorbParams* absorb;
  const MlaDecodeParams* decode;
  const ValueExpandParams* expand;
};

/// A run of operations as parameters of the kernel.
class Run {
 public:
  Run(std::span<const Op> ops, const Traits& traits) : ops_(ops), traits_(traits) {}

  /// How many operations it has; 0: none.
  size_t read(Resident* out) {
    *out = {};
    if (!traits_.hopper || traits_.deterministic) return 0;
    Reader reader(ops_);
    while (out->layers < kResidentLayers && layer(reader, out)) ++out->layers;
    if (out->layers == 0 || !head(reader, out)) return 0;
    return resident_fits(*out, traits_.multiprocessors) && links(out) ? reader.done() : 0;
  }

 private:
  bool layer(Reader& reader, Resident* out) {
    const auto* const compress = reader.take<LatentCompressParams>();
    const auto* const absorb = compress != nullptr ? reader.take<QueryAbsorbParams>() : nullptr;
    const auto* const decode = absorb != nullptr ? reader.take<MlaDecodeParams>() : nullptr;
    const auto* const expand = decode != nullptr ? reader.take<ValueExpandParams>() : nullptr;
    const auto* const o_proj = expand != nullptr ? reader.take<GemmParams>() : nullptr;
    if (o_proj == nullptr) return false;
    if (out->layers == 0) {
      shared_ = {compress, absorb, decode, expand};
      if (!begin(out)) return false;
    }
    ResidentLayer& l = out->layer[out->layers];
    return attention(*compress, *absorb, *decode, *expand, *o_proj, *out, &l) && feed_forward(reader, out, &l);
  }

  /// Sizes and memory from the first layer.
  bool begin(Resident* out) {
    const auto& [compress, absorb, decode, expand] = shared_;
    const View &x = compress->x, &q = absorb->q, &cache = compress->cache;
    if (x.dim(0) != 1) return false;
    out->d = static_cast<int>(x.dim(1));
    out->heads = static_cast<int>(q.dim(1));
    out->c = static_cast<int>(absorb->w_uk.dim(2));
    out->n = static_cast<int>(absorb->w_uk.dim(1));
    out->r = static_cast<int>(q.dim(2)) - out->n;
    out->v = static_cast<int>(expand->w_uv.dim(1));
    out->fp8_weights = compress->weight.dtype == DType::kF8E4M3;
    out->fp8_cache = cache.dtype == DType::kF8E4M3;
    out->cache_slots = cache.dim(0) * cache.dim(1);
    out->norm_bf16 = compress->norm.dtype == DType::kBF16;
    out->eps = compress->eps;
    out->latent_eps = compress->latent_eps;
    out->attention_scale = decode->scale;
    out->under_way = 2;
    out->stream_under_way = 3;
    out->position_end = static_cast<int>(compress->cos_sin.dim(0));
    out->x = x.data;
    out->x_out = x.data;
    out->position = compress->positions.as<const int32_t>();
    out->slot = compress->slots.as<const int32_t>();
    out->length = decode->lengths.as<const int32_t>();
    out->block_table = decode->block_table.as<const int32_t>();
    out->max_pages = static_cast<int>(decode->block_table.dim(1));
    out->cos_sin = compress->cos_sin.as<const float>();
    out->out.q = compress->q.data;
    out->out.qa = absorb->out.data;
    out->out.u = decode->out.data;
    out->out.lse = decode->lse.data;
    out->out.o = expand->out.data;
    return all_bf16({&x, &q, &absorb->w_uk, &absorb->out, &decode->out, &expand->w_uv, &expand->out}) &&
           (cache.dtype == DType::kBF16 || out->fp8_cache);
  }

  bool norm_type(const View& weight, const Resident& p) const {
    return weight.dtype == (p.norm_bf16 ? DType::kBF16 : DType::kF32);
  }

  static bool weights_like(const View& w, const Resident& p) {
    return w.dtype == (p.fp8_weights ? DType::kF8E4M3 : DType::kBF16);
  }

  bool attention(const LatentCompressParams& compress, const QueryAbsorbParams& absorb, const MlaDecodeParams& decode,
                 const ValueExpandParams& expand, const GemmParams& o_proj, const Resident& p, ResidentLayer* l) const {
    const LatentCompressParams& first = *shared_.compress;
    const bool chained = same(compress.x, first.x) && same(compress.q, first.q) && flat(absorb.q, compress.q) &&
                         same(absorb.out, shared_.absorb->out) && same(decode.q, absorb.out) &&
                         same(decode.cache, compress.cache) && same(decode.out, shared_.decode->out) &&
                         same(decode.lse, shared_.decode->lse) && same(expand.u, decode.out) &&
                         same(expand.out, shared_.expand->out) && same(o_proj.x, expand.out) &&
                         same(o_proj.residual, first.x) && same(o_proj.y, first.x);
    const bool alike =
        !compress.q_norm.present() && same(compress.positions, first.positions) && same(compress.slots, first.slots) &&
        same(compress.cos_sin, first.cos_sin) && same(absorb.positions, first.positions) &&
        same(absorb.cos_sin, first.cos_sin) && same(decode.lengths, shared_.decode->lengths) &&
        same(decode.block_table, shared_.decode->block_table) && same(decode.plan, shared_.decode->plan) &&
        decode.scale == p.attention_scale && compress.eps == p.eps && compress.latent_eps == p.latent_eps &&
        compress.cache.dtype == first.cache.dtype && compress.cache.numel() == first.cache.numel() &&
        same_shape(absorb.w_uk, shared_.absorb->w_uk) && same_shape(expand.w_uv, shared_.expand->w_uv);
    const bool types = weights_like(compress.weight, p) && weights_like(o_proj.w, p) && norm_type(compress.norm, p) &&
                       norm_type(compress.latent_norm, p) && all_bf16({&absorb.w_uk, &expand.w_uv}) &&
                       !compress.fp8_activations && !o_proj.fp8_activations;
    if (!chained || !alike || !types) return false;
    l->norm = compress.norm.data;
    l->weight = compress.weight.data;
    l->weight_scale = compress.weight_scale.data;
    l->latent_norm = compress.latent_norm.data;
    l->w_uk = absorb.w_uk.data;
    l->w_uv = expand.w_uv.data;
    l->w_o = o_proj.w.data;
    l->o_scale = o_proj.w_scale.data;
    l->cache = compress.cache.data;
    return true;
  }

  bool feed_forward(Reader& reader, Resident* p, ResidentLayer* l) {
    if (const auto* const norm = reader.take<RmsNormParams>()) return dense(reader, *norm, p, l);
    const auto* const route = reader.take<MoeRouteParams>();
    return route != nullptr && experts(reader, *route, p, l);
  }

  /// Of a feed-forward network's two products.
  template <class Up, class Down>
  static void take_weights(const Up& up, const Down& down, ResidentLayer* l) {
    l->w_gate_up = up.w.data;
    l->gate_up_scale = up.w_scale.data;
    l->w_down = down.w.data;
    l->down_scale = down.w_scale.data;
  }

  bool dense(Reader& reader, const RmsNormParams& norm, Resident* p, ResidentLayer* l) {
    const auto* const swiglu = reader.take<SwigluParams>();
    const auto* const down = swiglu != nullptr ? reader.take<GemmParams>() : nullptr;
    if (down == nullptr || p->layers > p->dense_layers) return false;
    const View& x = shared_.compress->x;
    if (p->layers == 0) {
      p->dense_inner = static_cast<int>(swiglu->out.dim(1));
      p->out.swiglu_h = swiglu->out.data;
      p->out.normed = norm.out.data;
      p->ffn_eps = norm.eps;
    }
    if (!same(norm.x, x) || !same(swiglu->x, norm.out) || !same(down->x, swiglu->out) || !same(down->residual, x) ||
        !same(down->y, x) || norm.out.data != p->out.normed || norm.eps != p->ffn_eps ||
        swiglu->out.dim(1) != p->dense_inner || !norm_type(norm.weight, *p) || !weights_like(swiglu->w, *p) ||
        !weights_like(down->w, *p) || !all_bf16({&norm.out, &swiglu->out}) || swiglu->fp8_activations ||
        down->fp8_activations) {
      return false;
    }
    p->dense_layers = p->layers + 1;
    l->ffn_norm = norm.weight.data;
    take_weights(*swiglu, *down, l);
    return true;
  }

  bool experts(Reader& reader, const MoeRouteParams& route, Resident* p, ResidentLayer* l) {
    const auto* const up = reader.take<MoeGateUpParams>();
    const auto* const down = up != nullptr ? reader.take<MoeDownParams>() : nullptr;
    if (down == nullptr) return false;
    const View& x = shared_.compress->x;
    if (route_ == nullptr) {
      route_ = &route;
      gate_up_ = up;
      p->experts = static_cast<int>(route.gate.dim(0));
      p->top_k = static_cast<int>(route.top_k);
      p->shared = static_cast<int>(route.shared);
      p->inner = static_cast<int>(up->h.dim(1));
      p->routed_scale = route.scale;
      p->sigmoid = route.sigmoid;
      p->norm_topk = route.norm_topk;
      if (p->dense_layers == 0) p->ffn_eps = route.eps;
      p->out.normed = route.normed.data;
      p->out.ids = route.ids.as<int32_t>();
      p->out.weights = route.weights.as<float>();
      p->out.offsets = route.offsets.as<int32_t>();
      p->out.order = route.order.as<int32_t>();
      p->out.slots = route.slots.as<int32_t>();
      p->out.h = up->h.data;
    }
    const MoeRouteParams& f = *route_;
    const bool chained = same(route.x, x) && same(up->x, route.normed) && same(up->offsets, route.offsets) &&
                         same(up->order, route.order) && same(down->h, up->h) && same(down->offsets, route.offsets) &&
                         same(down->order, route.order) && same(down->slots, route.slots) &&
                         same(down->weights, route.weights) && same(down->residual, x) && same(down->out, x);
    const bool alike = same(route.normed, f.normed) && same(route.ids, f.ids) && same(route.weights, f.weights) &&
                       same(route.offsets, f.offsets) && same(route.order, f.order) && same(route.slots, f.slots) &&
                       same(up->h, gate_up_->h) && same_shape(route.gate, f.gate) &&
                       route.bias.present() == f.bias.present() && route.eps == p->ffn_eps && route.scale == f.scale &&
                       route.top_k == f.top_k && route.shared == f.shared && route.n_group <= 1 &&
                       route.sigmoid == f.sigmoid && route.norm_topk == f.norm_topk && up->shared == route.shared &&
                       route.expert_begin == 0 && route.expert_end == p->experts;
    const bool types = norm_type(route.norm, *p) && weights_like(up->w, *p) && weights_like(down->w, *p) &&
                       all_bf16({&route.gate, &route.normed, &up->h}) && !up->fp8_activations &&
                       !down->fp8_activations && same(route.positions, shared_.compress->positions);
    if (!chained || !alike || !types) return false;
    l->ffn_norm = route.norm.data;
    l->gate = route.gate.data;
    l->bias = route.bias.data;
    take_weights(*up, *down, l);
    return true;
  }

  bool head(Reader& reader, Resident* p) const {
    const auto* const norm = reader.take<RmsNormParams>();
    const auto* const logits = norm != nullptr ? reader.take<GemmParams>() : nullptr;
    if (logits == nullptr || !same(norm->x, shared_.compress->x) || !same(logits->x, norm->out) ||
        logits->residual.present() || logits->y.dtype != DType::kF32 || !all_bf16({&norm->out, &logits->w}) ||
        !norm_type(norm->weight, *p)) {
      return false;
    }
    p->final_norm = norm->weight.data;
    p->final_eps = norm->eps;
    p->final_normed = norm->out.data;
    p->head = logits->w.data;
    p->vocab = static_cast<int>(logits->w.dim(0));
    p->logits = logits->y.as<float>();
    return true;
  }

  /// Links behind the plan, the epoch in front of them.
  bool links(Resident* p) const {
    const View& plan = shared_.decode->plan;
    const int64_t bytes = link_bytes(p->heads, traits_);
    if (bytes == 0 || plan.dim(0) < resident_plan_ints(decode_plan_ints(1, p->heads, traits_), p->heads, traits_)) {
      return false;
    }
    unsigned char* const end = plan.as<unsigned char>() + plan.bytes() / kAlignment * kAlignment;
    p->epoch = reinterpret_cast<uint32_t*>(end - bytes);
    p->links = end - bytes + kAlignment;
    return resident_link_bytes(p, traits_.multiprocessors) + kAlignment <= bytes;
  }

  const std::span<const Op> ops_;
  const Traits& traits_;
  Shared shared_{};
  const MoeRouteParams* route_ = nullptr;  // of the first layer with experts
  const MoeGateUpParams* gate_up_ = nullptr;
};

}  // namespace

int64_t resident_plan_ints(int64_t plan_ints, int64_t heads, const Traits& traits) {
  const int64_t links = link_bytes(heads, traits) / static_cast<int64_t>(sizeof(int32_t));
  return links == 0 ? plan_ints : round_up(plan_ints, kAlignment / static_cast<int64_t>(sizeof(int32_t))) + links;
}

size_t resident_ops(std::span<const Op> ops, const Traits& traits) {
  if (ops.empty() || !std::holds_alternative<LatentCompressParams>(ops[0])) return 0;
  Resident p;
  return Run(ops, traits).read(&p);
}

Status load_resident_kernels(const Traits& traits) {
  return traits.hopper ? cuda_status(load_resident(), "resident_kernel") : Status::Ok();
}

Status run_resident(std::span<const Op> ops, const Launch& launch) noexcept {
  Resident p;
  Run run(ops, *launch.traits);
  run.read(&p);
  const auto start = p.fp8_weights ? launch_resident_f8 : launch_resident_bf16;
  return cuda_status(start(p, launch.traits->multiprocessors, launch.stream), "resident_kernel");
}

}  // namespace mla::cuda
