// stream.h - what the runtime knows of one stream and of one captured graph.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/resources.h"

namespace mla::runtime {

/// A stream inside the backend and how far it has come. Outlives its Stream: what was issued last still has to finish.
struct StreamWork {
  BackendStream* backend;
  uint64_t issued = 0;                // commands given to the backend; command thread
  std::atomic<uint64_t> finished{0};  // how many of them are known to have finished; fences write it, from any thread

  bool idle() const { return finished.load(std::memory_order_acquire) == issued; }
};

/// One ordered queue of work. Shared by the JavaScript handle and by the commands that are still queued. Everything but
/// the destructor runs on the command thread.
class Stream {
 public:
  explicit Stream(std::shared_ptr<Resources> owner) : owner_(std::move(owner)) {}
  ~Stream() {
    if (work != nullptr) owner_->retire(work->backend);
  }

  std::shared_ptr<StreamWork> work;  // made at the first use
  Status failure;                    // first failure since the last record or read; commands are skipped until then

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

  BackendGraph* backend = nullptr;   // command thread; null until compiled, and after a failure
  Status failure;                    // command thread; why it could not be compiled
  std::atomic<int64_t> launches{0};  // of a replay; 0 until compiled

 private:
  std::shared_ptr<Resources> owner_;
  std::vector<StorageRef> holds_;  // destroyed after ~Graph has retired the graph, so they retire behind it
};

using GraphRef = std::shared_ptr<Graph>;

}  // namespace mla::runtime
