// event.h - the Event class: a point in a stream.
#pragma once
#include "addon/handle.h"
#include "addon/stream.h"

namespace mla::addon {

class Event final : public Handle<Event> {
 public:
  static constexpr Class kClass = Class::kEvent;
  struct Init {
    StreamStateRef state;
  };
  static Napi::Function define(Napi::Env env);
  explicit Event(const Napi::CallbackInfo& info) : Handle(info), state_(std::move(Handle::init(info).state)) {}
  const StreamStateRef& state() const { return state_; }

 private:
  StreamStateRef state_;
};

}  // namespace mla::addon
