// mla_decode_few_fp8_sm90.cu - instances of mla_decode_few_sm90.cuh for an fp8 cache, by query rows of a tile.
#include "cuda/attention/mla_decode_few_sm90.cuh"

namespace mla::cuda {
namespace {

template <int kC>
Status launch_rank(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  const int rows = partials.row_tile;
  if (rows <= 8) return few::launch<kC, 8, true>(p, partials, launch);
  if (rows <= 16) return few::launch<kC, 16, true>(p, partials, launch);
  if (rows <= 24) return few::launch<kC, 24, true>(p, partials, launch);
  if (rows <= 32) return few::launch<kC, 32, true>(p, partials, launch);
  return few::launch<kC, 48, true>(p, partials, launch);
}

template <int kC>
Status load_rank() {
  MLA_RETURN_IF_ERROR((few::load<kC, 8, true>()));
  MLA_RETURN_IF_ERROR((few::load<kC, 16, true>()));
  MLA_RETURN_IF_ERROR((few::load<kC, 24, true>()));
  MLA_RETURN_IF_ERROR((few::load<kC, 32, true>()));
  return few::load<kC, 48, true>();
}

}  // namespace

Status launch_decode_few_fp8(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch) {
  return p.out.dim(2) == 512 ? launch_rank<512>(p, partials, launch) : launch_rank<256>(p, partials, launch);
}

Status load_decode_few_fp8_kernels() {
  MLA_RETURN_IF_ERROR(load_rank<512>());
  return load_rank<256>();
}

}  // namespace mla::cuda
