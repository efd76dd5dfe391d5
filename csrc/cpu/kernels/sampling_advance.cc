// sampling_advance.cc - sampled ids become the next step's inputs. Test: test/cpu/reference-sample.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

/// A row that is padding already (positions[b] < 0) stays padding, whatever was sampled.
Status advance(const AdvanceParams& p, Context& ctx) {
  (void)ctx;
  const int64_t rows = p.sampled.dim(0), pages = p.block_table.dim(1), stops = p.stop_ids.dim(1);
  const int32_t* sampled = p.sampled.as<int32_t>();
  const int32_t* limits = p.limits.as<int32_t>();
  int32_t *ids = p.ids.as<int32_t>(), *positions = p.positions.as<int32_t>(), *lengths = p.lengths.as<int32_t>();
  int32_t *slots = p.slots.as<int32_t>(), *finished = p.finished.as<int32_t>();

  const auto state_after = [&](int64_t b) {
    const int32_t* stop = p.stop_ids.as<int32_t>() + b * stops;
    for (int64_t i = 0; i < stops; ++i) {
      if (stop[i] == sampled[b]) return 1;
    }
    return int64_t{positions[b]} + 1 >= limits[b] ? 2 : 0;
  };
  const auto runs = [&](int64_t b) { return finished[b] == 0 && sampled[b] >= 0 && positions[b] >= 0; };

  const int64_t vocab = p.counts.present() ? p.counts.dim(1) : 0;

  // Nothing is changed before every row is known to be right.
  for (int64_t b = 0; b < rows; ++b) {
    if (!runs(b)) continue;
    if (p.counts.present() && sampled[b] >= vocab)
      return invalid_value("advance", "sampled", b, sampled[b], -1, vocab - 1);
    if (state_after(b) != 0) continue;
    const int64_t position = int64_t{positions[b]} + 1, page = position / kPageTokens;
    if (page >= pages) return invalid_value("advance", "positions", b, position - 1, -1, pages * kPageTokens - 2);
    const int32_t entry = p.block_table.as<int32_t>()[b * pages + page];
    if (entry < 0 || entry > INT32_MAX / kPageTokens - 1) {
      return invalid_value("advance", "block_table", b * pages + page, entry, 0, INT32_MAX / kPageTokens - 1);
    }
  }
  for (int64_t b = 0; b < rows; ++b) {
    const bool ran = runs(b);
    if (ran && p.counts.present()) ++p.counts.as<int32_t>()[b * vocab + sampled[b]];
    if (ran) finished[b] = state_after(b);
    if (!ran || finished[b] != 0) {
      ids[b] = positions[b] = slots[b] = -1;
      lengths[b] = 0;
      continue;
    }
    const int64_t position = int64_t{positions[b]} + 1;
    const int32_t page = p.block_table.as<int32_t>()[b * pages + position / kPageTokens];
    ids[b] = sampled[b];
    positions[b] = static_cast<int32_t>(position);
    lengths[b] = static_cast<int32_t>(position + 1);
    slots[b] = static_cast<int32_t>(page * kPageTokens + position % kPageTokens);
  }
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
