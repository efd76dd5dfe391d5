#include "cuda/gemm/product_wgmma.h"

#include <algorithm>

#include "common/checked.h"

namespace mla::cuda {

namespace {

/// Few rows are faster with the kernels that stream weights.
constexpr int64_t kEvenRows = 32;
constexpr int64_t kUnevenMeanRows = 4;

/// The sizes of N that product_wgmma.cuh has for a kernel of so many tokens; the same lists stand there.
int64_t columns(int64_t tokens, int most_tokens) {
  return round_up(tokens, most_tokens == 64 ? 8 : most_tokens == 128 ? 16 : 32);
}

/// Microseconds of a step of 64 k, as a tile of so many columns takes on a whole GPU.
double step_us(int64_t n) {
  return std::max(0.26 + 0.0012 * static_cast<double>(n), 0.0023 * static_cast<double>(n));
}

/// What a product of equal groups would take, in microseconds without the launch.
double estimate(const Product& p, int multiprocessors, int most_tokens, int64_t token_tiles) {
  const int64_t tokens = columns(ceil_div(p.rows, token_tiles), most_tokens);
  const int64_t tiles = p.groups * token_tiles * ceil_div(p.n, kWgmmaWeights);
  const double steps = static_cast<double>(ceil_div(p.k, 64));
  return static_cast<double>(ceil_div(tiles, multiprocessors)) * (steps * step_us(tokens) + 1.0);
}

WgmmaPlan choose_plan(const Product& p, const Launch& launch) {
  WgmmaPlan plan;
  const bool f8 = p.w_dtype == DType::kF8E4M3;
  const int largest = f8 ? 128 : 256;
  if (p.offsets != nullptr) {
    const int64_t mean = ceil_div(p.rows, p.groups);
    plan.most_tokens = mean <= 64 ? 64 : mean <= 128 || f8 ? 128 : 256;
    plan.box_tokens = plan.most_tokens / 4;
    plan.once = mean <= plan.most_tokens;
  } else {
    double best = 0;
    for (int most = 64; most <= largest; most *= 2) {
      for (int64_t tiles = ceil_div(p.rows, most); tiles <= ceil_div(p.rows, most) + 1; ++tiles) {
        const double us = estimate(p, launch.traits->multiprocessors, most, tiles);
        if (plan.most_tokens != 0 && us >= best) continue;
        best = us;
        plan.most_tokens = most;
        plan.tile_tokens = static_cast<int>(round_up(ceil_div(p.rows, tiles), 8));
        plan.token_tiles = static_cast<int>(ceil_div(p.rows, plan.tile_tokens));
      }
    }
    plan.box_tokens = plan.tile_tokens;
    plan.once = plan.token_tiles == 1;
  }
  plan.weight_tiles = static_cast<int>(ceil_div(p.n, kWgmmaWeights));
  View weights;
  weights.data = const_cast<void*>(p.w);
  weights.dtype = p.w_dtype;
  weights.rank = 1;
  weights.shape[0] = (p.groups - 1) * p.w_group + p.n * p.k;
  plan.settled = launch.settled(weights);
  return plan;
}

}  // namespace

bool multiplies_with_wgmma(const Product& p, const Traits& traits) {
  constexpr int64_t kMost = int64_t{1} << 30;  // rows and tiles are counted with 32 bits
  if (!traits.hopper || p.rows > kMost || p.n > kMost || p.k > kMost) return false;
  if (p.gated && (p.residual != nullptr || p.y_dtype != DType::kBF16)) return false;
  if (p.order != nullptr && !p.gated) return false;
  return p.offsets == nullptr ? p.rows > kEvenRows : ceil_div(p.rows, p.groups) > kUnevenMeanRows;
}

cudaError_t launch_product_wgmma(const Product& p, const Launch& launch) {
  const WgmmaPlan plan = choose_plan(p, launch);
  const int multiprocessors = launch.traits->multiprocessors;
  return p.w_dtype == DType::kF8E4M3 ? launch_wgmma_f8(p, plan, multiprocessors, launch.stream)
                                     : launch_wgmma_bf16(p, plan, multiprocessors, launch.stream);
}

cudaError_t load_product_wgmma(int shared_bytes_per_block) {
  const cudaError_t error = load_wgmma_bf16(shared_bytes_per_block);
  return error == cudaSuccess ? load_wgmma_f8(shared_bytes_per_block) : error;
}

}  // namespace mla::cuda
