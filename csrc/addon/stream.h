// stream.h - the Stream class: verbs, transfers, events and capture.
#pragma once
#include <memory>
#include <vector>

#include "addon/handle.h"
#include "ops/backend.h"
#include "runtime/commands.h"

namespace mla::addon {

/// What the handles of one stream share: the stream itself, its events and its graphs.
struct StreamState {
  std::shared_ptr<runtime::Device> device;
  runtime::StreamRef stream;
  bool disposed = false;
  bool capturing = false;

  /// Ok while commands can be enqueued; `call` is the method's name.
  Status usable(const char* call) const;
  /// usable(), and not inside capture().
  Status outside_capture(const char* call) const;
};

using StreamStateRef = std::shared_ptr<StreamState>;

class Stream final : public Handle<Stream> {
 public:
  static constexpr Class kClass = Class::kStream;
  struct Init {
    std::shared_ptr<runtime::Device> device;
  };
  static Napi::Function define(Napi::Env env);
  explicit Stream(const Napi::CallbackInfo& info);

 private:
  /// run(verb, ...arguments): see operation.h. A plain Node-API function, because every operation goes through it.
  static napi_value Run(napi_env env, napi_callback_info info);
  Status run(napi_env env, const napi_value* values, size_t count);

  Napi::Value UseWorkspace(const Napi::CallbackInfo& info);
  /// write(tensor, view, byteOffset)
  Napi::Value Write(const Napi::CallbackInfo& info);
  /// read(tensor, arrayBuffer): a promise; the buffer has been filled when it resolves with undefined.
  Napi::Value Read(const Napi::CallbackInfo& info);
  /// reader(tensor, view): a Reader of the tensor into the view's memory, which is shared memory of the tensor's size.
  Napi::Value MakeReader(const Napi::CallbackInfo& info);
  /// readFile(tensor, fd, offset)
  Napi::Value ReadFile(const Napi::CallbackInfo& info);
  /// An Event, whose property `done` is a promise.
  Napi::Value Record(const Napi::CallbackInfo& info);
  Napi::Value Wait(const Napi::CallbackInfo& info);
  Napi::Value BeginCapture(const Napi::CallbackInfo& info);
  /// A Graph; or the failure of the first operation inside that could not be recorded.
  Napi::Value EndCapture(const Napi::CallbackInfo& info);
  Napi::Value AbortCapture(const Napi::CallbackInfo& info);
  Napi::Value Dispose(const Napi::CallbackInfo& info);
  Napi::Value Disposed(const Napi::CallbackInfo& info);

  struct Capture {
    Status failure;
    std::vector<Op> operations;
    std::vector<runtime::StorageRef> holds;
  };

  StreamStateRef state_;
  View workspace_;
  runtime::StorageRef workspace_storage_;
  runtime::Files files_;
  std::unique_ptr<Capture> capture_;
};

}  // namespace mla::addon
