// checker.h - the vocabulary of the argument checks: dimensions and element types with names, bound by the arguments
// that have them first and compared with all that follow.
//
// An error reads: "gemm: w must be [N, 2048] (f32, bf16 or f8e4m3) because x is [4, 2048]; got f32 [7, 2047]."
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/status.h"
#include "ops/ops.h"

namespace mla {

/// A set of element types, one bit each.
using DTypes = uint32_t;
constexpr DTypes dtypes(std::initializer_list<DType> list) {
  DTypes set = 0;
  for (DType t : list) set |= 1u << static_cast<int>(t);
  return set;
}

constexpr DTypes kF32 = dtypes({DType::kF32});
constexpr DTypes kI32 = dtypes({DType::kI32});
constexpr DTypes kFloats = dtypes({DType::kF32, DType::kBF16});
constexpr DTypes kWeights = dtypes({DType::kF32, DType::kBF16, DType::kF8E4M3});
constexpr DTypes kCaches = dtypes({DType::kF32, DType::kBF16, DType::kF8E4M3});

/// Arguments that fixed a value, for the "because" of a message.
struct Reasons {
  const char* names[3] = {nullptr, nullptr, nullptr};
  void add(const char* name);
  void add(const Reasons& other);
};

/// One dimension. Unbound (value < 0) until the first argument that has it, unless it is made from others.
struct Dim {
  const char* name;
  int64_t value = -1;
  Reasons reasons = {};
  int64_t least = 1;  // what an argument may bind it to

  bool bound() const { return value >= 0; }
};

/// A dimension that may be zero: numbers of rows, sequences, pages.
Dim rows(const char* name);
/// A dimension that is a constant of the operation.
Dim exactly(int64_t value);
/// Dimensions made from bound ones. An overflow gives a size no tensor has.
Dim sum(const Dim& a, const Dim& b);
Dim sum(const Dim& a, int64_t b);
Dim product(const Dim& a, const Dim& b);
Dim blocks(const Dim& a, int64_t block);  // ceil(a / block)

/// One element type that several arguments share.
struct Type {
  DTypes allowed;
  Reasons reasons = {};
};

/// Checks the arguments of one operation in order. After the first error the other checks do nothing.
class Checker {
 public:
  explicit Checker(const char* operation) : operation_(operation) {}

  /// A required argument of these types and dimensions; binds what is not bound yet.
  Checker& tensor(const char* name, const View& view, DTypes types, std::initializer_list<Dim*> dims);
  Checker& tensor(const char* name, const View& view, Type& type, std::initializer_list<Dim*> dims);
  /// The same where the argument is given.
  Checker& optional(const char* name, const View& view, DTypes types, std::initializer_list<Dim*> dims);
  Checker& optional(const char* name, const View& view, Type& type, std::initializer_list<Dim*> dims);
  /// The scales of an fp8 weight: required with one, forbidden with any other type.
  Checker& scales(const char* name, const View& scale, const char* weight_name, const View& weight,
                  std::initializer_list<Dim*> dims);

  /// Operands in fp8 are for fp8 weights.
  Checker& fp8_activations(bool wanted, const char* weight_name, const View& weight);

  /// A latent cache of rows of `width` channels, `c` of them latent; fp8 rows count in bytes (fp8_row.h).
  Checker& cache(const View& view, const Dim& width, const Dim& c);
  /// The beginning of an fp8 cache, whose rows are read by 16 bytes.
  Checker& cache_aligned(const View& view);

  /// A condition on values: "operation: text".
  Checker& require(bool condition, const std::string& text);
  Checker& in_range(const char* name, int64_t value, int64_t low, int64_t high);
  /// A finite float, not negative unless `any_sign`.
  Checker& finite(const char* name, float value, bool any_sign = false);

  /// Two arguments that may be the same memory; by default nothing that is written may overlap anything else.
  Checker& may_alias(const char* a, const char* b);

  bool ok() const { return status_.ok(); }
  /// The result without a look at overlaps, for an operation that has its own rule.
  Status result() { return std::move(status_); }

  /// The result; looks for forbidden overlaps among the fields of `params` first.
  template <class Params>
  Status finish(const Params& params) {
    if (status_.ok()) {
      Params copy = params;  // fields() hands out references that may be written
      copy.fields(*this);
      find_overlaps();
    }
    return std::move(status_);
  }

  // For fields(): collects the arguments.
  void operator()(const char* name, View& view, Dir dir, Need) {
    if (view.data != nullptr && view.bytes() > 0 && count_ < kMost) seen_[count_++] = {name, view, dir != Dir::kIn};
  }
  template <class Value>
  void operator()(const char*, Value&, Need = Need::kRequired) {}

 private:
  void fail(std::string text);
  void mismatch(const char* name, const View& view, DTypes types, const Reasons* type_reasons,
                std::initializer_list<Dim*> dims);
  void find_overlaps();

  struct Seen {
    const char* name;
    View view;
    bool written;
  };
  struct Bound {
    const char* name;
    View view;
  };
  static constexpr int kMost = 24;

  const char* operation_;
  Status status_;
  Seen seen_[kMost];
  int count_ = 0;
  Bound bound_[kMost];  // arguments that have passed, for "because"
  int bound_count_ = 0;
  struct {
    const char* a;
    const char* b;
  } aliases_[8];
  int alias_count_ = 0;
};

/// "f32 [4, 2048]".
std::string describe(const View& view);

}  // namespace mla
