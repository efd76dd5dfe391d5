// kernels.h - what the files of this folder know of one another.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

Status load_gather_kernels();
Status load_copy_kernels();
Status load_checksum_kernels();

}  // namespace mla::cuda
