// completion.h - one thread that waits for events and tells who asked. Only it ever blocks on the GPU, so the command
// thread goes on enqueueing.
#pragma once
#include <cuda_runtime_api.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/status.h"
#include "ops/backend.h"

namespace mla::cuda {

class Completion {
 public:
  explicit Completion(int device);
  ~Completion();  // answers everything that is still asked, then joins

  /// Calls done when the work issued to `stream` so far has finished. `holds` are dropped then.
  void after(cudaStream_t stream, std::vector<std::shared_ptr<HostBuffer>> holds, std::function<void(Status)> done);
  /// Returns when everything asked so far has been answered.
  void settle();

 private:
  struct Entry {
    cudaEvent_t event;
    std::vector<std::shared_ptr<HostBuffer>> holds;
    std::function<void(Status)> done;
  };
  Status take_event(cudaEvent_t* out);
  void loop();

  const int device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable settled_;
  std::deque<Entry> entries_;
  std::vector<cudaEvent_t> free_events_;
  bool answering_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace mla::cuda
