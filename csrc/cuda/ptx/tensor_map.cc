// tensor_map.cc - cuTensorMapEncodeTiled, found in the driver at run time: the addon does not link libcuda.
#include "cuda/ptx/tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/launch.h"

namespace mla::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encode() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(entry) : nullptr;
}

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case DType::kI32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

CUtensorMapSwizzle swizzle_of(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k64: return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128: return CU_TENSOR_MAP_SWIZZLE_128B;
    default: return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

/// How much a miss brings into L2. With 256 bytes it is the other half of such a pair as well, which with rows that end
/// in the middle of a pair costs 8 % of the memory's rate: cache pages (rows 1152 bytes apart, boxes 128 wide) are read
/// at 4.32 TB/s, with 128 bytes at 4.69, as by contiguous copies (H200, 2026-11-26).
CUtensorMapL2promotion promotion_of(std::span<const cuuint64_t> strides) {
  for (const cuuint64_t bytes : strides) {
    if (bytes % 256 != 0) return CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  }
  return CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
}

}  // namespace

Status make_tensor_map(const void* base, DType dtype, std::span<const int64_t> dims, std::span<const int64_t> strides,
                       std::span<const int> box, Swizzle swizzle, CUtensorMap* out) {
  static const Encode encode = find_encode();
  constexpr size_t kMost = 5;
  const size_t rank = dims.size();
  if (encode == nullptr) return Status::Error(Code::kInternal, "the driver has no cuTensorMapEncodeTiled");
  if (rank == 0 || rank > kMost || strides.size() + 1 != rank || box.size() != rank)
    return Status::Error(Code::kInternal, "a tensor map of " + std::to_string(rank) + " dimensions");
  cuuint64_t sizes[kMost], bytes[kMost];
  cuuint32_t boxes[kMost], steps[kMost];
  for (size_t i = 0; i < rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(dims[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
    if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(strides[i - 1] * dtype_bytes(dtype));
  }
  const CUresult result = encode(out, type_of(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(base), sizes,
                                 bytes, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(swizzle),
                                 promotion_of({bytes, rank - 1}), CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return Status::Ok();
  std::string what = "cuTensorMapEncodeTiled refuses [";
  for (size_t i = 0; i < rank; ++i)
    what += (i > 0 ? ", " : "") + std::to_string(dims[i]) + "/" + std::to_string(box[i]);
  return Status::Error(Code::kInternal, what + "] (CUresult " + std::to_string(result) + ")");
}

}  // namespace mla::cuda
