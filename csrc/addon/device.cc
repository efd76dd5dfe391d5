#include "addon/device.h"

#include <unistd.h>

#include <cstdlib>

#include <string>
#include <utility>
#include <vector>

#include "addon/planning.h"
#include "addon/stream.h"
#include "addon/tensor.h"
#include "runtime/commands.h"

namespace mla::addon {

Napi::Function Device::define(Napi::Env env) {
  return DefineClass(
      env, "Device",
      {InstanceMethod<&Device::Info>("info"), InstanceMethod<&Device::Allocate>("allocate"),
       InstanceMethod<&Device::MakeStream>("stream"), InstanceMethod<&Device::WorkspaceBytes>("workspaceBytes"),
       InstanceMethod<&Device::DecodePlanInts>("decodePlanInts"),
       InstanceMethod<&Device::AllocatedBytes>("allocatedBytes"), InstanceMethod<&Device::Dispose>("dispose"),
       InstanceMethod<&Device::Disposed>("disposed"), InstanceMethod<&Device::Abandon>("abandon"),
       InstanceMethod<&Device::FailCommand>("failCommand")});
}

Device::Device(const Napi::CallbackInfo& info)
    : Handle(info),
      device_(std::move(Handle::init(info).device)),
      mailbox_(Environment::of(info.Env()).mailbox()),
      devices_(Environment::of(info.Env()).devices()) {}

Device::~Device() {
  // Collected without dispose(): the thread ends by itself, and the next turn forgets it.
  if (device_ == nullptr) return;
  device_->close([mailbox = mailbox_, devices = devices_, device = device_.get()] {
    mailbox->post([devices, device](napi_env) { devices->remove(device); });
  });
}

Napi::Value Device::Info(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    const DeviceInfo found = device_->backend().info();
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("kind", found.kind);
    object.Set("name", found.name);
    object.Set("path", found.path);
    object.Set("memoryTotal", static_cast<double>(found.memory_total));
    object.Set("memoryFree", static_cast<double>(found.memory_free));
    object.Set("threads", found.threads);
    object.Set("multiprocessors", found.multiprocessors);
    *out = object;
    return Status::Ok();
  });
}

Napi::Value Device::Allocate(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    DType dtype{};
    View view;
    MLA_RETURN_IF_ERROR(read_dtype(info.Env(), info[0], {"allocate", "dtype"}, &dtype));
    std::vector<napi_value> dims;
    for (size_t i = 1; i < info.Length(); ++i) dims.push_back(info[i]);
    MLA_RETURN_IF_ERROR(read_shape(info.Env(), dtype, dims.data(), dims.size(), {"allocate", "shape"}, &view));
    napi_deferred deferred = nullptr;
    *out = mailbox_->promise(info.Env(), &deferred);
    if (*out == nullptr) return Status::Error(Code::kInternal, "allocate: the environment refuses a promise.");
    auto done = [mailbox = mailbox_, device = device_, deferred, view](Status status, runtime::StorageRef storage) {
      // Moved, not copied: once the letter is posted, this thread must hold nothing that JavaScript may dispose and
      // count.
      mailbox->settle(
          deferred,
          [device, view, status = std::move(status), storage = std::move(storage)](napi_env env) -> napi_value {
            if (!status.ok()) return failure(env, status);
            if (const Status now = device->state(); !now.ok()) return failure(env, now);
            View placed = view;
            placed.data = storage->data();
            return Environment::of(env).make<Tensor>({device, storage, placed});
          });
    };
    device_->submit(std::make_unique<runtime::AllocateCommand>(view.bytes(), std::move(done)));
    return Status::Ok();
  });
}

Napi::Value Device::MakeStream(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    *out = Environment::of(info.Env()).make<Stream>({device_});
    return Status::Ok();
  });
}

Napi::Value Device::WorkspaceBytes(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    return plan_workspace(info, 0, device_->backend(), out);
  });
}

Napi::Value Device::DecodePlanInts(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    return plan_decode(info, 0, device_->backend(), out);
  });
}

Napi::Value Device::AllocatedBytes(const Napi::CallbackInfo& info) {
  const int64_t bytes = device_->closing() ? 0 : device_->resources()->held_bytes();
  return Napi::Number::New(info.Env(), static_cast<double>(bytes));
}

Napi::Value Device::Dispose(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    if (device_->closing()) return Status::Ok();
    napi_deferred deferred = nullptr;
    *out = mailbox_->promise(info.Env(), &deferred);
    if (*out == nullptr) return Status::Error(Code::kInternal, "dispose: the environment refuses a promise.");
    device_->close([mailbox = mailbox_, devices = devices_, device = device_.get(), deferred] {
      mailbox->settle(deferred, [devices, device](napi_env) -> napi_value {
        devices->remove(device);
        return nullptr;
      });
    });
    return Status::Ok();
  });
}

Napi::Value Device::Disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), device_->closing());
}

namespace {

/// From here on the process ends without the handlers that were registered before: the driver's waits for what runs on
/// the GPU (18 s of a kernel that took 20, H200, driver 580.159.04, 2026-11-26).
void leave_without_the_driver() {
#ifdef __GLIBC__
  static const int registered = on_exit([](int status, void*) { _exit(status); }, nullptr);
  (void)registered;
#endif
}

}  // namespace

Napi::Value Device::Abandon(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    int64_t ms = 0;
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[0], {"abandon", "ms"}, 0, kMaxSafeInteger, &ms));
    (void)new std::shared_ptr<runtime::Device>(device_);  // for ever, as Device::abandon() asks
    leave_without_the_driver();
    device_->abandon(Status::Error(Code::kDeviceLost,
                                   "nothing has ended within " + std::to_string(ms) +
                                       " ms, so the device hangs and is given up; a new process is needed to go on"));
    return Status::Ok();
  });
}

Napi::Value Device::FailCommand(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    MLA_RETURN_IF_ERROR(device_->state());
    int64_t k = 0;
    bool lost = false;
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[0], {"failCommand", "k"}, -1, kMaxSafeInteger, &k));
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[1], {"failCommand", "lost"}, &lost));
    device_->fail_command(
        k, Status::Error(lost ? Code::kDeviceLost : Code::kBackend, "the command failed on purpose (failCommand)"));
    return Status::Ok();
  });
}

}  // namespace mla::addon
