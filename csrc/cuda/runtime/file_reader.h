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

  /// Reads bytes [offset, offset + bytes) of `fd` and enqueues their copies to dst; returns when the last piece is on
  /// its way. The copies of one call go on while the next call reads.
  Status read(int fd, int64_t offset, void* dst, int64_t bytes, cudaStream_t stream);

 private:
  // A tensor of a few MB, such as one expert's, must keep all threads busy by itself: its last piece is waited for before
  // the next tensor's first one is asked for.
  static constexpr int kThreads = 16;
  static constexpr int64_t kPieceBytes = int64_t{256} << 10;
  static constexpr int kPieces = 256;

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

  Status start();
  void work();
  Status send(Piece& piece, void* dst, cudaStream_t stream);

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable finished_;
  std::deque<int> queue_;
  bool stopping_ = false;
  char* memory_ = nullptr;
  Piece pieces_[kPieces];
  int next_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace mla::cuda
