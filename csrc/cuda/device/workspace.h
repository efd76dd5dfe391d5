// workspace.h - cutting an operation's workspace into pieces.
#pragma once
#include <cstdint>

#include "common/checked.h"
#include "common/view.h"

namespace mla::cuda {

/// Hands out pieces one after another, each at a multiple of 256 bytes. Without memory it only counts.
struct Carver {
  char* base = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* const piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += round_up(n * static_cast<int64_t>(sizeof(T)), 256);
    return piece;
  }

  /// A tensor of this type and shape.
  View tensor(DType dtype, int64_t rows, int64_t columns) {
    View view;
    view.dtype = dtype;
    view.rank = 2;
    view.shape[0] = rows;
    view.shape[1] = columns;
    view.data = take<char>(rows * columns * dtype_bytes(dtype));
    return view;
  }
};

}  // namespace mla::cuda
