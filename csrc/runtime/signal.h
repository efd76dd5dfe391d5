// signal.h - wakes one sleeping thread. The sleeper spins for a moment first, so that a decode loop, which issues its
// next command some microseconds after the last, does not pay for a system call each time. Where it is known that the
// signal will come soon, somebody else announces it and pays.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace mla::runtime {

class Signal {
 public:
  Signal();
  /// Any thread. Raising it twice before the sleeper looks is the same as once.
  void raise() noexcept;
  /// Any thread. The signal is about to be raised: whoever sleeps wakes up now and spins for it. Nothing else happens.
  void announce() noexcept;
  /// One thread. Returns as soon as the signal has been raised since the last return.
  void wait();

 private:
  void wake() noexcept;
  /// Spins for so long. Returns whether the signal has been raised.
  bool spin(std::chrono::microseconds most);

  const bool may_spin_;
  std::atomic<bool> raised_{false};
  std::atomic<bool> announced_{false};
  std::atomic<bool> sleeping_{false};
  std::mutex mutex_;
  std::condition_variable condition_;
};

}  // namespace mla::runtime
