// memory.cc - copies of cache pages, strided copies of bytes, sums of words. Test: test/cpu/reference-memory.test.ts.
#include "cpu/errors.h"
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

Status copyPages(const CopyPagesParams& p, Context& ctx) {
  const int64_t n = p.pairs.dim(0), layers = p.cache.dim(0), pages = p.cache.dim(1);
  const int64_t page_bytes = p.cache.dim(2) * p.cache.dim(3) * dtype_bytes(p.cache.dtype);
  const int32_t* pairs = p.pairs.as<int32_t>();
  for (int64_t i = 0; i < 2 * n; ++i) {
    if (pairs[i] >= pages) return invalid_value("copyPages", "pairs", i, pairs[i], -1, pages - 1);
  }
  // One piece per layer, so that pairs take effect in their order: a page may be copied on after it was written.
  ctx.pool->parallel_for(layers, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t layer = begin; layer < end; ++layer) {
      uint8_t* base = p.cache.as<uint8_t>() + layer * pages * page_bytes;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t from = pairs[2 * i], to = pairs[2 * i + 1];
        if (from < 0 || to < 0 || from == to) continue;
        std::memcpy(base + to * page_bytes, base + from * page_bytes, static_cast<size_t>(page_bytes));
      }
    }
  });
  return Status::Ok();
}

Status copy(const CopyParams& p, Context& ctx) {
  constexpr int64_t kPieceBytes = 1 << 18;
  if (p.blocks <= 0 || p.block_bytes <= 0) return Status::Ok();
  const uint8_t* src = p.src.as<uint8_t>() + p.src_offset;
  uint8_t* dst = p.dst.as<uint8_t>() + p.dst_offset;
  // Small blocks are taken many at a time, large ones in pieces.
  const int64_t pieces = (p.block_bytes + kPieceBytes - 1) / kPieceBytes;
  const int64_t grain = p.block_bytes < kPieceBytes ? kPieceBytes / p.block_bytes : 1;
  ctx.pool->parallel_for(p.blocks * pieces, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / pieces, offset = i % pieces * kPieceBytes;
      const int64_t rest = p.block_bytes - offset;
      std::memcpy(dst + block * p.dst_stride + offset, src + block * p.src_stride + offset,
                  static_cast<size_t>(rest < kPieceBytes ? rest : kPieceBytes));
    }
  });
  return Status::Ok();
}

Status checksum(const ChecksumParams& p, Context& ctx) {
  const int64_t words = p.x.bytes() / 4, parts = p.sums.dim(0);
  const uint32_t* const x = p.x.as<uint32_t>();
  int64_t* const sums = p.sums.as<int64_t>();
  ctx.pool->parallel_for(parts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      uint64_t sum = 0;
      for (int64_t i = words * part / parts; i < words * (part + 1) / parts; ++i) sum += x[i];
      sums[part] = static_cast<int64_t>(sum);
    }
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
