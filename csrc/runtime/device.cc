#include "runtime/device.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <future>
#include <new>
#include <system_error>
#include <utility>

#include "runtime/faults.h"

namespace mla::runtime {

namespace {

Status disposed() { return Status::Error(Code::kDisposed, "the device has been disposed"); }

bool is_out_of_memory(const Status& status) {
  return status.code == Code::kOutOfDeviceMemory || status.code == Code::kOutOfMemory;
}

/// How long the thread of an abandoned device is waited for: it may be inside a call that never returns.
constexpr std::chrono::milliseconds kAbandonedWait{200};

}  // namespace

/// A callback that is called once, whoever comes first.
struct Device::Once {
  std::atomic<bool> called{false};
  std::function<void(Status)> callback;

  void call(Status status) {
    if (!called.exchange(true)) std::exchange(callback, nullptr)(std::move(status));
  }
};

Status status_of_exception() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return Status::Error(Code::kOutOfMemory, "out of host memory");
  } catch (const std::exception& error) {
    return Status::Error(Code::kInternal, std::string("unexpected C++ exception: ") + error.what());
  } catch (...) {
    return Status::Error(Code::kInternal, "unexpected C++ exception");
  }
}

Status LostLatch::status() const {
  std::lock_guard lock(mutex_);
  return Status::Error(Code::kDeviceLost, text_);
}

void LostLatch::set(const Status& status) {
  std::lock_guard lock(mutex_);
  if (lost_.load(std::memory_order_relaxed)) return;
  text_ = status.text;
  lost_.store(true, std::memory_order_release);
}

// ---- the JavaScript thread ------------------------------------------------------------------------------------------

Device::Device(std::shared_ptr<LostLatch> latch) : latch_(std::move(latch)) {}

Device::~Device() {
  close(nullptr);
  join();
}

Status Device::open(Factory factory, std::shared_ptr<LostLatch> latch, std::shared_ptr<Device>* out) {
  if (latch->lost()) return latch->status();
  std::shared_ptr<Device> device(new Device(std::move(latch)));
  // Shared, because set_value() may still touch the promise when get() has returned.
  auto opened = std::make_shared<std::promise<Status>>();
  std::future<Status> result = opened->get_future();
  auto left = std::make_shared<std::promise<void>>();
  device->left_ = left->get_future();
  try {
    device->thread_ = std::thread([self = device.get(), factory = std::move(factory), opened, left] {
      pthread_setname_np(pthread_self(), "mla-device");
      self->loop(factory, [&opened](Status status) { opened->set_value(std::move(status)); });
      left->set_value();
    });
  } catch (const std::system_error& error) {
    return Status::Error(Code::kOutOfMemory, std::string("the device's thread could not be started: ") + error.what());
  }
  MLA_RETURN_IF_ERROR(result.get());
  *out = std::move(device);
  return Status::Ok();
}

Status Device::state() const {
  if (closing()) return disposed();
  if (latch_->lost()) return latch_->status();
  return Status::Ok();
}

void Device::submit(std::unique_ptr<Command> command) {
  if (closing()) {
    command->cancel(disposed());
    return;
  }
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(command));
  }
  signal_->raise();
}

void Device::close(std::function<void()> closed) {
  {
    std::lock_guard lock(mutex_);
    if (closing_.load()) return;
    closed_ = std::move(closed);
    closing_.store(true, std::memory_order_release);
  }
  signal_->raise();
}

void Device::join() {
  if (!thread_.joinable()) return;
  if (abandoned() && left_.wait_for(kAbandonedWait) != std::future_status::ready) {
    thread_.detach();
    return;
  }
  thread_.join();
}

void Device::abandon(const Status& status) {
  latch_->set(status);
  std::vector<std::unique_ptr<Command>> queued;
  std::vector<std::weak_ptr<Once>> fences;
  {
    std::lock_guard lock(mutex_);
    abandoned_.store(true, std::memory_order_release);
    queued.swap(queue_);
    fences.swap(fences_);
  }
  for (const auto& fence : fences) {
    if (const auto once = fence.lock()) once->call(status);
  }
  for (const auto& command : queued) command->cancel(status);
  signal_->raise();
}

void Device::fail_command(int64_t k, Status status) {
  std::lock_guard lock(mutex_);
  failing_command_ = k;
  command_failure_ = std::move(status);
}

// ---- the command thread ---------------------------------------------------------------------------------------------

void Device::loop(const Factory& factory, const std::function<void(Status)>& opened) {
  Status status = guarded([&] { return factory(&backend_); });
  const bool ok = status.ok();
  opened(std::move(status));
  if (!ok) return;
  while (!closing()) {
    signal_->wait();
    run_queue();
    release_passed();
  }
  shut_down();
}

void Device::run_queue() {
  std::vector<std::unique_ptr<Command>> batch;
  {
    std::lock_guard lock(mutex_);
    batch.swap(queue_);
  }
  constexpr size_t kPreparedAhead = 16;
  size_t prepared = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    std::unique_ptr<Command>& command = batch[i];
    const Status now = state();
    for (; now.ok() && prepared < std::min(i + kPreparedAhead, batch.size()); ++prepared)
      batch[prepared]->prepare(*this);
    if (now.ok()) {
      // Commands turn their failures into answers; what is caught here is only the lack of memory for an answer.
      (void)guarded([&] {
        command->run(*this);
        return Status::Ok();
      });
    } else {
      command->cancel(now);
    }
    command.reset();
    if (resources_->has_retired()) collect();
  }
  if (resources_->has_retired()) collect();
}

void Device::shut_down() {
  run_queue();  // cancels what is left
  if (!abandoned()) drain();
  if (abandoned()) {
    resources_->abandon();
    (void)backend_.release();
  } else {
    resources_->close(*backend_);
    backend_.reset();
  }
  std::function<void()> closed;
  {
    std::lock_guard lock(mutex_);
    closed = std::move(closed_);
  }
  if (closed) closed();
}

void Device::note(const Status& status) { latch_->set(status); }

Status Device::injected_failure() {
  std::lock_guard lock(mutex_);
  if (failing_command_ < 0 || failing_command_-- > 0) return Status::Ok();
  return command_failure_;
}

Status Device::begin_work(Stream& stream, BackendStream** out) {
  if (stream.work == nullptr) {
    std::unique_ptr<BackendStream> made;
    MLA_RETURN_IF_ERROR(backend_->create_stream(&made));
    auto work = std::make_shared<StreamWork>(resources_->adopt(std::move(made)));
    working_.push_back(work);
    stream.work = std::move(work);
  }
  ++stream.work->issued;
  *out = stream.work->backend;
  return Status::Ok();
}

void Device::fence(const std::shared_ptr<StreamWork>& work, std::function<void(Status)> done) {
  if (work == nullptr) {
    done(Status::Ok());
    return;
  }
  auto once = std::make_shared<Once>();
  once->callback = [this, work, issued = work->issued, done = std::move(done)](Status status) {
    if (status.sticky) note(status);
    uint64_t before = work->finished.load();
    while (before < issued && !work->finished.compare_exchange_weak(before, issued)) {
    }
    done(std::move(status));
    // Whoever hears of an end mostly issues the next work: this thread has been woken for it by then, by another one
    // than JavaScript's, which would spend more on that than on the commands.
    signal_->announce();
  };
  bool hangs = false;
  {
    std::lock_guard lock(mutex_);
    hangs = abandoned();
    std::erase_if(fences_, [](const auto& other) { return other.expired(); });
    if (!hangs) fences_.push_back(once);
  }
  if (hangs) {
    once->call(latch_->status());
    return;
  }
  const Status status = guarded([&] {
    backend_->fence(*work->backend, [once](Status s) { once->call(std::move(s)); });
    return Status::Ok();
  });
  if (!status.ok()) once->call(status);
}

void Device::fence_all(std::shared_ptr<void> token) {
  if (latch_->lost()) return;  // the work will never finish, and the backend must not be asked
  for (const auto& work : working_) {
    if (!work->idle()) fence(work, [token](Status) {});
  }
}

void Device::collect() {
  struct Collection {
    Device* device;
    std::vector<void*> retired;
    ~Collection() {
      {
        std::lock_guard lock(device->mutex_);
        device->passed_.push_back(std::move(retired));
      }
      device->signal_->raise();
    }
  };
  fence_all(std::make_shared<Collection>(this, resources_->take_retired()));
  release_passed();
}

void Device::release_passed() {
  if (abandoned()) return;
  std::vector<std::vector<void*>> passed;
  {
    std::lock_guard lock(mutex_);
    passed.swap(passed_);
  }
  for (const auto& retired : passed) {
    std::erase_if(working_, [&](const auto& work) {
      return std::find(retired.begin(), retired.end(), work->backend) != retired.end();
    });
    resources_->release(*backend_, retired);
  }
}

void Device::drain() {
  struct Latch {
    std::promise<void> passed;
    ~Latch() { passed.set_value(); }
  };
  if (resources_->has_retired()) collect();
  auto latch = std::make_shared<Latch>();
  std::future<void> passed = latch->passed.get_future();
  fence_all(std::move(latch));
  passed.wait();
  release_passed();
}

Status Device::allocate(int64_t bytes, StorageRef* out) {
  if (bytes > 0 && allocation_must_fail()) {
    return Status::Error(Code::kOutOfDeviceMemory, "the allocation failed on purpose (failAllocation)");
  }
  const auto attempt = [&] { return resources_->allocate(*backend_, bytes, out); };
  Status status = guarded(attempt);
  if (!is_out_of_memory(status)) return status;
  drain();
  return guarded(attempt);
}

Status Device::host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out) {
  if (allocation_must_fail()) {
    return Status::Error(Code::kOutOfMemory, "the allocation failed on purpose (failAllocation)");
  }
  return guarded([&] { return backend_->host_buffer(bytes, out); });
}

}  // namespace mla::runtime
