// tensor_map.h - descriptions of tensors in global memory for the copy engine.
#pragma once
#include <cuda.h>

#include <cstdint>
#include <span>

#include "common/dtype.h"
#include "common/status.h"

namespace mla::cuda {

/// How 16-byte pieces are permuted inside of shared memory: by the row, in atoms of 8 rows. None, or what wgmma wants.
enum class Swizzle : uint8_t { kNone, k128 };

/// A tensor of `dims` elements (innermost first), dimension i > 0 `strides[i - 1]` elements after its neighbour, cut
/// into boxes of `box` elements. 1 to 5 dimensions; base a multiple of 16 bytes, strides too; with k128 a box row is at
/// most 128 bytes. kInternal if the driver refuses it.
Status make_tensor_map(const void* base, DType dtype, std::span<const int64_t> dims, std::span<const int64_t> strides,
                       std::span<const int> box, Swizzle swizzle, CUtensorMap* out);

}  // namespace mla::cuda
