#include "cuda/runtime/file_reader.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "common/checked.h"
#include "cuda/launch.h"

namespace mla::cuda {

FileReader::~FileReader() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  for (Piece& piece : pieces_) {
    if (piece.sent != nullptr) cudaEventDestroy(piece.sent);
  }
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

Status FileReader::start() {
  if (memory_ == nullptr) {
    void* memory = nullptr;
    MLA_RETURN_IF_ERROR(
        cuda_status(cudaHostAlloc(&memory, kPieces * kPieceBytes, cudaHostAllocDefault), "cudaHostAlloc"));
    memory_ = static_cast<char*>(memory);
  }
  for (int i = 0; i < kPieces; ++i) {
    pieces_[i].data = memory_ + i * kPieceBytes;
    if (pieces_[i].sent == nullptr) {
      MLA_RETURN_IF_ERROR(
          cuda_status(cudaEventCreateWithFlags(&pieces_[i].sent, cudaEventDisableTiming), "cudaEventCreate"));
    }
  }
  while (threads_.size() < kThreads) threads_.emplace_back([this] { work(); });
  return Status::Ok();
}

void FileReader::work() {
  pthread_setname_np(pthread_self(), "mla-read");
  std::unique_lock lock(mutex_);
  for (;;) {
    wanted_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    Piece& piece = pieces_[queue_.front()];
    queue_.pop_front();
    lock.unlock();
    int64_t done = 0;
    piece.error = 0;
    while (done < piece.bytes) {
      const ssize_t got =
          pread(piece.fd, piece.data + done, static_cast<size_t>(piece.bytes - done), piece.offset + done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        piece.error = got < 0 ? errno : 0;
        break;
      }
      done += got;
    }
    lock.lock();
    piece.missing = piece.bytes - done;
    piece.state = State::kRead;
    finished_.notify_one();
  }
}

Status FileReader::send(Piece& piece, void* dst, cudaStream_t stream) {
  {
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [&] { return piece.state == State::kRead; });
    piece.state = State::kFree;
  }
  if (piece.missing > 0) {
    const int64_t at = piece.offset + piece.bytes - piece.missing;
    return Status::Error(Code::kFile, piece.error == 0
                                          ? "a file ended at byte " + std::to_string(at) + ", where more was expected"
                                          : "a file could not be read at byte " + std::to_string(at) + ": " +
                                                std::strerror(piece.error));
  }
  MLA_RETURN_IF_ERROR(
      cuda_status(cudaMemcpyAsync(dst, piece.data, static_cast<size_t>(piece.bytes), cudaMemcpyHostToDevice, stream),
                  "cudaMemcpyAsync"));
  return cuda_status(cudaEventRecord(piece.sent, stream), "cudaEventRecord");
}

Status FileReader::read(int fd, int64_t offset, void* dst, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return Status::Ok();
  MLA_RETURN_IF_ERROR(start());
  const int64_t count = ceil_div(bytes, kPieceBytes);
  const int first = next_;
  Status status;
  int64_t asked = 0;
  // Pieces are asked for as far ahead as the ring allows, and sent in order. After a failure those under way are only
  // waited for: a reader must not write into a piece that somebody else has taken.
  for (int64_t sent = 0; sent < count && (status.ok() || sent < asked); ++sent) {
    for (; status.ok() && asked < count && asked - sent < kPieces; ++asked) {
      const int index = static_cast<int>((first + asked) % kPieces);
      Piece& piece = pieces_[index];
      status = cuda_status(cudaEventSynchronize(piece.sent), "cudaEventSynchronize");
      if (!status.ok()) break;
      {
        std::lock_guard lock(mutex_);
        piece.fd = fd;
        piece.offset = offset + asked * kPieceBytes;
        piece.bytes = std::min(kPieceBytes, bytes - asked * kPieceBytes);
        piece.state = State::kReading;
        queue_.push_back(index);
      }
      wanted_.notify_one();
    }
    if (sent >= asked) break;
    const Status one = send(pieces_[(first + sent) % kPieces], static_cast<char*>(dst) + sent * kPieceBytes, stream);
    if (status.ok()) status = one;
  }
  next_ = static_cast<int>((first + count) % kPieces);
  return status;
}

}  // namespace mla::cuda
