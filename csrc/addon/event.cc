#include "addon/event.h"

namespace mla::addon {

Napi::Function Event::define(Napi::Env env) { return DefineClass(env, "Event", {}); }

}  // namespace mla::addon
