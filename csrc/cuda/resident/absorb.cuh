// absorb.cuh - queryAbsorb within a resident kernel: qa = [W_UK^T q_nope ; rope(q_rope)] of one row.
//
// A helper warp has 32 columns of a head's w_uk in registers, all k, long before q is there. Formula, operands and
// order of sums, and so bits, of gemm/absorb_few_portable.cu.
#pragma once
#include "cuda/device/mma.cuh"
#include "cuda/device/numeric.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/resident/link_words.cuh"
#include "cuda/resident/resident_device.cuh"

namespace mla::cuda {

// Of heads, the sizes that all models of this family have.
constexpr int kHeadN = 128, kLatentC = 512, kKeyR = 64, kCacheRow = kLatentC + kKeyR;

constexpr int kAbsorbWarps = 2;                           // of a block
constexpr int kAbsorbColumns = 32;                        // of a warp
constexpr int kAbsorbPieces = kLatentC / kAbsorbColumns;  // of a head
constexpr int kAbsorbPairs = kKeyR / 2 / kAbsorbPieces;   // of the rope part, which are dealt over the pieces
constexpr int kAbsorbSteps = kHeadN / 16;
// A piece goes as six wide words of three pairs: its columns' 16 and then its two of the rope part.
constexpr int kPiecePairs = kAbsorbColumns / 2, kPieceWords = (kPiecePairs + kAbsorbPairs) / 3;
static_assert(kPiecePairs == 16 && kAbsorbPairs == 2);

/// What a warp keeps of w_uk.
struct AbsorbWeights {
  uint32_t a[kAbsorbSteps][2][4];
};

/// The piece of a helper warp, of heads * kAbsorbPieces in all: there are as many helpers.
__device__ __forceinline__ int absorb_piece(int helper) { return blockIdx.x * kAbsorbWarps + helper; }

/// Loads the warp's weights: long before the query.
__device__ __forceinline__ void absorb_load(const Resident& p, int layer, int helper, AbsorbWeights& w) {
  const int lane = in_place(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  // A warp that has none loads another's: weights must not live on from layer to layer.
  const int piece = in_place(min(absorb_piece(helper), p.heads * kAbsorbPieces - 1));
  const int h = piece / kAbsorbPieces, column = piece % kAbsorbPieces * kAbsorbColumns + g * 4;
  const Bf16* const from =
      static_cast<const Bf16*>(p.layer[layer].w_uk) + in_place((h * kHeadN + 2 * q) * kLatentC + column);
#pragma unroll
  for (int s = 0; s < kAbsorbSteps; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = s * 16 + half * 8;  // and this lane's 2 * q
      const uint2 first = __ldcg(reinterpret_cast<const uint2*>(from + k * kLatentC));
      const uint2 second = __ldcg(reinterpret_cast<const uint2*>(from + (k + 1) * kLatentC));
      w.a[s][0][2 * half] = __byte_perm(first.x, second.x, 0x5410);
      w.a[s][0][2 * half + 1] = __byte_perm(first.x, second.x, 0x7632);
      w.a[s][1][2 * half] = __byte_perm(first.y, second.y, 0x5410);
      w.a[s][1][2 * half + 1] = __byte_perm(first.y, second.y, 0x7632);
    }
  }
}

/// Where a helper warp's piece lies. Worked out anew where it is needed: weights take the registers.
struct AbsorbPlace {
  int lane, piece, h, column, pair;
  bool rotates;
  __device__ __forceinline__ AbsorbPlace() {
    const int thread = in_place(threadIdx.x);
    lane = thread % 32;
    piece = absorb_piece(thread / 32 - kHelperWarp);
    h = piece / kAbsorbPieces;
    column = piece % kAbsorbPieces * kAbsorbColumns + lane / 4 * 4;
    pair = piece % kAbsorbPieces * kAbsorbPairs + lane % 4;
    rotates = lane >= 28 && lane % 4 < kAbsorbPairs;
  }
};

/// The warp's piece of the absorbed query; `w` as absorb_load() has left it.
__device__ __forceinline__ void absorb(const Resident& p, uint32_t epoch, const AbsorbWeights& w) {
  constexpr int q_words = (kHeadN + kKeyR) / 2, nope = kHeadN / 2;
  const AbsorbPlace at;
  if (at.piece >= p.heads * kAbsorbPieces) return;
  const int lane = at.lane, g = lane / 4, q = lane % 4, pair = at.pair;
  const LinkWord* const from = link_of(p, p.link.q, epoch) + at.h * q_words;
  const bool rotates = at.rotates;
  const int position = *p.position;
  const bool exists = position >= 0 && position < p.position_end;
  float cosine = 0, sine = 0;
  if (rotates && exists) {
    cosine = p.cos_sin[static_cast<int64_t>(position) * kKeyR + 2 * pair];
    sine = p.cos_sin[static_cast<int64_t>(position) * kKeyR + 2 * pair + 1];
  }
  // Word i of the first part is in lane i % 32.
  static_assert(nope == 64 && kAbsorbPairs <= 32);
  LinkWord low, high, rope{0, epoch};
  for (;;) {
    low = link_look(from + lane);
    high = link_look(from + 32 + lane);
    if (rotates) rope = link_look(from + nope + pair);
    if (low.epoch == epoch && high.epoch == epoch && rope.epoch == epoch) break;
  }
  __syncwarp();
  if (!exists) low.data = high.data = 0;
  float acc[2][4] = {};
#pragma unroll
  for (int s = 0; s < kAbsorbSteps; ++s) {
    uint32_t b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t x = __shfl_sync(kFullWarp, s < 4 ? low.data : high.data, s % 4 * 8 + half * 4 + q);
      b[half] = g == 0 ? x : 0;  // column 0 of B is the row
    }
    mma_bf16(acc[0], w.a[s][0], b);
    mma_bf16(acc[1], w.a[s][1], b);
  }
  const AbsorbPlace place;
  const uint32_t first = pack_bf16(0.0f + acc[0][0], 0.0f + acc[0][2]),
                 second = pack_bf16(0.0f + acc[1][0], 0.0f + acc[1][2]);
  uint32_t rotated = 0;
  if (place.rotates && exists) {
    // Not fused, as in gemm/absorb_device.cuh.
    const float x = bf16_low(rope.data), y = bf16_high(rope.data);
    rotated = pack_bf16(__fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine)),
                        __fadd_rn(__fmul_rn(x, sine), __fmul_rn(y, cosine)));
  }
  // Lane 4 i has pairs 2 i and 2 i + 1; lanes 28 and 29 those of the rope part. Lanes 4 and 16 give theirs away.
  const uint32_t before = __shfl_up_sync(kFullWarp, second, 4), behind = __shfl_down_sync(kFullWarp, first, 4),
                 other = __shfl_down_sync(kFullWarp, rotated, 1);
  const int i = place.lane / 4;
  if (place.lane % 4 == 0 && i != 1 && i != 4) {
    uint4* const to = reinterpret_cast<uint4*>(link_of(p, p.link.qa, epoch)) + place.piece * kPieceWords;
    if (i == 7) {
      link_store_wide(to + 5, second, rotated, other, epoch);
    } else if (i % 3 == 0) {
      link_store_wide(to + i / 3 * 2, first, second, behind, epoch);
    } else {
      link_store_wide(to + i / 3 * 2 + 1, before, first, second, epoch);
    }
  }
  if (p.out.qa != nullptr) {
    Bf16* const plain = static_cast<Bf16*>(p.out.qa) + place.h * kCacheRow;
    if (place.lane % 4 == 0) *reinterpret_cast<uint2*>(plain + place.column) = make_uint2(first, second);
    if (place.rotates) *reinterpret_cast<uint32_t*>(plain + kLatentC + 2 * place.pair) = rotated;
  }
}

}  // namespace mla::cuda
