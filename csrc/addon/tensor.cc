#include "addon/tensor.h"

#include <utility>
#include <vector>

#include "common/checked.h"

namespace mla::addon {

Napi::Function Tensor::define(Napi::Env env) {
  return DefineClass(env, "Tensor",
                     {InstanceMethod<&Tensor::MakeView>("view"), InstanceMethod<&Tensor::Dispose>("dispose"),
                      InstanceMethod<&Tensor::Disposed>("disposed")});
}

Tensor::Tensor(const Napi::CallbackInfo& info) : Handle(info) {
  Init& init = Handle::init(info);
  device_ = std::move(init.device);
  storage_ = std::move(init.storage);
  view_ = init.view;
}

Status Tensor::usable(const runtime::Device& device, const Name& what) const {
  if (storage_ == nullptr || device_->closing()) {
    return Status::Error(Code::kDisposed, what.text() + " is a tensor that has been disposed.");
  }
  if (device_.get() != &device) {
    return Status::Error(Code::kInvalidArg, what.text() + " is a tensor of another device.");
  }
  return Status::Ok();
}

Napi::Value Tensor::MakeView(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    const Name what{"view", "tensor"};
    MLA_RETURN_IF_ERROR(usable(*device_, what));
    DType dtype{};
    View view;
    int64_t offset = 0;
    MLA_RETURN_IF_ERROR(read_dtype(info.Env(), info[0], {"view", "dtype"}, &dtype));
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[1], {"view", "byteOffset"}, 0, kMaxSafeInteger, &offset));
    std::vector<napi_value> dims;
    for (size_t i = 2; i < info.Length(); ++i) dims.push_back(info[i]);
    MLA_RETURN_IF_ERROR(read_shape(info.Env(), dtype, dims.data(), dims.size(), {"view", "shape"}, &view));
    if (offset % dtype_bytes(dtype) != 0) {
      return Status::Error(Code::kInvalidArg, "view: byteOffset must be a multiple of " +
                                                  std::to_string(dtype_bytes(dtype)) + " for " + dtype_name(dtype) +
                                                  "; got " + std::to_string(offset) + ".");
    }
    int64_t end = 0;
    if (!checked_add(offset, view.bytes(), &end) || end > view_.bytes()) {
      return Status::Error(Code::kInvalidArg,
                           "view: bytes " + std::to_string(offset) + " to " + std::to_string(offset + view.bytes()) +
                               " do not lie in a tensor of " + std::to_string(view_.bytes()) + " bytes.");
    }
    if (view_.data != nullptr) view.data = static_cast<std::byte*>(view_.data) + offset;
    *out = Environment::of(info.Env()).make<Tensor>({device_, storage_, view});
    return Status::Ok();
  });
}

Napi::Value Tensor::Dispose(const Napi::CallbackInfo& info) {
  storage_.reset();
  return info.Env().Undefined();
}

Napi::Value Tensor::Disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), storage_ == nullptr || device_->closing());
}

}  // namespace mla::addon
