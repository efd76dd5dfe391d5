// errors.h - error texts of the CPU kernels, compiled once for all instruction sets.
#pragma once
#include <cstdint>

#include "common/status.h"

namespace mla::cpu {

/// kInvalidArg for a value in device memory that is out of range:
/// "gemm: ids[3] is 9; expected 0 to 7".
Status invalid_value(const char* op, const char* argument, int64_t index, int64_t value, int64_t low, int64_t high);

/// kInvalidArg for a row of a tensor: "sample: row 3 of logits has NaN".
Status invalid_row(const char* op, const char* argument, int64_t row, const char* text);

/// kInvalidArg with a sentence of its own: "op: text".
Status invalid_arg(const char* op, const char* text);

}  // namespace mla::cpu
