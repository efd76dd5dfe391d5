// host.h - what the CPU backend asks the machine: processors, memory, and zero-filled storage.
#pragma once
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "common/status.h"

namespace mla::cpu {

/// Physical cores this process may run on: affinity mask and cgroup quota respected, at least 1.
int usable_cores();

/// The processor's own name.
std::string processor_name();

/// Bytes of memory this process may have at all, and those still available; cgroup limits respected.
int64_t memory_total();
int64_t memory_free();

/// Zero-filled memory, aligned to 256 bytes, from any thread. Large pieces come straight from the kernel, whose zero
/// pages cost nothing until they are written.
class HostMemory {
 public:
  ~HostMemory();
  Status allocate(int64_t bytes, void** out);
  void release(void* data) noexcept;

 private:
  std::mutex mutex_;
  std::unordered_map<void*, int64_t> sizes_;
  int64_t held_ = 0;
};

}  // namespace mla::cpu
