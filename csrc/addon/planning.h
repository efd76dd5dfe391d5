// planning.h - sizes that are known before memory exists, for a device that is open or for a GPU that need not be
// there.
#pragma once
#include <napi.h>

#include "ops/backend.h"

namespace mla::addon {

/// Scratch bytes of the operation info[first], whose arguments follow as read_planned_operation() takes them.
Status plan_workspace(const Napi::CallbackInfo& info, size_t first, const Planner& planner, napi_value* out);

/// Elements of decodePlan's plan for info[first] sequences and info[first + 1] heads.
Status plan_decode(const Napi::CallbackInfo& info, size_t first, const Planner& planner, napi_value* out);

/// gpus(): { runtimeCuda, driverCuda, gpus, failure }; asks the driver, opens nothing.
Napi::Value Gpus(const Napi::CallbackInfo& info);

/// planWorkspaceBytes and planDecodeInts: a GPU (major, minor, multiprocessors, sharedBytesPerBlock), then the
/// arguments of Device's workspaceBytes and decodePlanInts.
Napi::Value PlanWorkspaceBytes(const Napi::CallbackInfo& info);
Napi::Value PlanDecodeInts(const Napi::CallbackInfo& info);

}  // namespace mla::addon
