// support.h - tensors, scratch memory and comparisons for the native tests. One program includes it once.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "common/checked.h"
#include "common/float_types.h"
#include "cpu/kernels.h"

namespace {

using namespace mla;
using namespace mla::cpu;

int failures = 0;
int64_t comparisons = 0;

void fail(const std::string& text) {
  if (failures++ < 40) std::printf("FAILED %s\n", text.c_str());
}

std::mt19937_64 rng(7);
float uniform() { return static_cast<float>(rng() >> 40) / static_cast<float>(1 << 23) - 1.0f; }

double value_at(View v, int64_t i) {
  switch (v.dtype) {
    case DType::kF32: return v.as<float>()[i];
    case DType::kBF16: return to_f32(v.as<Bf16>()[i]);
    case DType::kF8E4M3: return to_f32(v.as<F8E4M3>()[i]);
    case DType::kI32: return v.as<int32_t>()[i];
    default: std::abort();
  }
}

/// A tensor in memory of its exact size plus a guard behind it.
class Tensor {
 public:
  static constexpr size_t kGuard = 64;
  Tensor() = default;
  Tensor(DType t, std::initializer_list<int64_t> shape) {
    view.dtype = t;
    view.rank = static_cast<int>(shape.size());
    int i = 0;
    for (int64_t d : shape) view.shape[i++] = d;
    bytes_.assign(static_cast<size_t>(view.bytes()) + kGuard, 0xff);  // as floats: NaN
    view.data = bytes_.data();
  }
  Tensor(const Tensor& o) : view(o.view), bytes_(o.bytes_) { view.data = bytes_.data(); }
  Tensor& operator=(const Tensor& o) {
    view = o.view;
    bytes_ = o.bytes_;
    view.data = bytes_.data();
    return *this;
  }

  Tensor& random(float scale = 1, float offset = 0) {
    for (int64_t i = 0; i < view.numel(); ++i) {
      const float x = uniform() * scale + offset;
      if (view.dtype == DType::kF32) view.as<float>()[i] = x;
      if (view.dtype == DType::kBF16) view.as<Bf16>()[i] = to_bf16(x);
      if (view.dtype == DType::kF8E4M3) view.as<F8E4M3>()[i] = to_f8e4m3(x * 448);
    }
    return *this;
  }
  Tensor& ints(const std::function<int64_t(int64_t)>& f) {
    for (int64_t i = 0; i < view.numel(); ++i) view.as<int32_t>()[i] = static_cast<int32_t>(f(i));
    return *this;
  }
  void poison() { std::memset(bytes_.data(), 0xff, bytes_.size()); }
  bool guard_intact() const {
    for (size_t i = bytes_.size() - kGuard; i < bytes_.size(); ++i) {
      if (bytes_[i] != 0xff) return false;
    }
    return true;
  }
  bool same_bytes(const Tensor& o) const { return bytes_ == o.bytes_; }
  double at(int64_t i) const { return value_at(view, i); }

  View view;

 private:
  std::vector<uint8_t> bytes_;
};

/// Rows [begin, begin + count) of the first dimension.
[[maybe_unused]] View rows_of(View v, int64_t begin, int64_t count) {
  if (!v.present() || v.dim(0) == 0) return v;
  v.data = v.as<char>() + begin * (v.bytes() / v.dim(0));
  v.shape[0] = count;
  return v;
}

class Machine {
 public:
  explicit Machine(int threads) : pool_(threads) {}
  template <class P>
  Status run(Status (*f)(const P&, Context&), const P& p) {
    const int64_t bytes = workspace_bytes(Op(p), pool_.threads());
    void* data = std::aligned_alloc(256, static_cast<size_t>(round_up(bytes + 256, 256)));
    std::memset(data, 0xff, static_cast<size_t>(bytes + 256));
    View workspace;
    workspace.data = data;
    workspace.dtype = DType::kU8;
    workspace.rank = 1;
    workspace.shape[0] = bytes;
    Context ctx{&pool_, workspace};
    Status status = f(p, ctx);
    for (int64_t i = bytes; i < bytes + 256; ++i) {
      if (static_cast<uint8_t*>(data)[i] != 0xff) {
        fail("wrote behind the workspace");
        break;
      }
    }
    std::free(data);
    return status;
  }

 private:
  ThreadPool pool_;
};

/// Largest difference against `expected`, in units of `tolerance`, over rows of n; the scale of a row is its norm.
[[maybe_unused]] void compare(const std::string& what, const Tensor& got, const std::vector<double>& expected,
                              int64_t n, double tolerance, const std::vector<double>& slack = {}) {
  for (int64_t row = 0; row * n < got.view.numel(); ++row) {
    double norm = 0;
    for (int64_t i = 0; i < n; ++i) norm += expected[row * n + i] * expected[row * n + i];
    norm = std::sqrt(norm / static_cast<double>(n)) + 1e-30;
    for (int64_t i = 0; i < n; ++i) {
      ++comparisons;
      const double g = got.at(row * n + i), e = expected[row * n + i];
      const double ulp = got.view.dtype == DType::kBF16 ? std::fabs(e) * 0x1p-8 : 0;
      const double own = slack.empty() ? 0 : slack[row * n + i];
      if (!(std::fabs(g - e) <= tolerance * norm + ulp + own)) {
        fail(what + " row " + std::to_string(row) + " column " + std::to_string(i) + ": " + std::to_string(g) +
             ", expected " + std::to_string(e));
        return;
      }
    }
  }
}

/// Runs `run(machine, begin, count, outputs)` for all rows at once and in parts, on one thread and on three; every way
/// must give the same bits. Leaves the outputs of the first way.
[[maybe_unused]] void all_ways(const std::string& what, int64_t rows, Tensor& out,
                               const std::function<Status(Machine&, int64_t, int64_t)>& run) {
  Machine one(1), three(3);
  out.poison();
  Status s = run(one, 0, rows);
  if (!s.ok()) return fail(what + ": " + s.text);
  if (!out.guard_intact()) fail(what + " wrote behind its output");
  const Tensor first = out;
  const auto again = [&](const char* way, Machine& m, int64_t step) {
    out.poison();
    for (int64_t begin = 0; begin < rows; begin += step) {
      s = run(m, begin, rows - begin < step ? rows - begin : step);
      if (!s.ok()) return fail(what + " " + way + ": " + s.text);
    }
    ++comparisons;
    if (!out.same_bytes(first)) fail(what + ": " + way + " gives other bits");
  };
  again("three threads", three, rows > 0 ? rows : 1);
  again("rows one by one", one, 1);
  again("rows in fives", three, 5);
  again("rows in nineteens", one, 19);
}

}  // namespace
