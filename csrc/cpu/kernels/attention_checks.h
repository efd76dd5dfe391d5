// attention_checks.h - what attention operations check of the device data that they are led by.
#pragma once
#include "cpu/errors.h"
#include "cpu/kernels/simd.h"
#include "ops/ops.h"

namespace mla::cpu::MLA_CPU_ISA {

/// starts [B + 1] must ascend from at least 0 to at most `rows`.
MLA_INLINE Status check_starts(const char* op, const char* argument, const View& starts, int64_t rows) {
  const int32_t* s = starts.as<int32_t>();
  for (int64_t i = 0; i < starts.dim(0); ++i) {
    const int64_t low = i == 0 ? 0 : s[i - 1];
    if (s[i] < low || s[i] > rows) return invalid_value(op, argument, i, s[i], low, rows);
  }
  return Status::Ok();
}

/// Entries [first, last) of sequence b's row of the block table must name pages of the cache.
MLA_INLINE Status check_pages(const char* op, const View& block_table, int64_t b, int64_t first, int64_t last,
                              int64_t pages) {
  const int32_t* table = block_table.as<int32_t>() + b * block_table.dim(1);
  for (int64_t i = first; i < last; ++i) {
    if (table[i] < 0 || table[i] >= pages) {
      return invalid_value(op, "block_table", b * block_table.dim(1) + i, table[i], 0, pages - 1);
    }
  }
  return Status::Ok();
}

/// Rows [begin, end) of out [T, width] become zero, those of lse [T, heads] -inf.
template <class Out>
MLA_INLINE void clear_rows(Out* out, int64_t width, float* lse, int64_t heads, int64_t begin, int64_t end) {
  if (begin >= end) return;
  std::memset(out + begin * width, 0, sizeof(Out) * static_cast<size_t>((end - begin) * width));
  for (int64_t i = begin * heads; i < end * heads; ++i) lse[i] = -__builtin_inff();
}

}  // namespace mla::cpu::MLA_CPU_ISA
