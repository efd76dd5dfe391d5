// check_memory.cc - copies and conversions.
#include "common/checked.h"
#include "ops/checker.h"
#include "ops/checks.h"

namespace mla {

namespace {

constexpr DTypes kCastable = dtypes({DType::kF32, DType::kBF16, DType::kF16});

/// An argument of any shape.
void check_any_shape(Checker& checker, const char* name, const View& view, DTypes types, const char* expected) {
  checker.require(view.present(), std::string(name) + " is missing.")
      .require((types >> static_cast<int>(view.dtype) & 1) != 0,
               std::string(name) + " must be " + expected + "; got " + describe(view) + ".");
}

/// Bytes [offset, end) that strided blocks touch. False if that overflows.
bool extent(int64_t blocks, int64_t block_bytes, int64_t offset, int64_t stride, int64_t* end) {
  if (blocks == 0 || block_bytes == 0) {
    *end = offset;
    return true;
  }
  int64_t last = 0;
  return checked_mul(blocks - 1, stride, &last) && checked_add(last, block_bytes, &last) &&
         checked_add(offset, last, end);
}

}  // namespace

Status check_arguments(const CopyPagesParams& p) {
  Dim N = rows("N"), two = exactly(2), layers{"layers"}, pages{"pages"}, page = exactly(kPageTokens), L{"c + r"};
  return Checker("copyPages")
      .tensor("pairs", p.pairs, kI32, {&N, &two})
      .tensor("cache", p.cache, kCaches, {&layers, &pages, &page, &L})
      .cache_aligned(p.cache)
      .finish(p);
}

Status check_arguments(const CopyParams& p) {
  Checker checker("copy");
  checker.require(p.src.present(), "src is missing.").require(p.dst.present(), "dst is missing.");
  constexpr int64_t kMost = INT64_MAX;
  checker.in_range("blocks", p.blocks, 0, kMost)
      .in_range("block_bytes", p.block_bytes, 0, kMost)
      .in_range("src_offset", p.src_offset, 0, kMost)
      .in_range("src_stride", p.src_stride, 0, kMost)
      .in_range("dst_offset", p.dst_offset, 0, kMost)
      .in_range("dst_stride", p.dst_stride, 0, kMost);
  if (checker.ok()) {
    int64_t src_end = 0, dst_end = 0;
    const bool src_fits = extent(p.blocks, p.block_bytes, p.src_offset, p.src_stride, &src_end);
    const bool dst_fits = extent(p.blocks, p.block_bytes, p.dst_offset, p.dst_stride, &dst_end);
    checker
        .require(src_fits && src_end <= p.src.bytes(),
                 "the blocks end beyond src, which has " + std::to_string(p.src.bytes()) + " bytes.")
        .require(dst_fits && dst_end <= p.dst.bytes(),
                 "the blocks end beyond dst, which has " + std::to_string(p.dst.bytes()) + " bytes.")
        .require(p.blocks <= 1 || p.dst_stride >= p.block_bytes,
                 "dst_stride must be at least block_bytes (" + std::to_string(p.block_bytes) +
                     "), or blocks would overwrite each other; got " + std::to_string(p.dst_stride) + ".");
    if (checker.ok() && p.src.data != nullptr && p.dst.data != nullptr && dst_end > p.dst_offset) {
      // Within one block of memory only the bytes that are touched count.
      const auto* src = p.src.as<const char>();
      const auto* dst = p.dst.as<const char>();
      checker.require(dst + dst_end <= src + p.src_offset || src + src_end <= dst + p.dst_offset,
                      "the bytes read and the bytes written must not overlap.");
    }
  }
  return checker.result();
}

Status check_arguments(const CastParams& p) {
  Checker checker("cast");
  check_any_shape(checker, "x", p.x, kCastable, "f32, bf16 or f16");
  check_any_shape(checker, "out", p.out, kCastable, "f32, bf16 or f16");
  return checker
      .require(p.x.numel() == p.out.numel(),
               "out must have as many elements as x, which is " + describe(p.x) + "; got " + describe(p.out) + ".")
      .finish(p);
}

Status check_arguments(const QuantizeParams& p) {
  Checker checker("quantize");
  Dim R{"R"}, C{"C"};
  checker.tensor("x", p.x, kFloats, {&R, &C}).tensor("q", p.q, dtypes({DType::kF8E4M3}), {&R, &C});
  if (checker.ok()) {
    Dim r_blocks = blocks(R, kScaleBlock), c_blocks = blocks(C, kScaleBlock);
    checker.tensor("scale", p.scale, kF32, {&r_blocks, &c_blocks});
  }
  return checker.finish(p);
}

Status check_arguments(const DequantizeParams& p) {
  Checker checker("dequantize");
  Dim R{"R"}, C{"C"};
  checker.tensor("q", p.q, dtypes({DType::kF8E4M3}), {&R, &C}).tensor("out", p.out, kFloats, {&R, &C});
  if (checker.ok()) {
    Dim r_blocks = blocks(R, kScaleBlock), c_blocks = blocks(C, kScaleBlock);
    checker.tensor("scale", p.scale, dtypes({DType::kF32, DType::kF8E8M0}), {&r_blocks, &c_blocks});
  }
  return checker.finish(p);
}

Status check_arguments(const FillRandomParams& p) {
  Checker checker("fillRandom");
  check_any_shape(checker, "out", p.out, kFloats, "f32 or bf16");
  return checker.finite("mean", p.mean, true).finite("stddev", p.stddev).finish(p);
}

Status check_arguments(const ChecksumParams& p) {
  Checker checker("checksum");
  checker.require(p.x.present(), "x is missing.");
  Dim n{"n"};
  checker.tensor("sums", p.sums, dtypes({DType::kI64}), {&n});
  // Parts times words stay below 2^63.
  checker.in_range("the length of sums", p.sums.present() ? p.sums.dim(0) : 1, 1, int64_t{1} << 20);
  return checker.require(p.x.bytes() % 4 == 0, "x must have a multiple of 4 bytes; got " + describe(p.x) + ".")
      .finish(p);
}

}  // namespace mla
