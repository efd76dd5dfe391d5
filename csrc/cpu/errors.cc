#include "cpu/errors.h"

namespace mla::cpu {

Status invalid_value(const char* op, const char* argument, int64_t index, int64_t value, int64_t low, int64_t high) {
  return Status::Error(Code::kInvalidArg, std::string(op) + ": " + argument + "[" + std::to_string(index) + "] is " +
                                              std::to_string(value) + "; expected " + std::to_string(low) + " to " +
                                              std::to_string(high));
}

Status invalid_row(const char* op, const char* argument, int64_t row, const char* text) {
  return Status::Error(Code::kInvalidArg,
                       std::string(op) + ": row " + std::to_string(row) + " of " + argument + " " + text);
}

Status invalid_arg(const char* op, const char* text) {
  return Status::Error(Code::kInvalidArg, std::string(op) + ": " + text);
}

}  // namespace mla::cpu
