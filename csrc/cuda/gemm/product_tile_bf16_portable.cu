// product_tile_bf16_portable.cu - the tiled products of product_tile.cuh with bf16 weights.
#include "cuda/gemm/product_tile.cuh"

namespace mla::cuda {

cudaError_t launch_product_tile_bf16(const Product& p, int tile_rows, const Traits& traits, cudaStream_t stream) {
  return launch_product_tile<Bf16>(p, tile_rows, traits, stream);
}

cudaError_t load_product_tile_bf16(int shared_bytes_per_block) {
  return load_product_tile<Bf16>(shared_bytes_per_block);
}

}  // namespace mla::cuda
