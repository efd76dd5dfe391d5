// thread-pool.cc - every piece of every region is done exactly once, whatever the workers are doing when it comes:
// spinning, falling asleep, asleep, or still leaving the region before.
#include "cpu/thread_pool.h"

#include <time.h>

#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

namespace {

using mla::cpu::ThreadPool;

std::atomic<int> regions{0}, failures{0};

void fail(const char* what, int threads, int64_t n, int64_t grain) {
  if (failures++ < 20) {
    std::printf("FAILED %s: %d threads, n %lld, grain %lld\n", what, threads, static_cast<long long>(n),
                static_cast<long long>(grain));
  }
}

void sleep_microseconds(int64_t us) {
  timespec t{us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, nullptr);
}

/// One region of n items in pieces of `grain`; plain counters, so that a sanitizer sees unordered writes.
void check_region(ThreadPool& pool, int64_t n, int64_t grain, std::vector<int>& counts) {
  for (int64_t i = 0; i < n; ++i) counts[i] = 0;
  std::atomic<int> bad{0};
  pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int worker) {
    if (begin % grain != 0 || end - begin > grain || (end != n && end - begin != grain)) ++bad;
    if (worker < 0 || worker >= pool.threads()) ++bad;
    for (int64_t i = begin; i < end; ++i) ++counts[i];
  });
  for (int64_t i = 0; i < n; ++i) bad += counts[i] != 1;
  ++regions;
  if (bad != 0) fail("pieces", pool.threads(), n, grain);
}

void stress(int threads, int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  ThreadPool pool(threads);
  if (pool.threads() != (threads < 1 ? 1 : threads)) fail("threads()", threads, 0, 0);
  std::vector<int> counts(4096);
  for (int i = 0; i < count; ++i) {
    const int64_t n = random() % 8 == 0 ? static_cast<int64_t>(random() % 4096) : static_cast<int64_t>(random() % 40);
    check_region(pool, n, 1 + static_cast<int64_t>(random() % 7), counts);
    // About the length of the workers' spinning, so that some regions meet them on their way to sleep.
    if (random() % 16 == 0) sleep_microseconds(static_cast<int64_t>(random() % 120));
  }
}

}  // namespace

int main() {
  for (int threads : {0, 1, 2, 3, 8}) stress(threads, 4000, static_cast<uint64_t>(threads));
  // Several pools at once: one per device in a process.
  std::vector<std::thread> users;
  for (uint64_t u = 0; u < 3; ++u) users.emplace_back([u] { stress(2, 2000, 100 + u); });
  for (std::thread& t : users) t.join();
  // Pools that never work, and pools that end while their workers fall asleep.
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(3);
    if (i % 2 == 0) pool.parallel_for(3, 1, [](int64_t, int64_t, int) {});
    if (i % 3 == 0) sleep_microseconds(i);
  }
  std::printf("%d regions, %d failures\n", regions.load(), failures.load());
  return failures == 0 ? 0 : 1;
}
