// tensor.h - the Tensor class: one handle on a block of device memory, with element type and shape.
#pragma once
#include "addon/handle.h"
#include "runtime/device.h"

namespace mla::addon {

class Tensor final : public Handle<Tensor> {
 public:
  static constexpr Class kClass = Class::kTensor;
  struct Init {
    std::shared_ptr<runtime::Device> device;
    runtime::StorageRef storage;
    View view;
  };
  static Napi::Function define(Napi::Env env);
  explicit Tensor(const Napi::CallbackInfo& info);

  /// Ok while the handle can be used; `what` is the argument's name in the message.
  Status usable(const runtime::Device& device, const Name& what) const;
  const runtime::StorageRef& storage() const { return storage_; }
  const View& view() const { return view_; }

 private:
  /// view(dtype, byteOffset, ...dims): another tensor over part of the memory.
  Napi::Value MakeView(const Napi::CallbackInfo& info);
  Napi::Value Dispose(const Napi::CallbackInfo& info);
  Napi::Value Disposed(const Napi::CallbackInfo& info);

  std::shared_ptr<runtime::Device> device_;
  runtime::StorageRef storage_;  // null once disposed
  View view_;
};

}  // namespace mla::addon
