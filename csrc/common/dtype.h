// dtype.h - element types that tensors can have, and what each occupies.
#pragma once
#include <cstdint>

namespace mla {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kF8E8M0, kI64, kI32, kU32, kU8 };

constexpr int kDTypeCount = 9;

/// Bytes of one element.
constexpr int64_t dtype_bytes(DType t) {
  switch (t) {
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kF8E4M3:
    case DType::kF8E8M0:
    case DType::kU8: return 1;
  }
  return 0;
}

/// The name used in TypeScript and in error messages.
constexpr const char* dtype_name(DType t) {
  constexpr const char* names[kDTypeCount] = {"f32", "bf16", "f16", "f8e4m3", "f8e8m0", "i64", "i32", "u32", "u8"};
  return names[static_cast<int>(t)];
}

}  // namespace mla
