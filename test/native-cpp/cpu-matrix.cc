// cpu-matrix.cc - the matrix operations of every instruction set this processor has, against a float64 reference and
// against themselves: a row alone, among others, on one thread and on several must have the same bits.
//
// The jest tests see only the best instruction set; this program sees all of them. It prints one line per failure and
// exits with 1, or prints how many comparisons it made.
#include "support.h"

namespace mla::cpu {
#define MLA_DECLARE(Name, verb) Status verb(const Name##Params&, Context&);
namespace baseline {
MLA_OPS(MLA_DECLARE)
}
#if defined(__x86_64__)
namespace avx2 {
MLA_OPS(MLA_DECLARE)
}
namespace avx512 {
MLA_OPS(MLA_DECLARE)
}
#endif
#undef MLA_DECLARE
}  // namespace mla::cpu

namespace {

/// The matrix operations of one instruction set.
struct Table {
  const char* name;
  Status (*gemm)(const GemmParams&, Context&);
  Status (*swiglu)(const SwigluParams&, Context&);
  Status (*moe_gate_up)(const MoeGateUpParams&, Context&);
  Status (*moe_down)(const MoeDownParams&, Context&);
  Status (*latent_compress)(const LatentCompressParams&, Context&);
  Status (*query_absorb)(const QueryAbsorbParams&, Context&);
  Status (*value_expand)(const ValueExpandParams&, Context&);
  Status (*log_probs)(const LogProbsParams&, Context&);
};

#define MLA_TABLE(isa)                                                                                 \
  Table {                                                                                              \
#isa, isa::gemm, isa::swiglu, isa::moeGateUp, isa::moeDown, isa::latentCompress, isa::queryAbsorb, \
        isa::valueExpand, isa::logProbs                                                                \
  }

double act_round(double x, DType act) {
  return act == DType::kBF16 ? static_cast<double>(to_f32(to_bf16(static_cast<float>(x)))) : x;
}

/// One weight as an operand: the stored value, times its scale or rounded to the activations' type.
double weight_at(View w, View scale, int64_t scale_row, int64_t n, int64_t k, DType act) {
  const int64_t columns = w.dim(w.rank - 1);
  const double x = value_at(w, n * columns + k);
  if (w.dtype != DType::kF8E4M3) return act_round(x, act);
  return x * value_at(scale, scale_row * ceil_div(columns, kScaleBlock) + k / kScaleBlock);
}

double silu(double x) { return x / (1 + std::exp(-x)); }

const DType kActs[] = {DType::kF32, DType::kBF16};
const DType kWeights[] = {DType::kF32, DType::kBF16, DType::kF8E4M3};

std::string label(const Table& t, const char* op, DType act, DType w) {
  return std::string(t.name) + " " + op + " " + dtype_name(act) + " x " + dtype_name(w);
}

void test_gemm(const Table& t, DType act, DType wt, int64_t rows, int64_t n, int64_t k, bool residual, DType yt) {
  Tensor x(act, {rows, k}), w(wt, {n, k}), scale(DType::kF32, {ceil_div(n, 128), ceil_div(k, 128)});
  Tensor r(act, {rows, n}), y(yt, {rows, n});
  x.random();
  w.random();
  scale.random(0.01f, 0.02f);
  r.random(10);
  const View ws = wt == DType::kF8E4M3 ? scale.view : View{};
  const std::string what = label(t, "gemm", act, wt) + " [" + std::to_string(rows) + ", " + std::to_string(k) +
                           "] x [" + std::to_string(n) + "]";
  all_ways(what, rows, y, [&](Machine& m, int64_t begin, int64_t count) {
    GemmParams p;
    p.x = rows_of(x.view, begin, count);
    p.w = w.view;
    p.w_scale = ws;
    if (residual) p.residual = rows_of(r.view, begin, count);
    p.y = rows_of(y.view, begin, count);
    return m.run(t.gemm, p);
  });
  std::vector<double> expected(rows * n);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t q = 0; q < k; ++q) sum += x.at(i * k + q) * weight_at(w.view, ws, j / 128, j, q, act);
      expected[i * n + j] = sum + (residual ? r.at(i * n + j) : 0);
    }
  }
  compare(what, y, expected, n, 1e-5);
}

/// f8e4m3 has a short way for ordinary weights; NaN and large scales must take the other one, with the same bits.
void test_rare_f8(const Table& t) {
  const int64_t rows = 25, n = 150, k = 300;
  Tensor x(DType::kF32, {rows, k}), w(DType::kF8E4M3, {n, k}), scale(DType::kF32, {2, 3}), y(DType::kF32, {rows, n});
  x.random();
  w.random();
  scale.random(0.01f, 0.02f);
  scale.view.as<float>()[1] = 0x1p100f;  // of rows 0 to 127
  w.view.as<F8E4M3>()[140 * k + 299] = {0xff};
  w.view.as<F8E4M3>()[149 * k + 10] = {0x7f};
  const std::string what = std::string(t.name) + " gemm with NaN and large scales";
  all_ways(what, rows, y, [&](Machine& m, int64_t begin, int64_t count) {
    GemmParams p;
    p.x = rows_of(x.view, begin, count);
    p.w = w.view;
    p.w_scale = scale.view;
    p.y = rows_of(y.view, begin, count);
    return m.run(t.gemm, p);
  });
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, size = 0;
      for (int64_t q = 0; q < k; ++q) {
        const double product = x.at(i * k + q) * weight_at(w.view, scale.view, j / 128, j, q, DType::kF32);
        sum += product;
        size += std::fabs(product);
      }
      ++comparisons;
      const double got = y.at(i * n + j);
      if (j == 140 || j == 149 ? !std::isnan(got) : !(std::fabs(got - sum) <= 1e-5 * size)) return fail(what);
    }
  }
}

/// Rows that enter in fp8 give the bits of rows that have been rounded before, by the definition in ops.h.
void test_fp8_activations(const Table& t, DType act) {
  const int64_t rows = 61, n = 33, k = 300;
  Tensor x(act, {rows, k}), rounded(act, {rows, k}), w(DType::kF8E4M3, {n, k}), scale(DType::kF32, {1, 3});
  w.random();
  scale.random(0.01f, 0.02f);
  const auto put = [act](Tensor& to, int64_t i, double value) {
    if (act == DType::kF32) to.view.as<float>()[i] = static_cast<float>(value);
    if (act == DType::kBF16) to.view.as<Bf16>()[i] = to_bf16(static_cast<float>(value));
  };
  for (int64_t i = 0; i < rows * k; ++i) put(x, i, std::ldexp(uniform(), static_cast<int>(i % k / 32 * 3 - i % 7)));
  for (int64_t i = 0; i < rows * k; ++i) {
    double largest = 0;
    for (int64_t first = i - i % k % 128, j = first; j < first + 128 && j / k == i / k; ++j)
      largest = std::fmax(largest, std::fabs(x.at(j)));
    int exponent = -60;
    while (std::ldexp(largest, -exponent) > 448) ++exponent;
    put(rounded, i, std::ldexp(to_f32(to_f8e4m3(static_cast<float>(std::ldexp(x.at(i), -exponent)))), exponent));
  }
  const std::string what = label(t, "gemm in fp8", act, DType::kF8E4M3);
  const auto run = [&](const Tensor& from, bool fp8) {
    Tensor y(DType::kF32, {rows, n});
    all_ways(what, rows, y, [&](Machine& m, int64_t begin, int64_t count) {
      return m.run(t.gemm, GemmParams{rows_of(from.view, begin, count), w.view, scale.view, View{},
                                      rows_of(y.view, begin, count), fp8});
    });
    return y;
  };
  if (!run(x, true).same_bytes(run(rounded, false))) fail(what + ": other bits than rows that were rounded before");
  if (run(x, true).same_bytes(run(x, false))) fail(what + ": nothing was rounded");
}

/// Row of an interleaved gate/up matrix that holds channel i of gate (part 0) or up (part 1).
int64_t interleaved(int64_t i, int part) { return i / 8 * 16 + part * 8 + i % 8; }

void test_swiglu(const Table& t, DType act, DType wt, int64_t rows, int64_t width, int64_t d) {
  Tensor x(act, {rows, d}), w(wt, {2 * width, d}), out(act, {rows, width});
  Tensor scale(DType::kF32, {2, ceil_div(width, 128), ceil_div(d, 128)});
  x.random();
  w.random(wt == DType::kF8E4M3 ? 1 : 0.2f);
  scale.random(0.0002f, 0.0004f);
  const View ws = wt == DType::kF8E4M3 ? scale.view : View{};
  const std::string what = label(t, "swiglu", act, wt);
  all_ways(what, rows, out, [&](Machine& m, int64_t begin, int64_t count) {
    SwigluParams p;
    p.x = rows_of(x.view, begin, count);
    p.w = w.view;
    p.w_scale = ws;
    p.out = rows_of(out.view, begin, count);
    return m.run(t.swiglu, p);
  });
  std::vector<double> expected(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      double part[2] = {0, 0};
      for (int g = 0; g < 2; ++g) {
        for (int64_t q = 0; q < d; ++q) {
          part[g] +=
              x.at(i * d + q) * weight_at(w.view, ws, g * ceil_div(width, 128) + j / 128, interleaved(j, g), q, act);
        }
      }
      expected[i * width + j] = silu(part[0]) * part[1];
    }
  }
  compare(what, out, expected, width, 2e-5);
}

/// A routing: slots, order and offsets of given ids (< 0: nowhere).
struct Routing {
  Tensor offsets, order, slots;
  Routing(const std::vector<int>& ids, int64_t rows, int64_t per_row, int64_t experts)
      : offsets(DType::kI32, {experts + 1}), order(DType::kI32, {rows * per_row}), slots(DType::kI32, {rows, per_row}) {
    int32_t at = 0;
    order.ints([](int64_t) { return -1; });
    slots.ints([](int64_t) { return -1; });
    for (int64_t e = 0; e < experts; ++e) {
      offsets.view.as<int32_t>()[e] = at;
      for (int64_t p = 0; p < rows * per_row; ++p) {
        if (ids[p] != e) continue;
        order.view.as<int32_t>()[at] = static_cast<int32_t>(p);
        slots.view.as<int32_t>()[p] = at++;
      }
    }
    offsets.view.as<int32_t>()[experts] = at;
  }
};

void test_experts(const Table& t, DType act, DType wt, int64_t rows, int64_t d, int64_t width, int64_t experts,
                  int64_t per_row) {
  std::vector<int> ids(rows * per_row);
  for (int64_t i = 0; i < rows; ++i) {
    const bool padding = i % 7 == 3;
    for (int64_t j = 0; j < per_row; ++j) {
      const bool elsewhere = rng() % 5 == 0;
      ids[i * per_row + j] = padding || elsewhere ? -1 : static_cast<int>((rng() + j) % experts);
    }
  }
  Tensor x(act, {rows, d}), up(wt, {experts, 2 * width, d}), down(wt, {experts, d, width});
  Tensor up_scale(DType::kF32, {experts, 2, ceil_div(width, 128), ceil_div(d, 128)});
  Tensor down_scale(DType::kF32, {experts, ceil_div(d, 128), ceil_div(width, 128)});
  Tensor weights(DType::kF32, {rows, per_row}), residual(act, {rows, d}), out(act, {rows, d});
  Tensor h(act, {rows * per_row, width});
  x.random();
  up.random(wt == DType::kF8E4M3 ? 1 : 0.2f);
  down.random();
  up_scale.random(0.0002f, 0.0004f);
  down_scale.random(0.001f, 0.002f);
  weights.random();
  residual.random();
  const bool f8 = wt == DType::kF8E4M3;
  const std::string what = label(t, "experts", act, wt);
  bool check_h = true;
  Tensor h_all;
  all_ways(what, rows, out, [&](Machine& m, int64_t begin, int64_t count) {
    const Routing routing(std::vector<int>(ids.begin() + begin * per_row, ids.begin() + (begin + count) * per_row),
                          count, per_row, experts);
    h.poison();
    MoeGateUpParams g;
    g.x = rows_of(x.view, begin, count);
    g.w = up.view;
    if (f8) g.w_scale = up_scale.view;
    g.offsets = routing.offsets.view;
    g.order = routing.order.view;
    g.h = rows_of(h.view, 0, count * per_row);
    Status s = m.run(t.moe_gate_up, g);
    if (!s.ok()) return s;
    if (!h.guard_intact()) fail(what + " wrote behind h");
    if (check_h) h_all = h;
    check_h = false;
    MoeDownParams p;
    p.h = g.h;
    p.w = down.view;
    if (f8) p.w_scale = down_scale.view;
    p.offsets = g.offsets;
    p.order = g.order;
    p.slots = routing.slots.view;
    p.weights = rows_of(weights.view, begin, count);
    p.residual = rows_of(residual.view, begin, count);
    p.out = rows_of(out.view, begin, count);
    return m.run(t.moe_down, p);
  });
  const Routing routing(ids, rows, per_row, experts);
  const int64_t used = routing.offsets.view.as<int32_t>()[experts];
  // An expert's row is rounded before it is weighed: where the float32 sum may lie on either side of the middle of two
  // neighbours, either will do.
  std::vector<double> expected(rows * d), slack(rows * d);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < d; ++c) expected[i * d + c] = residual.at(i * d + c);
    for (int64_t j = 0; j < per_row; ++j) {
      const int e = ids[i * per_row + j];
      if (e < 0) continue;
      const int64_t slot = static_cast<int64_t>(routing.slots.at(i * per_row + j));
      std::vector<double> hidden(width);
      for (int64_t q = 0; q < width; ++q) {
        double part[2] = {0, 0};
        for (int g = 0; g < 2; ++g) {
          for (int64_t z = 0; z < d; ++z) {
            const int64_t scale_row = (2 * e + g) * ceil_div(width, 128) + q / 128;
            part[g] += x.at(i * d + z) * weight_at(up.view, f8 ? up_scale.view : View{}, scale_row,
                                                   e * 2 * width + interleaved(q, g), z, act);
          }
        }
        hidden[q] = h_all.at(slot * width + q);
        const double exact = silu(part[0]) * part[1];
        ++comparisons;
        if (!(std::fabs(hidden[q] - exact) <= 2e-5 + std::fabs(exact) * 0x1p-8)) {
          fail(what + " h: " + std::to_string(hidden[q]) + ", expected " + std::to_string(exact));
          return;
        }
      }
      for (int64_t c = 0; c < d; ++c) {
        double sum = 0;
        for (int64_t q = 0; q < width; ++q) {
          sum += hidden[q] *
                 weight_at(down.view, f8 ? down_scale.view : View{}, e * ceil_div(d, 128) + c / 128, e * d + c, q, act);
        }
        const double weight = weights.at(i * per_row + j);
        expected[i * d + c] += weight * act_round(sum, act);
        if (act == DType::kBF16)
          slack[i * d + c] += std::fabs(weight) * (act_round(sum + 1e-5, act) - act_round(sum - 1e-5, act));
      }
    }
  }
  for (int64_t i = used * width; i < rows * per_row * width; ++i) {
    if (!std::isnan(h_all.at(i))) return fail(what + " wrote rows of h past the end of offsets");
  }
  compare(what, out, expected, d, 1e-5, slack);
}

/// The weighted sum ascends: 2^24 + 1 is 2^24 in float32, so that the 1 is lost in this order and in no other.
void test_expert_order(const Table& t) {
  const int64_t width = 8, d = 16, experts = 3;
  Tensor h(DType::kF32, {experts, width}), w(DType::kF32, {experts, d, width}), weights(DType::kF32, {1, experts});
  Tensor out(DType::kF32, {1, d});
  const float values[] = {0x1p24f, 1, -0x1p24f};
  for (int64_t i = 0; i < h.view.numel(); ++i) h.view.as<float>()[i] = i % width == 0 ? 1 : 0;
  for (int64_t i = 0; i < w.view.numel(); ++i) w.view.as<float>()[i] = 1;
  for (int64_t i = 0; i < experts; ++i) weights.view.as<float>()[i] = values[i];
  // The experts lie in another order than the row names them.
  const Routing routing({2, 0, 1}, 1, experts, experts);
  MoeDownParams p;
  p.h = h.view;
  p.w = w.view;
  p.offsets = routing.offsets.view;
  p.order = routing.order.view;
  p.slots = routing.slots.view;
  p.weights = weights.view;
  p.out = out.view;
  Machine m(1);
  const Status s = m.run(t.moe_down, p);
  if (!s.ok()) return fail(s.text);
  for (int64_t i = 0; i < d; ++i) {
    ++comparisons;
    if (out.at(i) != 0) return fail(std::string(t.name) + " moeDown adds its experts in another order than ascending");
  }
}

void test_latent(const Table& t, DType act, DType wt, DType cache_type, bool q_lora, int64_t rows, int64_t d,
                 int64_t nq, int64_t c, int64_t r) {
  const int64_t pages = 2, table = 40;
  Tensor x(act, {rows, d}), norm(DType::kBF16, {d}), w(wt, {nq + c + r, d}), q_norm(DType::kF32, {nq});
  Tensor scale(DType::kF32, {ceil_div(nq + c + r, 128), ceil_div(d, 128)}), latent_norm(DType::kF32, {c});
  Tensor positions(DType::kI32, {rows}), slots(DType::kI32, {rows}), cos_sin(DType::kF32, {table, r / 2, 2});
  Tensor q(act, {rows, nq}), cache(cache_type, {pages, 64, c + r});
  x.random();
  norm.random(0.5f, 1);
  w.random();
  scale.random(0.001f, 0.002f);
  q_norm.random(0.5f, 1);
  latent_norm.random(0.5f, 1);
  cos_sin.random();
  positions.ints([&](int64_t i) { return i % 6 == 2 ? -1 : (i * 7) % table; });
  slots.ints([&](int64_t i) { return i % 6 == 2 ? 1000000 : i % 5 == 4 ? -1 : (i * 3 + 1) % (pages * 64); });
  const View ws = wt == DType::kF8E4M3 ? scale.view : View{};
  const std::string what = label(t, "latentCompress", act, wt) + (q_lora ? " q-lora" : "");
  Tensor first_cache;
  const auto run = [&](Machine& m, int64_t begin, int64_t count) {
    if (begin == 0) cache.poison();
    LatentCompressParams p;
    p.x = rows_of(x.view, begin, count);
    p.norm = norm.view;
    p.weight = w.view;
    p.weight_scale = ws;
    if (q_lora) p.q_norm = q_norm.view;
    p.latent_norm = latent_norm.view;
    p.positions = rows_of(positions.view, begin, count);
    p.slots = rows_of(slots.view, begin, count);
    p.cos_sin = cos_sin.view;
    p.q = rows_of(q.view, begin, count);
    p.cache = cache.view;
    p.eps = 1e-6f;
    p.latent_eps = 1e-5f;
    const Status s = m.run(t.latent_compress, p);
    if (begin + count == rows) {
      if (!first_cache.view.present()) first_cache = cache;
      if (!first_cache.same_bytes(cache)) fail(what + ": the cache has other bits");
    }
    return s;
  };
  all_ways(what, rows, q, run);
  const int64_t n = nq + c + r;
  std::vector<double> expected_q(rows * nq);
  std::vector<char> written(pages * 64, 0);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t position = static_cast<int64_t>(positions.at(i)), slot = static_cast<int64_t>(slots.at(i));
    if (position < 0) continue;
    double squares = 0;
    for (int64_t z = 0; z < d; ++z) squares += x.at(i * d + z) * x.at(i * d + z);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(d) + 1e-6);
    std::vector<double> y(n);
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t z = 0; z < d; ++z) {
        y[j] += act_round(x.at(i * d + z) * factor * norm.at(z), act) * weight_at(w.view, ws, j / 128, j, z, act);
      }
    }
    const auto rms = [&](int64_t from, int64_t count) {
      double sum = 0;
      for (int64_t j = 0; j < count; ++j) sum += y[from + j] * y[from + j];
      return 1 / std::sqrt(sum / static_cast<double>(count) + 1e-5);
    };
    for (int64_t j = 0; j < nq; ++j) expected_q[i * nq + j] = q_lora ? y[j] * rms(0, nq) * q_norm.at(j) : y[j];
    if (slot < 0) continue;
    written[slot] = 1;
    std::vector<double> row(c + r);
    for (int64_t j = 0; j < c; ++j) row[j] = y[nq + j] * rms(nq, c) * latent_norm.at(j);
    for (int64_t j = 0; j < r; j += 2) {
      const double a = y[nq + c + j], b = y[nq + c + j + 1];
      const double cosine = cos_sin.at(position * r + j), sine = cos_sin.at(position * r + j + 1);
      row[c + j] = a * cosine - b * sine;
      row[c + j + 1] = a * sine + b * cosine;
    }
    Tensor got(cache_type, {1, c + r});
    std::memcpy(got.view.data, rows_of(View{cache.view.data, cache_type, 2, {pages * 64, c + r}}, slot, 1).data,
                static_cast<size_t>(got.view.bytes()));
    // Rounding of the normed operand to bf16 can differ by one unit where float64 and float32 norms differ.
    compare(what + " cache", got, row, c + r, act == DType::kBF16 ? 4e-3 : 2e-5);
  }
  compare(what + " q", q, expected_q, nq, act == DType::kBF16 ? 4e-3 : 2e-5);
  for (int64_t s = 0; s < pages * 64; ++s) {
    if (!written[s] && !std::isnan(cache.at(s * (c + r)))) return fail(what + " wrote a slot it was not given");
  }
}

void test_absorb(const Table& t, DType act, DType wt, int64_t rows, int64_t heads, int64_t n, int64_t r, int64_t c,
                 int64_t v) {
  const int64_t table = 50;
  Tensor q(act, {rows, heads, n + r}), w_uk(wt, {heads, n, c}), positions(DType::kI32, {rows});
  Tensor cos_sin(DType::kF32, {table, r / 2, 2}), out(act, {rows, heads, c + r});
  Tensor w_uv(wt, {heads, v, c}), expanded(act, {rows, heads * v});
  q.random();
  w_uk.random();
  w_uv.random();
  cos_sin.random();
  positions.ints([&](int64_t i) { return i % 4 == 1 ? -1 : (i * 11) % table; });
  const std::string what = label(t, "queryAbsorb", act, wt);
  all_ways(what, rows, out, [&](Machine& m, int64_t begin, int64_t count) {
    QueryAbsorbParams p;
    p.q = rows_of(q.view, begin, count);
    p.w_uk = w_uk.view;
    p.positions = rows_of(positions.view, begin, count);
    p.cos_sin = cos_sin.view;
    p.out = rows_of(out.view, begin, count);
    return m.run(t.query_absorb, p);
  });
  std::vector<double> expected(rows * heads * (c + r));
  for (int64_t i = 0; i < rows * heads; ++i) {
    const int64_t position = static_cast<int64_t>(positions.at(i / heads)), h = i % heads;
    if (position < 0) continue;
    double* const row = expected.data() + i * (c + r);
    for (int64_t j = 0; j < c; ++j) {
      for (int64_t z = 0; z < n; ++z) row[j] += q.at(i * (n + r) + z) * act_round(w_uk.at((h * n + z) * c + j), act);
    }
    for (int64_t j = 0; j < r; j += 2) {
      const double a = q.at(i * (n + r) + n + j), b = q.at(i * (n + r) + n + j + 1);
      const double cosine = cos_sin.at(position * r + j), sine = cos_sin.at(position * r + j + 1);
      row[c + j] = a * cosine - b * sine;
      row[c + j + 1] = a * sine + b * cosine;
    }
  }
  compare(what, out, expected, c + r, 1e-5);

  Tensor u(act, {rows, heads, c});
  u.random();
  const std::string what2 = label(t, "valueExpand", act, wt);
  all_ways(what2, rows, expanded, [&](Machine& m, int64_t begin, int64_t count) {
    ValueExpandParams p;
    p.u = rows_of(u.view, begin, count);
    p.w_uv = w_uv.view;
    p.out = rows_of(expanded.view, begin, count);
    return m.run(t.value_expand, p);
  });
  std::vector<double> expected2(rows * heads * v);
  for (int64_t i = 0; i < rows * heads; ++i) {
    for (int64_t j = 0; j < v; ++j) {
      for (int64_t z = 0; z < c; ++z)
        expected2[i * v + j] += u.at(i * c + z) * act_round(w_uv.at((i % heads * v + j) * c + z), act);
    }
  }
  compare(what2, expanded, expected2, heads * v, 1e-5);
}

void test_log_probs(const Table& t, DType act, DType wt, int64_t rows, int64_t d, int64_t vocab, int64_t top) {
  Tensor x(act, {rows, d}), head(wt, {vocab, d}), targets(DType::kI32, {rows}), logprobs(DType::kF32, {rows});
  Tensor ids(DType::kI32, {rows, top}), values(DType::kF32, {rows, top});
  x.random();
  head.random();
  // Two equal rows of the head tie exactly, at the top of the first row; the lower id must come first.
  for (int64_t z = 0; z < d; ++z) {
    const float aligned = static_cast<float>(x.at(z)) * 4;
    if (wt == DType::kF32) head.view.as<float>()[4 * d + z] = aligned;
    if (wt == DType::kBF16) head.view.as<Bf16>()[4 * d + z] = to_bf16(aligned);
  }
  std::memcpy(rows_of(head.view, 9, 1).data, rows_of(head.view, 4, 1).data,
              static_cast<size_t>(head.view.bytes() / vocab));
  targets.ints([&](int64_t i) { return i % 5 == 3 ? -1 : (i * 31) % vocab; });
  const std::string what = label(t, "logProbs", act, wt);
  Tensor first_ids, first_values;
  all_ways(what, rows, logprobs, [&](Machine& m, int64_t begin, int64_t count) {
    LogProbsParams p;
    p.x = rows_of(x.view, begin, count);
    p.head = head.view;
    p.targets = rows_of(targets.view, begin, count);
    p.logprobs = rows_of(logprobs.view, begin, count);
    if (top > 0) p.top_ids = rows_of(ids.view, begin, count);
    if (top > 0) p.top_logprobs = rows_of(values.view, begin, count);
    const Status s = m.run(t.log_probs, p);
    if (begin + count == rows) {
      if (!first_ids.view.present()) first_ids = ids, first_values = values;
      if (!first_ids.same_bytes(ids) || !first_values.same_bytes(values)) fail(what + ": top has other bits");
    }
    return s;
  });
  std::vector<double> expected(rows);
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<double> logits(vocab);
    double high = -INFINITY, sum = 0;
    for (int64_t j = 0; j < vocab; ++j) {
      for (int64_t z = 0; z < d; ++z) logits[j] += x.at(i * d + z) * act_round(head.at(j * d + z), act);
      high = std::fmax(high, logits[j]);
    }
    for (double l : logits) sum += std::exp(l - high);
    const double total = high + std::log(sum);
    const int64_t target = static_cast<int64_t>(targets.at(i));
    expected[i] = target < 0 ? 0 : logits[target] - total;
    for (int64_t k = 0; k < top; ++k) {
      const int64_t id = static_cast<int64_t>(ids.at(i * top + k));
      ++comparisons;
      int64_t better = 0;
      for (int64_t j = 0; j < vocab; ++j) better += logits[j] > logits[id] || (logits[j] == logits[id] && j < id);
      // Float32 may swap neighbours whose float64 logits differ by less than its own error; equal ones it may not.
      const bool close =
          better != k && std::fabs(values.at(i * top + k) - values.at(i * top + std::min(better, top - 1))) > 1e-5;
      const bool tie = k > 0 && logits[id] == logits[static_cast<int64_t>(ids.at(i * top + k - 1))];
      if (tie && id < ids.at(i * top + k - 1)) fail(what + ": equal logits, and the higher id stands first");
      if (close) fail(what + " top " + std::to_string(k) + " is id " + std::to_string(id));
      if (!(std::fabs(values.at(i * top + k) - (logits[id] - total)) < 1e-5 * (1 + std::fabs(total))))
        fail(what + " top_logprobs");
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (!(std::fabs(logprobs.at(i) - expected[i]) < 2e-5 * (1 + std::fabs(expected[i]))))
      fail(what + " row " + std::to_string(i) + ": " + std::to_string(logprobs.at(i)) + ", expected " +
           std::to_string(expected[i]));
  }
}

void test_all(const Table& t) {
  test_expert_order(t);
  test_rare_f8(t);
  for (DType act : kActs) {
    test_fp8_activations(t, act);
    for (DType w : kWeights) {
      test_gemm(t, act, w, 0, 16, 16, false, act);
      test_gemm(t, act, w, 1, 1, 1, false, act);
      test_gemm(t, act, w, 3, 5, 7, true, act);
      test_gemm(t, act, w, 61, 75, 333, true, act);
      test_gemm(t, act, w, 50, 130, 256, false, DType::kF32);
      test_gemm(t, act, w, 20, 36, 2048 + 128 + 5, true, act);  // more than one depth block
      test_swiglu(t, act, w, 23, 40, 72);
      test_swiglu(t, act, w, 5, 136, 200);
      test_experts(t, act, w, 58, 40, 24, 5, 3);
      test_experts(t, act, w, 4, 72, 136, 3, 2);
      test_latent(t, act, w, act, false, 26, 72, 48, 32, 8);
      test_latent(t, act, w, DType::kF32, true, 26, 136, 40, 56, 16);
    }
    for (DType w : {DType::kF32, DType::kBF16}) {
      test_absorb(t, act, w, 22, 3, 24, 8, 72, 20);
      test_absorb(t, act, w, 53, 2, 16, 4, 300, 130);
      test_log_probs(t, act, w, 51, 40, 301, 6);
      test_log_probs(t, act, w, 3, 24, 64, 0);
    }
  }
}

}  // namespace

int main() {
  test_all(MLA_TABLE(baseline));
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) test_all(MLA_TABLE(avx2));
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    test_all(MLA_TABLE(avx512));
#endif
  std::printf("%lld comparisons, %d failures\n", static_cast<long long>(comparisons), failures);
  return failures == 0 ? 0 : 1;
}
