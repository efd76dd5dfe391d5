// view.h - what an operation sees of a tensor: where it lies, its element type and its shape. Always contiguous.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace mla {

constexpr int kMaxRank = 4;

struct View {
  void* data = nullptr;  // null: the argument is absent, or (while sizes are planned) not allocated yet
  DType dtype = DType::kF32;
  int rank = -1;  // -1: the argument is absent
  int64_t shape[kMaxRank] = {0, 0, 0, 0};

  bool present() const { return rank >= 0; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return present() ? n : 0;
  }
  int64_t bytes() const { return numel() * dtype_bytes(dtype); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace mla
