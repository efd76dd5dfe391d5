// thread_pool.h - the CPU backend's own threads. Workers spin briefly between calls, so that the many small parallel
// regions of a decode step cost microseconds, and sleep when nothing comes.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace mla::cpu {

class ThreadPool {
 public:
  /// `threads` counts the caller: 1 starts no thread at all.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls fn(begin, end, worker) over [0, n) cut into pieces of `grain` items (the last may be shorter), on all
  /// threads, and returns when all are done. worker is in [0, threads()). Pieces are handed out dynamically, so a
  /// result must not depend on which worker takes which piece. fn must not throw. One caller at a time.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run(n, grain, &fn,
        [](void* f, int64_t begin, int64_t end, int worker) { (*static_cast<Fn*>(f))(begin, end, worker); });
  }

 private:
  using Call = void (*)(void* fn, int64_t begin, int64_t end, int worker);
  void run(int64_t n, int64_t grain, void* fn, Call call);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mla::cpu
