#include "cuda/runtime/host_pool.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "cuda/launch.h"

namespace mla::cuda {

class HostPool::Buffer final : public HostBuffer {
 public:
  Buffer(std::shared_ptr<HostPool> pool, int size_class, void* data, int64_t bytes)
      : pool_(std::move(pool)), size_class_(size_class), data_(data), bytes_(bytes) {}
  ~Buffer() override { pool_->put_back(size_class_, data_); }
  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  std::shared_ptr<HostPool> pool_;
  int size_class_;  // kClasses: larger than any class
  void* data_;
  int64_t bytes_;
};

HostPool::~HostPool() {
  // At process exit the runtime may be gone already (cudaErrorCudartUnloading); there is nothing to be done then.
  for (auto& list : free_) {
    for (void* data : list) cudaFreeHost(data);
  }
}

Status HostPool::take(int64_t bytes, std::shared_ptr<HostBuffer>* out) {
  int size_class = 0;
  while (size_class < kClasses && (kSmallest << size_class) < bytes) ++size_class;
  void* data = nullptr;
  if (size_class < kClasses) {
    std::lock_guard lock(mutex_);
    if (!free_[size_class].empty()) {
      data = free_[size_class].back();
      free_[size_class].pop_back();
    }
  }
  if (data == nullptr) {
    const int64_t size = size_class < kClasses ? kSmallest << size_class : bytes;
    const cudaError_t error = cudaHostAlloc(&data, static_cast<size_t>(size), cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return Status::Error(Code::kOutOfMemory, "no pinned host memory for " + std::to_string(size) + " bytes");
    }
    MLA_RETURN_IF_ERROR(cuda_status(error, "cudaHostAlloc"));
  }
  *out = std::make_shared<Buffer>(shared_from_this(), size_class, data, bytes);
  return Status::Ok();
}

void HostPool::put_back(int size_class, void* data) noexcept {
  if (size_class < kClasses) {
    std::lock_guard lock(mutex_);
    if (free_[size_class].size() < kKeptPerClass) {
      free_[size_class].push_back(data);
      return;
    }
  }
  cudaFreeHost(data);
}

}  // namespace mla::cuda
