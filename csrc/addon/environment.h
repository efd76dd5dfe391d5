// environment.h - the state of the addon in one JavaScript environment (the main thread, or one worker).
#pragma once
#include <napi.h>

#include <memory>
#include <vector>

#include "addon/mailbox.h"
#include "runtime/device.h"

namespace mla::addon {

enum class Class { kDevice, kTensor, kStream, kEvent, kGraph, kReader };
constexpr int kClassCount = 6;

/// Marks the objects of each class, so that a foreign object is told from ours before its memory is touched.
extern const napi_type_tag kTypeTags[kClassCount];

/// The device list of an environment; shared with answers that are under way.
struct DeviceList {
  std::vector<std::shared_ptr<runtime::Device>> devices;
  /// Waits for the thread of a closed device and forgets the device.
  void remove(const runtime::Device* device);
};

class Environment {
 public:
  static Environment& of(napi_env env);
  /// Sets up the instance data and the cleanup hook. False if the environment refuses.
  static bool create(Napi::Env env);

  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }
  const std::shared_ptr<DeviceList>& devices() const { return devices_; }
  void set_class(Class c, Napi::Function constructor);

  /// A new object of class T, whose constructor takes `init`. Null after a JavaScript exception.
  template <class T>
  napi_value make(typename T::Init init) {
    pending_init_ = &init;
    napi_value object = construct(T::kClass);
    pending_init_ = nullptr;
    return object;
  }
  /// What make() has been given; null when JavaScript calls the constructor by itself.
  template <class T>
  typename T::Init* take_init() {
    return static_cast<typename T::Init*>(std::exchange(pending_init_, nullptr));
  }

 private:
  explicit Environment(napi_env env) : env_(env) {}
  static void clean_up(void* self);
  napi_value construct(Class c);

  napi_env env_;
  std::shared_ptr<Mailbox> mailbox_;
  const std::shared_ptr<DeviceList> devices_ = std::make_shared<DeviceList>();
  Napi::FunctionReference classes_[kClassCount];
  void* pending_init_ = nullptr;
};

/// The T behind a value, or null if it is anything else.
template <class T>
T* unwrap(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  bool tagged = false;
  void* data = nullptr;
  // The type first: looking for a tag on undefined would leave a JavaScript exception behind.
  if (value == nullptr || napi_typeof(env, value, &type) != napi_ok || type != napi_object ||
      napi_check_object_type_tag(env, value, &kTypeTags[static_cast<int>(T::kClass)], &tagged) != napi_ok || !tagged ||
      napi_unwrap(env, value, &data) != napi_ok) {
    return nullptr;
  }
  return static_cast<T*>(data);
}

}  // namespace mla::addon
