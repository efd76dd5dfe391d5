// checked.h - the one place where sizes from outside are multiplied and added.
#pragma once
#include <cstdint>

namespace mla {

/// a * b into *out; false on overflow or a negative factor.
inline bool checked_mul(int64_t a, int64_t b, int64_t* out) {
  return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}

/// a + b into *out; false on overflow or a negative term.
inline bool checked_add(int64_t a, int64_t b, int64_t* out) {
  return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace mla
