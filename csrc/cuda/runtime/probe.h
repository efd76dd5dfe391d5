// probe.h - whether there is an NVIDIA driver, and a GPU this build can use.
#pragma once
#include "common/status.h"

namespace mla::cuda {

/// Ok if GPU `index` exists and its driver is new enough for the CUDA runtime in this binary; otherwise kNoDevice (no
/// driver, no GPU, or fewer GPUs), kDriverTooOld (found and needed), or kDeviceUnusable (what CUDA answered).
Status probe(int index);

}  // namespace mla::cuda
