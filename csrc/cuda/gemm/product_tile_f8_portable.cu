// product_tile_f8_portable.cu - the tiled products of product_tile.cuh with f8 weights.
#include "cuda/gemm/product_tile.cuh"

namespace mla::cuda {

cudaError_t launch_product_tile_f8(const Product& p, int tile_rows, const Traits& traits, cudaStream_t stream) {
  return launch_product_tile<F8E4M3>(p, tile_rows, traits, stream);
}

cudaError_t load_product_tile_f8(int shared_bytes_per_block) {
  return load_product_tile<F8E4M3>(shared_bytes_per_block);
}

}  // namespace mla::cuda
