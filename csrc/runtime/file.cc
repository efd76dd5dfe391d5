#include "runtime/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

namespace mla::runtime {

File::~File() { ::close(descriptor_); }

Status Files::duplicate(int descriptor, FileRef* out) {
  const std::string name = "file descriptor " + std::to_string(descriptor);
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) {
    return Status::Error(Code::kFile, name + " cannot be used: " + std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) return Status::Error(Code::kFile, name + " is not a regular file");
  const int flags = ::fcntl(descriptor, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY) {
    return Status::Error(Code::kFile, name + " is not open for reading");
  }
  std::erase_if(known_, [](const Known& known) { return known.file.expired(); });
  for (const Known& known : known_) {
    // The same number and the same file: whether it was closed and opened again in between makes no difference.
    if (known.descriptor != descriptor || known.device != info.st_dev || known.inode != info.st_ino) continue;
    if ((*out = known.file.lock())) return Status::Ok();
  }
  const int copy = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return Status::Error(Code::kFile, name + " cannot be duplicated: " + std::strerror(errno));
  *out = std::make_shared<File>(copy);
  known_.push_back({info.st_dev, info.st_ino, descriptor, *out});
  return Status::Ok();
}

}  // namespace mla::runtime
