// merge_expand.h - mlaDecode and the valueExpand behind it, where one kernel merges and expands.
#pragma once
#include "cuda/attention/kernels.h"

namespace mla::cuda {

/// At most. With 2, one after the other, the merge alone takes longer than both kernels: H200, 2026-11, V2-Lite at 4096
/// tokens of context, bf16, a step of 1 sequence 1972 us instead of 2003, of 2 sequences 2716 instead of 2641. (The
/// same kernel without its loop over tokens: 1987. Not understood.)
constexpr int kExpandTokens = 1;

/// Is there a kernel that merges what mlaDecode's leaves and expands it, with the same bits?
bool merge_expands(const MlaDecodeParams& p, const ValueExpandParams& e, const Traits& traits);

/// Both operations.
Status decode_expand(const MlaDecodeParams& p, const ValueExpandParams& e, const Launch& launch) noexcept;

Status launch_merge_expand(const MlaDecodeParams& p, const DecodePartials& partials, const ValueExpandParams& e,
                           const Launch& launch);
Status load_merge_expand_kernels();

}  // namespace mla::cuda
