// check_rows.cc - gatherRows and the norms.
#include "ops/checker.h"
#include "ops/checks.h"

namespace mla {

Status check_arguments(const GatherRowsParams& p) {
  Dim V{"V"}, d{"d"}, T = rows("T");
  return Checker("gatherRows")
      .tensor("table", p.table, kFloats, {&V, &d})
      .tensor("ids", p.ids, kI32, {&T})
      .tensor("out", p.out, kFloats, {&T, &d})
      .finish(p);
}

Status check_arguments(const RmsNormParams& p) {
  Dim T = rows("T"), d{"d"};
  Type act{kFloats};
  return Checker("rmsNorm")
      .tensor("x", p.x, act, {&T, &d})
      .tensor("weight", p.weight, kFloats, {&d})
      .tensor("out", p.out, act, {&T, &d})
      .finite("eps", p.eps)
      .finish(p);
}

Status check_arguments(const AddRmsNormParams& p) {
  Dim T = rows("T"), d{"d"};
  Type act{kFloats};
  return Checker("addRmsNorm")
      .tensor("x", p.x, act, {&T, &d})
      .tensor("delta", p.delta, act, {&T, &d})
      .tensor("weight", p.weight, kFloats, {&d})
      .tensor("out", p.out, act, {&T, &d})
      .finite("eps", p.eps)
      .finish(p);
}

}  // namespace mla
