// device.h - one device: its backend, the command thread that alone talks to it, and the state of both.
#pragma once
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "ops/backend.h"
#include "runtime/resources.h"
#include "runtime/signal.h"
#include "runtime/stream.h"

namespace mla::runtime {

class Device;

/// One entry of a device's queue. Exactly one of run() and cancel() is called, on the command thread.
class Command {
 public:
  virtual ~Command() = default;
  virtual void run(Device& device) = 0;
  /// Called once, in order, some commands before this one's turn: what can begin early may begin.
  virtual void prepare(Device&) noexcept {}
  /// The device was disposed or lost before this command's turn came.
  virtual void cancel(const Status&) noexcept {}
};

/// A fault that outlives a device: a GPU whose context is gone is lost for the whole process.
class LostLatch {
 public:
  bool lost() const { return lost_.load(std::memory_order_acquire); }
  Status status() const;
  void set(const Status& status);

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> lost_{false};
  std::string text_;
};

class Device {
 public:
  using Factory = std::function<Status(std::unique_ptr<Backend>*)>;

  /// Starts the command thread and makes the backend on it; waits for that.
  static Status open(Factory factory, std::shared_ptr<LostLatch> latch, std::shared_ptr<Device>* out);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // ---- the JavaScript thread ----
  /// Ok, kDisposed or kDeviceLost.
  Status state() const;
  /// For its const queries. Only while state() is not kDisposed.
  const Backend& backend() const { return *backend_; }
  const std::shared_ptr<Resources>& resources() const { return resources_; }
  StreamRef create_stream() { return std::make_shared<Stream>(resources_); }
  /// Appends a command. After close() it is destroyed without a call, since state() has told the caller.
  void submit(std::unique_ptr<Command> command);
  /// Stops after the command that runs now; the others are cancelled with kDisposed. `closed` is called at the end, on
  /// the command thread. Idempotent; only the first call's `closed` counts.
  void close(std::function<void()> closed);
  /// After close(): waits for the command thread to leave; not for long if the device has been abandoned.
  void join();
  /// Gives up a device that hangs. What is asked of it is answered with `status`, now and later; nobody asks the
  /// backend anything any more, not even to end: it, and what it owns, stay as they are. The caller keeps the device
  /// for ever, since work that ends after all reports here.
  void abandon(const Status& status);
  bool closing() const { return closing_.load(std::memory_order_acquire); }

  /// Test hook: the k-th command from now on fails with `status` instead of running.
  void fail_command(int64_t k, Status status);

  // ---- the command thread ----
  /// For commands that are about to give the backend work: its stream, made at the first use.
  Status begin_work(Stream& stream, BackendStream** out);
  /// Calls done once, when everything issued so far has finished. `work` may be null: nothing has been issued.
  void fence(const std::shared_ptr<StreamWork>& work, std::function<void(Status)> done);
  /// Allocates; when there is no memory, waits for retired memory to come back and tries once more.
  Status allocate(int64_t bytes, StorageRef* out);
  /// Memory for a transfer to or from the host.
  Status host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out);
  /// Calls f(), turns what it throws into a Status, and loses the device on a sticky one.
  template <class F>
  Status guarded(F&& f);
  /// What fail_command() asked for, when this command is the one.
  Status injected_failure();
  Backend& mutable_backend() { return *backend_; }

 private:
  struct Once;

  explicit Device(std::shared_ptr<LostLatch> latch);
  bool abandoned() const { return abandoned_.load(std::memory_order_acquire); }
  void loop(const Factory& factory, const std::function<void(Status)>& opened);
  void run_queue();
  void shut_down();
  void note(const Status& status);
  /// Fences every stream that still works and keeps `token` until all of them have passed.
  void fence_all(std::shared_ptr<void> token);
  /// Starts giving back what has been retired, as soon as each stream has passed this moment.
  void collect();
  void release_passed();
  /// Blocks until all streams are idle and everything retired is given back.
  void drain();

  const std::shared_ptr<Signal> signal_ = std::make_shared<Signal>();
  const std::shared_ptr<Resources> resources_ = std::make_shared<Resources>(signal_);
  const std::shared_ptr<LostLatch> latch_;
  std::unique_ptr<Backend> backend_;
  std::thread thread_;
  std::future<void> left_;  // the command thread has

  std::mutex mutex_;
  std::vector<std::unique_ptr<Command>> queue_;
  std::vector<std::vector<void*>> passed_;   // retired resources that the device has passed
  std::vector<std::weak_ptr<Once>> fences_;  // not answered yet
  std::function<void()> closed_;
  int64_t failing_command_ = -1;
  Status command_failure_;

  std::vector<std::shared_ptr<StreamWork>> working_;  // command thread: all streams that are not released yet

  std::atomic<bool> closing_{false};
  std::atomic<bool> abandoned_{false};
};

/// The text of the exception that is being handled.
Status status_of_exception() noexcept;

template <class F>
Status Device::guarded(F&& f) {
  Status status;
  try {
    status = f();
  } catch (...) {
    status = status_of_exception();
  }
  if (status.sticky) note(status);
  return status;
}

}  // namespace mla::runtime
