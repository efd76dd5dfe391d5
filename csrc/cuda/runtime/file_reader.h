// file_reader.h - files to the GPU: several threads read pieces into pinned memory, the caller sends them in order.
#pragma once
#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "common/status.h"

namespace mla::cuda {

class FileReader {
 public:
  FileReader() = default;
  ~FileReader();

  /// A read() of these bytes will follow, after those announced before: threads may begin with it.
  void expect(int fd, int64_t offset, int64_t bytes) noexcept;
  /// Reads bytes [offset, offset + bytes) of `fd` and enqueues their copies to dst; returns when the last piece is on
  /// its way. Meanwhile threads read what is expected next.
  Status read(int fd, int64_t offset, void* dst, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr int kThreads = 16;
  static constexpr int64_t kPieceBytes = int64_t{512} << 10;
  static constexpr int kPieces = 128;

  enum class State { kFree, kReading, kRead };
  struct Piece {
    char* data = nullptr;
    cudaEvent_t sent = nullptr;  // the copy out of this piece that was enqueued last
    State state = State::kFree;
    int fd = -1;
    int64_t offset = 0;
    int64_t bytes = 0;
    int64_t missing = 0;  // bytes that could not be read
    int error = 0;        // errno of the read, 0: the file ended
  };
  struct Range {
    int fd;
    int64_t offset, bytes;
    int64_t asked = 0;  // pieces given to the threads
    int64_t pieces() const { return (bytes + kPieceBytes - 1) / kPieceBytes; }
  };

  Status start();
  void work();
  /// Gives the next piece of the first range that has one left to the threads. False if there is none, the ring is
  /// full, or (without `wait`) its place is still being copied from.
  bool ask(bool wait, Status* status);
  /// Waits until the oldest piece in the ring has been read, and takes it out.
  Piece& take();
  /// Forgets the first range; its pieces under way are waited for.
  void drop();
  Status send(Piece& piece, void* dst, cudaStream_t stream);

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable finished_;
  std::deque<int> queue_;
  bool stopping_ = false;
  char* memory_ = nullptr;
  Piece pieces_[kPieces];
  std::vector<std::thread> threads_;

  // Only the command thread uses these.
  std::deque<Range> ranges_;  // the first one is what read() is to send
  int64_t asked_ = 0;         // pieces given to the threads, and
  int64_t taken_ = 0;         // taken out of the ring again, since the beginning
};

}  // namespace mla::cuda
