// backend.cc - the CPU backend. Operations run where they are called, on the device's command thread and its pool; so a
// stream has no state, an event is reached when it is recorded, and a graph is a list.
#include "ops/backend.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <vector>

#include "common/checked.h"
#include "cpu/host.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace mla {
namespace cpu {
namespace {

constexpr int64_t kCopySlice = int64_t{1} << 20;
constexpr int64_t kReadSlice = int64_t{4} << 20;

class CpuStream final : public BackendStream {};

class CpuGraph final : public BackendGraph {
 public:
  CpuGraph(std::span<const Op> ops, View workspace) : ops(ops.begin(), ops.end()), workspace(workspace) {}
  int64_t launches() const override { return static_cast<int64_t>(ops.size()); }
  std::vector<Op> ops;
  View workspace;
};

class CpuHostBuffer final : public HostBuffer {
 public:
  CpuHostBuffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~CpuHostBuffer() override { std::free(data_); }
  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  void* data_;
  int64_t bytes_;
};

/// A kernel of the table for each operation type.
struct RunOp {
  const KernelTable& table;
  Context& ctx;
  Status operator()(const std::monostate&) const { return Status::Ok(); }
#define MLA_RUN_OP(Name, verb) \
  Status operator()(const Name##Params& p) const { return table.verb(p, ctx); }
  MLA_OPS(MLA_RUN_OP)
#undef MLA_RUN_OP
};

/// What went wrong first, by place, in a read that several threads share.
struct ReadFault {
  std::mutex mutex;
  int64_t at = -1;  // -1: nothing
  int error = 0;    // 0: the file ended

  void report(int64_t where, int code) {
    std::lock_guard<std::mutex> lock(mutex);
    if (at >= 0 && at <= where) return;
    at = where;
    error = code;
  }
};

/// Reads [offset, offset + bytes) to dst; interrupted and short reads go on where they stopped.
void read_slice(int fd, int64_t offset, char* dst, int64_t bytes, ReadFault* fault) {
  while (bytes > 0) {
    const ssize_t got = pread(fd, dst, static_cast<size_t>(bytes), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fault->report(offset, got < 0 ? errno : 0);
    offset += got;
    dst += got;
    bytes -= got;
  }
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : pool_(threads), table_(kernel_table()), name_(processor_name()) {}

  DeviceInfo info() const override {
    DeviceInfo out;
    out.kind = "cpu";
    out.name = name_;
    out.path = table_.name;
    out.memory_total = memory_total();
    out.memory_free = memory_free();
    out.threads = pool_.threads();
    return out;
  }

  Status allocate(int64_t bytes, void** out) override { return memory_.allocate(bytes, out); }
  void release(void* data) noexcept override { memory_.release(data); }

  Status host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out) override {
    void* data = std::malloc(static_cast<size_t>(std::max<int64_t>(bytes, 1)));
    if (data == nullptr)
      return Status::Error(Code::kOutOfMemory, "no memory for a host buffer of " + std::to_string(bytes) + " bytes");
    *out = std::make_shared<CpuHostBuffer>(data, bytes);
    return Status::Ok();
  }

  Status create_stream(std::unique_ptr<BackendStream>* out) override {
    *out = std::make_unique<CpuStream>();
    return Status::Ok();
  }

  int64_t workspace_bytes(const Op& op) const override { return cpu::workspace_bytes(op, pool_.threads()); }
  int64_t decode_plan_ints(int64_t max_sequences, int64_t heads) const override {
    return cpu::decode_plan_ints(max_sequences, heads, pool_.threads());
  }

  Status run(const Op& op, View workspace, BackendStream&) override {
    const int64_t needed = cpu::workspace_bytes(op, pool_.threads());
    if (needed > workspace.bytes()) {
      return Status::Error(Code::kInvalidArg, "workspace: the operation needs " + std::to_string(needed) +
                                                  " bytes, the stream's workspace has " +
                                                  std::to_string(workspace.bytes()));
    }
    Context ctx{&pool_, workspace};
    return std::visit(RunOp{table_, ctx}, op);
  }

  Status upload(void* dst, std::shared_ptr<HostBuffer> src, int64_t bytes, BackendStream&) override {
    copy(dst, src->data(), bytes);
    return Status::Ok();
  }

  Status download(std::shared_ptr<HostBuffer> dst, const void* src, int64_t bytes, BackendStream&) override {
    copy(dst->data(), src, bytes);
    return Status::Ok();
  }

  Status read_file(int fd, int64_t offset, void* dst, int64_t bytes, BackendStream&) override {
    ReadFault fault;
    pool_.parallel_for(ceil_div(bytes, kReadSlice), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * kReadSlice;
        read_slice(fd, offset + at, static_cast<char*>(dst) + at, std::min(kReadSlice, bytes - at), &fault);
      }
    });
    if (fault.at < 0) return Status::Ok();
    const std::string what = "reading " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                             " of file descriptor " + std::to_string(fd) + ": ";
    if (fault.error == 0) return Status::Error(Code::kFile, what + "the file ends at byte " + std::to_string(fault.at));
    return Status::Error(Code::kFile,
                         what + std::generic_category().message(fault.error) + " at byte " + std::to_string(fault.at));
  }

  Status compile(std::span<const Op> ops, View workspace, BackendStream&, std::unique_ptr<BackendGraph>* out) override {
    *out = std::make_unique<CpuGraph>(ops, workspace);
    return Status::Ok();
  }

  Status replay(BackendGraph& graph, BackendStream& stream) override {
    const CpuGraph& g = static_cast<CpuGraph&>(graph);
    for (const Op& op : g.ops) MLA_RETURN_IF_ERROR(run(op, g.workspace, stream));
    return Status::Ok();
  }

  void fence(BackendStream&, std::function<void(Status)> done) override { done(Status::Ok()); }
  Status order_after(BackendStream&, BackendStream&) override { return Status::Ok(); }

 private:
  void copy(void* dst, const void* src, int64_t bytes) {
    pool_.parallel_for(ceil_div(bytes, kCopySlice), 1, [&](int64_t begin, int64_t end, int) {
      const int64_t at = begin * kCopySlice;
      std::memcpy(static_cast<char*>(dst) + at, static_cast<const char*>(src) + at,
                  static_cast<size_t>(std::min(bytes, end * kCopySlice) - at));
    });
  }

  ThreadPool pool_;
  const KernelTable& table_;
  const std::string name_;
  HostMemory memory_;
};

}  // namespace
}  // namespace cpu

Status create_cpu_backend(int threads, std::unique_ptr<Backend>* out) {
  const int count = threads > 0 ? threads : cpu::usable_cores();
  try {
    *out = std::make_unique<cpu::CpuBackend>(count);
  } catch (const std::system_error& e) {
    return Status::Error(Code::kBackend, "starting " + std::to_string(count) + " CPU threads: " + e.what());
  } catch (const std::bad_alloc&) {
    return Status::Error(Code::kOutOfMemory, "no memory for the CPU backend's threads");
  }
  return Status::Ok();
}

}  // namespace mla
