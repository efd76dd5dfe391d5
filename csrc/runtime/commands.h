// commands.h - everything a device's queue can hold.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ops/backend.h"
#include "runtime/device.h"
#include "runtime/file.h"
#include "runtime/stream.h"

namespace mla::runtime {

/// A command of one stream that has no answer of its own: when it fails, the stream fails until the next record.
class StreamCommand : public Command {
 public:
  explicit StreamCommand(StreamRef stream) : stream_(std::move(stream)) {}
  void run(Device& device) final;

 protected:
  virtual Status execute(Device& device, BackendStream& stream) = 0;

 private:
  StreamRef stream_;
};

/// One operation, with everything it must keep alive.
class OperationCommand final : public StreamCommand {
 public:
  OperationCommand(StreamRef stream, Op op, View workspace, std::vector<StorageRef> holds)
      : StreamCommand(std::move(stream)), op_(std::move(op)), workspace_(workspace), holds_(std::move(holds)) {}

 private:
  Status execute(Device& device, BackendStream& stream) override;
  Op op_;
  View workspace_;
  std::vector<StorageRef> holds_;
};

/// Host bytes to the device.
class WriteCommand final : public StreamCommand {
 public:
  WriteCommand(StreamRef stream, StorageRef target, void* data, std::unique_ptr<std::byte[]> source, int64_t bytes)
      : StreamCommand(std::move(stream)),
        target_(std::move(target)),
        data_(data),
        source_(std::move(source)),
        bytes_(bytes) {}

 private:
  Status execute(Device& device, BackendStream& stream) override;
  StorageRef target_;
  void* data_;
  std::unique_ptr<std::byte[]> source_;
  int64_t bytes_;
};

/// Bytes of a file to the device.
class ReadFileCommand final : public StreamCommand {
 public:
  ReadFileCommand(StreamRef stream, StorageRef target, void* data, FileRef file, int64_t offset, int64_t bytes)
      : StreamCommand(std::move(stream)),
        target_(std::move(target)),
        data_(data),
        file_(std::move(file)),
        offset_(offset),
        bytes_(bytes) {}

  void prepare(Device& device) noexcept override;

 private:
  Status execute(Device& device, BackendStream& stream) override;
  StorageRef target_;
  void* data_;
  FileRef file_;
  int64_t offset_;
  int64_t bytes_;
};

class ReplayCommand final : public StreamCommand {
 public:
  ReplayCommand(StreamRef stream, GraphRef graph) : StreamCommand(std::move(stream)), graph_(std::move(graph)) {}

 private:
  Status execute(Device& device, BackendStream& stream) override;
  GraphRef graph_;
};

/// What follows on the stream runs after everything issued to `other` so far.
class WaitCommand final : public StreamCommand {
 public:
  WaitCommand(StreamRef stream, StreamRef other) : StreamCommand(std::move(stream)), other_(std::move(other)) {}

 private:
  Status execute(Device& device, BackendStream& stream) override;
  StreamRef other_;
};

/// Makes a graph replayable. Does not depend on data, so it also runs on a stream that has failed.
class CompileCommand final : public Command {
 public:
  CompileCommand(StreamRef stream, GraphRef graph, std::vector<Op> operations, View workspace)
      : stream_(std::move(stream)),
        graph_(std::move(graph)),
        operations_(std::move(operations)),
        workspace_(workspace) {}
  void run(Device& device) override;

 private:
  StreamRef stream_;
  GraphRef graph_;
  std::vector<Op> operations_;
  View workspace_;
};

/// Answers with the first failure of the stream since the last record or read, and clears it.
class RecordCommand final : public Command {
 public:
  RecordCommand(StreamRef stream, std::function<void(Status)> done)
      : stream_(std::move(stream)), done_(std::move(done)) {}
  void run(Device& device) override;
  void cancel(const Status& why) noexcept override { done_(why); }

 private:
  StreamRef stream_;
  std::function<void(Status)> done_;
};

/// Device bytes to the host; answers with failures as a record does.
class ReadCommand final : public Command {
 public:
  using Done = std::function<void(Status, std::shared_ptr<HostBuffer>)>;
  ReadCommand(StreamRef stream, StorageRef source, const void* data, int64_t bytes, Done done)
      : stream_(std::move(stream)), source_(std::move(source)), data_(data), bytes_(bytes), done_(std::move(done)) {}
  void run(Device& device) override;
  void cancel(const Status& why) noexcept override { done_(why, nullptr); }

 private:
  StreamRef stream_;
  StorageRef source_;
  const void* data_;
  int64_t bytes_;
  Done done_;
};

class AllocateCommand final : public Command {
 public:
  using Done = std::function<void(Status, StorageRef)>;
  AllocateCommand(int64_t bytes, Done done) : bytes_(bytes), done_(std::move(done)) {}
  void run(Device& device) override;
  void cancel(const Status& why) noexcept override { done_(why, nullptr); }

 private:
  int64_t bytes_;
  Done done_;
};

}  // namespace mla::runtime
