// advance.cu - sampled ids become the next step's inputs; ops/ops.h has the rules.
//
// A thread per row, blocks of 128. A row whose next position has no page (past the table, or a negative entry) cannot
// go on: it ends as one that has reached its limit. Test: test/gpu/sampling.test.ts.
#include "common/checked.h"
#include "cuda/device/pdl.cuh"
#include "cuda/sampling/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 128;

struct AdvanceArgs {
  const int32_t* sampled;                                 // [B]; may be ids
  const int32_t* block_table;                             // [B, pages]
  const int32_t* stop_ids;                                // [B, stops]
  const int32_t* limits;                                  // [B]
  int32_t *ids, *positions, *lengths, *slots, *finished;  // [B]
  int32_t* counts;                                        // [B, vocab], may be null
  int64_t rows, pages, stops, vocab;
};

enum Finished : int32_t { kRunning, kStopId, kLimit };

__global__ __launch_bounds__(kThreads) void advance_kernel(AdvanceArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b >= a.rows) return;
  const int32_t id = a.sampled[b];
  const int64_t position = int64_t{a.positions[b]} + 1;
  int32_t slot = -1;
  bool runs = a.finished[b] == kRunning && id >= 0 && position > 0;
  if (runs) {
    if (a.counts != nullptr && id < a.vocab) ++a.counts[b * a.vocab + id];
    int32_t state = position >= a.limits[b] ? kLimit : kRunning;
    for (int64_t i = 0; i < a.stops; ++i) {
      if (a.stop_ids[b * a.stops + i] == id) state = kStopId;
    }
    if (state == kRunning) {
      const int64_t page = position / kPageTokens;
      const int32_t entry = page < a.pages ? a.block_table[b * a.pages + page] : -1;
      if (entry < 0 || entry >= INT32_MAX / kPageTokens || position >= INT32_MAX) {
        state = kLimit;
      } else {
        slot = static_cast<int32_t>(entry * kPageTokens + position % kPageTokens);
      }
    }
    if (state != kRunning) a.finished[b] = state;
    runs = state == kRunning;
  }
  a.ids[b] = runs ? id : -1;
  a.positions[b] = runs ? static_cast<int32_t>(position) : -1;
  a.lengths[b] = runs ? static_cast<int32_t>(position + 1) : 0;
  a.slots[b] = slot;
}

}  // namespace

Status advance(const AdvanceParams& p, const Launch& launch) noexcept {
  AdvanceArgs args;
  args.sampled = p.sampled.as<const int32_t>();
  args.block_table = p.block_table.as<const int32_t>();
  args.stop_ids = p.stop_ids.as<const int32_t>();
  args.limits = p.limits.as<const int32_t>();
  args.ids = p.ids.as<int32_t>();
  args.positions = p.positions.as<int32_t>();
  args.lengths = p.lengths.as<int32_t>();
  args.slots = p.slots.as<int32_t>();
  args.finished = p.finished.as<int32_t>();
  args.counts = p.counts.present() ? p.counts.as<int32_t>() : nullptr;
  args.vocab = p.counts.present() ? p.counts.dim(1) : 0;
  args.rows = p.sampled.dim(0);
  args.pages = p.block_table.dim(1);
  args.stops = p.stop_ids.dim(1);
  if (args.rows == 0) return Status::Ok();
  return cuda_status(launch_pdl(advance_kernel, dim3(static_cast<unsigned>(ceil_div(args.rows, kThreads))),
                                dim3(kThreads), 0, launch.stream, args),
                     "advance_kernel");
}

Status load_advance_kernels() { return load_kernel(advance_kernel, "advance_kernel"); }

}  // namespace mla::cuda
