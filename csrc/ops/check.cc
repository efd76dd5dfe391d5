// check.cc - picks the check of an operation.
#include <variant>

#include "ops/backend.h"
#include "ops/checks.h"

namespace mla {

namespace {

struct Pick {
  Status operator()(std::monostate) const { return Status::Error(Code::kInternal, "an empty operation was checked"); }
  template <class Params>
  Status operator()(const Params& params) const {
    return check_arguments(params);
  }
};

}  // namespace

Status check(const Op& op) { return std::visit(Pick{}, op); }

}  // namespace mla
