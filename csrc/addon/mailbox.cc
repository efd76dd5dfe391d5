#include "addon/mailbox.h"

#include <utility>

#include "addon/values.h"
#include "runtime/device.h"

namespace mla::addon {

std::shared_ptr<Mailbox> Mailbox::create(napi_env env) {
  auto mailbox = std::make_shared<Mailbox>();
  napi_value name;
  if (napi_create_string_utf8(env, "node-mla", NAPI_AUTO_LENGTH, &name) != napi_ok) return nullptr;
  // The function outlives the environment's own reference: its finalizer drops the one it holds.
  auto* context = new std::shared_ptr<Mailbox>(mailbox);
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<Mailbox>*>(data); };
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, context, finalize, context, &Mailbox::deliver,
                                      &mailbox->function_) != napi_ok) {
    delete context;
    return nullptr;
  }
  napi_unref_threadsafe_function(env, mailbox->function_);
  return mailbox;
}

napi_value Mailbox::promise(napi_env env, napi_deferred* deferred) {
  napi_value promise = nullptr;
  if (napi_create_promise(env, deferred, &promise) != napi_ok) return nullptr;
  if (pending_++ == 0) napi_ref_threadsafe_function(env, function_);
  return promise;
}

void Mailbox::settle(napi_deferred deferred, MakeValue make) noexcept {
  post([self = shared_from_this(), deferred, make = std::move(make)](napi_env env) {
    napi_value value = nullptr;
    try {
      value = make(env);
    } catch (...) {
      value = failure(env, runtime::status_of_exception());
    }
    if (value == nullptr) napi_get_undefined(env, &value);
    napi_resolve_deferred(env, deferred, value);
    if (--self->pending_ == 0 && self->function_ != nullptr) napi_unref_threadsafe_function(env, self->function_);
  });
}

void Mailbox::post(Letter letter) noexcept {
  std::lock_guard lock(mutex_);
  if (function_ == nullptr) return;
  try {
    letters_.push_back(std::move(letter));
  } catch (...) {
    return;
  }
  // One call per batch: deliver() takes all letters there are.
  if (letters_.size() == 1) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

void Mailbox::close() {
  std::vector<Letter> dropped;
  std::lock_guard lock(mutex_);
  function_ = nullptr;
  dropped.swap(letters_);
}

void Mailbox::deliver(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is going away
  const std::shared_ptr<Mailbox> self = *static_cast<std::shared_ptr<Mailbox>*>(context);
  self->deliver(env);
}

void Mailbox::deliver(napi_env env) {
  std::vector<Letter> letters;
  {
    std::lock_guard lock(mutex_);
    letters.swap(letters_);
  }
  for (Letter& letter : letters) {
    napi_handle_scope scope;
    if (napi_open_handle_scope(env, &scope) != napi_ok) return;
    try {
      letter(env);
    } catch (...) {
      // Only the lack of memory ends here, and an environment that no longer takes values.
    }
    letter = nullptr;
    bool pending = false;
    napi_value ignored;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
      napi_get_and_clear_last_exception(env, &ignored);
    }
    napi_close_handle_scope(env, scope);
  }
}

}  // namespace mla::addon
