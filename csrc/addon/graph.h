// graph.h - the Graph class: a captured sequence of operations.
#pragma once
#include "addon/handle.h"
#include "addon/stream.h"

namespace mla::addon {

class Graph final : public Handle<Graph> {
 public:
  static constexpr Class kClass = Class::kGraph;
  struct Init {
    StreamStateRef state;
    runtime::GraphRef graph;
    size_t operations;
  };
  static Napi::Function define(Napi::Env env);
  explicit Graph(const Napi::CallbackInfo& info);

 private:
  Napi::Value Operations(const Napi::CallbackInfo& info);
  Napi::Value Launches(const Napi::CallbackInfo& info);
  Napi::Value Replay(const Napi::CallbackInfo& info);
  Napi::Value Dispose(const Napi::CallbackInfo& info);
  Napi::Value Disposed(const Napi::CallbackInfo& info);

  StreamStateRef state_;
  runtime::GraphRef graph_;  // null once disposed
  size_t operations_;
};

}  // namespace mla::addon
