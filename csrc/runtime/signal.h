// signal.h - wakes one sleeping thread. The sleeper spins for a moment first, so that a decode loop, which issues its
// next command some microseconds after the last, does not pay for a system call each time.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

namespace mla::runtime {

class Signal {
 public:
  Signal();
  /// Any thread. Raising it twice before the sleeper looks is the same as once.
  void raise() noexcept;
  /// One thread. Returns as soon as the signal has been raised since the last return.
  void wait();

 private:
  const bool may_spin_;
  std::atomic<bool> raised_{false};
  std::atomic<bool> sleeping_{false};
  std::mutex mutex_;
  std::condition_variable condition_;
};

}  // namespace mla::runtime
