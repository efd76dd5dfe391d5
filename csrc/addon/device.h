// device.h - the Device class: one processor or GPU.
#pragma once
#include "addon/handle.h"
#include "runtime/device.h"

namespace mla::addon {

class Device final : public Handle<Device> {
 public:
  static constexpr Class kClass = Class::kDevice;
  struct Init {
    std::shared_ptr<runtime::Device> device;
  };
  static Napi::Function define(Napi::Env env);
  explicit Device(const Napi::CallbackInfo& info);
  ~Device() override;

 private:
  Napi::Value Info(const Napi::CallbackInfo& info);
  /// allocate(dtype, ...dims): a promise of a Tensor.
  Napi::Value Allocate(const Napi::CallbackInfo& info);
  Napi::Value MakeStream(const Napi::CallbackInfo& info);
  /// workspaceBytes(verb, ...arguments): see read_planned_operation().
  Napi::Value WorkspaceBytes(const Napi::CallbackInfo& info);
  Napi::Value DecodePlanInts(const Napi::CallbackInfo& info);
  Napi::Value AllocatedBytes(const Napi::CallbackInfo& info);
  /// A promise the first time, undefined afterwards.
  Napi::Value Dispose(const Napi::CallbackInfo& info);
  Napi::Value Disposed(const Napi::CallbackInfo& info);
  /// abandon(ms): how long nothing has ended.
  Napi::Value Abandon(const Napi::CallbackInfo& info);
  /// Test hook failCommand(k, lost): see NativeAddon in lib/native/types.ts.
  Napi::Value FailCommand(const Napi::CallbackInfo& info);

  std::shared_ptr<runtime::Device> device_;
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<DeviceList> devices_;
};

}  // namespace mla::addon
