// unjoined.cc - an addon as it should not be: a thread of its own goes on calling JavaScript when its environment ends,
// for nobody joins it. The control of worker.test.ts: terminated workers with such an addon must end the process.
#include <node_api.h>

#include <chrono>
#include <thread>

namespace {

void call_for_ever(napi_threadsafe_function function) {
  for (;;) {
    napi_call_threadsafe_function(function, nullptr, napi_tsfn_nonblocking);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void called(napi_env, napi_value, void*, void*) {}

napi_value init(napi_env env, napi_value exports) {
  napi_value name = nullptr;
  napi_threadsafe_function function = nullptr;
  napi_create_string_utf8(env, "unjoined", NAPI_AUTO_LENGTH, &name);
  napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, called, &function);
  std::thread(call_for_ever, function).detach();
  return exports;
}

}  // namespace

NAPI_MODULE(unjoined, init)
