#include "runtime/commands.h"

#include <cstring>
#include <utility>

namespace mla::runtime {

void StreamCommand::run(Device& device) {
  if (!stream_->failure.ok()) return;
  stream_->failure = device.guarded([&] {
    MLA_RETURN_IF_ERROR(device.injected_failure());
    BackendStream* backend = nullptr;
    MLA_RETURN_IF_ERROR(device.begin_work(*stream_, &backend));
    return execute(device, *backend);
  });
}

Status OperationCommand::execute(Device& device, BackendStream& stream) {
  return device.mutable_backend().run(op_, workspace_, stream);
}

Status WriteCommand::execute(Device& device, BackendStream& stream) {
  std::shared_ptr<HostBuffer> buffer;
  MLA_RETURN_IF_ERROR(device.host_buffer(bytes_, &buffer));
  std::memcpy(buffer->data(), source_.get(), bytes_);
  source_.reset();
  return device.mutable_backend().upload(data_, std::move(buffer), bytes_, stream);
}

void ReadFileCommand::prepare(Device& device) noexcept {
  device.mutable_backend().will_read(file_->descriptor(), offset_, bytes_);
}

Status ReadFileCommand::execute(Device& device, BackendStream& stream) {
  return device.mutable_backend().read_file(file_->descriptor(), offset_, data_, bytes_, stream);
}

Status ReplayCommand::execute(Device& device, BackendStream& stream) {
  MLA_RETURN_IF_ERROR(graph_->failure);
  return device.mutable_backend().replay(*graph_->backend, stream);
}

Status WaitCommand::execute(Device& device, BackendStream& stream) {
  if (other_->work == nullptr) return Status::Ok();  // nothing has been issued to it
  return device.mutable_backend().order_after(stream, *other_->work->backend);
}

void CompileCommand::run(Device& device) {
  graph_->failure = device.guarded([&] {
    MLA_RETURN_IF_ERROR(device.injected_failure());
    BackendStream* backend = nullptr;
    MLA_RETURN_IF_ERROR(device.begin_work(*stream_, &backend));
    std::unique_ptr<BackendGraph> compiled;
    MLA_RETURN_IF_ERROR(device.mutable_backend().compile(operations_, workspace_, *backend, &compiled));
    graph_->launches = compiled->launches();
    graph_->backend = device.resources()->adopt(std::move(compiled));
    return Status::Ok();
  });
  if (!graph_->failure.ok() && stream_->failure.ok()) stream_->failure = graph_->failure;
}

void RecordCommand::run(Device& device) {
  Status first = std::exchange(stream_->failure, Status::Ok());
  device.fence(stream_->work, [first = std::move(first), done = std::move(done_)](Status status) {
    done(first.ok() ? std::move(status) : first);
  });
}

void ReadCommand::run(Device& device) {
  std::shared_ptr<HostBuffer> buffer;
  Status status = std::exchange(stream_->failure, Status::Ok());
  if (status.ok() && bytes_ > 0) {
    status = device.guarded([&] {
      BackendStream* backend = nullptr;
      MLA_RETURN_IF_ERROR(device.host_buffer(bytes_, &buffer));
      MLA_RETURN_IF_ERROR(device.begin_work(*stream_, &backend));
      return device.mutable_backend().download(buffer, data_, bytes_, *backend);
    });
  }
  // From here on the copy is in the stream, and memory is given back behind it; so whoever gets the answer can count on
  // this command holding nothing.
  source_.reset();
  if (!status.ok()) {
    done_(std::move(status), nullptr);
    return;
  }
  device.fence(stream_->work, [buffer, done = std::move(done_)](Status status) { done(std::move(status), buffer); });
}

void AllocateCommand::run(Device& device) {
  StorageRef storage;
  const Status status = device.allocate(bytes_, &storage);
  done_(status, std::move(storage));
}

}  // namespace mla::runtime
