#include "addon/environment.h"

#include <algorithm>
#include <utility>

namespace mla::addon {

const napi_type_tag kTypeTags[kClassCount] = {
    {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7701}, {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7702},
    {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7703}, {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7704},
    {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7705}, {0x6b1f0c2f6a0d4d01, 0x9a8a3f6d1c5e7706},
};

void DeviceList::remove(const runtime::Device* device) {
  const auto found =
      std::find_if(devices.begin(), devices.end(), [device](const auto& held) { return held.get() == device; });
  if (found == devices.end()) return;
  const std::shared_ptr<runtime::Device> held = std::move(*found);
  devices.erase(found);
  held->join();
}

Environment& Environment::of(napi_env env) { return *Napi::Env(env).GetInstanceData<Environment>(); }

bool Environment::create(Napi::Env env) {
  auto* self = new Environment(env);
  env.SetInstanceData<Environment>(self);
  self->mailbox_ = Mailbox::create(env);
  if (self->mailbox_ == nullptr) return false;
  // Registered after the thread-safe function, so it runs before that one is torn down.
  return napi_add_env_cleanup_hook(env, &Environment::clean_up, self) == napi_ok;
}

void Environment::clean_up(void* data) {
  auto* self = static_cast<Environment*>(data);
  // All stop at once, then each thread is awaited: it finishes the command it is in and drops the others.
  for (const auto& device : self->devices_->devices) device->close(nullptr);
  for (const auto& device : self->devices_->devices) device->join();
  self->devices_->devices.clear();
  self->mailbox_->close();
}

void Environment::set_class(Class c, Napi::Function constructor) {
  classes_[static_cast<int>(c)] = Napi::Persistent(constructor);
}

napi_value Environment::construct(Class c) {
  napi_value object = nullptr;
  napi_value constructor = classes_[static_cast<int>(c)].Value();
  if (napi_new_instance(env_, constructor, 0, nullptr, &object) != napi_ok) return nullptr;
  return object;
}

}  // namespace mla::addon
