// together.h - operations that one launch does together when they stand next to each other in a graph. What comes out
// of each of them is still written, with the same results to the bit; but for attention in steps of one row
// (cuda/resident), which is split over the GPU in another way than mlaDecode's own kernels split it.
#pragma once
#include <span>

#include "cuda/launch.h"

namespace mla::cuda {

/// How many of the first operations one launch does; 1 if there is no such launch. `ops` is not empty.
size_t together(std::span<const Op> ops, const Traits& traits);

/// Enqueues as many as together() has said. launch.workspace: as large as the largest that they want.
Status run_together(std::span<const Op> ops, const Launch& launch) noexcept;

}  // namespace mla::cuda
