// product_ring.cc - when the products of few rows on Hopper run, and how they use a block's shared memory.
#include "cuda/gemm/product_ring.h"

#include <algorithm>

#include "common/checked.h"

namespace mla::cuda {

namespace {

/// Of a block, so that two fit a multiprocessor (228 KB, of which 1 KB a block is not ours, nor are the barriers).
constexpr int64_t kBlockBytes = 112 * 1024;
/// Fewer stages would not hide the memory's latency.
constexpr int64_t kLeastStages = 4;
/// That x may take in L1 beside two blocks.
constexpr int64_t kL1Bytes = 8 * 1024;
/// Of a row, while it is normed: hold_normed.cuh.
constexpr int64_t kNormSums = 16;
/// Rows that every block norms for itself, a microsecond a row; more of them are normed by a kernel of its own. H200,
/// 2026-11, V2-Lite: 4 us of 8 in latentCompress with 1 row, 12 of 15 with 8, where the norm in front of it made a step
/// of decode 190 us of 6230 shorter (with 1 row 17 of 2430 longer).
constexpr int64_t kNormedRows = 2;
/// Rows of even groups beyond this take the tile kernels.
constexpr int64_t kRingRows = 16;
/// Rows of an expert, on average, likewise; fewer where the order of sums is free and the tiles (product_wgmma.cuh) are
/// faster. H200, 2026-11, V2-Lite with its always-on experts, us, ring / tiles, the two from different calls:
///   tokens (rows an expert)      16 (2)       32 (4)
///   gate and up, bf16         148 / 144    222 / 175
///   down, bf16                 73 / 78      88 / 91
///   gate and up, fp8           80 / 109    118 / 130
///   down, fp8                  53 / 55      66 / 62       8 tokens (1): 37 / 41
constexpr int64_t kRingMeanRows = 4;
constexpr int64_t kRingCombineRows = 8;
constexpr int64_t kRingRowsBesideTiles = 2;
/// Rows of all groups that lists in shared memory have room for beside the ring.
constexpr int64_t kListedRows = 2048;
constexpr int64_t kCombinedRows = 768;

/// The most rows of an expert, on average, for the ring.
int64_t most_mean_rows(const Product& p, const Combine* c, const Traits& traits) {
  if (!traits.deterministic && (p.w_dtype == DType::kBF16 || c != nullptr)) return kRingRowsBesideTiles;
  return c == nullptr ? kRingMeanRows : kRingCombineRows;
}

/// Rows that a group can have, in eights: 1 or 2. A token goes to an expert once. H200, 2026-11, V2-Lite's step with
/// fp8 weights, us with moeDown's tiles of 16 rows / of 8 (and the rings' start changed, which was no gain by itself):
/// 2 sequences 2112 / 2080, 8 3793 / 3662. With bf16 weights not measured.
int row_tiles_of(const Product& p, const Combine* c) {
  int64_t most = p.offsets == nullptr || p.order == nullptr ? p.rows : p.x_rows;
  if (c != nullptr && p.w_dtype == DType::kF8E4M3) most = std::min(most, c->tokens);
  return most <= 8 ? 1 : 2;
}

/// With pieces of that many segments of a row.
RingPlan plan_of(const Product& p, const Combine* c, int row_tiles, int64_t piece_segments) {
  const int height = 8 * row_tiles;
  RingPlan plan;
  plan.piece_row_bytes = static_cast<int>(piece_segments * kSegment * dtype_bytes(p.w_dtype));
  const int64_t stage_bytes = int64_t{kItemRows} * (plan.piece_row_bytes + kPieceRowPad);
  int64_t end = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t at = end;
    end = round_up(end + bytes, 16);
    return static_cast<int>(at);
  };
  plan.sums = take(int64_t{2} * std::max<int64_t>(kStepSegments, piece_segments) * row_tiles * 512);
  if (p.offsets != nullptr) {
    plan.capacity = static_cast<int>(p.groups + p.rows / height);
    plan.tiles = take(int64_t{plan.capacity} * 8);
    plan.operand_rows = take(p.order == nullptr ? 0 : p.rows * 4);
    if (p.order != nullptr && p.x_rows <= height) plan.always = static_cast<int>(std::min(p.always, p.groups));
  } else {
    plan.per_group = static_cast<int>(ceil_div(p.rows, height));
  }
  if (c != nullptr) {
    plan.parts = take(p.rows * kItemRows * 4);
    plan.slots = take(c->tokens * c->per_token * 4);
    plan.weights = take(c->tokens * c->per_token * 4);
  }
  // x is held where items share it and it leaves the ring room enough. A few rows stay in L1 as well, and need no
  // barrier.
  const int64_t x_rows = p.order == nullptr ? p.rows : p.x_rows;
  const int64_t pitch = p.k * 2 / 128 * 128 + (p.k * 2 % 128 <= 64 ? 64 : 192);
  const bool in_l1 = c != nullptr || (p.norm.weight == nullptr && x_rows * p.k * 2 <= kL1Bytes);
  const int64_t held = x_rows * (pitch + (p.norm.weight == nullptr ? 0 : kNormSums * 4));
  if ((p.groups == 1 || p.offsets != nullptr) && !in_l1 && end + held + kLeastStages * stage_bytes <= kBlockBytes) {
    plan.x_rows = static_cast<int>(x_rows);
    plan.x_pitch = static_cast<int>(pitch);
    plan.x = take(x_rows * pitch);
    plan.norm_sums = take(p.norm.weight == nullptr ? 0 : x_rows * kNormSums * 4);
  }
  end = round_up(end, 128);
  plan.stages = static_cast<int>(std::clamp<int64_t>((kBlockBytes - end) / stage_bytes, kLeastStages, kMaxStages));
  // Two turns of consumers must not meet in a stage: one of them could be a whole round ahead and take the barrier's
  // phase for its own.
  plan.stages &= ~1;
  // The ring comes first: its rows are where quarter-warps expect them.
  const int ring = static_cast<int>(plan.stages * stage_bytes);
  for (int* offset :
       {&plan.sums, &plan.x, &plan.norm_sums, &plan.tiles, &plan.operand_rows, &plan.parts, &plan.slots, &plan.weights})
    *offset += ring;
  plan.bytes = static_cast<int>(end) + ring;
  return plan;
}

RingPlan plan_of(const Product& p, const Combine* c, int row_tiles) {
  const RingPlan usual = plan_of(p, c, row_tiles, kPieceRowBytes / (kSegment * dtype_bytes(p.w_dtype)));
  const int64_t segments = ceil_div(p.k, int64_t{kSegment});
  if (p.w_dtype != DType::kF8E4M3 || segments > kWholeSegments) return usual;
  // A row that is a little longer than a piece is one piece: else its end would leave a stage half empty.
  const RingPlan whole = plan_of(p, c, row_tiles, segments);
  return whole.bytes <= kBlockBytes && whole.x_pitch == usual.x_pitch ? whole : usual;
}

/// Of a block, under way at a time before pdl_wait(). All blocks' are a queue in front of the memory, in which rows and
/// lists then stand, but as few as keep it from idling depend on the kernel. V2-Lite's step, H200, 2026-11, us with 2 /
/// 1 pieces. moeGateUp, bf16 weights: 1 sequence 1964 / 1960, 2 2655 / 2644, 8 5605 / 5584. moeDown, 1 sequence: fp8
/// weights 1695 / 1664, bf16 1964 / 1974. (moeDown alone, fp8: 11.2 us with 2, 11.8 with 3, 13.0 with all 6.)
int early_pieces(const Product& p, const Combine* c) {
  if (p.offsets == nullptr) return 2;
  if (c == nullptr) return 1;
  return p.w_dtype == DType::kF8E4M3 && c->tokens == 1 ? 1 : 2;
}

/// May memory that holds these be read before pdl_wait()?
bool settled(const Launch& launch, const void* data, int64_t bytes) {
  View view;
  view.dtype = DType::kU8;
  view.rank = 1;
  view.shape[0] = data == nullptr ? 0 : bytes;
  view.data = const_cast<void*>(data);
  return launch.settled(view);
}

cudaError_t launch(const Product& p, const Combine* c, const Launch& how) {
  RingLaunch ring;
  ring.row_tiles = row_tiles_of(p, c);
  ring.stream = how.stream;
  RingPlan& plan = ring.plan;
  plan = plan_of(p, c, ring.row_tiles);
  plan.early_pieces = early_pieces(p, c);
  plan.weights_settled = weights_settled(p, how);
  if (p.offsets != nullptr) {
    plan.lists_settled = settled(how, p.offsets, (p.groups + 1) * 4) && settled(how, p.order, p.rows * 4) &&
                         (c == nullptr || (settled(how, c->slots, c->tokens * c->per_token * 4) &&
                                           settled(how, c->weights, c->tokens * c->per_token * 4)));
  }
  const int64_t row_blocks = ceil_div(p.n, kItemRows);
  const int64_t tiles = p.offsets == nullptr ? p.groups * plan.per_group : std::min<int64_t>(plan.capacity, p.rows);
  const int64_t items = row_blocks * tiles;
  int64_t blocks = c != nullptr ? 2 * row_blocks : std::min(items, int64_t{2} * how.traits->multiprocessors);
  // One row of x has as many tiles as it has experts: so few blocks as leave the largest share as it is. The router
  // keeps some places until it ends, and blocks that come late would be the last ones to end; the kernel behind finds
  // places, too. V2-Lite's step with 1 sequence, H200, 2026-11, 264 / 235 blocks: bf16 weights 2001 / 1986 us, fp8
  // 1713 / 1700.
  if (p.offsets != nullptr && p.order != nullptr && p.x_rows == 1) blocks = ceil_div(items, ceil_div(items, blocks));
  ring.blocks = static_cast<int>(blocks);
  return p.w_dtype == DType::kF8E4M3 ? launch_ring_f8(p, c, ring) : launch_ring_bf16(p, c, ring);
}

}  // namespace

bool rings(const Product& p, const Combine* c, const Traits& traits) {
  if (!traits.hopper || !fits_tensor_cores(p)) return false;
  if (p.offsets == nullptr) return p.rows <= kRingRows;
  if (p.rows > (c == nullptr ? kListedRows : kCombinedRows) ||
      ceil_div(p.rows, p.groups) > most_mean_rows(p, c, traits))
    return false;
  // One block a multiprocessor instead of two takes twice as long: V2-Lite's down with the always-on experts, 64
  // tokens, 188 us on an H200, 2026-11.
  return plan_of(p, c, row_tiles_of(p, c)).bytes <=
         std::min<int64_t>(kBlockBytes, traits.shared_bytes_per_block - 1024);
}

bool holds_norm(const Product& p, const Traits& traits) {
  return p.rows <= kNormedRows && p.offsets == nullptr && rings(p, nullptr, traits) &&
         plan_of(p, nullptr, row_tiles_of(p, nullptr)).x_pitch > 0;
}

cudaError_t launch_product_ring(const Product& p, const Launch& how) { return launch(p, nullptr, how); }
cudaError_t launch_combine_ring(const Product& p, const Combine& c, const Launch& how) { return launch(p, &c, how); }

}  // namespace mla::cuda
