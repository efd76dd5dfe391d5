#include "runtime/faults.h"

#include <atomic>

namespace mla::runtime {

namespace {

constinit std::atomic<int64_t> g_allocations{0};
constinit std::atomic<int64_t> g_failing{-1};

}  // namespace

void fail_allocation(int64_t k) {
  g_failing.store(-1);
  g_allocations.store(0);
  g_failing.store(k);
}

int64_t allocation_count() { return g_allocations.load(); }

bool allocation_must_fail() {
  // The counter passes each value once, so exactly one allocation fails however many threads allocate.
  return g_allocations.fetch_add(1) == g_failing.load(std::memory_order_relaxed);
}

}  // namespace mla::runtime
