#include "cuda/runtime/together.h"

#include <variant>

#include "cuda/attention/merge_expand.h"
#include "cuda/resident/resident_ops.h"

namespace mla::cuda {

size_t together(std::span<const Op> ops, const Traits& traits) {
  if (const size_t count = resident_ops(ops, traits); count > 0) return count;
  if (ops.size() < 2) return 1;
  const auto* const decode = std::get_if<MlaDecodeParams>(&ops[0]);
  const auto* const expand = std::get_if<ValueExpandParams>(&ops[1]);
  return decode != nullptr && expand != nullptr && merge_expands(*decode, *expand, traits) ? 2 : 1;
}

Status run_together(std::span<const Op> ops, const Launch& launch) noexcept {
  if (std::holds_alternative<LatentCompressParams>(ops[0])) return run_resident(ops, launch);
  return decode_expand(std::get<MlaDecodeParams>(ops[0]), std::get<ValueExpandParams>(ops[1]), launch);
}

}  // namespace mla::cuda
