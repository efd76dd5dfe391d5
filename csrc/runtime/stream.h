// stream.h - what the runtime knows of one stream and of one captured graph.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/resources.h"

namespace mla::runtime {

/// One ordered queue of work. Shared by the JavaScript handle and by the commands that are still queued. Everything but
/// the destructor runs on the command thread.
class Stream {
 public:
  explicit Stream(std::shared_ptr<Resources> owner) : owner_(std::move(owner)) {}
  ~Stream() { owner_->retire(backend); }

  BackendStream* backend = nullptr;  // made at the first use
  Status failure;                    // first failure since the last record; commands are skipped until then
  uint64_t issued = 0;               // commands given to the backend
  /// How many of `issued` are known to have finished; fences write it from any thread.
  const std::shared_ptr<std::atomic<uint64_t>> finished = std::make_shared<std::atomic<uint64_t>>(0);

  bool idle() const { return finished->load(std::memory_order_acquire) == issued; }

 private:
  std::shared_ptr<Resources> owner_;
};

using StreamRef = std::shared_ptr<Stream>;

/// A captured sequence of operations. Its holders are the JavaScript handle and queued replays.
class Graph {
 public:
  Graph(std::shared_ptr<Resources> owner, std::vector<StorageRef> holds)
      : owner_(std::move(owner)), holds_(std::move(holds)) {}
  ~Graph() { owner_->retire(backend); }

  BackendGraph* backend = nullptr;  // command thread; null until compiled, and after a failure
  Status failure;                   // command thread; why it could not be compiled

 private:
  std::shared_ptr<Resources> owner_;
  std::vector<StorageRef> holds_;  // destroyed after ~Graph has retired the graph, so they retire behind it
};

using GraphRef = std::shared_ptr<Graph>;

}  // namespace mla::runtime
