#include "addon/operation.h"

#include <array>

#include "addon/tensor.h"
#include "addon/values.h"

namespace mla::addon {

namespace {

constexpr size_t kVerbCount = std::variant_size_v<Op> - 1;

constexpr const char* kVerbNames[] = {
#define MLA_VERB_NAME(Name, verb) #verb,
    MLA_OPS(MLA_VERB_NAME)
#undef MLA_VERB_NAME
};

/// Gives the fields of an operation their values, in order.
class FieldReader {
 public:
  FieldReader(napi_env env, const char* verb, const napi_value* values, size_t count)
      : env_(env), verb_(verb), values_(values), count_(count) {}

  /// Handles of one device; otherwise the tensors are read as planned shapes.
  void use_handles(const runtime::Device* device, std::vector<runtime::StorageRef>* holds) {
    device_ = device;
    holds_ = holds;
  }

  void operator()(const char* name, View& view, Dir, Need need) {
    const napi_value value = next(name, need);
    if (value == nullptr) return;
    status = device_ != nullptr ? read_handle(value, {verb_, name}, &view) : read_plan(value, {verb_, name}, &view);
  }
  void operator()(const char* name, float& out, Need need = Need::kRequired) {
    if (const napi_value value = next(name, need)) status = read_float(env_, value, {verb_, name}, &out);
  }
  void operator()(const char* name, int64_t& out, Need need = Need::kRequired) {
    const napi_value value = next(name, need);
    if (value != nullptr) status = read_integer(env_, value, {verb_, name}, -kMaxSafeInteger, kMaxSafeInteger, &out);
  }
  void operator()(const char* name, bool& out, Need need = Need::kRequired) {
    if (const napi_value value = next(name, need)) status = read_boolean(env_, value, {verb_, name}, &out);
  }

  Status status;

 private:
  /// The next argument, or null if it is left out or an error has been found.
  napi_value next(const char* name, Need need) {
    const size_t at = at_++;
    if (!status.ok()) return nullptr;
    if (at < count_ && !is_undefined(env_, values_[at])) return values_[at];
    if (need == Need::kRequired) {
      status = Status::Error(Code::kInvalidArg, Name{verb_, name}.text() + " is missing.");
    }
    return nullptr;
  }

  Status read_handle(napi_value value, const Name& what, View* view) {
    const Tensor* tensor = unwrap<Tensor>(env_, value);
    if (tensor == nullptr) return wrong_value(env_, what, "a tensor", value);
    MLA_RETURN_IF_ERROR(tensor->usable(*device_, what));
    *view = tensor->view();
    holds_->push_back(tensor->storage());
    return Status::Ok();
  }

  Status read_plan(napi_value value, const Name& what, View* view) {
    uint32_t length = 0;
    std::array<napi_value, 1 + kMaxRank> parts{};
    if (napi_get_array_length(env_, value, &length) != napi_ok || length < 1 || length > parts.size()) {
      return wrong_value(env_, what, "[dtype, ...shape]", value);
    }
    for (uint32_t i = 0; i < length; ++i) {
      if (napi_get_element(env_, value, i, &parts[i]) != napi_ok) return wrong_value(env_, what, "numbers", value);
    }
    DType dtype{};
    MLA_RETURN_IF_ERROR(read_dtype(env_, parts[0], what, &dtype));
    return read_shape(env_, dtype, &parts[1], length - 1, what, view);
  }

  napi_env env_;
  const char* verb_;
  const napi_value* values_;
  size_t count_;
  size_t at_ = 0;
  const runtime::Device* device_ = nullptr;
  std::vector<runtime::StorageRef>* holds_ = nullptr;
};

template <class Params>
void read_into(FieldReader& reader, Op* op) {
  op->emplace<Params>().fields(reader);
}

using ReadFunction = void (*)(FieldReader&, Op*);
constexpr ReadFunction kReaders[] = {
#define MLA_READER(Name, verb) &read_into<Name##Params>,
    MLA_OPS(MLA_READER)
#undef MLA_READER
};

Status verb_index(napi_env env, const napi_value* values, size_t count, size_t* out) {
  int64_t verb = 0;
  MLA_RETURN_IF_ERROR(
      read_integer(env, count > 0 ? values[0] : nullptr, {"operation", "verb"}, 0, kVerbCount - 1, &verb));
  *out = static_cast<size_t>(verb);
  return Status::Ok();
}

/// Lists the fields of an operation.
class FieldLister {
 public:
  FieldLister(Napi::Env env, Napi::Array list) : env_(env), list_(list) {}
  void operator()(const char* name, View&, Dir, Need need) { add(name, "tensor", need); }
  void operator()(const char* name, float&, Need need = Need::kRequired) { add(name, "number", need); }
  void operator()(const char* name, int64_t&, Need need = Need::kRequired) { add(name, "integer", need); }
  void operator()(const char* name, bool&, Need need = Need::kRequired) { add(name, "boolean", need); }

 private:
  void add(const char* name, const char* kind, Need need) {
    Napi::Object field = Napi::Object::New(env_);
    field.Set("name", name);
    field.Set("kind", kind);
    field.Set("optional", need == Need::kOptional);
    list_.Set(list_.Length(), field);
  }
  Napi::Env env_;
  Napi::Array list_;
};

}  // namespace

Napi::Value operation_list(Napi::Env env) {
  Napi::Array list = Napi::Array::New(env);
#define MLA_LIST(Name, verb)                     \
  {                                              \
    Napi::Object entry = Napi::Object::New(env); \
    Napi::Array fields = Napi::Array::New(env);  \
    Name##Params params;                         \
    params.fields(FieldLister(env, fields));     \
    entry.Set("verb", #verb);                    \
    entry.Set("fields", fields);                 \
    list.Set(list.Length(), entry);              \
  }
  MLA_OPS(MLA_LIST)
#undef MLA_LIST
  return list;
}

Status read_operation(napi_env env, const runtime::Device& device, const napi_value* values, size_t count, Op* op,
                      std::vector<runtime::StorageRef>* holds) {
  size_t verb = 0;
  MLA_RETURN_IF_ERROR(verb_index(env, values, count, &verb));
  FieldReader reader(env, kVerbNames[verb], values + 1, count - 1);
  reader.use_handles(&device, holds);
  kReaders[verb](reader, op);
  return reader.status;
}

Status read_planned_operation(napi_env env, const napi_value* values, size_t count, Op* op) {
  size_t verb = 0;
  MLA_RETURN_IF_ERROR(verb_index(env, values, count, &verb));
  FieldReader reader(env, kVerbNames[verb], values + 1, count - 1);
  kReaders[verb](reader, op);
  return reader.status;
}

Status check_sizes(const Backend& backend, const Op& op, int64_t workspace_bytes) {
  const char* verb = kVerbNames[op.index() - 1];
  const int64_t needed = backend.workspace_bytes(op);
  if (needed > workspace_bytes) {
    return Status::Error(Code::kInvalidArg, std::string(verb) + " needs a workspace of " + std::to_string(needed) +
                                                " bytes for these shapes; the stream's has " +
                                                std::to_string(workspace_bytes) + " (see useWorkspace).");
  }
  int64_t plan = 0;
  int64_t ints = 0;
  if (const auto* p = std::get_if<DecodePlanParams>(&op)) {
    plan = p->plan.numel();
    ints = backend.decode_plan_ints(p->lengths.dim(0), p->heads);
  } else if (const auto* p = std::get_if<MlaDecodeParams>(&op)) {
    plan = p->plan.numel();
    ints = backend.decode_plan_ints(p->lengths.dim(0), p->q.dim(1));
  }
  if (plan >= ints) return Status::Ok();
  return Status::Error(Code::kInvalidArg, std::string(verb) + ": plan must have at least " + std::to_string(ints) +
                                              " elements (see decodePlanInts); got " + std::to_string(plan) + ".");
}

}  // namespace mla::addon
