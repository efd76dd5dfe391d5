#include "runtime/signal.h"

#include <chrono>
#include <thread>

namespace mla::runtime {

namespace {

/// Longer than a JavaScript turn between two steps, far shorter than anything a user would see in a process monitor.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 32;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Signal::Signal() : may_spin_(std::thread::hardware_concurrency() > 1) {}

void Signal::raise() noexcept {
  if (raised_.exchange(true)) return;
  // Sequentially consistent on both sides: either this load sees the sleeper, or the sleeper sees raised_.
  if (!sleeping_.load()) return;
  // The lock makes sure the sleeper is really waiting, not between its last look and the wait.
  { std::lock_guard lock(mutex_); }
  // Free again by now: the sleeper takes it as soon as it wakes, and would have to be woken a second time.
  condition_.notify_one();
}

void Signal::wait() {
  if (raised_.exchange(false)) return;
  if (may_spin_) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerLook; ++i) pause();
      if (raised_.load(std::memory_order_relaxed)) {
        raised_.exchange(false);
        return;
      }
    } while (std::chrono::steady_clock::now() < until);
  }
  std::unique_lock lock(mutex_);
  sleeping_.store(true);
  condition_.wait(lock, [this] { return raised_.load(); });
  sleeping_.store(false);
  raised_.store(false);
}

}  // namespace mla::runtime
