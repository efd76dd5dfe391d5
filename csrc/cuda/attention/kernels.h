// kernels.h - what the files of this folder know of one another: host functions only.
#pragma once
#include "cuda/launch.h"

namespace mla::cuda {

/// Where the splits of a row leave what they have summed up, cut from mlaDecode's workspace.
struct DecodePartials {
  float* out = nullptr;      // [slots, row_tile, c], not divided by the sums
  float* max_sum = nullptr;  // [slots, row_tile, 2]: the largest score in powers of two, and the sum relative to it
  int slots = 0;
  int row_tile = 0;          // query rows that a kernel takes at once
  int64_t plan_at = 0;       // where the part of the plan begins that it follows
  bool few_plan = false;     // whether that part is few_plan.h's
  bool fixed_parts = false;  // wide_plan.h
};

/// Ok if the plan is long enough for so many sequences.
Status check_plan_size(const char* verb, const View& plan, int64_t sequences, const Traits& traits);

/// The kernels of mlaDecode: on Hopper one for few query rows (`decode_few_fits`) and one for many; else by tensor
/// cores (`decode_portable_fits`) or plain arithmetic; then the merge.
bool decode_portable_fits(const MlaDecodeParams& p, const Traits& traits);
Status launch_decode_portable(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
bool decode_few_fits(const MlaDecodeParams& p, const Traits& traits);
bool decode_wide_fits(const MlaDecodeParams& p, const Traits& traits);
Status launch_decode_wide(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
Status launch_decode_wide_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
int decode_few_rows(const MlaDecodeParams& p);  // the row tile of the instance that runs
Status launch_decode_few_512(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
Status launch_decode_few_256(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
Status launch_decode_few_fp8(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
Status launch_decode_fma(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);
Status launch_decode_merge(const MlaDecodeParams& p, const DecodePartials& partials, const Launch& launch);

/// The kernels of mlaPrefill.
bool prefill_sm90_fits(const MlaPrefillParams& p, const Traits& traits);
Status launch_prefill_sm90(const MlaPrefillParams& p, const Launch& launch);
bool prefill_portable_fits(const MlaPrefillParams& p, const Traits& traits);
Status launch_prefill_portable(const MlaPrefillParams& p, const Launch& launch);
Status launch_prefill_fma(const MlaPrefillParams& p, const Launch& launch);

Status load_decode_plan_kernels();
Status load_decode_portable_kernels(const Traits& traits);
Status load_decode_few_512_kernels();
Status load_decode_few_256_kernels();
Status load_decode_few_fp8_kernels();
Status load_decode_wide_kernels();
Status load_decode_wide_merge_kernels();
Status load_decode_fma_kernels(const Traits& traits);
Status load_decode_merge_kernels();
Status load_prefill_sm90_kernels(const Traits& traits);
Status load_prefill_portable_kernels(const Traits& traits);
Status load_prefill_fma_kernels(const Traits& traits);
Status load_mha_decode_kernels();
Status load_load_latent_kernels();
Status load_merge_attention_kernels();

}  // namespace mla::cuda
