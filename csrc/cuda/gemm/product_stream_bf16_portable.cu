// product_stream_bf16_portable.cu - the streaming products of product_stream.cuh with bf16 weights.
#include "cuda/gemm/product_stream.cuh"

namespace mla::cuda {

cudaError_t launch_product_stream_bf16(const Product& p, int row_tiles, int multiprocessors, cudaStream_t stream) {
  return launch_product_stream<Bf16>(p, row_tiles, multiprocessors, stream);
}

cudaError_t load_product_stream_bf16(int shared_bytes_per_block) {
  return load_product_stream<Bf16>(shared_bytes_per_block);
}

}  // namespace mla::cuda
