// product_split.cc - when products of more than 16 rows on Hopper share a tile's k among blocks, and how.
#include "cuda/gemm/product_split.h"

#include <algorithm>

#include "common/checked.h"
#include "cuda/gemm/product_wgmma.h"

namespace mla::cuda {

namespace {

constexpr int64_t kMostRows = 128;
/// Beyond so many rows the sums of a short k are not worth adding up: 128 x 512 in 16 groups by 96 and 128 rows 4.3 and
/// 5.1 us here, 4.2 and 4.3 by product_wgmma.cuh (H200, 2026-11).
constexpr int64_t kMostRowsOfShortK = 64;
constexpr int64_t kShortK = 1024;
constexpr int64_t kLeastK = 256;
/// Of a block, where two are to fit a multiprocessor (228 KB, of which 1 KB a block is not ours), and where one is.
constexpr int kHalfBytes = 112 * 1024;
constexpr int kWholeBytes = 224 * 1024;

int64_t tiles_of(const Product& p) { return p.groups * ceil_div(p.n, kSplitWeights); }

/// The N of the kernel that holds so many rows.
int64_t tokens_of(int64_t rows) {
  return rows <= 24 ? 24 : rows <= 64 ? round_up(rows, 8) : rows <= 96 ? round_up(rows, 16) : 128;
}

/// Blocks that share a tile: four are best for 2048 x 2048 to 7168 x 16384 by 32 to 128 rows, eight for 576 x 2048
/// (H200, 2026-11).
int split_of(int64_t tiles, int steps, int64_t multiprocessors, int blocks_each) {
  if (8 * tiles <= multiprocessors / 2 && steps >= 8) return 8;
  return 4 * tiles <= blocks_each * multiprocessors && steps >= 4 ? 4 : 2;
}

/// Of products of more than kMostRows rows: tokens of a tile and the blocks that share it; no tokens if tiles with all
/// of k are quicker.
struct ManyRows {
  int tokens = 0, split = 0;
};

/// Where tiles are too few, or too narrow in order to be more, to keep the matrix units busy. A step of 64 k takes what
/// it does in product_wgmma.cc; the rest (first loads, exchange of the parts, results) was fitted to 40 cases of 160 to
/// 1,024 rows (H200, 2026-11-26).
ManyRows many_rows(const Product& p, const Traits& traits) {
  ManyRows best;
  if (p.w_dtype != DType::kBF16 || p.k < kShortK) return best;
  // Both take longer than their estimates: 1.1 times and 0.6 us the tiles; what is nearer than 7 % is not settled.
  double least = 0.93 * (1.1 * wgmma_us(p, traits) + 0.6);
  const int64_t steps = ceil_div(p.k, 64);
  for (const int tokens : {64, 96, 128, 176, 256}) {
    for (const int split : {2, 3, 4, 8}) {
      // Clusters of two fill all multiprocessors; of larger ones, which must fit into a part of the GPU, 128 blocks of
      // 132 no longer run at the same time.
      const int64_t room = split == 2 ? traits.multiprocessors : traits.multiprocessors * 7 / 8;
      if (tiles_of(p) * ceil_div(p.rows, tokens) * split > room || steps < 2 * split) continue;
      const double step = std::max(0.165 + 0.00118 * tokens, 0.00225 * tokens);
      const double us = static_cast<double>(ceil_div(steps, split)) * step + 2.8 + 0.023 * tokens;
      if (us >= least) continue;
      least = us;
      best = {tokens, split};
    }
  }
  return best;
}

SplitPlan plan_of(const Product& p, const Launch& launch) {
  const int64_t multiprocessors = launch.traits->multiprocessors, tiles = tiles_of(p);
  const bool f8 = p.w_dtype == DType::kF8E4M3;
  const auto steps = static_cast<int>(ceil_div(p.k, f8 ? 128 : 64));
  SplitPlan plan;
  plan.weight_tiles = static_cast<int>(ceil_div(p.n, kSplitWeights));
  if (p.rows <= kMostRows) {
    plan.tokens = static_cast<int>(tokens_of(p.rows));
    plan.token_tiles = 1;
    plan.split = split_of(tiles, steps, multiprocessors, f8 ? 1 : 2);
  } else {
    const ManyRows many = many_rows(p, *launch.traits);
    plan.tokens = many.tokens;
    plan.token_tiles = static_cast<int>(ceil_div(p.rows, many.tokens));
    plan.split = many.split;
  }
  const int stage = (kSplitWeights + (f8 ? 2 : 1) * plan.tokens) * 128;
  // Few blocks: with all of their k on its way 2048 x 2048 takes 5.5 us instead of 6.8.
  const int most = f8 || plan.token_tiles * tiles * plan.split <= multiprocessors ? kWholeBytes : kHalfBytes;
  plan.stages = std::min({kSplitStages, most / stage, static_cast<int>(ceil_div(steps, plan.split))});
  const int sums = plan.tokens * (kSplitWeights + 4) * static_cast<int>(sizeof(float));
  plan.bytes = std::max(plan.stages * stage, sums);
  plan.settled = weights_settled(p, launch);
  return plan;
}

}  // namespace

bool splits(const Product& p, const Traits& traits) {
  constexpr int64_t kMost = int64_t{1} << 30;  // columns and steps are counted with 32 bits
  if (!traits.hopper || traits.deterministic || p.offsets != nullptr || p.k < kLeastK || p.k > kMost || p.n > kMost ||
      p.rows > kMost || tiles_of(p) >= traits.multiprocessors)
    return false;
  if (p.rows > kMostRows) return many_rows(p, traits).tokens > 0;
  return p.k >= kShortK || p.rows <= kMostRowsOfShortK;
}

cudaError_t launch_product_split(const Product& p, const Launch& launch) {
  const SplitPlan plan = plan_of(p, launch);
  return p.w_dtype == DType::kF8E4M3 ? launch_split_f8(p, plan, launch.stream)
                                     : launch_split_bf16(p, plan, launch.stream);
}

cudaError_t load_product_split(int shared_bytes_per_block) {
  const cudaError_t error = load_split_bf16(shared_bytes_per_block);
  return error == cudaSuccess ? load_split_f8(shared_bytes_per_block) : error;
}

}  // namespace mla::cuda
