// handle.h - what the wrapped classes have in common.
#pragma once
#include <napi.h>

#include "addon/environment.h"
#include "addon/values.h"

namespace mla::addon {

/// Base of a wrapped class. T has `kClass`, `struct Init` (what Environment::make() passes) and `define(env)`.
template <class T>
class Handle : public Napi::ObjectWrap<T> {
 protected:
  explicit Handle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<T>(info) {
    const napi_value self = info.This();
    if (napi_type_tag_object(info.Env(), self, &kTypeTags[static_cast<int>(T::kClass)]) != napi_ok) {
      throw Napi::TypeError::New(info.Env(), "the object could not be marked");
    }
  }

  /// What make<T>() passes; throws when JavaScript calls the constructor.
  static auto& init(const Napi::CallbackInfo& info) {
    auto* init = Environment::of(info.Env()).template take_init<T>();
    if (init == nullptr) throw Napi::TypeError::New(info.Env(), "native classes cannot be constructed");
    return *init;
  }
};

/// Runs `f`, which returns a Status, and gives the value a native method returns: undefined or a failure.
template <class F>
Napi::Value answer(const Napi::CallbackInfo& info, F&& f) {
  Status status;
  try {
    status = f();
  } catch (...) {
    status = runtime::status_of_exception();
  }
  if (status.ok()) return info.Env().Undefined();
  return {info.Env(), failure(info.Env(), status)};
}

/// The same for methods that return a value: `f` stores it.
template <class F>
Napi::Value answer_value(const Napi::CallbackInfo& info, F&& f) {
  napi_value value = nullptr;
  const Napi::Value result = answer(info, [&] { return f(&value); });
  if (value == nullptr || result.IsString()) return result;
  return {info.Env(), value};
}

}  // namespace mla::addon
