// thread_pool.cc - a parallel region is opened, joined by whichever workers are awake in time, and closed by the caller
// when no piece is left. A worker that wakes too late finds it closed; so nobody waits for a sleeper.
#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

namespace mla::cpu {
namespace {

// Longer than the gap between two operations of a decode step, short enough not to be seen in a process list.
constexpr auto kSpin = std::chrono::microseconds(40);
constexpr int kPausesPerLook = 32;
constexpr int kPausesBeforeYield = 4096;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::Impl {
  // The region: number in the upper half, then the open bit, then how many workers are inside.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kInside = kOpen - 1;
  static constexpr int kNumberShift = 32;

  std::vector<std::thread> workers;
  int threads = 1;

  // The fields of the region are written only while it is closed and nobody is inside.
  int64_t n = 0;
  int64_t grain = 1;
  void* fn = nullptr;
  Call call = nullptr;

  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> wakeups{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};

  void work(int worker) {
    while (true) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      call(fn, begin, begin + grain < n ? begin + grain : n, worker);
    }
  }

  /// Enters the region if it is open and not the one numbered `last`.
  bool enter(uint64_t* last) {
    uint64_t s = state.load(std::memory_order_acquire);
    while ((s & kOpen) != 0 && (s >> kNumberShift) != *last) {
      if (state.compare_exchange_weak(s, s + 1, std::memory_order_acquire)) {
        *last = s >> kNumberShift;
        return true;
      }
    }
    return false;
  }

  void loop(int worker) {
    uint64_t last = 0;
    auto idle_since = std::chrono::steady_clock::now();
    while (!stop.load(std::memory_order_relaxed)) {
      if (enter(&last)) {
        work(worker);
        state.fetch_sub(1, std::memory_order_release);
        idle_since = std::chrono::steady_clock::now();
        continue;
      }
      for (int i = 0; i < kPausesPerLook; ++i) pause_cpu();
      if (std::chrono::steady_clock::now() - idle_since < kSpin) continue;

      // Announce the sleep before looking once more: run() opens the region before it looks for sleepers.
      const int seen = wakeups.load();
      sleepers.fetch_add(1);
      const uint64_t s = state.load();
      const bool open = (s & kOpen) != 0 && (s >> kNumberShift) != last;
      if (!open && !stop.load()) wakeups.wait(seen);
      sleepers.fetch_sub(1);
      idle_since = std::chrono::steady_clock::now();
    }
  }

  void wake() {
    wakeups.fetch_add(1);
    if (sleepers.load() > 0) wakeups.notify_all();
  }

  void join() {
    stop.store(true);
    wake();
    for (std::thread& t : workers) t.join();
    workers.clear();
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  impl_->threads = threads < 1 ? 1 : threads;
  // Signals are for the threads of the program, not for these: a new thread inherits the mask of its maker.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int w = 1; w < impl_->threads; ++w) {
      impl_->workers.emplace_back([impl = impl_.get(), w] { impl->loop(w); });
      char name[24];
      std::snprintf(name, sizeof name, "mla-cpu-%d", w);
      name[15] = 0;  // the longest name a thread can have
      pthread_setname_np(impl_->workers.back().native_handle(), name);
    }
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    impl_->join();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() { impl_->join(); }

int ThreadPool::threads() const { return impl_->threads; }

void ThreadPool::run(int64_t n, int64_t grain, void* fn, Call call) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  Impl& p = *impl_;
  p.n = n;
  p.grain = grain;
  p.fn = fn;
  p.call = call;
  p.next.store(0, std::memory_order_relaxed);
  if (p.threads == 1 || n <= grain) {
    p.work(0);
    return;
  }
  const uint64_t number = ((p.state.load(std::memory_order_relaxed) >> Impl::kNumberShift) + 1) & 0xffffffffu;
  p.state.store((number << Impl::kNumberShift) | Impl::kOpen);
  p.wake();
  p.work(0);

  uint64_t s = p.state.fetch_and(~Impl::kOpen, std::memory_order_acq_rel);
  for (int pauses = 1; (s & Impl::kInside) != 0; ++pauses) {
    pause_cpu();
    // With more threads than processors the one that is waited for may need this one's time slice.
    if (pauses % kPausesBeforeYield == 0) sched_yield();
    s = p.state.load(std::memory_order_acquire);
  }
}

}  // namespace mla::cpu
