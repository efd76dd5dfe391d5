// values.h - JavaScript values in, JavaScript values out. Nothing here runs JavaScript: arguments are numbers, booleans
// and handles; lib/native has taken objects and arrays apart before.
#pragma once
#include <napi.h>

#include <cstdint>
#include <string>

#include "common/dtype.h"
#include "common/status.h"
#include "common/view.h"

namespace mla::addon {

/// Numbers in JavaScript are exact integers up to here.
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

/// The name of an argument in messages, "gemm: eps"; put together only when a message is needed.
struct Name {
  const char* call;
  const char* argument;
  std::string text() const { return std::string(call) + ": " + argument; }
};

/// How native calls report failure: the string "ERR_CODE\ntext". No successful result is a string.
napi_value failure(napi_env env, const Status& status);

/// A short description of a wrong value, for messages.
std::string describe(napi_env env, napi_value value);

/// kInvalidArg: "gemm: eps must be <expected>; got <value>."
Status wrong_value(napi_env env, const Name& what, const std::string& expected, napi_value value);

/// An integer in [low, high].
Status read_integer(napi_env env, napi_value value, const Name& what, int64_t low, int64_t high, int64_t* out);

/// A finite number that is finite as float32 too.
Status read_float(napi_env env, napi_value value, const Name& what, float* out);

Status read_boolean(napi_env env, napi_value value, const Name& what, bool* out);

/// An element type by its number in common/dtype.h.
Status read_dtype(napi_env env, napi_value value, const Name& what, DType* out);

/// Shape and element type into a View without data, checked so that its size in bytes fits.
Status read_shape(napi_env env, DType dtype, const napi_value* dims, size_t rank, const Name& what, View* out);

bool is_undefined(napi_env env, napi_value value);

}  // namespace mla::addon
