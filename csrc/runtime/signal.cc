#include "runtime/signal.h"

#include <thread>

namespace mla::runtime {

namespace {

/// Longer than the pauses between the commands of one JavaScript turn, far shorter than anything a user would see in a
/// process monitor.
constexpr std::chrono::microseconds kSpin{50};
/// Longer than a JavaScript turn takes to issue a step, once it has heard of another one's end.
constexpr std::chrono::microseconds kAnnouncedSpin{200};
constexpr int kPausesPerLook = 32;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Signal::Signal() : may_spin_(std::thread::hardware_concurrency() > 1) {}

void Signal::raise() noexcept {
  if (!raised_.exchange(true)) wake();
}

void Signal::announce() noexcept {
  if (!may_spin_ || !sleeping_.load()) return;
  announced_.store(true);
  wake();
}

void Signal::wake() noexcept {
  // Sequentially consistent on both sides: either this load sees the sleeper, or the sleeper sees what was set before.
  if (!sleeping_.load()) return;
  // The lock makes sure the sleeper is really waiting, not between its last look and the wait.
  { std::lock_guard lock(mutex_); }
  // Free again by now: the sleeper takes it as soon as it wakes, and would have to be woken a second time.
  condition_.notify_one();
}

void Signal::wait() {
  while (!spin(announced_.exchange(false) ? kAnnouncedSpin : kSpin)) {
    std::unique_lock lock(mutex_);
    sleeping_.store(true);
    condition_.wait(lock, [this] { return raised_.load() || announced_.load(); });
    sleeping_.store(false);
  }
}

bool Signal::spin(std::chrono::microseconds most) {
  if (raised_.exchange(false)) return true;
  if (!may_spin_) return false;
  const auto until = std::chrono::steady_clock::now() + most;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) pause();
    if (raised_.load(std::memory_order_relaxed)) return raised_.exchange(false);
  } while (std::chrono::steady_clock::now() < until);
  return false;
}

}  // namespace mla::runtime
