#include "cpu/host.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <vector>

#include "common/checked.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mla::cpu {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kMapFrom = 256 * 1024;        // smaller pieces share pages
constexpr int64_t kHugePage = 2 * 1024 * 1024;  // pieces of this size ask for huge pages: fewer misses while streaming
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

bool is_mapped(int64_t bytes) { return bytes >= kMapFrom; }

/// The first line of a small file; empty if it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// A decimal number of a cgroup file; kUnlimited for "max", for -1 and for no such file.
int64_t limit_in(const std::string& path) {
  const std::string line = first_line(path);
  char* end = nullptr;
  const long long value = std::strtoll(line.c_str(), &end, 10);
  return end == line.c_str() || value < 0 ? kUnlimited : value;
}

/// Processors' worth of time that the cgroup grants, rounded up; kUnlimited without a quota.
int64_t quota_cores() {
  const std::string v2 = first_line("/sys/fs/cgroup/cpu.max");  // "max 100000" or "200000 100000"
  char* end = nullptr;
  const long long quota = std::strtoll(v2.c_str(), &end, 10);
  if (end != v2.c_str()) {
    const long long period = std::strtoll(end, nullptr, 10);
    if (quota > 0 && period > 0) return ceil_div(quota, period);
  }
  const int64_t quota1 = limit_in("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  const int64_t period1 = limit_in("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  return quota1 == kUnlimited || period1 == kUnlimited || period1 == 0 ? kUnlimited : ceil_div(quota1, period1);
}

std::vector<int> allowed_processors() {
  for (int count = CPU_SETSIZE; count <= (1 << 20); count *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(count));
    if (set == nullptr) return {};
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(count));
    CPU_ZERO_S(bytes, set);
    std::vector<int> out;
    if (sched_getaffinity(0, bytes, set) == 0) {
      for (int i = 0; i < count; ++i) {
        if (CPU_ISSET_S(static_cast<size_t>(i), bytes, set)) out.push_back(i);
      }
    }
    CPU_FREE(set);
    if (!out.empty()) return out;
  }
  return {};
}

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("MemAvailable:", 0) == 0) return std::strtoll(line.c_str() + 13, nullptr, 10) * 1024;
  }
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

int64_t cgroup_limit() {
  return std::min(limit_in("/sys/fs/cgroup/memory.max"), limit_in("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
}

int64_t cgroup_used() {
  const int64_t v2 = limit_in("/sys/fs/cgroup/memory.current");
  const int64_t used = v2 != kUnlimited ? v2 : limit_in("/sys/fs/cgroup/memory/memory.usage_in_bytes");
  return used == kUnlimited ? 0 : used;
}

}  // namespace

int usable_cores() {
  const std::vector<int> processors = allowed_processors();
  // Two processors with the same list of siblings are one core; without that file each counts.
  std::set<std::string> cores;
  for (int i : processors) {
    const std::string name = std::to_string(i);
    const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "processor " + name : siblings);
  }
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(static_cast<int64_t>(cores.size()), quota_cores())));
}

std::string processor_name() {
#if defined(__x86_64__)
  unsigned int words[12] = {};
  if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
    for (unsigned int i = 0; i < 3; ++i) {
      unsigned int* w = words + 4 * i;
      __get_cpuid(0x80000002u + i, &w[0], &w[1], &w[2], &w[3]);
    }
  }
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  const std::string name(text);
  const size_t begin = name.find_first_not_of(' '), end = name.find_last_not_of(' ');
  if (begin != std::string::npos) return name.substr(begin, end - begin + 1);
#endif
  return "unknown processor";
}

int64_t memory_total() {
  const int64_t physical = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return std::min(physical, cgroup_limit());
}

int64_t memory_free() {
  const int64_t limit = cgroup_limit();
  const int64_t within = limit == kUnlimited ? kUnlimited : std::max<int64_t>(0, limit - cgroup_used());
  return std::min(available_memory(), within);
}

HostMemory::~HostMemory() {
  while (!sizes_.empty()) release(sizes_.begin()->first);
}

Status HostMemory::allocate(int64_t bytes, void** out) {
  *out = nullptr;
  if (bytes < 0) return Status::Error(Code::kInvalidArg, "allocate: " + std::to_string(bytes) + " bytes");
  const int64_t wanted = round_up(std::max<int64_t>(bytes, 1), kAlignment);
  std::lock_guard<std::mutex> lock(mutex_);
  // The kernel promises more than it has and kills the process later; an error now is better.
  const int64_t total = memory_total();
  if (wanted > total - held_) {
    return Status::Error(Code::kOutOfMemory, "allocating " + std::to_string(bytes) +
                                                 " bytes of host memory: " + std::to_string(held_) + " of " +
                                                 std::to_string(total) + " bytes are already in use by this device");
  }
  void* data = nullptr;
  if (is_mapped(wanted)) {
    data = mmap(nullptr, static_cast<size_t>(wanted), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) data = nullptr;
    if (data != nullptr && wanted >= kHugePage) madvise(data, static_cast<size_t>(wanted), MADV_HUGEPAGE);
  } else {
    data = std::aligned_alloc(kAlignment, static_cast<size_t>(wanted));
    if (data != nullptr) std::memset(data, 0, static_cast<size_t>(wanted));
  }
  if (data == nullptr) {
    return Status::Error(Code::kOutOfMemory,
                         "allocating " + std::to_string(bytes) + " bytes of host memory: the system has no more");
  }
  sizes_[data] = wanted;
  held_ += wanted;
  *out = data;
  return Status::Ok();
}

void HostMemory::release(void* data) noexcept {
  if (data == nullptr) return;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sizes_.find(data);
  if (found == sizes_.end()) return;
  const int64_t bytes = found->second;
  sizes_.erase(found);
  held_ -= bytes;
  if (is_mapped(bytes)) {
    munmap(data, static_cast<size_t>(bytes));
  } else {
    std::free(data);
  }
}

}  // namespace mla::cpu
