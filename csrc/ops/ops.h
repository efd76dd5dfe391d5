// ops.h - the list of all operations of the seam, one plain params struct each.
//
// Shapes: T rows (tokens of this step over all sequences), B sequences, H heads, n/r/v nope, rope and value head
// dims, c latent rank, L = c + r, d hidden size, E experts, S always-on (shared) experts, k experts per token,
// P rows of the grouped expert products, I feed-forward width. docs/glossary.md has them all.
//
// Element types: `act` is float32 or bf16, one of them for all activations of a call. `weight` is float32, bf16 or
// f8e4m3; f8e4m3 needs the matching `*_scale` (float32, one per 128x128 block, value = q * scale).
//
// Rounding: operands of matrix products are rounded to `act`, but fp8 weights enter as q * scale, unrounded; products
// accumulate in float32; whatever is not a named tensor stays float32 (one exception: docs/numerics.md); each named
// output is rounded once. This holds for every number of rows, so batch 1 equals batch N and decode equals prefill.
//
// Operands in fp8: with `fp8_activations`, which fp8 weights allow, the rows that meet the weights (x, h, the normed
// x) enter as e4m3 with a power of two per row and 128 columns, scaled and rounded as a latent in an fp8 cache is
// (fp8_row.h): q * 2^e, exact in `act`, and NaN throughout where one of the 128 is no finite number. A product is then
// the sum over blocks of 128 of 2^e * scale * (q . q). Everything else stays as it is.
//
// Padding: a row with positions[t] < 0 is padding. It reads nothing, routes to no expert and writes no cache; its
// outputs are zero (or untouched where the output is also an input).
//
// Page size is 64 tokens (kPageTokens). A slot is page * 64 + offset; slot < 0 means "do not write".
//
// Cache: f32 or bf16 [pages, 64, c + r]; or fp8, an f8e4m3 tensor [pages, 64, bytes of a row], whose rows have c e4m3
// with a float32 scale per 128 and r bf16: 656 bytes for c = 512, r = 64; 400 with 8 bytes of padding for c = 256
// (fp8_row.h). It begins at a multiple of 16 bytes. What is read of a row is exact in bf16.
//
// Every struct lists its arguments once, in fields(), with their direction; the addon, the checks, the lifetimes and
// the documentation are derived from that list.
#pragma once
#include <cstdint>
#include <variant>

#include "common/view.h"

namespace mla {

constexpr int kPageTokens = 64;
constexpr int kScaleBlock = 128;     // rows and columns that share one fp8 weight scale
constexpr int kGateUpBlock = 8;      // fused gate/up weights: 8 gate rows, then 8 up rows, and so on
constexpr int kSamplingColumns = 8;  // SampleParams::settings
constexpr int kInPrompt = 1 << 30;   // SampleParams::counts

enum class Dir : uint8_t { kIn, kOut, kInOut };
enum class Need : uint8_t { kRequired, kOptional };

#define MLA_FIELDS(...) \
  template <class F>    \
  void fields(F&& f) {  \
    __VA_ARGS__;        \
  }
#define MLA_IN(name) f(#name, name, ::mla::Dir::kIn, ::mla::Need::kRequired)
#define MLA_IN_OPT(name) f(#name, name, ::mla::Dir::kIn, ::mla::Need::kOptional)
#define MLA_OUT(name) f(#name, name, ::mla::Dir::kOut, ::mla::Need::kRequired)
#define MLA_OUT_OPT(name) f(#name, name, ::mla::Dir::kOut, ::mla::Need::kOptional)
#define MLA_INOUT(name) f(#name, name, ::mla::Dir::kInOut, ::mla::Need::kRequired)
#define MLA_INOUT_OPT(name) f(#name, name, ::mla::Dir::kInOut, ::mla::Need::kOptional)
#define MLA_VALUE(name) f(#name, name)
#define MLA_VALUE_OPT(name) f(#name, name, ::mla::Need::kOptional)

// ---- rows ---------------------------------------------------------------------------------------------------------

/// out[t] = table[ids[t]], zeros where ids[t] < 0. Embeddings, and last rows before the head.
struct GatherRowsParams {
  View table;  // [V, d] f32 | bf16
  View ids;    // [T] i32, each < V
  View out;    // [T, d] act
  MLA_FIELDS(MLA_IN(table), MLA_IN(ids), MLA_OUT(out))
};

/// out = x * rsqrt(mean(x^2) + eps) * weight, in float32, rounded once.
struct RmsNormParams {
  View x;       // [T, d] act
  View weight;  // [d] f32 | bf16
  View out;     // [T, d] act
  float eps = 0;
  MLA_FIELDS(MLA_IN(x), MLA_IN(weight), MLA_OUT(out), MLA_VALUE(eps))
};

/// x += delta (rounded to act); out = rmsNorm(x).
struct AddRmsNormParams {
  View x;       // [T, d] act
  View delta;   // [T, d] act
  View weight;  // [d] f32 | bf16
  View out;     // [T, d] act
  float eps = 0;
  MLA_FIELDS(MLA_INOUT(x), MLA_IN(delta), MLA_IN(weight), MLA_OUT(out), MLA_VALUE(eps))
};

// ---- attention ----------------------------------------------------------------------------------------------------

/// Everything between the residual stream and the query: input norm, the fused down-projection to the query (or the
/// query latent) and the key/value latent, norm of the latents, RoPE on the shared key, append to the paged cache.
///   a = rmsNorm(x, norm); y = a * weight^T; query part: q = y[:, :Nq], normed with q_norm when that is present
///   (q-LoRA); latent part: cache row = [rmsNorm(y[:, Nq:Nq+c], latent_norm) ; rope(y[:, Nq+c:], positions)].
struct LatentCompressParams {
  View x;                // [T, d] act
  View norm;             // [d] f32 | bf16
  View weight;           // [Nq + c + r, d]
  View weight_scale;     // [ceil((Nq + c + r)/128), ceil(d/128)] f32, with f8e4m3
  View q_norm;           // [Nq] f32 | bf16; absent without q-LoRA
  View latent_norm;      // [c] f32 | bf16
  View positions;        // [T] i32
  View slots;            // [T] i32
  View cos_sin;          // [positions, r/2, 2] f32
  View q;                // [T, Nq] act; Nq = H*(n+r), or the q-LoRA rank
  View cache;            // [pages, 64, c + r] f32 | bf16, or fp8; this layer's
  float eps = 0;         // of the input norm
  float latent_eps = 0;  // of q_norm and latent_norm
  // Whether a enters in fp8; f8e4m3 weights only.
  bool fp8_activations = false;
  MLA_FIELDS(MLA_IN(x), MLA_IN(norm), MLA_IN(weight), MLA_IN_OPT(weight_scale), MLA_IN_OPT(q_norm), MLA_IN(latent_norm),
             MLA_IN(positions), MLA_IN(slots), MLA_IN(cos_sin), MLA_OUT(q), MLA_INOUT(cache), MLA_VALUE(eps),
             MLA_VALUE(latent_eps), MLA_VALUE_OPT(fp8_activations))
};

/// In place: rotates the last r channels of each head by pairs (x0,x1),(x2,x3)...
struct RopeParams {
  View q;          // [T, H, n + r] act
  View positions;  // [T] i32
  View cos_sin;    // [positions, r/2, 2] f32
  MLA_FIELDS(MLA_INOUT(q), MLA_IN(positions), MLA_IN(cos_sin))
};

/// Per head: out = [q_nope * w_uk ; rope(q_rope)], so that scores are dot products with cache rows.
struct QueryAbsorbParams {
  View q;          // [T, H, n + r] act, not rotated yet
  View w_uk;       // [H, n, c] f32 | bf16
  View positions;  // [T] i32
  View cos_sin;    // [positions, r/2, 2] f32
  View out;        // [T, H, c + r] act
  MLA_FIELDS(MLA_IN(q), MLA_IN(w_uk), MLA_IN(positions), MLA_IN(cos_sin), MLA_OUT(out))
};

/// The split plan of this step, shared by all layers. Its content is the backend's own business.
struct DecodePlanParams {
  View q_start;  // [B + 1] i32
  View lengths;  // [B] i32
  View plan;     // [N] i32, N from Backend::decode_plan_ints
  int64_t heads = 0;
  MLA_FIELDS(MLA_IN(q_start), MLA_IN(lengths), MLA_OUT(plan), MLA_VALUE(heads))
};

/// Absorbed attention over the paged cache. Rows q_start[b]..q_start[b+1] are the last tokens of sequence b, whose
/// length (the new tokens included) is lengths[b]; a row sees the keys up to its own position.
///   s = scale * q . row; p = softmax(s); out = sum p * row[:c]; lse = log sum exp(s), natural log.
/// A sequence of length 0, or a row that belongs to no sequence, gives zeros and lse = -inf.
struct MlaDecodeParams {
  View q;            // [T, H, c + r] act
  View q_start;      // [B + 1] i32
  View cache;        // [pages, 64, c + r] f32 | bf16, or fp8
  View block_table;  // [B, max_pages] i32; entries past the length may be anything
  View lengths;      // [B] i32
  View plan;         // [N] i32 from decodePlan
  View out;          // [T, H, c] act
  View lse;          // [T, H] f32
  float scale = 0;
  MLA_FIELDS(MLA_IN(q), MLA_IN(q_start), MLA_IN(cache), MLA_IN(block_table), MLA_IN(lengths), MLA_IN(plan),
             MLA_OUT(out), MLA_OUT(lse), MLA_VALUE(scale))
};

/// Plain multi-head attention of one new token per sequence over a paged cache of per-head keys and values: what
/// attention would read if the cache were not latent. Row b is the last token of sequence b, whose length (it included)
/// is lengths[b].
///   s = scale * q . key; p = softmax(s); out = sum p * value. A sequence of length 0 gives zeros.
struct MhaDecodeParams {
  View q;            // [B, H, n + r] act, rotated
  View cache;        // [pages, 64, H, n + r + v] act: per head the key, then the value
  View block_table;  // [B, max_pages] i32; entries past the length may be anything
  View lengths;      // [B] i32
  View out;          // [B, H * v] act
  float scale = 0;
  MLA_FIELDS(MLA_IN(q), MLA_IN(cache), MLA_IN(block_table), MLA_IN(lengths), MLA_OUT(out), MLA_VALUE(scale))
};

/// Per head: out = u * w_uv^T.
struct ValueExpandParams {
  View u;     // [T, H, c] act
  View w_uv;  // [H, v, c] f32 | bf16
  View out;   // [T, H * v] act
  MLA_FIELDS(MLA_IN(u), MLA_IN(w_uv), MLA_OUT(out))
};

/// Gathers cached rows of each sequence into packed rows: sequence b's rows k_start[b]..k_start[b+1] are its tokens
/// k_pos[b], k_pos[b] + 1, ... Rows from k_start[B] on are zero.
struct LoadLatentParams {
  View cache;        // [pages, 64, c + r] f32 | bf16, or fp8
  View block_table;  // [B, max_pages] i32
  View k_start;      // [B + 1] i32
  View k_pos;        // [B] i32
  View latent;       // [S, c] act
  View rope;         // [S, r] act
  MLA_FIELDS(MLA_IN(cache), MLA_IN(block_table), MLA_IN(k_start), MLA_IN(k_pos), MLA_OUT(latent), MLA_OUT(rope))
};

/// Causal multi-head attention of packed queries over packed, up-projected keys (one chunk of the context). Query row
/// i of sequence b has position q_pos[b] + i, key row j has position k_pos[b] + j; a query sees keys at its position
/// and before. A row that sees no key gives zeros and lse = -inf.
struct MlaPrefillParams {
  View q;        // [T, H, n + r] act, rotated
  View k_nope;   // [S, H, n] act
  View k_rope;   // [S, r] act, one head shared by all
  View value;    // [S, H, v] act
  View q_start;  // [B + 1] i32
  View k_start;  // [B + 1] i32
  View q_pos;    // [B] i32
  View k_pos;    // [B] i32
  View out;      // [T, H * v] act | f32
  View lse;      // [T, H] f32
  float scale = 0;
  MLA_FIELDS(MLA_IN(q), MLA_IN(k_nope), MLA_IN(k_rope), MLA_IN(value), MLA_IN(q_start), MLA_IN(k_start), MLA_IN(q_pos),
             MLA_IN(k_pos), MLA_OUT(out), MLA_OUT(lse), MLA_VALUE(scale))
};

/// Merges two partial attentions over disjoint keys by their log-sum-exp, in float32; out and lse may be a and lse_a.
struct MergeAttentionParams {
  View a;      // [T, H * v] act | f32
  View lse_a;  // [T, H] f32
  View b;      // [T, H * v] act | f32
  View lse_b;  // [T, H] f32
  View out;    // [T, H * v] act | f32
  View lse;    // [T, H] f32
  MLA_FIELDS(MLA_IN(a), MLA_IN(lse_a), MLA_IN(b), MLA_IN(lse_b), MLA_OUT(out), MLA_OUT(lse))
};

// ---- matrix products and experts ----------------------------------------------------------------------------------

/// y = x * w^T (+ residual). y may be the residual's memory.
struct GemmParams {
  View x;         // [T, K] act
  View w;         // [N, K] weight
  View w_scale;   // [ceil(N/128), ceil(K/128)] f32, with f8e4m3
  View residual;  // [T, N] act, may be absent
  View y;         // [T, N] act | f32
  // Whether x enters in fp8; f8e4m3 weights only.
  bool fp8_activations = false;
  MLA_FIELDS(MLA_IN(x), MLA_IN(w), MLA_IN_OPT(w_scale), MLA_IN_OPT(residual), MLA_OUT(y),
             MLA_VALUE_OPT(fp8_activations))
};

/// Dense feed-forward, first half: out = silu(x * gate^T) * (x * up^T).
struct SwigluParams {
  View x;        // [T, d] act
  View w;        // [2 * I, d] weight, gate and up rows interleaved by kGateUpBlock
  View w_scale;  // [2, ceil(I/128), ceil(d/128)] f32 (gate, up), with f8e4m3
  View out;      // [T, I] act
  // Whether x enters in fp8; f8e4m3 weights only.
  bool fp8_activations = false;
  MLA_FIELDS(MLA_IN(x), MLA_IN(w), MLA_IN_OPT(w_scale), MLA_OUT(out), MLA_VALUE_OPT(fp8_activations))
};

/// The router with the norm before it, and the grouping of rows by expert.
///   normed = rmsNorm(x, norm); logits = normed * gate^T in float32; scores = softmax | sigmoid;
///   choice = scores + bias; if n_group > 1 only the topk_group groups with the largest group score stay (max of the
///   group, or with group_top2 the sum of its two largest; others -inf); ids = top_k of choice, ties to the lowest
///   index; weights = scores[ids], / (sum + 1e-20) if norm_topk, * scale.
/// The `shared` always-on experts follow as columns top_k.. with ids experts.. and weight 1. Experts outside
/// [expert_begin, expert_end) are not on this device: their pairs get slot -1 (ids and weights are kept).
/// Pair p = t * (top_k + shared) + j. order lists pairs by expert, then by row; offsets[e] is where local expert e
/// starts in it, always-on experts last.
struct MoeRouteParams {
  View x;          // [T, d] act
  View norm;       // [d] f32 | bf16
  View gate;       // [E, d] f32 | bf16
  View bias;       // [E] f32, may be absent
  View positions;  // [T] i32; < 0: the row routes to no expert (ids -1, weights 0, slots -1)
  View normed;     // [T, d] act
  View ids;        // [T, top_k + shared] i32
  View weights;    // [T, top_k + shared] f32
  View offsets;    // [local experts + shared + 1] i32
  View order;      // [T * (top_k + shared)] i32, pair indices; -1 past offsets' end
  View slots;      // [T, top_k + shared] i32, where each pair stands in order; -1 if nowhere
  float eps = 0;
  float scale = 1;
  int64_t top_k = 0;
  int64_t shared = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  int64_t expert_begin = 0;
  int64_t expert_end = 0;
  bool sigmoid = false;
  bool group_top2 = false;
  bool norm_topk = false;
  MLA_FIELDS(MLA_IN(x), MLA_IN(norm), MLA_IN(gate), MLA_IN_OPT(bias), MLA_IN(positions), MLA_OUT(normed), MLA_OUT(ids),
             MLA_OUT(weights), MLA_OUT(offsets), MLA_OUT(order), MLA_OUT(slots), MLA_VALUE(eps), MLA_VALUE(scale),
             MLA_VALUE(top_k), MLA_VALUE(shared), MLA_VALUE(n_group), MLA_VALUE(topk_group), MLA_VALUE(expert_begin),
             MLA_VALUE(expert_end), MLA_VALUE(sigmoid), MLA_VALUE(group_top2), MLA_VALUE(norm_topk))
};

/// Grouped product with SwiGLU: row i of h belongs to pair order[i], whose input row is x[order[i] / K] with
/// K = order's length / T. Rows past offsets' end are not written.
struct MoeGateUpParams {
  View x;        // [T, d] act
  View w;        // [E', 2 * I, d] weight, gate and up rows interleaved by kGateUpBlock
  View w_scale;  // [E', 2, ceil(I/128), ceil(d/128)] f32, with f8e4m3
  View offsets;  // [E' + 1] i32
  View order;    // [P] i32
  View h;        // [P, I] act
  // Always-on experts, the last ones of w: a backend may fetch their weights before it knows the others. 0 is allowed.
  int64_t shared = 0;
  // Whether x enters in fp8; f8e4m3 weights only.
  bool fp8_activations = false;
  MLA_FIELDS(MLA_IN(x), MLA_IN(w), MLA_IN_OPT(w_scale), MLA_IN(offsets), MLA_IN(order), MLA_OUT(h),
             MLA_VALUE_OPT(shared), MLA_VALUE_OPT(fp8_activations))
};

/// out[t] = residual[t] + sum over j, ascending, of weights[t, j] * y[slots[t, j]]; slots < 0 add nothing. A pair's row
/// y = h * w_e^T is rounded to act, as if it were an output; the sum is float32.
struct MoeDownParams {
  View h;         // [P, I] act
  View w;         // [E', d, I] weight
  View w_scale;   // [E', ceil(d/128), ceil(I/128)] f32, with f8e4m3
  View offsets;   // [E' + 1] i32
  View order;     // [P] i32
  View slots;     // [T, K] i32
  View weights;   // [T, K] f32
  View residual;  // [T, d] act, may be absent; may be out's memory
  View out;       // [T, d] act
  // Whether h enters in fp8; f8e4m3 weights only.
  bool fp8_activations = false;
  MLA_FIELDS(MLA_IN(h), MLA_IN(w), MLA_IN_OPT(w_scale), MLA_IN(offsets), MLA_IN(order), MLA_IN(slots), MLA_IN(weights),
             MLA_IN_OPT(residual), MLA_OUT(out), MLA_VALUE_OPT(fp8_activations))
};

// ---- sampling -----------------------------------------------------------------------------------------------------

/// One token per row of logits. settings columns: 0 temperature (0 = greedy), 1 top_k (0 = all), 2 top_p (1 = all),
/// 3 min_p (0 = all), 4 repetition, 5 presence, 6 frequency penalty, 7 unused. Order: penalties, bias, temperature,
/// top_k, top_p, min_p. Penalties: an id that stands in the prompt (kInPrompt in its count) or n > 0 times in the text
/// after it gets x = logit > 0 ? logit / repetition : logit * repetition; one with n > 0 then x - presence - frequency
/// * n. The choice among what stays is argmax(logit / temperature + g), g Gumbel noise from Philox4x32-10
/// with key seeds[b] and counter (positions[b], id): it depends on nothing but the row, its seed and its position.
/// Ties go to the lowest id. Ids >= vocab are never chosen.
struct SampleParams {
  View logits;     // [B, V] f32
  View settings;   // [B, 8] f32
  View seeds;      // [B] i64
  View positions;  // [B] i32, of the row the logits come from; < 0: id -1
  View counts;     // [B, V] i32, n of each id, plus kInPrompt; a count below 1 is none; may be absent
  View bias;       // [B, V] f32, added after the penalties; may be absent
  View mask;       // [B, ceil(V/32)] u32, bit 1 = allowed; may be absent
  View ids;        // [B] i32
  View logprobs;   // [B] f32, of the chosen id under softmax(logits) as given; may be absent
  int64_t vocab = 0;
  MLA_FIELDS(MLA_IN(logits), MLA_IN(settings), MLA_IN(seeds), MLA_IN(positions), MLA_IN_OPT(counts), MLA_IN_OPT(bias),
             MLA_IN_OPT(mask), MLA_OUT(ids), MLA_OUT_OPT(logprobs), MLA_VALUE(vocab))
};

/// Log-probabilities of target ids and of the K most likely ids (ties to the lowest id), without a full [R, V] tensor.
struct LogProbsParams {
  View x;             // [R, d] act, after the final norm
  View head;          // [V, d] f32 | bf16
  View targets;       // [R] i32; < 0: logprob 0
  View logprobs;      // [R] f32
  View top_ids;       // [R, K] i32, may be absent
  View top_logprobs;  // [R, K] f32, absent if and only if top_ids is
  MLA_FIELDS(MLA_IN(x), MLA_IN(head), MLA_IN(targets), MLA_OUT(logprobs), MLA_OUT_OPT(top_ids),
             MLA_OUT_OPT(top_logprobs))
};

/// Sampled ids become the next step's inputs. For each row with finished == 0 and sampled >= 0: finished = 1 if the id
/// is one of stop_ids, else 2 if position + 1 has reached limits; if still 0: ids = sampled, positions += 1,
/// lengths = positions + 1, slots = the cache slot of the new position. Any other row becomes padding: ids, positions
/// and slots -1, lengths 0. Where counts are given, the row's count of the sampled id goes up by one before all this.
struct AdvanceParams {
  View sampled;      // [B] i32
  View block_table;  // [B, max_pages] i32
  View stop_ids;     // [B, n] i32, -1 pads
  View limits;       // [B] i32, tokens a row may have in all
  View ids;          // [B] i32
  View positions;    // [B] i32
  View lengths;      // [B] i32
  View slots;        // [B] i32
  View finished;     // [B] i32: 0 running, 1 stop id, 2 limit
  View counts;       // [B, V] i32, as in SampleParams; may be absent
  MLA_FIELDS(MLA_IN(sampled), MLA_IN(block_table), MLA_IN(stop_ids), MLA_IN(limits), MLA_INOUT(ids),
             MLA_INOUT(positions), MLA_INOUT(lengths), MLA_INOUT(slots), MLA_INOUT(finished), MLA_INOUT_OPT(counts))
};

// ---- memory and conversions ---------------------------------------------------------------------------------------

/// For each pair (from, to) of pages: cache[:, to] = cache[:, from]. Pairs with a negative entry do nothing.
struct CopyPagesParams {
  View pairs;  // [N, 2] i32
  View cache;  // [layers, pages, 64, L] f32 | bf16, or fp8
  MLA_FIELDS(MLA_IN(pairs), MLA_INOUT(cache))
};

/// Strided copy of bytes: block i of block_bytes goes from src + src_offset + i * src_stride to
/// dst + dst_offset + i * dst_stride; an offset or stride that is left out is 0. Load-time layouts (row interleave,
/// splitting W_UK from W_UV) are made with it.
struct CopyParams {
  View src;
  View dst;
  int64_t blocks = 0;
  int64_t block_bytes = 0;
  int64_t src_offset = 0;
  int64_t src_stride = 0;
  int64_t dst_offset = 0;
  int64_t dst_stride = 0;
  MLA_FIELDS(MLA_IN(src), MLA_INOUT(dst), MLA_VALUE(blocks), MLA_VALUE(block_bytes), MLA_VALUE_OPT(src_offset),
             MLA_VALUE_OPT(src_stride), MLA_VALUE_OPT(dst_offset), MLA_VALUE_OPT(dst_stride))
};

/// Elementwise conversion between f32, bf16 and f16, round to nearest even.
struct CastParams {
  View x;    // any shape
  View out;  // as many elements
  MLA_FIELDS(MLA_IN(x), MLA_OUT(out))
};

/// e4m3 with one scale per 128x128 block: scale = max|x| / 448, rounded up to a power of two if pow2;
/// q = sat(x / scale).
struct QuantizeParams {
  View x;      // [R, C] f32 | bf16
  View q;      // [R, C] f8e4m3
  View scale;  // [ceil(R/128), ceil(C/128)] f32
  bool pow2 = false;
  MLA_FIELDS(MLA_IN(x), MLA_OUT(q), MLA_OUT(scale), MLA_VALUE(pow2))
};

/// out = q * scale.
struct DequantizeParams {
  View q;      // [R, C] f8e4m3
  View scale;  // [ceil(R/128), ceil(C/128)] f32 | f8e8m0
  View out;    // [R, C] f32 | bf16
  MLA_FIELDS(MLA_IN(q), MLA_IN(scale), MLA_OUT(out))
};

/// out[i] = mean + stddev * z_i, z_i standard normal from Philox4x32-10 (key seed, counter i), Box-Muller in float32.
struct FillRandomParams {
  View out;  // f32 | bf16
  int64_t seed = 0;
  float mean = 0;
  float stddev = 1;
  MLA_FIELDS(MLA_OUT(out), MLA_VALUE(seed), MLA_VALUE(mean), MLA_VALUE(stddev))
};

/// sums[i] = sum of the 32-bit words (little end first, unsigned) of part i of x, modulo 2^64; part i of n has the
/// words [i * words / n, (i + 1) * words / n). Tells whether memory holds what it should, and how fast it can be read.
struct ChecksumParams {
  View x;     // any type and shape, a multiple of 4 bytes
  View sums;  // [n] i64
  MLA_FIELDS(MLA_IN(x), MLA_OUT(sums))
};

/// X(StructPrefix, verbName): every operation, in the order of this file.
#define MLA_OPS(X)                  \
  X(GatherRows, gatherRows)         \
  X(RmsNorm, rmsNorm)               \
  X(AddRmsNorm, addRmsNorm)         \
  X(LatentCompress, latentCompress) \
  X(Rope, rope)                     \
  X(QueryAbsorb, queryAbsorb)       \
  X(DecodePlan, decodePlan)         \
  X(MlaDecode, mlaDecode)           \
  X(MhaDecode, mhaDecode)           \
  X(ValueExpand, valueExpand)       \
  X(LoadLatent, loadLatent)         \
  X(MlaPrefill, mlaPrefill)         \
  X(MergeAttention, mergeAttention) \
  X(Gemm, gemm)                     \
  X(Swiglu, swiglu)                 \
  X(MoeRoute, moeRoute)             \
  X(MoeGateUp, moeGateUp)           \
  X(MoeDown, moeDown)               \
  X(Sample, sample)                 \
  X(LogProbs, logProbs)             \
  X(Advance, advance)               \
  X(CopyPages, copyPages)           \
  X(Copy, copy)                     \
  X(Cast, cast)                     \
  X(Quantize, quantize)             \
  X(Dequantize, dequantize)         \
  X(FillRandom, fillRandom)         \
  X(Checksum, checksum)

#define MLA_OP_COMMA(Name, verb) , Name##Params
/// One operation with its arguments; monostate is none.
using Op = std::variant<std::monostate MLA_OPS(MLA_OP_COMMA)>;
#undef MLA_OP_COMMA

}  // namespace mla
