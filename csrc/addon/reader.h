// reader.h - the Reader class: reads one tensor time and again into memory of its own. A step's results come this way,
// so a read asks next to nothing of JavaScript: what can be looked up or checked beforehand has been.
#pragma once
#include <memory>

#include "addon/handle.h"
#include "addon/stream.h"

namespace mla::addon {

class Reader final : public Handle<Reader> {
 public:
  static constexpr Class kClass = Class::kReader;
  struct Init {
    StreamStateRef state;
    runtime::StorageRef source;
    View view;
    /// A view of the shared memory that is read into: nobody can take it away. Of the tensor's size.
    napi_value target;
    void* data;
  };
  static Napi::Function define(Napi::Env env);
  explicit Reader(const Napi::CallbackInfo& info);
  ~Reader() override;

 private:
  /// read(): a promise; the memory has been filled when it resolves with undefined. A plain Node-API function.
  static napi_value Read(napi_env env, napi_callback_info info);
  Status read(napi_env env, napi_value* out);
  Napi::Value Dispose(const Napi::CallbackInfo& info);
  Napi::Value Disposed(const Napi::CallbackInfo& info);

  /// Shared with an answer that is under way. JavaScript thread.
  struct Target {
    void* data;  // null once the reader is gone
    size_t bytes;
    bool busy = false;
  };

  StreamStateRef state_;
  runtime::StorageRef source_;  // null once disposed
  View view_;
  std::shared_ptr<Target> target_;
  Napi::ObjectReference memory_;  // keeps target_->data valid
};

}  // namespace mla::addon
