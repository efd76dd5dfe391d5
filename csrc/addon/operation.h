// operation.h - the verbs: their argument lists, and how an Op is made from JavaScript values.
//
// A verb is called by its number in MLA_OPS with its arguments in the order of its fields() list; an argument that is
// left out is undefined.
#pragma once
#include <napi.h>

#include <vector>

#include "ops/backend.h"
#include "runtime/device.h"

namespace mla::addon {

/// More than any operation has.
constexpr size_t kMaxArguments = 32;

/// For lib/native, which builds one method per entry: [{verb, fields: [{name, kind, optional}]}], kind "tensor",
/// "integer", "number" or "boolean".
Napi::Value operation_list(Napi::Env env);

/// Reads operation `values[0]` with the arguments after it. Tensors must be usable on `device`; their storages are
/// appended to `holds`.
Status read_operation(napi_env env, const runtime::Device& device, const napi_value* values, size_t count, Op* op,
                      std::vector<runtime::StorageRef>* holds);

/// The same for planning: each tensor is an array [dtype, ...dims] of numbers.
Status read_planned_operation(napi_env env, const napi_value* values, size_t count, Op* op);

/// Whether the scratch memory is large enough, and the plan of an operation that has one: what check() cannot know,
/// because each backend has its own sizes.
Status check_sizes(const Backend& backend, const Op& op, int64_t workspace_bytes);

}  // namespace mla::addon
