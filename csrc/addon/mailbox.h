// mailbox.h - answers on their way from other threads to the JavaScript thread of one environment.
#pragma once
#include <node_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "common/status.h"

namespace mla::addon {

class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  using Letter = std::function<void(napi_env)>;
  /// Makes the answer's value on the JavaScript thread.
  using MakeValue = std::function<napi_value(napi_env)>;

  /// Null if the environment cannot make one.
  static std::shared_ptr<Mailbox> create(napi_env env);

  /// JavaScript thread: a promise that settle() will resolve. The process stays alive until then.
  napi_value promise(napi_env env, napi_deferred* deferred);
  /// Any thread: resolves the promise with what `make` gives. Native promises never reject; a failure is a value (see
  /// failure() in values.h), so that nobody meets an error object of another realm.
  void settle(napi_deferred deferred, MakeValue make) noexcept;
  /// Any thread: runs `letter` on the JavaScript thread, if that still exists.
  void post(Letter letter) noexcept;
  /// JavaScript thread, in the environment's cleanup hook: what comes later is dropped.
  void close();

 private:
  static void deliver(napi_env env, napi_value, void* context, void*);
  void deliver(napi_env env);

  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;  // null after close()
  std::vector<Letter> letters_;
  int64_t pending_ = 0;  // JavaScript thread: promises not settled yet
};

}  // namespace mla::addon
