// kernels.h - what the files of this folder know of one another: host functions only.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

Status load_advance_kernels();
Status load_sample_kernels();

}  // namespace mla::cuda
