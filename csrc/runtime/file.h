// file.h - file descriptors of our own. A caller may close his as soon as readFile returns, and the number may then
// belong to another file; so each queued read works on a duplicate.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "common/status.h"

namespace mla::runtime {

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

using FileRef = std::shared_ptr<File>;

/// Duplicates descriptors, one per open file however many reads are queued. One thread.
class Files {
 public:
  /// kFile if `descriptor` is not open for reading, or no more files can be opened.
  Status duplicate(int descriptor, FileRef* out);

 private:
  struct Known {
    uint64_t device;
    uint64_t inode;
    int descriptor;
    std::weak_ptr<File> file;
  };
  std::vector<Known> known_;
};

}  // namespace mla::runtime
