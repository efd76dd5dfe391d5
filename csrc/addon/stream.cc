#include "addon/stream.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "addon/event.h"
#include "addon/graph.h"
#include "addon/operation.h"
#include "addon/reader.h"
#include "addon/tensor.h"
#include "common/checked.h"

namespace mla::addon {

Status StreamState::usable(const char* call) const {
  if (disposed) return Status::Error(Code::kDisposed, std::string(call) + ": the stream has been disposed.");
  return device->state();
}

Status StreamState::outside_capture(const char* call) const {
  MLA_RETURN_IF_ERROR(usable(call));
  if (!capturing) return Status::Ok();
  return Status::Error(Code::kState, std::string(call) + " is not possible inside capture(): only operations are.");
}

Napi::Function Stream::define(Napi::Env env) {
  napi_property_descriptor run{};
  run.utf8name = "run";
  run.method = &Stream::Run;
  run.attributes = napi_default;
  return DefineClass(
      env, "Stream",
      {run, InstanceMethod<&Stream::UseWorkspace>("useWorkspace"), InstanceMethod<&Stream::Write>("write"),
       InstanceMethod<&Stream::Read>("read"), InstanceMethod<&Stream::MakeReader>("reader"),
       InstanceMethod<&Stream::ReadFile>("readFile"), InstanceMethod<&Stream::Record>("record"),
       InstanceMethod<&Stream::Wait>("wait"), InstanceMethod<&Stream::BeginCapture>("beginCapture"),
       InstanceMethod<&Stream::EndCapture>("endCapture"), InstanceMethod<&Stream::AbortCapture>("abortCapture"),
       InstanceMethod<&Stream::Dispose>("dispose"), InstanceMethod<&Stream::Disposed>("disposed")});
}

Stream::Stream(const Napi::CallbackInfo& info) : Handle(info) {
  Init& init = Handle::init(info);
  state_ = std::make_shared<StreamState>();
  state_->stream = init.device->create_stream();
  state_->device = std::move(init.device);
}

napi_value Stream::Run(napi_env env, napi_callback_info info) {
  napi_value values[kMaxArguments];
  size_t count = kMaxArguments;
  napi_value self = nullptr;
  void* data = nullptr;
  Status status;
  if (napi_get_cb_info(env, info, &count, values, &self, nullptr) != napi_ok ||
      napi_unwrap(env, self, &data) != napi_ok) {
    status = Status::Error(Code::kInvalidArg, "run: not a stream.");
  } else {
    try {
      status = static_cast<Stream*>(data)->run(env, values, std::min(count, kMaxArguments));
    } catch (...) {
      status = runtime::status_of_exception();
    }
  }
  return status.ok() ? nullptr : failure(env, status);
}

Status Stream::run(napi_env env, const napi_value* values, size_t count) {
  MLA_RETURN_IF_ERROR(state_->usable("operation"));
  Op op;
  std::vector<runtime::StorageRef> holds;
  holds.reserve(12);
  const auto accept = [&]() -> Status {
    MLA_RETURN_IF_ERROR(read_operation(env, *state_->device, values, count, &op, &holds));
    MLA_RETURN_IF_ERROR(check(op));
    return check_sizes(state_->device->backend(), op, workspace_.bytes());
  };
  Status status = accept();
  if (capture_ != nullptr) {
    if (!status.ok()) {
      if (capture_->failure.ok()) capture_->failure = status;
      return status;
    }
    capture_->operations.push_back(op);
    capture_->holds.insert(capture_->holds.end(), holds.begin(), holds.end());
    return Status::Ok();
  }
  MLA_RETURN_IF_ERROR(status);
  if (workspace_storage_ != nullptr) holds.push_back(workspace_storage_);
  state_->device->submit(
      std::make_unique<runtime::OperationCommand>(state_->stream, std::move(op), workspace_, std::move(holds)));
  return Status::Ok();
}

Napi::Value Stream::UseWorkspace(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    const Name what{"useWorkspace", "tensor"};
    MLA_RETURN_IF_ERROR(state_->usable("useWorkspace"));
    const Tensor* tensor = unwrap<Tensor>(info.Env(), info[0]);
    if (tensor == nullptr) return wrong_value(info.Env(), what, "a tensor", info[0]);
    MLA_RETURN_IF_ERROR(tensor->usable(*state_->device, what));
    if (tensor->view().dtype != DType::kU8 || tensor->view().rank != 1) {
      return Status::Error(Code::kInvalidArg, "useWorkspace: the tensor must be u8 with one dimension.");
    }
    if (capture_ != nullptr && !capture_->operations.empty()) {
      return Status::Error(Code::kState, "useWorkspace: a graph has one workspace; set it before its first operation.");
    }
    workspace_ = tensor->view();
    workspace_storage_ = tensor->storage();
    return Status::Ok();
  });
}

Napi::Value Stream::Write(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    const napi_env env = info.Env();
    MLA_RETURN_IF_ERROR(state_->outside_capture("write"));
    const Tensor* tensor = unwrap<Tensor>(env, info[0]);
    if (tensor == nullptr) return wrong_value(env, {"write", "tensor"}, "a tensor", info[0]);
    MLA_RETURN_IF_ERROR(tensor->usable(*state_->device, {"write", "tensor"}));
    const Name what{"write", "data"};
    bool typed = false;
    bool data_view = false;
    napi_value buffer = nullptr;
    void* bytes = nullptr;
    size_t length = 0;
    size_t ignored = 0;
    if (info.Length() < 2) return wrong_value(env, what, "a view of an ArrayBuffer", nullptr);
    napi_is_typedarray(env, info[1], &typed);
    napi_is_dataview(env, info[1], &data_view);
    if (typed) {
      napi_typedarray_type type{};
      napi_get_typedarray_info(env, info[1], &type, &length, &bytes, &buffer, &ignored);
      constexpr int kElementBytes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
      length *= kElementBytes[type];
    } else if (data_view) {
      napi_get_dataview_info(env, info[1], &length, &bytes, &buffer, &ignored);
    } else {
      return wrong_value(env, what, "a view of an ArrayBuffer", info[1]);
    }
    bool plain = false;
    bool detached = false;
    if (buffer == nullptr || napi_is_arraybuffer(env, buffer, &plain) != napi_ok || !plain) {
      return Status::Error(Code::kInvalidArg, "write: data must be a view of an ArrayBuffer that is not shared.");
    }
    if (napi_is_detached_arraybuffer(env, buffer, &detached) != napi_ok || detached) {
      return Status::Error(Code::kInvalidArg, "write: the buffer of data has been detached.");
    }
    int64_t offset = 0;
    int64_t end = 0;
    MLA_RETURN_IF_ERROR(read_integer(env, info[2], {"write", "byteOffset"}, 0, kMaxSafeInteger, &offset));
    const auto size = static_cast<int64_t>(length);
    if (!checked_add(offset, size, &end) || end > tensor->view().bytes()) {
      return Status::Error(Code::kInvalidArg, "write: " + std::to_string(size) + " bytes at byte " +
                                                  std::to_string(offset) + " do not fit a tensor of " +
                                                  std::to_string(tensor->view().bytes()) + " bytes.");
    }
    if (size == 0) return Status::Ok();
    std::unique_ptr<std::byte[]> copy(new std::byte[length]);
    std::memcpy(copy.get(), bytes, length);
    state_->device->submit(std::make_unique<runtime::WriteCommand>(
        state_->stream, tensor->storage(), static_cast<std::byte*>(tensor->view().data) + offset, std::move(copy),
        size));
    return Status::Ok();
  });
}

Napi::Value Stream::Read(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    const napi_env env = info.Env();
    MLA_RETURN_IF_ERROR(state_->outside_capture("read"));
    const Tensor* tensor = unwrap<Tensor>(env, info[0]);
    if (tensor == nullptr) return wrong_value(env, {"read", "tensor"}, "a tensor", info[0]);
    MLA_RETURN_IF_ERROR(tensor->usable(*state_->device, {"read", "tensor"}));
    const int64_t bytes = tensor->view().bytes();
    bool plain = false;
    void* data = nullptr;
    size_t length = 0;
    if (info.Length() < 2 || napi_is_arraybuffer(env, info[1], &plain) != napi_ok || !plain ||
        napi_get_arraybuffer_info(env, info[1], &data, &length) != napi_ok || static_cast<int64_t>(length) != bytes) {
      return Status::Error(Code::kInvalidArg, "read: the target must be an ArrayBuffer of the tensor's size.");
    }
    napi_ref target = nullptr;
    napi_deferred deferred = nullptr;
    if (napi_create_reference(env, info[1], 1, &target) != napi_ok) {
      return Status::Error(Code::kInternal, "read: the environment refuses a reference.");
    }
    const std::shared_ptr<Mailbox> mailbox = Environment::of(env).mailbox();
    *out = mailbox->promise(env, &deferred);
    if (*out == nullptr) return Status::Error(Code::kInternal, "read: the environment refuses a promise.");
    auto done = [mailbox, deferred, target](Status status, std::shared_ptr<HostBuffer> buffer) {
      mailbox->settle(deferred, [target, status = std::move(status), buffer](napi_env env) -> napi_value {
        napi_value array = nullptr;
        napi_get_reference_value(env, target, &array);
        napi_delete_reference(env, target);
        if (!status.ok()) return failure(env, status);
        void* data = nullptr;
        size_t length = 0;
        if (buffer == nullptr) return nullptr;
        if (napi_get_arraybuffer_info(env, array, &data, &length) != napi_ok ||
            static_cast<int64_t>(length) > buffer->bytes()) {
          return failure(env, Status::Error(Code::kInternal, "read: the target changed."));
        }
        if (length > 0) std::memcpy(data, buffer->data(), length);
        return nullptr;
      });
    };
    state_->device->submit(std::make_unique<runtime::ReadCommand>(state_->stream, tensor->storage(),
                                                                  tensor->view().data, bytes, std::move(done)));
    return Status::Ok();
  });
}

Napi::Value Stream::MakeReader(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    const napi_env env = info.Env();
    MLA_RETURN_IF_ERROR(state_->usable("reader"));
    const Tensor* tensor = unwrap<Tensor>(env, info[0]);
    if (tensor == nullptr) return wrong_value(env, {"reader", "tensor"}, "a tensor", info[0]);
    MLA_RETURN_IF_ERROR(tensor->usable(*state_->device, {"reader", "tensor"}));
    bool typed = false;
    bool plain = true;
    napi_typedarray_type type{};
    size_t length = 0;
    size_t ignored = 0;
    void* data = nullptr;
    napi_value buffer = nullptr;
    if (info.Length() < 2 || napi_is_typedarray(env, info[1], &typed) != napi_ok || !typed ||
        napi_get_typedarray_info(env, info[1], &type, &length, &data, &buffer, &ignored) != napi_ok ||
        type != napi_uint8_array || static_cast<int64_t>(length) != tensor->view().bytes() ||
        napi_is_arraybuffer(env, buffer, &plain) != napi_ok || plain) {
      return Status::Error(Code::kInvalidArg,
                           "reader: the target must be a Uint8Array of shared memory of the tensor's size.");
    }
    *out = Environment::of(env).make<Reader>({state_, tensor->storage(), tensor->view(), info[1], data});
    if (*out == nullptr) return Status::Error(Code::kInternal, "reader: the environment refuses a reader.");
    return Status::Ok();
  });
}

Napi::Value Stream::ReadFile(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    const napi_env env = info.Env();
    MLA_RETURN_IF_ERROR(state_->outside_capture("readFile"));
    const Tensor* tensor = unwrap<Tensor>(env, info[0]);
    if (tensor == nullptr) return wrong_value(env, {"readFile", "tensor"}, "a tensor", info[0]);
    MLA_RETURN_IF_ERROR(tensor->usable(*state_->device, {"readFile", "tensor"}));
    int64_t descriptor = 0;
    int64_t offset = 0;
    int64_t end = 0;
    MLA_RETURN_IF_ERROR(read_integer(env, info[1], {"readFile", "fd"}, 0, INT32_MAX, &descriptor));
    MLA_RETURN_IF_ERROR(read_integer(env, info[2], {"readFile", "offset"}, 0, kMaxSafeInteger, &offset));
    const int64_t bytes = tensor->view().bytes();
    if (!checked_add(offset, bytes, &end) || end > kMaxSafeInteger) {
      return wrong_value(env, {"readFile", "offset"}, "a position in a file", info[2]);
    }
    runtime::FileRef file;
    MLA_RETURN_IF_ERROR(files_.duplicate(static_cast<int>(descriptor), &file));
    if (bytes == 0) return Status::Ok();
    state_->device->submit(std::make_unique<runtime::ReadFileCommand>(
        state_->stream, tensor->storage(), tensor->view().data, std::move(file), offset, bytes));
    return Status::Ok();
  });
}

Napi::Value Stream::Record(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    const napi_env env = info.Env();
    MLA_RETURN_IF_ERROR(state_->outside_capture("record"));
    Environment& environment = Environment::of(env);
    const std::shared_ptr<Mailbox> mailbox = environment.mailbox();
    napi_deferred deferred = nullptr;
    napi_value event = environment.make<Event>({state_});
    napi_value promise = event == nullptr ? nullptr : mailbox->promise(env, &deferred);
    if (promise == nullptr || napi_set_named_property(env, event, "done", promise) != napi_ok) {
      return Status::Error(Code::kInternal, "record: the environment refuses an event.");
    }
    auto done = [mailbox, deferred](Status status) {
      mailbox->settle(deferred, [status = std::move(status)](napi_env env) -> napi_value {
        return status.ok() ? nullptr : failure(env, status);
      });
    };
    state_->device->submit(std::make_unique<runtime::RecordCommand>(state_->stream, std::move(done)));
    *out = event;
    return Status::Ok();
  });
}

Napi::Value Stream::Wait(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    MLA_RETURN_IF_ERROR(state_->outside_capture("wait"));
    const Event* event = unwrap<Event>(info.Env(), info[0]);
    if (event == nullptr) return wrong_value(info.Env(), {"wait", "event"}, "an event", info[0]);
    if (event->state()->device != state_->device) {
      return Status::Error(Code::kInvalidArg, "wait: the event belongs to a stream of another device.");
    }
    if (event->state() == state_) return Status::Ok();  // a stream is always behind its own events
    state_->device->submit(std::make_unique<runtime::WaitCommand>(state_->stream, event->state()->stream));
    return Status::Ok();
  });
}

Napi::Value Stream::BeginCapture(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    MLA_RETURN_IF_ERROR(state_->outside_capture("capture"));
    capture_ = std::make_unique<Capture>();
    state_->capturing = true;
    return Status::Ok();
  });
}

Napi::Value Stream::EndCapture(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    const std::unique_ptr<Capture> capture = std::move(capture_);
    state_->capturing = false;
    MLA_RETURN_IF_ERROR(state_->usable("capture"));
    if (capture == nullptr) return Status::Error(Code::kState, "capture: nothing is being captured.");
    MLA_RETURN_IF_ERROR(capture->failure);
    if (workspace_storage_ != nullptr) capture->holds.push_back(workspace_storage_);
    auto graph = std::make_shared<runtime::Graph>(state_->device->resources(), std::move(capture->holds));
    napi_value object = Environment::of(info.Env()).make<Graph>({state_, graph, capture->operations.size()});
    if (object == nullptr) return Status::Error(Code::kInternal, "capture: the environment refuses a graph.");
    state_->device->submit(std::make_unique<runtime::CompileCommand>(state_->stream, std::move(graph),
                                                                     std::move(capture->operations), workspace_));
    *out = object;
    return Status::Ok();
  });
}

Napi::Value Stream::AbortCapture(const Napi::CallbackInfo& info) {
  capture_.reset();
  state_->capturing = false;
  return info.Env().Undefined();
}

Napi::Value Stream::Dispose(const Napi::CallbackInfo& info) {
  state_->disposed = true;
  state_->capturing = false;
  capture_.reset();
  workspace_ = View{};
  workspace_storage_.reset();
  return info.Env().Undefined();
}

Napi::Value Stream::Disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), state_->disposed || state_->device->closing());
}

}  // namespace mla::addon
