#include "cuda/gemm/product_wgmma.h"

#include <algorithm>

#include "common/checked.h"

namespace mla::cuda {

namespace {

/// Up to so many rows (of an expert, on average) the kernels that stream weights are faster. H200, 2026-11: 64 tokens
/// of V2-Lite, 6 rows an expert: moeDown 99 us here, 266 there.
constexpr int64_t kEvenRows = 16;
constexpr int64_t kUnevenMeanRows = 1;

/// The tokens of tiles that hold all rows of most groups of so many on average: a group with more is cut in two, and
/// its weights are then read twice. 128 and 256 tokens are also what the matrix units need (H200, 2026-11: V2-Lite's
/// gate and up for 1,024 tokens, 96 rows an expert, 255, 197 and 208 us with tiles of 64, 128 and 256).
int fitting_tokens(int64_t mean) { return mean <= 56 ? 64 : mean <= 104 ? 128 : 256; }

/// The same for clusters of two, where a kernel of 256 tokens has four stages of 48 KB: tiles of 160 have six of 36, of
/// 208 five of 42, so more weights are on their way. H200, 2026-11-27, with tiles of 256, 208 and 160: V2-Lite's gate
/// and up, 144 rows an expert, 227, 209 and 205 us, 168 rows 232, 217 and 254; 32 of V3's experts, 128 rows 539, 501
/// and 493, 176 rows 549, 522 and 646. From 250 to 300 rows 160 tokens are 4 to 7 % faster where experts have about as
/// many rows, but 1 to 2 % slower where their shares are Zipf-like.
int paired_tokens(int64_t mean) { return mean <= 148 ? 160 : mean <= 184 ? 208 : 256; }

/// Up to so many rows of a group cp.async gathers. H200, 2026-11, V2-Lite's gate and up, fp8 weights, 12, 24 and 48
/// rows an expert: 117, 130 and 160 us gathered, 112, 118 and 137 in order, which takes 3.2, 4.1 and 5.9. With bf16
/// weights 60, 72, 84 and 96 rows take 186, 197, 210 and 214 us gathered, 192, 197, 200 and 203 by way of the order; 64
/// and 80 rows of 32 of V3's experts 501 and 508, 493 and 497.
int64_t gathered_rows(const Product& p) { return p.w_dtype == DType::kF8E4M3 ? 16 : 72; }

/// The sizes of N that product_wgmma.cuh has for a kernel of so many tokens; the same lists stand there.
int64_t columns(int64_t tokens, int most_tokens) {
  if (most_tokens == 64) return round_up(tokens, 8);
  return round_up(tokens, most_tokens == 256 && tokens <= 128 ? 32 : 16);
}

/// What a product of equal groups would take, in microseconds without the launch. Fitted to 66 cases of 64 to 4,096
/// rows on an H200, 2026-11: a step of 64 k takes what its loads or its products take, a tile what its results take.
/// With fp8 weights a step takes what its conversion and its products take (20 cases of one wave, 128 and 512 rows).
double estimate(const Product& p, int multiprocessors, int most_tokens, int64_t token_tiles) {
  const auto n = static_cast<double>(columns(round_up(ceil_div(p.rows, token_tiles), 8), most_tokens));
  const double step = p.w_dtype == DType::kF8E4M3 ? 0.31 + 0.0016 * n : std::max(0.165 + 0.00118 * n, 0.00225 * n);
  const int64_t tiles = p.groups * token_tiles * ceil_div(p.n, kWgmmaWeights);
  const auto waves = static_cast<double>(ceil_div(tiles, multiprocessors));
  return waves * (static_cast<double>(ceil_div(p.k, 64)) * step + 1.0 + 0.011 * n);
}

/// How the rows of equal groups are cut best.
struct Cut {
  int most_tokens = 0;
  int64_t token_tiles = 0;
  double us = 0;
};

Cut best_cut(const Product& p, int multiprocessors) {
  constexpr int64_t kTried = 16;
  Cut best;
  for (int most = 64; most <= 256; most *= 2) {
    const int64_t fewest = ceil_div(p.rows, most);
    for (int64_t tiles = fewest; tiles <= fewest + std::min(fewest, kTried); ++tiles) {
      const double us = estimate(p, multiprocessors, most, tiles);
      if (best.most_tokens == 0 || us < best.us) best = {most, tiles, us};
    }
  }
  return best;
}

WgmmaPlan choose_plan(const Product& p, const Launch& launch) {
  WgmmaPlan plan;
  const int multiprocessors = launch.traits->multiprocessors;
  const bool f8 = p.w_dtype == DType::kF8E4M3;
  if (p.offsets != nullptr) {
    const int64_t mean = ceil_div(p.rows, p.groups);
    plan.most_tokens = fitting_tokens(mean);
    plan.once = mean <= plan.most_tokens;
  } else {
    const Cut cut = best_cut(p, multiprocessors);
    plan.most_tokens = cut.most_tokens;
    plan.tile_tokens = static_cast<int>(round_up(ceil_div(p.rows, cut.token_tiles), 8));
    plan.token_tiles = static_cast<int>(ceil_div(p.rows, plan.tile_tokens));
    plan.once = plan.token_tiles == 1;
  }
  // Sharing tokens saves loads from L2: 1 to 4 % of products of four waves and more; but with fp8 weights, whose blocks
  // wait for more than loads, it costs 0 to 7 % (H200, 2026-11).
  const int64_t weight_tiles = ceil_div(p.n, kWgmmaWeights);
  const int64_t tiles =
      p.groups * ceil_div(p.offsets == nullptr ? p.rows : ceil_div(p.rows, p.groups), 256) * weight_tiles;
  if (!f8 && plan.most_tokens == 256 && weight_tiles % 2 == 0 && tiles >= 4 * multiprocessors) plan.cluster = 2;
  if (plan.cluster == 2 && p.offsets != nullptr) plan.most_tokens = paired_tokens(ceil_div(p.rows, p.groups));
  plan.weight_tiles = static_cast<int>(ceil_div(weight_tiles, plan.cluster));
  plan.box_tokens = p.offsets == nullptr ? static_cast<int>(round_up(ceil_div(plan.tile_tokens, plan.cluster), 8))
                                         : plan.most_tokens / (plan.most_tokens == 208 ? 2 : 4);
  plan.settled = weights_settled(p, launch);
  return plan;
}

}  // namespace

bool multiplies_with_wgmma(const Product& p, const Traits& traits) {
  constexpr int64_t kMost = int64_t{1} << 30;  // rows and tiles are counted with 32 bits
  if (!traits.hopper || traits.deterministic) return false;
  if (p.rows > kMost || p.n > kMost || p.k > kMost) return false;
  if (p.gated && (p.residual != nullptr || p.y_dtype != DType::kBF16)) return false;
  if (p.order != nullptr && !p.gated) return false;
  return p.offsets == nullptr ? p.rows > kEvenRows : ceil_div(p.rows, p.groups) > kUnevenMeanRows;
}

double wgmma_us(const Product& p, const Traits& traits) { return best_cut(p, traits.multiprocessors).us; }

bool gathers_first(const Product& p, const Traits& traits) {
  return fits_tensor_cores(p) && multiplies_with_wgmma(p, traits) && ceil_div(p.rows, p.groups) > gathered_rows(p);
}

cudaError_t launch_product_wgmma(const Product& p, const Launch& launch) {
  const WgmmaPlan plan = choose_plan(p, launch);
  const int multiprocessors = launch.traits->multiprocessors;
  return p.w_dtype == DType::kF8E4M3 ? launch_wgmma_f8(p, plan, multiprocessors, launch.counters, launch.stream)
                                     : launch_wgmma_bf16(p, plan, multiprocessors, launch.counters, launch.stream);
}

cudaError_t load_product_wgmma(int shared_bytes_per_block) {
  const cudaError_t error = load_wgmma_bf16(shared_bytes_per_block);
  return error == cudaSuccess ? load_wgmma_f8(shared_bytes_per_block) : error;
}

}  // namespace mla::cuda
