// kernels.h - what the files of this folder know of one another.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

Status load_cast_kernels();
Status load_block_scale_kernels();
Status load_fill_random_kernels();
Status load_round_rows_kernels();

}  // namespace mla::cuda
