// checks.h - the argument checks of the operations, one overload each; check() in backend.h picks one.
#pragma once
#include "common/status.h"
#include "ops/ops.h"

namespace mla {

#define MLA_CHECK(Name, verb) Status check_arguments(const Name##Params& p);
MLA_OPS(MLA_CHECK)
#undef MLA_CHECK

// Limits that kernels may rely on.
constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxTopK = 64;  // experts per token
constexpr int64_t kMaxTopLogprobs = 64;
constexpr int64_t kMaxHeads = 1024;

}  // namespace mla
