// backend.cc - the CUDA backend: memory, streams, graphs and copies. What the operations do stands in the family
// folders.
#include "ops/backend.h"

#include <cuda_runtime_api.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/device/launches.h"
#include "cuda/launch.h"
#include "cuda/resident/resident_ops.h"
#include "cuda/runtime/completion.h"
#include "cuda/runtime/file_reader.h"
#include "cuda/runtime/gpu_facts.h"
#include "cuda/runtime/host_pool.h"
#include "cuda/runtime/probe.h"
#include "cuda/runtime/together.h"

namespace mla {
namespace cuda {
namespace {

/// Launch::counters.
struct FreeOnDevice {
  void operator()(uint32_t* data) const noexcept { cudaFree(data); }
};
using Counters = std::unique_ptr<uint32_t, FreeOnDevice>;

class CudaStream final : public BackendStream {
 public:
  CudaStream(cudaStream_t stream, Counters counters, Completion& completion)
      : stream(stream), counters(std::move(counters)), completion_(completion) {}
  ~CudaStream() override {
    // What is still under way uses buffers and memory that end after the stream. A lost device answers at once.
    cudaStreamSynchronize(stream);
    completion_.settle();
    cudaStreamDestroy(stream);
  }

  cudaStream_t stream;
  Counters counters;                               // of operations that are not part of a graph
  std::vector<std::shared_ptr<HostBuffer>> holds;  // in use by copies since the last fence
  // What operations write, from the last one on that has a kernel which is not eager; nothing after a copy or replay.
  std::vector<View> fresh;
  Appended appended;  // of those a cache, of which nothing else has been written

 private:
  Completion& completion_;
};

class CudaGraph final : public BackendGraph {
 public:
  CudaGraph(cudaGraphExec_t exec, size_t nodes, Counters counters)
      : exec(exec), nodes_(nodes), counters_(std::move(counters)) {}
  ~CudaGraph() override { cudaGraphExecDestroy(exec); }
  int64_t launches() const override { return static_cast<int64_t>(nodes_); }
  cudaGraphExec_t exec;

 private:
  size_t nodes_;
  Counters counters_;  // a graph never runs beside itself
};

CudaStream& of(BackendStream& stream) { return static_cast<CudaStream&>(stream); }

}  // namespace

namespace {

bool overlaps_any(const View& view, std::span<const View> others) {
  const char* const begin = view.as<const char>();
  const char* const end = begin + view.bytes();
  for (const View& other : others) {
    const char* const from = other.as<const char>();
    if (from < end && begin < from + other.bytes()) return true;
  }
  return false;
}

}  // namespace

bool Launch::settled(const View& view) const noexcept { return !overlaps_any(view, fresh); }

namespace {

struct RunOp {
  const Launch& launch;
  Status operator()(const std::monostate&) const { return Status::Ok(); }
#define MLA_RUN_OP(Name, verb) \
  Status operator()(const Name##Params& p) const { return cuda::verb(p, launch); }
  MLA_OPS(MLA_RUN_OP)
#undef MLA_RUN_OP
};

struct WorkspaceOf {
  const Traits& traits;
  int64_t operator()(const std::monostate&) const { return 0; }
#define MLA_WORKSPACE_OF(Name, verb) \
  int64_t operator()(const Name##Params& p) const { return workspace(p, traits); }
  MLA_OPS(MLA_WORKSPACE_OF)
#undef MLA_WORKSPACE_OF
};

/// Adds what an operation writes to `out`.
struct CollectWritten {
  std::vector<View>* out;
  void operator()(const char*, const View& view, Dir dir, Need) {
    if (dir != Dir::kIn && view.present()) out->push_back(view);
  }
  template <class Value>
  void operator()(const char*, const Value&, Need = Need::kRequired) {}
};

/// What an operation writes is fresh from now on, and if it appends rows to a cache that was not, only these rows of
/// it.
void note_written(const Op& op, std::vector<View>* fresh, Appended* rows) {
  std::vector<View> written;
  CollectWritten collect{&written};
  std::visit(
      [&](auto params) {
        if constexpr (!std::is_same_v<decltype(params), std::monostate>) params.fields(collect);
      },
      op);
  if (overlaps_any(rows->cache, written) || !overlaps_any(rows->cache, *fresh)) *rows = {};
  const auto* const compress = std::get_if<LatentCompressParams>(&op);
  if (compress != nullptr && !overlaps_any(compress->cache, *fresh)) *rows = {compress->cache, compress->slots};
  fresh->insert(fresh->end(), written.begin(), written.end());
}

class CudaPlanner final : public Planner {
 public:
  explicit CudaPlanner(const Traits& traits) : traits_(traits) {}
  int64_t workspace_bytes(const Op& op) const override { return std::visit(WorkspaceOf{traits_}, op); }
  int64_t decode_plan_ints(int64_t max_sequences, int64_t heads) const override {
    return resident_plan_ints(cuda::decode_plan_ints(max_sequences, heads, traits_), heads, traits_);
  }

 private:
  const Traits traits_;
};

class CudaBackend final : public Backend {
 public:
  static Status create(int index, KernelChoice choice, std::unique_ptr<Backend>* out) {
    serial_launches = choice.serial;
    MLA_RETURN_IF_ERROR(probe(index));
    MLA_RETURN_IF_ERROR(cuda_status(cudaSetDevice(index), "cudaSetDevice"));
    cudaDeviceProp properties;
    MLA_RETURN_IF_ERROR(cuda_status(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties"));
    if (properties.major < 8) {
      return Status::Error(Code::kDeviceUnusable, std::string(properties.name) + " has compute capability " +
                                                      std::to_string(properties.major) + "." +
                                                      std::to_string(properties.minor) + "; 8.0 or newer is needed");
    }
    std::unique_ptr<CudaBackend> backend(new CudaBackend(index, choice, properties));
    MLA_RETURN_IF_ERROR(backend->load_kernels());
    MLA_RETURN_IF_ERROR(
        cuda_status(cudaStreamCreateWithFlags(&backend->fill_stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
    *out = std::move(backend);
    return Status::Ok();
  }

  ~CudaBackend() override {
    if (fill_stream_ != nullptr) cudaStreamDestroy(fill_stream_);
  }

  DeviceInfo info() const override {
    DeviceInfo out;
    out.kind = "cuda";
    out.name = name_;
    out.path = traits_.hopper ? "sm_90a" : "portable";
    out.multiprocessors = traits_.multiprocessors;
    size_t free = 0;
    size_t total = 0;
    cudaSetDevice(index_);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    out.memory_free = static_cast<int64_t>(free);
    out.memory_total = static_cast<int64_t>(total);
    return out;
  }

  Status allocate(int64_t bytes, void** out) override {
    cudaSetDevice(index_);
    MLA_RETURN_IF_ERROR(cuda_status(cudaMalloc(out, static_cast<size_t>(bytes)), "cudaMalloc"));
    // Zeros: what another process left there must never be read.
    Status status = cuda_status(cudaMemsetAsync(*out, 0, static_cast<size_t>(bytes), fill_stream_), "cudaMemsetAsync");
    if (status.ok()) status = cuda_status(cudaStreamSynchronize(fill_stream_), "cudaStreamSynchronize");
    if (!status.ok()) cudaFree(*out);
    return status;
  }

  void release(void* data) noexcept override { cudaFree(data); }

  Status host_buffer(int64_t bytes, std::shared_ptr<HostBuffer>* out) override { return host_pool_->take(bytes, out); }

  Status create_stream(std::unique_ptr<BackendStream>* out) override {
    Counters counters;
    MLA_RETURN_IF_ERROR(create_counters(&counters));
    cudaStream_t stream = nullptr;
    MLA_RETURN_IF_ERROR(cuda_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"));
    *out = std::make_unique<CudaStream>(stream, std::move(counters), completion_);
    return Status::Ok();
  }

  int64_t workspace_bytes(const Op& op) const override { return CudaPlanner(traits_).workspace_bytes(op); }

  int64_t decode_plan_ints(int64_t max_sequences, int64_t heads) const override {
    return CudaPlanner(traits_).decode_plan_ints(max_sequences, heads);
  }

  Status run(const Op& op, View workspace, BackendStream& stream) override {
    return enqueue({&op, 1}, workspace, stream, of(stream).counters.get());
  }

  // A kernel after a copy, a replay or an event starts when that has passed: only kernels start early.
  Status upload(void* dst, std::shared_ptr<HostBuffer> src, int64_t bytes, BackendStream& stream) override {
    of(stream).fresh.clear();
    MLA_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(dst, src->data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, of(stream).stream),
        "cudaMemcpyAsync"));
    of(stream).holds.push_back(std::move(src));
    return Status::Ok();
  }

  Status download(std::shared_ptr<HostBuffer> dst, const void* src, int64_t bytes, BackendStream& stream) override {
    MLA_RETURN_IF_ERROR(cuda_status(
        cudaMemcpyAsync(dst->data(), src, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, of(stream).stream),
        "cudaMemcpyAsync"));
    of(stream).holds.push_back(std::move(dst));
    return Status::Ok();
  }

  Status read_file(int fd, int64_t offset, void* dst, int64_t bytes, BackendStream& stream) override {
    return file_reader_.read(fd, offset, dst, bytes, of(stream).stream);
  }

  void will_read(int fd, int64_t offset, int64_t bytes) override { file_reader_.expect(fd, offset, bytes); }

  Status compile(std::span<const Op> ops, View workspace, BackendStream& stream,
                 std::unique_ptr<BackendGraph>* out) override {
    const cudaStream_t s = of(stream).stream;
    of(stream).fresh.clear();
    Counters counters;
    MLA_RETURN_IF_ERROR(create_counters(&counters));
    MLA_RETURN_IF_ERROR(
        cuda_status(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture"));
    Status status;
    for (size_t done = 0, count = 0; done < ops.size() && status.ok(); done += count) {
      count = together(ops.subspan(done), traits_);
      status = enqueue(ops.subspan(done, count), workspace, stream, counters.get());
    }
    cudaGraph_t graph = nullptr;
    const Status ended = cuda_status(cudaStreamEndCapture(s, &graph), "cudaStreamEndCapture");
    of(stream).fresh.clear();
    if (status.ok()) status = ended;
    cudaGraphExec_t exec = nullptr;
    size_t nodes = 0;
    if (status.ok()) status = cuda_status(cudaGraphGetNodes(graph, nullptr, &nodes), "cudaGraphGetNodes");
    if (status.ok()) status = cuda_status(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    if (graph != nullptr) cudaGraphDestroy(graph);
    MLA_RETURN_IF_ERROR(std::move(status));
    *out = std::make_unique<CudaGraph>(exec, nodes, std::move(counters));
    return cuda_status(cudaGraphUpload(exec, s), "cudaGraphUpload");
  }

  Status replay(BackendGraph& graph, BackendStream& stream) override {
    of(stream).fresh.clear();
    return cuda_status(cudaGraphLaunch(static_cast<CudaGraph&>(graph).exec, of(stream).stream), "cudaGraphLaunch");
  }

  void fence(BackendStream& stream, std::function<void(Status)> done) override {
    completion_.after(of(stream).stream, std::exchange(of(stream).holds, {}), std::move(done));
  }

  Status order_after(BackendStream& stream, BackendStream& other) override {
    cudaEvent_t event = nullptr;
    MLA_RETURN_IF_ERROR(cuda_status(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"));
    Status status = cuda_status(cudaEventRecord(event, of(other).stream), "cudaEventRecord");
    if (status.ok()) status = cuda_status(cudaStreamWaitEvent(of(stream).stream, event, 0), "cudaStreamWaitEvent");
    cudaEventDestroy(event);  // takes effect when the event has passed
    return status;
  }

 private:
  /// kCounters zeros.
  Status create_counters(Counters* out) {
    void* data = nullptr;
    MLA_RETURN_IF_ERROR(allocate(kCounters * sizeof(uint32_t), &data));
    out->reset(static_cast<uint32_t*>(data));
    return Status::Ok();
  }

  /// One operation, outside of a graph or within one, or several that one launch does together.
  Status enqueue(std::span<const Op> ops, View workspace, BackendStream& stream, uint32_t* counters) {
    std::vector<View>& fresh = of(stream).fresh;
    const Launch launch{of(stream).stream, workspace, &traits_, fresh, counters, of(stream).appended};
    late_trigger = false;
    Status status = ops.size() > 1 ? run_together(ops, launch) : std::visit(RunOp{launch}, ops[0]);
    // An operation without rows launches nothing: what came before it stays fresh, as it does behind eager kernels.
    if (late_trigger) fresh.clear();
    for (const Op& op : ops) note_written(op, &fresh, &of(stream).appended);
    return status;
  }

  CudaBackend(int index, KernelChoice choice, const cudaDeviceProp& properties)
      : index_(index), name_(properties.name), traits_(traits_of(facts_of(properties))), completion_(index) {
    if (choice.portable) traits_.hopper = false;
    traits_.deterministic = choice.deterministic;
  }

  Status load_kernels() const {
    MLA_RETURN_IF_ERROR(load_attention_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_gemm_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_latent_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_memory_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_moe_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_norm_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_quant_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_resident_kernels(traits_));
    MLA_RETURN_IF_ERROR(load_rope_kernels(traits_));
    return load_sampling_kernels(traits_);
  }

  const int index_;
  const std::string name_;
  Traits traits_;
  cudaStream_t fill_stream_ = nullptr;
  std::shared_ptr<HostPool> host_pool_ = std::make_shared<HostPool>();
  FileReader file_reader_;
  Completion completion_;  // last: its thread ends first
};

}  // namespace
}  // namespace cuda

Status create_cuda_backend(int index, KernelChoice choice, std::unique_ptr<Backend>* out) {
  return cuda::CudaBackend::create(index, choice, out);
}

std::vector<std::string> launched_cuda_kernels(bool forget) {
  std::vector<std::string> names;
  for (auto& place : cuda::launched_kernels) {
    const void* const kernel = forget ? place.exchange(nullptr) : place.load();
    const char* name = nullptr;
    if (kernel != nullptr && cudaFuncGetName(&name, kernel) == cudaSuccess) names.emplace_back(name);
  }
  cudaGetLastError();
  return names;
}

Status create_cuda_planner(const GpuFacts& gpu, std::unique_ptr<Planner>* out) {
  *out = std::make_unique<cuda::CudaPlanner>(cuda::traits_of(gpu));
  return Status::Ok();
}

}  // namespace mla
