#include "cuda/runtime/completion.h"

#include <pthread.h>

#include <utility>

#include "cuda/launch.h"

namespace mla::cuda {

Completion::Completion(int device) : device_(device) {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "mla-completion");
    cudaSetDevice(device_);
    loop();
  });
}

Completion::~Completion() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
  for (cudaEvent_t event : free_events_) cudaEventDestroy(event);
}

Status Completion::take_event(cudaEvent_t* out) {
  {
    std::lock_guard lock(mutex_);
    if (!free_events_.empty()) {
      *out = free_events_.back();
      free_events_.pop_back();
      return Status::Ok();
    }
  }
  // Blocking: the thread sleeps instead of burning a core; results are read one step behind anyway.
  return cuda_status(cudaEventCreateWithFlags(out, cudaEventDisableTiming | cudaEventBlockingSync), "cudaEventCreate");
}

void Completion::after(cudaStream_t stream, std::vector<std::shared_ptr<HostBuffer>> holds,
                       std::function<void(Status)> done) {
  cudaEvent_t event = nullptr;
  Status status = take_event(&event);
  if (status.ok()) status = cuda_status(cudaEventRecord(event, stream), "cudaEventRecord");
  if (!status.ok()) {
    if (event != nullptr) cudaEventDestroy(event);
    done(std::move(status));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    entries_.push_back({event, std::move(holds), std::move(done)});
  }
  changed_.notify_one();
}

void Completion::settle() {
  std::unique_lock lock(mutex_);
  settled_.wait(lock, [this] { return entries_.empty() && !answering_; });
}

void Completion::loop() {
  for (;;) {
    Entry entry;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !entries_.empty(); });
      if (entries_.empty()) return;
      entry = std::move(entries_.front());
      entries_.pop_front();
      answering_ = true;
    }
    Status status = cuda_status(cudaEventSynchronize(entry.event), "the GPU");
    entry.holds.clear();
    entry.done(std::move(status));
    entry.done = nullptr;
    {
      std::lock_guard lock(mutex_);
      free_events_.push_back(entry.event);
      answering_ = false;
    }
    settled_.notify_all();
  }
}

}  // namespace mla::cuda
