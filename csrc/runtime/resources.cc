#include "runtime/resources.h"

#include <utility>

namespace mla::runtime {

Storage::Storage(std::shared_ptr<Resources> owner, void* data, int64_t bytes)
    : owner_(std::move(owner)), data_(data), bytes_(bytes) {
  owner_->held_bytes_.fetch_add(bytes_);
}

Storage::~Storage() {
  owner_->held_bytes_.fetch_sub(bytes_);
  owner_->retire(data_);
}

Status Resources::allocate(Backend& backend, int64_t bytes, StorageRef* out) {
  void* data = nullptr;
  if (bytes > 0) {
    MLA_RETURN_IF_ERROR(backend.allocate(bytes, &data));
    try {
      std::lock_guard lock(mutex_);
      owned_.try_emplace(data);
    } catch (...) {
      backend.release(data);
      throw;
    }
  }
  *out = std::make_shared<Storage>(shared_from_this(), data, bytes);
  return Status::Ok();
}

BackendStream* Resources::adopt(std::unique_ptr<BackendStream> stream) {
  BackendStream* key = stream.get();
  std::lock_guard lock(mutex_);
  owned_[key].stream = std::move(stream);
  return key;
}

BackendGraph* Resources::adopt(std::unique_ptr<BackendGraph> graph) {
  BackendGraph* key = graph.get();
  std::lock_guard lock(mutex_);
  owned_[key].graph = std::move(graph);
  return key;
}

void Resources::retire(void* resource) noexcept {
  if (resource == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    try {
      retired_.push_back(resource);
    } catch (...) {
      return;  // no memory for one pointer: the resource stays until close()
    }
    has_retired_.store(true, std::memory_order_release);
  }
  signal_->raise();
}

std::vector<void*> Resources::take_retired() {
  std::lock_guard lock(mutex_);
  has_retired_.store(false, std::memory_order_release);
  return std::exchange(retired_, {});
}

void Resources::destroy(Backend& backend, void* resource, Entry& entry) noexcept {
  if (entry.graph == nullptr && entry.stream == nullptr) backend.release(resource);
  entry.graph.reset();
  entry.stream.reset();
}

void Resources::release(Backend& backend, const std::vector<void*>& retired) noexcept {
  for (void* resource : retired) {
    Entry entry;
    {
      std::lock_guard lock(mutex_);
      const auto found = owned_.find(resource);
      if (found == owned_.end()) continue;
      entry = std::move(found->second);
      owned_.erase(found);
    }
    destroy(backend, resource, entry);
  }
}

void Resources::abandon() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  (void)new std::unordered_map<void*, Entry>(std::move(owned_));
  owned_.clear();
  retired_.clear();
}

void Resources::close(Backend& backend) noexcept {
  std::unordered_map<void*, Entry> owned;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    owned.swap(owned_);
    retired_.clear();
  }
  // The work on streams uses graphs and memory, graphs use memory.
  std::erase_if(owned, [](const auto& item) { return item.second.stream != nullptr; });
  std::erase_if(owned, [](const auto& item) { return item.second.graph != nullptr; });
  for (const auto& [block, entry] : owned) backend.release(block);
}

}  // namespace mla::runtime
