// planning.cc - see planning.h.
#include "addon/planning.h"

#include <memory>
#include <vector>

#include "addon/environment.h"
#include "addon/handle.h"
#include "addon/operation.h"
#include "addon/values.h"

namespace mla::addon {

namespace {

/// Arguments that describe a GPU.
constexpr size_t kGpuArguments = 4;

Status read_planner(const Napi::CallbackInfo& info, const char* call, std::unique_ptr<Planner>* out) {
  const char* names[kGpuArguments] = {"major", "minor", "multiprocessors", "sharedBytesPerBlock"};
  int64_t numbers[kGpuArguments] = {};
  for (size_t i = 0; i < kGpuArguments; ++i) {
    MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[i], {call, names[i]}, i < 2 ? 0 : 1, 1 << 24, &numbers[i]));
  }
  GpuFacts gpu;
  gpu.major = static_cast<int>(numbers[0]);
  gpu.minor = static_cast<int>(numbers[1]);
  gpu.multiprocessors = static_cast<int>(numbers[2]);
  gpu.shared_bytes_per_block = static_cast<int>(numbers[3]);
  return create_cuda_planner(gpu, out);
}

}  // namespace

Status plan_workspace(const Napi::CallbackInfo& info, size_t first, const Planner& planner, napi_value* out) {
  std::vector<napi_value> values;
  for (size_t i = first; i < info.Length(); ++i) values.push_back(info[i]);
  Op op;
  MLA_RETURN_IF_ERROR(read_planned_operation(info.Env(), values.data(), values.size(), &op));
  MLA_RETURN_IF_ERROR(check(op));
  *out = Napi::Number::New(info.Env(), static_cast<double>(planner.workspace_bytes(op)));
  return Status::Ok();
}

Status plan_decode(const Napi::CallbackInfo& info, size_t first, const Planner& planner, napi_value* out) {
  constexpr int64_t kMost = 1 << 20;
  int64_t sequences = 0;
  int64_t heads = 0;
  MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[first], {"decodePlanInts", "maxSequences"}, 0, kMost, &sequences));
  MLA_RETURN_IF_ERROR(read_integer(info.Env(), info[first + 1], {"decodePlanInts", "heads"}, 1, kMost, &heads));
  *out = Napi::Number::New(info.Env(), static_cast<double>(planner.decode_plan_ints(sequences, heads)));
  return Status::Ok();
}

Napi::Value Gpus(const Napi::CallbackInfo& info) {
  const GpuSurvey found = survey_gpus();
  Napi::Array gpus = Napi::Array::New(info.Env());
  for (size_t i = 0; i < found.gpus.size(); ++i) {
    const GpuFacts& gpu = found.gpus[i];
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("name", gpu.name);
    object.Set("major", gpu.major);
    object.Set("minor", gpu.minor);
    object.Set("multiprocessors", gpu.multiprocessors);
    object.Set("sharedBytesPerBlock", gpu.shared_bytes_per_block);
    object.Set("memoryTotal", static_cast<double>(gpu.memory_total));
    gpus.Set(static_cast<uint32_t>(i), object);
  }
  Napi::Object out = Napi::Object::New(info.Env());
  out.Set("runtimeCuda", found.runtime_cuda);
  out.Set("driverCuda", found.driver_cuda);
  out.Set("gpus", gpus);
  out.Set("failure",
          found.status.ok() ? info.Env().Undefined() : Napi::Value(info.Env(), failure(info.Env(), found.status)));
  return out;
}

Napi::Value PlanWorkspaceBytes(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    std::unique_ptr<Planner> planner;
    MLA_RETURN_IF_ERROR(read_planner(info, "planWorkspaceBytes", &planner));
    return plan_workspace(info, kGpuArguments, *planner, out);
  });
}

Napi::Value PlanDecodeInts(const Napi::CallbackInfo& info) {
  return answer_value(info, [&](napi_value* out) -> Status {
    std::unique_ptr<Planner> planner;
    MLA_RETURN_IF_ERROR(read_planner(info, "planDecodeInts", &planner));
    return plan_decode(info, kGpuArguments, *planner, out);
  });
}

}  // namespace mla::addon
