#include "ops/checker.h"

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

#include "common/checked.h"
#include "ops/fp8_row.h"

namespace mla {

namespace {

/// A size no tensor has, for sums and products that overflow.
constexpr int64_t kImpossible = std::numeric_limits<int64_t>::max();

std::string list_types(DTypes types) {
  std::string text;
  int left = __builtin_popcount(types);
  for (int i = 0; i < kDTypeCount; ++i) {
    if ((types >> i & 1) == 0) continue;
    text += dtype_name(static_cast<DType>(i));
    --left;
    if (left > 1) text += ", ";
    if (left == 1) text += " or ";
  }
  return text;
}

bool same(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

}  // namespace

void Reasons::add(const char* name) {
  for (const char*& slot : names) {
    if (slot != nullptr && same(slot, name)) return;
    if (slot == nullptr) {
      slot = name;
      return;
    }
  }
}

void Reasons::add(const Reasons& other) {
  for (const char* name : other.names) {
    if (name != nullptr) add(name);
  }
}

Dim rows(const char* name) { return {.name = name, .value = -1, .reasons = {}, .least = 0}; }

Dim exactly(int64_t value) { return {.name = "", .value = value}; }

Dim sum(const Dim& a, const Dim& b) {
  Dim dim{.name = "", .value = kImpossible, .reasons = a.reasons};
  dim.reasons.add(b.reasons);
  checked_add(a.value, b.value, &dim.value);
  return dim;
}

Dim sum(const Dim& a, int64_t b) { return sum(a, exactly(b)); }

Dim product(const Dim& a, const Dim& b) {
  Dim dim{.name = "", .value = kImpossible, .reasons = a.reasons};
  dim.reasons.add(b.reasons);
  if (!checked_mul(a.value, b.value, &dim.value)) dim.value = kImpossible;
  return dim;
}

Dim blocks(const Dim& a, int64_t block) {
  return {.name = "", .value = a.value / block + (a.value % block != 0 ? 1 : 0), .reasons = a.reasons};
}

std::string describe(const View& view) {
  if (!view.present()) return "nothing";
  std::string text = std::string(dtype_name(view.dtype)) + " [";
  for (int i = 0; i < view.rank; ++i) text += (i > 0 ? ", " : "") + std::to_string(view.shape[i]);
  return text + "]";
}

void Checker::fail(std::string text) {
  if (status_.ok()) status_ = Status::Error(Code::kInvalidArg, std::string(operation_) + ": " + std::move(text));
}

void Checker::mismatch(const char* name, const View& view, DTypes types, const Reasons* type_reasons,
                       std::initializer_list<Dim*> dims) {
  Reasons reasons;
  if (type_reasons != nullptr && (types >> static_cast<int>(view.dtype) & 1) == 0) reasons.add(*type_reasons);
  std::string text = std::string(name) + " must be [";
  bool first = true;
  for (const Dim* dim : dims) {
    if (!first) text += ", ";
    first = false;
    text += dim->bound() ? std::to_string(dim->value) : dim->name;
    reasons.add(dim->reasons);
  }
  text += "] (" + list_types(types) + ")";
  const char* joint = " because ";
  for (const char* reason : reasons.names) {
    if (reason == nullptr) break;
    for (int i = 0; i < bound_count_; ++i) {
      if (same(bound_[i].name, reason)) text += joint + std::string(reason) + " is " + describe(bound_[i].view);
    }
    joint = " and ";
  }
  fail(text + "; got " + describe(view) + ".");
}

Checker& Checker::tensor(const char* name, const View& view, DTypes types, std::initializer_list<Dim*> dims) {
  Type type{.allowed = types};
  return tensor(name, view, type, dims);
}

Checker& Checker::tensor(const char* name, const View& view, Type& type, std::initializer_list<Dim*> dims) {
  if (!ok()) return *this;
  if (!view.present()) {
    fail(std::string(name) + " is missing.");
    return *this;
  }
  bool fits = view.rank == static_cast<int>(dims.size()) && (type.allowed >> static_cast<int>(view.dtype) & 1) != 0;
  int i = 0;
  for (const Dim* dim : dims) {
    if (!fits) break;
    const int64_t size = view.shape[i++];
    fits = dim->bound() ? size == dim->value : size >= dim->least;
  }
  if (!fits) {
    mismatch(name, view, type.allowed, &type.reasons, dims);
    return *this;
  }
  // A name that stands twice in one shape must have one size there too.
  i = 0;
  for (Dim* dim : dims) {
    const int64_t size = view.shape[i++];
    if (dim->bound()) {
      if (dim->value != size) {
        mismatch(name, view, type.allowed, &type.reasons, dims);
        return *this;
      }
      continue;
    }
    dim->value = size;
    dim->reasons.add(name);
  }
  const DTypes narrowed = 1u << static_cast<int>(view.dtype);
  if (type.allowed != narrowed) {
    type.allowed = narrowed;
    type.reasons.add(name);
  }
  if (bound_count_ < kMost) bound_[bound_count_++] = {name, view};
  return *this;
}

Checker& Checker::optional(const char* name, const View& view, DTypes types, std::initializer_list<Dim*> dims) {
  return view.present() ? tensor(name, view, types, dims) : *this;
}

Checker& Checker::optional(const char* name, const View& view, Type& type, std::initializer_list<Dim*> dims) {
  return view.present() ? tensor(name, view, type, dims) : *this;
}

Checker& Checker::scales(const char* name, const View& scale, const char* weight_name, const View& weight,
                         std::initializer_list<Dim*> dims) {
  if (!ok()) return *this;
  if (weight.dtype == DType::kF8E4M3) {
    if (!scale.present()) fail(std::string(name) + " is missing; " + weight_name + " is f8e4m3 and needs its scales.");
    return tensor(name, scale, kF32, dims);
  }
  if (scale.present()) {
    fail(std::string(name) + " must be left out because " + weight_name + " is " + describe(weight) +
         "; only f8e4m3 weights have scales.");
  }
  return *this;
}

Checker& Checker::fp8_activations(bool wanted, const char* weight_name, const View& weight) {
  return require(!wanted || weight.dtype == DType::kF8E4M3, std::string("fp8_activations must be false because ") +
                                                                weight_name + " is " + describe(weight) +
                                                                "; only f8e4m3 weights meet operands in fp8.");
}

Checker& Checker::cache(const View& view, const Dim& width, const Dim& c) {
  if (!ok()) return *this;
  constexpr int64_t kMostWidth = int64_t{1} << 40;  // far from an overflow, and no tensor has it
  Dim pages{"pages"}, page = exactly(kPageTokens), last = width;
  if (view.present() && view.dtype == DType::kF8E4M3 && width.value < kMostWidth) {
    last.value = Fp8Row{c.value, width.value - c.value}.bytes();
    last.reasons.add(c.reasons);
  }
  return tensor("cache", view, kCaches, {&pages, &page, &last}).cache_aligned(view);
}

Checker& Checker::cache_aligned(const View& view) {
  return require(view.dtype != DType::kF8E4M3 || reinterpret_cast<uintptr_t>(view.data) % 16 == 0,
                 "cache must begin at a multiple of 16 bytes because it is " + describe(view) + ".");
}

Checker& Checker::require(bool condition, const std::string& text) {
  if (ok() && !condition) fail(text);
  return *this;
}

Checker& Checker::in_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (ok() && (value < low || value > high)) {
    fail(std::string(name) + " must be from " + std::to_string(low) + " to " + std::to_string(high) + "; got " +
         std::to_string(value) + ".");
  }
  return *this;
}

Checker& Checker::finite(const char* name, float value, bool any_sign) {
  if (ok() && (!std::isfinite(value) || (!any_sign && value < 0))) {
    fail(std::string(name) + " must be a finite number" + (any_sign ? "" : ", 0 or more") + "; got " +
         std::to_string(value) + ".");
  }
  return *this;
}

Checker& Checker::may_alias(const char* a, const char* b) {
  if (alias_count_ < static_cast<int>(std::size(aliases_))) aliases_[alias_count_++] = {a, b};
  return *this;
}

void Checker::find_overlaps() {
  for (int i = 0; i < count_; ++i) {
    if (!seen_[i].written) continue;
    const auto* begin = seen_[i].view.as<const char>();
    const auto* end = begin + seen_[i].view.bytes();
    for (int j = 0; j < count_; ++j) {
      if (j == i || (seen_[j].written && j < i)) continue;
      const auto* other = seen_[j].view.as<const char>();
      if (other >= end || other + seen_[j].view.bytes() <= begin) continue;
      bool allowed = false;
      for (int k = 0; k < alias_count_; ++k) {
        const bool pair = (same(aliases_[k].a, seen_[i].name) && same(aliases_[k].b, seen_[j].name)) ||
                          (same(aliases_[k].b, seen_[i].name) && same(aliases_[k].a, seen_[j].name));
        // Only as the same tensor: with a shift, a row would be written before it is read.
        allowed |= pair && other == begin && seen_[i].view.dtype == seen_[j].view.dtype;
      }
      if (!allowed) {
        fail(std::string(seen_[i].name) + " is written and must not overlap the memory of " + seen_[j].name + ".");
        return;
      }
    }
  }
}

}  // namespace mla
