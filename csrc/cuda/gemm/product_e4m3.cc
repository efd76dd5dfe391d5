#include "cuda/gemm/product_e4m3.h"

#include <algorithm>

#include "common/checked.h"
#include "cuda/gemm/product_split.h"

namespace mla::cuda {

namespace {

/// Up to so many rows (of an expert, on average) kernels that stream weights past rounded bf16 rows are used. H200,
/// 2026-11-26: 24 rows by 3648 x 2048 take 9.5 us here and 12.7 there, gate and up of V2-Lite's experts with 3 rows
/// each 84 and 95; rounding comes first in both.
constexpr int64_t kEvenRows = 16;
constexpr int64_t kUnevenMeanRows = 2;

/// Tiles of 128 rows, or of 64 where that fills more multiprocessors: a tile of 64 takes about 0.6 of the time of one
/// of 128, as its weights are as many (H200, 2026-11-26: the faster one in 13 cases of 24 to 4,096 rows).
WgmmaPlan choose_plan(const Product& p, const Launch& launch) {
  WgmmaPlan plan;
  plan.most_tokens = kE4m3Rows;
  plan.weight_tiles = static_cast<int>(ceil_div(p.n, kE4m3Weights));
  if (p.offsets == nullptr) {
    const auto waves = [&](int64_t rows) {
      return ceil_div(ceil_div(p.rows, rows) * plan.weight_tiles, launch.traits->multiprocessors);
    };
    plan.tile_tokens = 10 * waves(kE4m3Rows) <= 6 * waves(kE4m3Rows / 2) ? kE4m3Rows : kE4m3Rows / 2;
    plan.token_tiles = static_cast<int>(ceil_div(p.rows, plan.tile_tokens));
    plan.once = plan.token_tiles == 1;
    plan.box_tokens = plan.tile_tokens;
  } else {
    const int64_t mean = ceil_div(p.rows, p.groups);
    plan.once = mean <= kE4m3Rows;
    plan.box_tokens = mean > kE4m3Rows / 2 ? kE4m3Rows : kE4m3Rows / 2;
  }
  plan.settled = weights_settled(p, launch);
  return plan;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

bool multiplies_with_e4m3(const Product& p, const Traits& traits) {
  constexpr int64_t kMost = int64_t{1} << 30;  // rows and tiles are counted with 32 bits
  if (!traits.hopper || traits.deterministic || p.x_dtype != DType::kBF16 || p.w_dtype != DType::kF8E4M3) return false;
  if (p.norm.weight != nullptr || p.w_transposed || p.positions != nullptr) return false;
  if (p.rows > kMost || p.n > kMost || p.k > kMost) return false;
  if (p.offsets == nullptr && p.groups != 1) return false;
  if (p.order != nullptr && !p.gated) return false;
  if (p.k % 16 != 0 || p.w_group % 16 != 0 || p.x_row % 16 != 0 || !aligned(p.x) || !aligned(p.w)) return false;
  // Rows of y are written by 16 bytes.
  const int64_t step = 16 / dtype_bytes(p.y_dtype);
  if ((p.gated ? p.n / 2 : p.n) % step != 0 || p.y_row % step != 0 || !aligned(p.y) || !aligned(p.residual))
    return false;
  if (p.residual != nullptr && (p.gated || p.y_dtype != DType::kBF16)) return false;
  if (p.y_dtype != DType::kBF16 && p.y_dtype != (p.gated ? DType::kF8E4M3 : DType::kF32)) return false;
  if (p.offsets != nullptr) return ceil_div(p.rows, p.groups) > kUnevenMeanRows;
  return p.rows > kEvenRows && !splits(p, traits);  // few tiles: their k is shared among blocks instead
}

cudaError_t launch_product_e4m3(const Product& p, const Launch& launch) {
  return launch_e4m3(p, choose_plan(p, launch), launch.traits->multiprocessors, launch.counters, launch.stream);
}

cudaError_t load_product_e4m3(int shared_bytes_per_block) { return load_e4m3(shared_bytes_per_block); }

}  // namespace mla::cuda
