// router.h - what the other files of this folder need to know of the router.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

/// Loads the router's kernels; part of load_moe_kernels().
Status load_router_kernels(const Traits& traits);

}  // namespace mla::cuda
