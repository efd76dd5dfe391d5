// addon.cc - what require() gives; lib/native/raw.ts describes it.
#include <napi.h>

#include <map>
#include <mutex>

#include "addon/device.h"
#include "addon/environment.h"
#include "addon/event.h"
#include "addon/graph.h"
#include "addon/operation.h"
#include "addon/planning.h"
#include "addon/reader.h"
#include "addon/stream.h"
#include "addon/tensor.h"
#include "addon/values.h"
#include "runtime/faults.h"

namespace mla::addon {

namespace {

/// A GPU that is lost stays lost for the process, whoever opens it. Never freed: other threads may run at exit.
std::shared_ptr<runtime::LostLatch> gpu_latch(int index) {
  static std::mutex& mutex = *new std::mutex;
  static auto& latches = *new std::map<int, std::shared_ptr<runtime::LostLatch>>;
  std::lock_guard lock(mutex);
  auto& latch = latches[index];
  if (latch == nullptr) latch = std::make_shared<runtime::LostLatch>();
  return latch;
}

/// openDevice(cuda, number, portable, deterministic, serial): `number` is the GPU's index, or the CPU's thread count.
Napi::Value OpenDevice(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    constexpr int64_t kMostThreads = 1024;
    constexpr int64_t kMostGpus = 1023;
    bool cuda = false;
    KernelChoice choice;
    int64_t number = 0;
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[0], {"openDevice", "kind"}, &cuda));
    const Name what{"openDevice", cuda ? "index" : "threads"};
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[1], what, 0, cuda ? kMostGpus : kMostThreads, &number));
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[2], {"openDevice", "portable"}, &choice.portable));
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[3], {"openDevice", "deterministic"}, &choice.deterministic));
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[4], {"openDevice", "serial"}, &choice.serial));
    const int chosen = static_cast<int>(number);
    runtime::Device::Factory factory;
    if (cuda) {
      factory = [=](std::unique_ptr<Backend>* backend) { return create_cuda_backend(chosen, choice, backend); };
    } else {
      factory = [chosen](std::unique_ptr<Backend>* backend) { return create_cpu_backend(chosen, backend); };
    }
    std::shared_ptr<runtime::Device> device;
    MLA_RETURN_IF_ERROR(runtime::Device::open(
        std::move(factory), cuda ? gpu_latch(chosen) : std::make_shared<runtime::LostLatch>(), &device));
    Environment& environment = Environment::of(info.Env());
    environment.devices()->devices.push_back(device);
    *out = environment.make<Device>({device});
    return Status::Ok();
  });
}

Napi::Value Build(const Napi::CallbackInfo& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("cuda", NODE_MLA_HAVE_CUDA != 0);
  object.Set("version", NODE_MLA_VERSION);
  object.Set("archs", NODE_MLA_ARCHS);
  return object;
}

Napi::Value DTypes(const Napi::CallbackInfo& info) {
  Napi::Array names = Napi::Array::New(info.Env());
  for (int i = 0; i < kDTypeCount; ++i) names.Set(i, dtype_name(static_cast<DType>(i)));
  return names;
}

Napi::Value Operations(const Napi::CallbackInfo& info) { return operation_list(info.Env()); }

Napi::Value FailAllocation(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    int64_t k = 0;
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[0], {"failAllocation", "k"}, -1, kMaxSafeInteger, &k));
    runtime::fail_allocation(k);
    return Status::Ok();
  });
}

Napi::Value AllocationCount(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(runtime::allocation_count()));
}

Napi::Value LaunchedKernels(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    bool forget = false;
    MLA_RETURN_IF_ERROR(read_boolean(info.Env(), info[0], {"launchedKernels", "forget"}, &forget));
    Napi::Array names = Napi::Array::New(info.Env());
    for (const std::string& name : launched_cuda_kernels(forget)) names.Set(names.Length(), name);
    *out = names;
    return Status::Ok();
  });
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  if (!Environment::create(env)) throw Napi::Error::New(env, "the environment refuses a thread-safe function");
  Environment& environment = Environment::of(env);
  environment.set_class(Class::kDevice, Device::define(env));
  environment.set_class(Class::kTensor, Tensor::define(env));
  environment.set_class(Class::kStream, Stream::define(env));
  environment.set_class(Class::kEvent, Event::define(env));
  environment.set_class(Class::kGraph, Graph::define(env));
  environment.set_class(Class::kReader, Reader::define(env));
  exports.Set("openDevice", Napi::Function::New<OpenDevice>(env, "openDevice"));
  exports.Set("build", Napi::Function::New<Build>(env, "build"));
  exports.Set("gpus", Napi::Function::New<Gpus>(env, "gpus"));
  exports.Set("planWorkspaceBytes", Napi::Function::New<PlanWorkspaceBytes>(env, "planWorkspaceBytes"));
  exports.Set("planDecodeInts", Napi::Function::New<PlanDecodeInts>(env, "planDecodeInts"));
  exports.Set("dtypes", Napi::Function::New<DTypes>(env, "dtypes"));
  exports.Set("operations", Napi::Function::New<Operations>(env, "operations"));
  exports.Set("failAllocation", Napi::Function::New<FailAllocation>(env, "failAllocation"));
  exports.Set("allocationCount", Napi::Function::New<AllocationCount>(env, "allocationCount"));
  exports.Set("launchedKernels", Napi::Function::New<LaunchedKernels>(env, "launchedKernels"));
  return exports;
}

}  // namespace

}  // namespace mla::addon

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) { return mla::addon::Init(env, exports); }
NODE_API_MODULE(node_mla, InitAddon)
