// host_pool.h - pinned host memory, kept for reuse: pinning costs more than the small copies of a decode step.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/backend.h"

namespace mla::cuda {

class HostPool : public std::enable_shared_from_this<HostPool> {
 public:
  ~HostPool();
  /// A buffer of at least `bytes`; it returns to the pool when its last holder goes.
  Status take(int64_t bytes, std::shared_ptr<HostBuffer>* out);

 private:
  class Buffer;
  static constexpr int kClasses = 13;  // 4 KiB, 8 KiB, ... 16 MiB
  static constexpr int64_t kSmallest = int64_t{1} << 12;
  static constexpr size_t kKeptPerClass = 64;

  void put_back(int size_class, void* data) noexcept;

  std::mutex mutex_;
  std::vector<void*> free_[kClasses];
};

}  // namespace mla::cuda
