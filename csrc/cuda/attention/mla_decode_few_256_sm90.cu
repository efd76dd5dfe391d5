// mla_decode_few_256_sm90.cu - instances of mla_decode_few_sm90.cuh for a latent rank of 256, by query rows of a tile.
#include "cuda/attention/mla_decode_few_sm90.cuh"

namespace mla::cuda {

Status launch_decode_few_256(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const int rows = partials.row_tile;
  if (rows <= 16) return few::launch<256, 16>(p, partials, launch);
  if (rows <= 32) return few::launch<256, 32>(p, partials, launch);
  return few::launch<256, 48>(p, partials, launch);
}

Status load_decode_few_256_kernels() {
  MLA_RETURN_IF_ERROR((few::load<256, 16>()));
  MLA_RETURN_IF_ERROR((few::load<256, 32>()));
  return few::load<256, 48>();
}

}  // namespace mla::cuda
