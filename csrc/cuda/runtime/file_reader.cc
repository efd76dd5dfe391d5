#include "cuda/runtime/file_reader.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
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

void FileReader::expect(int fd, int64_t offset, int64_t bytes) noexcept {
  try {
    if (bytes > 0) ranges_.push_back({fd, offset, bytes});
  } catch (const std::bad_alloc&) {
    // read() then begins by itself.
  }
}

bool FileReader::ask(bool wait, Status* status) {
  if (asked_ - taken_ == kPieces) return false;
  const auto range = std::find_if(ranges_.begin(), ranges_.end(), [](const Range& r) { return r.asked < r.pieces(); });
  if (range == ranges_.end()) return false;
  const int index = static_cast<int>(asked_ % kPieces);
  Piece& piece = pieces_[index];
  if (!wait && cudaEventQuery(piece.sent) != cudaSuccess) {
    cudaGetLastError();  // "not ready" is no error of the next launch
    return false;
  }
  *status = cuda_status(cudaEventSynchronize(piece.sent), "cudaEventSynchronize");
  if (!status->ok()) return false;
  {
    std::lock_guard lock(mutex_);
    piece.fd = range->fd;
    piece.offset = range->offset + range->asked * kPieceBytes;
    piece.bytes = std::min(kPieceBytes, range->bytes - range->asked * kPieceBytes);
    piece.state = State::kReading;
    queue_.push_back(index);
  }
  wanted_.notify_one();
  ++range->asked;
  ++asked_;
  return true;
}

FileReader::Piece& FileReader::take() {
  Piece& piece = pieces_[taken_ % kPieces];
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return piece.state == State::kRead; });
  piece.state = State::kFree;
  ++taken_;
  return piece;
}

void FileReader::drop() {
  for (int64_t i = 0; i < ranges_.front().asked; ++i) take();
  ranges_.pop_front();
}

Status FileReader::send(Piece& piece, void* dst, cudaStream_t stream) {
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
  // Reads that were announced and did not come, because their stream had failed.
  const auto is_this = [&](const Range& r) { return r.fd == fd && r.offset == offset && r.bytes == bytes; };
  while (!ranges_.empty() && !is_this(ranges_.front())) drop();
  if (ranges_.empty()) ranges_.push_back({fd, offset, bytes});
  Status status, ahead;
  const int64_t count = ranges_.front().pieces();
  for (int64_t i = 0; i < count && status.ok(); ++i) {
    if (ranges_.front().asked == i) ask(true, &status);
    while (status.ok() && ask(false, &ahead)) {
    }
    if (status.ok()) status = send(take(), static_cast<char*>(dst) + i * kPieceBytes, stream);
    // What failed here: the pieces taken so far are out of the ring, drop() waits for the others.
    if (!status.ok()) ranges_.front().asked -= std::min(i + 1, ranges_.front().asked);
  }
  if (status.ok()) {
    ranges_.pop_front();
  } else {
    drop();
  }
  return status;
}

}  // namespace mla::cuda
