#include "addon/graph.h"

#include <utility>

#include "runtime/commands.h"

namespace mla::addon {

Napi::Function Graph::define(Napi::Env env) {
  return DefineClass(env, "Graph",
                     {InstanceMethod<&Graph::Operations>("operations"), InstanceMethod<&Graph::Launches>("launches"),
                      InstanceMethod<&Graph::Replay>("replay"), InstanceMethod<&Graph::Dispose>("dispose"),
                      InstanceMethod<&Graph::Disposed>("disposed")});
}

Graph::Graph(const Napi::CallbackInfo& info) : Handle(info) {
  Init& init = Handle::init(info);
  state_ = std::move(init.state);
  graph_ = std::move(init.graph);
  operations_ = init.operations;
}

Napi::Value Graph::Operations(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(operations_));
}

Napi::Value Graph::Launches(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), graph_ == nullptr ? 0.0 : static_cast<double>(graph_->launches.load()));
}

Napi::Value Graph::Replay(const Napi::CallbackInfo& info) {
  return answer(info, [&]() -> Status {
    if (graph_ == nullptr) return Status::Error(Code::kDisposed, "replay: the graph has been disposed.");
    MLA_RETURN_IF_ERROR(state_->outside_capture("replay"));
    state_->device->submit(std::make_unique<runtime::ReplayCommand>(state_->stream, graph_));
    return Status::Ok();
  });
}

Napi::Value Graph::Dispose(const Napi::CallbackInfo& info) {
  graph_.reset();
  return info.Env().Undefined();
}

Napi::Value Graph::Disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), graph_ == nullptr || state_->device->closing());
}

}  // namespace mla::addon
