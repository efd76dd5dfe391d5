#include "addon/values.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include "common/checked.h"

namespace mla::addon {

napi_value failure(napi_env env, const Status& status) {
  const std::string text = std::string(error_code(status.code)) + "\n" + status.text;
  napi_value value = nullptr;
  if (napi_create_string_utf8(env, text.data(), text.size(), &value) != napi_ok) return nullptr;
  return value;
}

std::string describe(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  if (value == nullptr || napi_typeof(env, value, &type) != napi_ok) return "nothing";
  switch (type) {
    case napi_number: {
      double number = 0;
      napi_get_value_double(env, value, &number);
      char text[40];
      std::snprintf(text, sizeof text, "%.17g", number);
      return text;
    }
    case napi_boolean: {
      bool flag = false;
      napi_get_value_bool(env, value, &flag);
      return flag ? "true" : "false";
    }
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_string: return "a string";
    case napi_symbol: return "a symbol";
    case napi_function: return "a function";
    case napi_bigint: return "a bigint";
    default: return "an object";
  }
}

Status wrong_value(napi_env env, const Name& what, const std::string& expected, napi_value value) {
  return Status::Error(Code::kInvalidArg, what.text() + " must be " + expected + "; got " + describe(env, value) + ".");
}

Status read_integer(napi_env env, napi_value value, const Name& what, int64_t low, int64_t high, int64_t* out) {
  double number = 0;
  if (value == nullptr || napi_get_value_double(env, value, &number) != napi_ok || !(number >= double(low)) ||
      !(number <= double(high)) || std::floor(number) != number) {
    return wrong_value(env, what, "an integer from " + std::to_string(low) + " to " + std::to_string(high), value);
  }
  *out = static_cast<int64_t>(number);
  return Status::Ok();
}

Status read_float(napi_env env, napi_value value, const Name& what, float* out) {
  double number = 0;
  if (value == nullptr || napi_get_value_double(env, value, &number) != napi_ok || !std::isfinite(number) ||
      std::abs(number) > double(std::numeric_limits<float>::max())) {
    return wrong_value(env, what, "a finite number", value);
  }
  *out = static_cast<float>(number);
  return Status::Ok();
}

Status read_boolean(napi_env env, napi_value value, const Name& what, bool* out) {
  if (value == nullptr || napi_get_value_bool(env, value, out) != napi_ok) {
    return wrong_value(env, what, "true or false", value);
  }
  return Status::Ok();
}

Status read_dtype(napi_env env, napi_value value, const Name& what, DType* out) {
  int64_t code = 0;
  MLA_RETURN_IF_ERROR(read_integer(env, value, what, 0, kDTypeCount - 1, &code));
  *out = static_cast<DType>(code);
  return Status::Ok();
}

Status read_shape(napi_env env, DType dtype, const napi_value* dims, size_t rank, const Name& what, View* out) {
  if (rank > static_cast<size_t>(kMaxRank)) {
    return Status::Error(Code::kInvalidArg,
                         what.text() + " must have at most " + std::to_string(kMaxRank) + " dimensions.");
  }
  *out = View{};
  out->dtype = dtype;
  out->rank = static_cast<int>(rank);
  // Zero dimensions must not hide an overflow of the others: kernels multiply parts of the shape.
  int64_t bytes = dtype_bytes(dtype);
  for (size_t i = 0; i < rank; ++i) {
    MLA_RETURN_IF_ERROR(read_integer(env, dims[i], what, 0, kMaxSafeInteger, &out->shape[i]));
    const int64_t factor = out->shape[i] == 0 ? 1 : out->shape[i];
    if (!checked_mul(bytes, factor, &bytes) || bytes > kMaxSafeInteger) {
      return Status::Error(Code::kInvalidArg, what.text() + ": the shape has more than 2^53 bytes.");
    }
  }
  return Status::Ok();
}

bool is_undefined(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  return value == nullptr || napi_typeof(env, value, &type) != napi_ok || type == napi_undefined;
}

}  // namespace mla::addon
