// sampling_filter.h - which tokens stay after top_k, top_p and min_p.
//
// A candidate list is a pair of arrays, scaled logits and ids, with ids ascending; each filter shortens it in place and
// keeps that order. All filters are exact: they select by radix over the float's ordered bit pattern, in linear time,
// and among equal logits at the border the lowest ids stay.
#pragma once
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

struct Candidates {
  float* x;      // scaled logits, none NaN or +inf
  int32_t* ids;  // ascending
  int64_t n;
};

/// Lists the elements of x[0, n) that are at least `least` (above -inf in any case).
void collect(const float* x, int64_t n, float least, Candidates* out);

/// A value that at least k elements of x[0, n) reach; -inf where finding one would cost more than it saves.
/// `scratch` holds n / 64 + 1 floats.
float top_k_bound(const float* x, int64_t n, int64_t k, float* scratch);

/// Keeps the k largest.
void keep_top_k(Candidates* c, int64_t k);

/// Keeps the smallest set of most likely candidates whose sum of e^(x - largest) reaches top_p * total, and at least
/// one. `largest` is the largest x; a negative total stands for the sum over the candidates. `weights` holds c->n
/// floats.
void keep_top_p(Candidates* c, float top_p, float largest, double total, float* weights);

/// Keeps candidates at least min_p times as likely as the most likely one.
void keep_min_p(Candidates* c, float min_p, float largest);

}  // namespace mla::cpu::MLA_CPU_ISA
