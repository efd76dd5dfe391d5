// router.h - what the other files of this folder need to know of the router.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

struct SelectArgs;
struct GroupArgs;

/// Up to 8 rows on Hopper: everything in one launch. select.logits is not used.
bool routes_few(const MoeRouteParams& p, const Traits& traits);
Status launch_route_few(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                        const Launch& launch);
Status load_route_few_kernels();

/// Some bf16 rows, and bf16 gates of up to 64 experts, on Hopper: norm, logits and choice in one launch, up to 128 rows
/// with grouping. select.logits is not used.
bool routes_parts(const MoeRouteParams& p, const Traits& traits);
Status launch_route_parts(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                          const Launch& launch, bool* grouped);
Status load_route_parts_kernels();

/// Up to 128 rows on Hopper: norm, logits and choice in one launch. select.logits is not used.
bool routes_rows(const MoeRouteParams& p, const Traits& traits);
Status launch_route_rows(const MoeRouteParams& p, const SelectArgs& select, const Launch& launch);
Status load_route_rows_kernels();

/// Logits of some rows where the gate is large, as the tensor cores' products give them.
bool routes_large(const MoeRouteParams& p, const Traits& traits);
Status launch_route_large(const MoeRouteParams& p, float* logits, const Launch& launch);
Status load_route_large_kernels(const Traits& traits);

/// One row and a large gate on Hopper: everything in one launch. Logits have the bits of the above.
bool routes_large_one(const MoeRouteParams& p, const Traits& traits);
Status launch_route_large_one(const MoeRouteParams& p, float* logits, const SelectArgs& select,
                              const GroupArgs& grouping, const Launch& launch);
Status load_route_large_one_kernels();

/// Up to 64 rows and 65 to 256 experts on Hopper: choice and grouping in one launch.
bool routes_choose(const MoeRouteParams& p, const Traits& traits);
Status launch_route_choose(const MoeRouteParams& p, const SelectArgs& select, const GroupArgs& grouping,
                           const Launch& launch);
Status load_route_choose_kernels();

/// Loads the router's kernels; part of load_moe_kernels().
Status load_router_kernels(const Traits& traits);

}  // namespace mla::cuda
