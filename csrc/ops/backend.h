// backend.h - what a backend is: memory, ordered execution of operations, graphs. Two of them exist, cpu and cuda.
//
// Threads: the const queries may be called from any thread. Everything else, creation and destruction included, happens
// on the device's command thread, in the order of the commands.
//
// Ends: streams are destroyed first (a stream's destructor returns when its work is done or abandoned, and after the
// last callback of its fences), then graphs, then memory is released, then the backend goes. release() and destruction
// of a graph or stream come when all work issued before has passed; on a lost device they come at once.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"
#include "ops/ops.h"

namespace mla {

struct DeviceInfo {
  std::string kind;  // "cpu" | "cuda"
  std::string name;  // processor or GPU, as it names itself
  std::string path;  // which kernels run: "x86-64-v2" | "avx2" | "avx512" | "generic", "sm_90a" | "portable"
  int64_t memory_total = 0;
  int64_t memory_free = 0;
  int threads = 0;          // cpu
  int multiprocessors = 0;  // cuda
};

/// One ordered queue inside the backend (a CUDA stream); the CPU backend has no state of its own in it.
class BackendStream {
 public:
  virtual ~BackendStream() = default;
};

/// A captured sequence of operations, ready to be replayed.
class BackendGraph {
 public:
  virtual ~BackendGraph() = default;
  /// What a replay starts one by one: kernels and copies on a GPU, operations on the CPU.
  virtual int64_t launches() const = 0;
};

/// Host memory that transfers start from or end in (pinned for CUDA).
class HostBuffer {
 public:
  virtual ~HostBuffer() = default;
  virtual void* data() = 0;
  virtual int64_t bytes() const = 0;
};

/// What sizes depend on; a GPU that is planned for need not exist.
class Planner {
 public:
  virtual ~Planner() = default;

  /// Bytes of scratch memory that `op` needs for its shapes; data pointers may be null. The stream's workspace must be
  /// at least that large.
  virtual int64_t workspace_bytes(const Op& op) const = 0;
  /// Elements of the plan tensor of decodePlan.
  virtual int64_t decode_plan_ints(int64_t max_sequences, int64_t heads) const = 0;
};

class Backend : public Planner {
 public:
  virtual DeviceInfo info() const = 0;

  /// Zero-filled memory, aligned to 256 bytes. kOutOfMemory or kOutOfDeviceMemory when there is none.
  virtual Status allocate(int64_t bytes, void** out) = 0;
  virtual void release(void* data) noexcept = 0;
  virtual Status host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out) = 0;

  virtual Status create_stream(std::unique_ptr<BackendStream>* out) = 0;

  /// Runs or enqueues one operation. Arguments have been checked.
  virtual Status run(const Op& op, View workspace, BackendStream& stream) = 0;
  virtual Status upload(void* dst, std::shared_ptr<HostBuffer> src, int64_t bytes, BackendStream& stream) = 0;
  virtual Status download(std::shared_ptr<HostBuffer> dst, const void* src, int64_t bytes, BackendStream& stream) = 0;
  /// Reads bytes [offset, offset + bytes) of an open file into device memory. kFile when the file is shorter.
  virtual Status read_file(int fd, int64_t offset, void* dst, int64_t bytes, BackendStream& stream) = 0;

  /// read_file() will be called for these bytes soon, in the order of such announcements; it may fail to come.
  virtual void will_read(int fd, int64_t offset, int64_t bytes) { (void)fd, (void)offset, (void)bytes; }

  /// Compiles operations (each with the workspace it was recorded with) into something that replay() runs.
  virtual Status compile(std::span<const Op> ops, View workspace, BackendStream& stream,
                         std::unique_ptr<BackendGraph>* out) = 0;
  virtual Status replay(BackendGraph& graph, BackendStream& stream) = 0;

  /// Calls done, from any thread, when all work issued to the stream so far has finished (or has failed).
  virtual void fence(BackendStream& stream, std::function<void(Status)> done) = 0;
  /// Makes the work that follows on `stream` wait for all work issued so far on `other`.
  virtual Status order_after(BackendStream& stream, BackendStream& other) = 0;
};

/// A GPU as far as kernels and sizes depend on it.
struct GpuFacts {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // with opt-in
  int64_t memory_total = 0;
};

/// What the NVIDIA driver says, without touching a GPU. Versions as CUDA writes them: 13020 is CUDA 13.2, 0 is none.
struct GpuSurvey {
  int runtime_cuda = 0;  // that this binary was built with
  int driver_cuda = 0;   // the newest that the driver supports
  std::vector<GpuFacts> gpus;
  Status status;  // why GPU 0 cannot be used
};

GpuSurvey survey_gpus();

/// Sizes of the CUDA backend on such a GPU. kUnsupported in a build without CUDA.
Status create_cuda_planner(const GpuFacts& gpu, std::unique_ptr<Planner>* out);

/// The CPU backend; threads <= 0 means one per physical core this process may use.
Status create_cpu_backend(int threads, std::unique_ptr<Backend>* out);

/// Which of its kernels a GPU may run, and how. The CPU's are all of both kinds, and serial.
struct KernelChoice {
  bool portable = false;       // only those that every GPU runs
  bool deterministic = false;  // only those that give a row the same bits whatever rows stand beside it
  bool serial = false;         // each starts when the one before has ended
};

/// The CUDA backend on GPU `index`. kUnsupported in a build without CUDA, kNoDevice without a GPU or driver.
Status create_cuda_backend(int index, KernelChoice choice, std::unique_ptr<Backend>* out);

/// The kernels that this process has launched on any GPU, by their names in the binary; `forget` begins anew behind it.
/// For tests.
std::vector<std::string> launched_cuda_kernels(bool forget);

/// Checks dtypes, shapes and values of an operation's arguments. `what` of the error: operation, argument, what was
/// expected, what came.
Status check(const Op& op);

}  // namespace mla
