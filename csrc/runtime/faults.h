// faults.h - failures on purpose, for tests. Process-wide, and free when switched off.
#pragma once
#include <cstdint>

namespace mla::runtime {

/// The k-th memory allocation from now on (0 = the next) fails once; -1 switches it off. Resets allocation_count().
void fail_allocation(int64_t k);

/// Memory allocations (device memory and transfer buffers) since the last fail_allocation().
int64_t allocation_count();

/// Called once before each allocation; true: this one has to fail.
bool allocation_must_fail();

}  // namespace mla::runtime
