// mla_decode_few_512_sm90.cu - instances of mla_decode_few_sm90.cuh for a latent rank of 512, by query rows of a tile.
#include "cuda/attention/mla_decode_few_sm90.cuh"

namespace mla::cuda {

Status launch_decode_few_512(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const int rows = partials.row_tile;
  if (rows <= 8) return few::launch<512, 8>(p, partials, launch);
  if (rows <= 16) return few::launch<512, 16>(p, partials, launch);
  if (rows <= 24) return few::launch<512, 24>(p, partials, launch);
  if (rows <= 32) return few::launch<512, 32>(p, partials, launch);
  return few::launch<512, 48>(p, partials, launch);
}

Status load_decode_few_512_kernels() {
  MLA_RETURN_IF_ERROR((few::load<512, 8>()));
  MLA_RETURN_IF_ERROR((few::load<512, 16>()));
  MLA_RETURN_IF_ERROR((few::load<512, 24>()));
  MLA_RETURN_IF_ERROR((few::load<512, 32>()));
  return few::load<512, 48>();
}

}  // namespace mla::cuda
