// log_probs.h - what follows the head product in logProbs: rows of logits become log-probabilities.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mla::cuda {

struct LogitRows {
  int64_t rows = 0;
  int64_t vocab = 0;
  int top = 0;                       // may be 0
  const float* logits = nullptr;     // [rows, vocab]
  const int32_t* targets = nullptr;  // [rows]; outside of [0, vocab): log-probability 0
  float* logprobs = nullptr;         // [rows]
  int32_t* top_ids = nullptr;        // [rows, top]
  float* top_logprobs = nullptr;     // [rows, top]
};

cudaError_t launch_logit_rows(const LogitRows& p, cudaStream_t stream);
cudaError_t load_log_probs_kernels();

}  // namespace mla::cuda
