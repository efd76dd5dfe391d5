// resources.h - what a device owns: memory blocks, backend streams and backend graphs, and who holds them.
//
// The last holder may go on any thread, and while the device still works on the resource. So a resource is only
// retired; the device's command thread gives it back once all work issued before that moment has finished. A device
// that ends gives back everything, held or not: holders that outlive it hold nothing.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "ops/backend.h"
#include "runtime/signal.h"

namespace mla::runtime {

class Resources;

/// One block of device memory, shared by handles, views, queued commands and graphs. data is null without bytes.
class Storage {
 public:
  Storage(std::shared_ptr<Resources> owner, void* data, int64_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<Resources> owner_;
  void* data_;
  int64_t bytes_;
};

using StorageRef = std::shared_ptr<Storage>;

class Resources : public std::enable_shared_from_this<Resources> {
 public:
  explicit Resources(std::shared_ptr<Signal> signal) : signal_(std::move(signal)) {}

  // Command thread.
  Status allocate(Backend& backend, int64_t bytes, StorageRef* out);
  BackendStream* adopt(std::unique_ptr<BackendStream> stream);
  BackendGraph* adopt(std::unique_ptr<BackendGraph> graph);
  /// What has been retired since the last call; give it to release() when the device has passed it.
  std::vector<void*> take_retired();
  bool has_retired() const { return has_retired_.load(std::memory_order_acquire); }
  void release(Backend& backend, const std::vector<void*>& retired) noexcept;
  /// Gives back everything. Later calls of retire() do nothing.
  void close(Backend& backend) noexcept;
  /// As close(), for a backend that must not be asked: nothing is given back, nor destroyed, ever.
  void abandon();

  /// Any thread. `resource` is a block's data, a BackendStream or a BackendGraph of this object, or null.
  void retire(void* resource) noexcept;

  /// Bytes of all blocks that somebody holds.
  int64_t held_bytes() const { return held_bytes_.load(); }

 private:
  friend class Storage;

  /// A resource other than a plain block carries its destructor here.
  struct Entry {
    std::unique_ptr<BackendStream> stream;
    std::unique_ptr<BackendGraph> graph;
  };
  void destroy(Backend& backend, void* resource, Entry& entry) noexcept;

  std::shared_ptr<Signal> signal_;
  std::atomic<int64_t> held_bytes_{0};
  std::atomic<bool> has_retired_{false};
  std::mutex mutex_;
  bool closed_ = false;
  std::unordered_map<void*, Entry> owned_;  // retired ones included, until they are released
  std::vector<void*> retired_;
};

}  // namespace mla::runtime
