// tensor_map.h - descriptions of tensors in global memory for the copy engine.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/status.h"

namespace mla::cuda {

/// How 16-byte pieces are permuted inside of shared memory, by the row, in atoms of 8 rows: not at all; in rows of 64
/// bytes, piece i of row r at i ^ r / 2 % 4; in rows of 128 bytes at i ^ r % 8, what wgmma wants.
enum class Swizzle : uint8_t { kNone, k64, k128 };

/// A tensor of `dims` elements (innermost first), dimension i > 0 `strides[i - 1]` elements after its neighbour, cut
/// into boxes of `box` elements. 1 to 5 dimensions; base a multiple of 16 bytes, strides too; a box row has at
/// most the bytes of its swizzle. kInternal if the driver refuses it.
Status make_tensor_map(const void* base, DType dtype, std::span<const int64_t> dims, std::span<const int64_t> strides,
                       std::span<const int> box, Swizzle swizzle, CUtensorMap* out);

}  // namespace mla::cuda
