// appended.h - which rows of a cache may not be complete yet, where all others are.
#pragma once
#include "common/view.h"

namespace mla::cuda {

/// What latentCompress writes of its cache: the rows with these numbers. Both present, or neither.
struct Appended {
  View cache, slots;
};

/// Of the operation that this thread launches now: beside Launch::fresh, which has the whole cache. Set for every one.
inline thread_local Appended appended;

}  // namespace mla::cuda
