#include "addon/reader.h"

#include <cstring>
#include <utility>

namespace mla::addon {

Napi::Function Reader::define(Napi::Env env) {
  napi_property_descriptor read{};
  read.utf8name = "read";
  read.method = &Reader::Read;
  read.attributes = napi_default;
  return DefineClass(
      env, "Reader",
      {read, InstanceMethod<&Reader::Dispose>("dispose"), InstanceMethod<&Reader::Disposed>("disposed")});
}

Reader::Reader(const Napi::CallbackInfo& info) : Handle(info) {
  Init& init = Handle::init(info);
  state_ = std::move(init.state);
  source_ = std::move(init.source);
  view_ = init.view;
  target_ = std::make_shared<Target>(Target{init.data, static_cast<size_t>(init.view.bytes())});
  memory_ = Napi::Persistent(Napi::Object(info.Env(), init.target));
}

Reader::~Reader() { target_->data = nullptr; }

napi_value Reader::Read(napi_env env, napi_callback_info info) {
  napi_value self = nullptr;
  void* data = nullptr;
  napi_value promise = nullptr;
  Status status;
  if (napi_get_cb_info(env, info, nullptr, nullptr, &self, nullptr) != napi_ok ||
      napi_unwrap(env, self, &data) != napi_ok) {
    status = Status::Error(Code::kInvalidArg, "read: not a reader.");
  } else {
    try {
      status = static_cast<Reader*>(data)->read(env, &promise);
    } catch (...) {
      status = runtime::status_of_exception();
    }
  }
  return status.ok() ? promise : failure(env, status);
}

Status Reader::read(napi_env env, napi_value* out) {
  if (source_ == nullptr) return Status::Error(Code::kDisposed, "read: the reader has been disposed.");
  MLA_RETURN_IF_ERROR(state_->outside_capture("read"));
  if (target_->busy) return Status::Error(Code::kState, "read: the reader has not finished its last read.");
  napi_deferred deferred = nullptr;
  const std::shared_ptr<Mailbox> mailbox = Environment::of(env).mailbox();
  *out = mailbox->promise(env, &deferred);
  if (*out == nullptr) return Status::Error(Code::kInternal, "read: the environment refuses a promise.");
  target_->busy = true;
  auto done = [mailbox, deferred, target = target_](Status status, std::shared_ptr<HostBuffer> buffer) {
    mailbox->settle(deferred, [target, status = std::move(status), buffer](napi_env env) -> napi_value {
      target->busy = false;
      if (!status.ok()) return failure(env, status);
      if (target->data != nullptr && buffer != nullptr) std::memcpy(target->data, buffer->data(), target->bytes);
      return nullptr;
    });
  };
  state_->device->submit(
      std::make_unique<runtime::ReadCommand>(state_->stream, source_, view_.data, view_.bytes(), std::move(done)));
  return Status::Ok();
}

Napi::Value Reader::Dispose(const Napi::CallbackInfo& info) {
  source_.reset();
  return info.Env().Undefined();
}

Napi::Value Reader::Disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), source_ == nullptr || state_->device->closing());
}

}  // namespace mla::addon
