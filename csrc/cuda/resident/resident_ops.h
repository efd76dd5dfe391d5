// resident_ops.h - which operations of a graph the resident kernel (resident_sm90.cu) does together.
#pragma once
#include <span>

#include "cuda/launch.h"

namespace mla::cuda {

/// Elements of decodePlan's plan with the links of the resident kernel behind it: they belong to one model, whose steps
/// never run beside each other, and begin as zeros. The plan alone where the kernel cannot run.
int64_t resident_plan_ints(int64_t plan_ints, int64_t heads, const Traits& traits);

/// How many of the first operations the resident kernel does: the layers of a decode step of one row, one after the
/// other, and the head behind them; 0 if they are anything else.
size_t resident_ops(std::span<const Op> ops, const Traits& traits);

/// Enqueues as many as resident_ops() has said. What comes out of each of them is written.
Status run_resident(std::span<const Op> ops, const Launch& launch) noexcept;

Status load_resident_kernels(const Traits& traits);

}  // namespace mla::cuda
