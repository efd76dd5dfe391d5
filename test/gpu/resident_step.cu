// gpu/resident_step.cu - the kernel of one row's decode steps (csrc/cuda/resident) alone, in DeepSeek-V2-Lite's shape
// with random weights: what a step takes without sampling, graphs and JavaScript.
//
//   resident-step WEIGHTS CACHE LENGTH [STEPS]     WEIGHTS, CACHE: bf16 or fp8 (an fp8 cache goes with fp8 weights)
//
// Prints the median, the least and the 90th percentile of STEPS (default 40) in microseconds, by events around each,
// and a hash of every eighth step's logits: two builds that add up in the same order have the same one. 32 GB of
// weights.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device/numeric.cuh"
#include "cuda/resident/resident.h"
#include "ops/fp8_row.h"

namespace {

using namespace mla;
using namespace mla::cuda;

constexpr int kLayers = 27, kVocab = 102400, kPage = 64, kPages = 600;
constexpr int kWarmUp = 5, kRows = 64;  // rows of x, one after the other

[[noreturn]] void fail(const char* what, const char* why) {
  std::fprintf(stderr, "resident-step: %s: %s\n", what, why);
  std::exit(1);
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, cudaGetErrorString(error));
}

__device__ uint32_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x ^ x >> 33);
}

/// From -1 to 1.
__device__ float unit(uint64_t x) { return static_cast<float>(mix(x) >> 8) * 0x1p-23f - 1; }

__global__ void fill_bf16(uint32_t* to, int64_t pairs, float most, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < pairs; i += gridDim.x * int64_t{blockDim.x})
    to[i] = pack_bf16(most * unit(seed + 2 * i), most * unit(seed + 2 * i + 1));
}

/// Codes of up to 3.75.
__global__ void fill_codes(uint32_t* to, int64_t words, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < words; i += gridDim.x * int64_t{blockDim.x})
    to[i] = mix(seed + i) & 0xbfbfbfbfu;
}

__global__ void fill_scales(float* to, int64_t count, float mean, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * int64_t{blockDim.x})
    to[i] = mean * (1 + 0.3f * unit(seed + i));
}

/// Rows of an fp8 cache (ops/fp8_row.h).
__global__ void fill_rows(unsigned char* to, int64_t rows, Fp8Row at, uint64_t seed) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    unsigned char* const row = to + r * at.bytes();
    const int lane = static_cast<int>(threadIdx.x);
    reinterpret_cast<uint32_t*>(row)[lane] = mix(seed + r * 1000 + lane) & 0xbfbfbfbfu;
    if (lane < 4) reinterpret_cast<float*>(row + at.scale_at())[lane] = 0.25f;
    if (lane < 32)
      reinterpret_cast<uint32_t*>(row + at.rope_at())[lane] =
          pack_bf16(unit(seed + r * 1000 + 500 + 2 * lane), unit(seed + r * 1000 + 501 + 2 * lane));
  }
}

template <class T>
T* allocate(int64_t count) {
  T* p = nullptr;
  check(cudaMalloc(&p, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
  check(cudaMemset(p, 0, static_cast<size_t>(count) * sizeof(T)), "cudaMemset");
  return p;
}

template <class T>
T* upload(const std::vector<T>& values) {
  T* const p = allocate<T>(static_cast<int64_t>(values.size()));
  check(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return p;
}

/// Random weights of unit gain.
class Weights {
 public:
  const void* bf16(int64_t rows, int64_t columns) {
    auto* const p = allocate<uint32_t>(rows * columns / 2);
    fill_bf16<<<1024, 256>>>(p, rows * columns / 2, std::sqrt(3.0f / static_cast<float>(columns)), next());
    return p;
  }
  const void* of(bool fp8, int64_t rows, int64_t columns, const void** scales) {
    if (!fp8) return bf16(rows, columns);
    const int64_t count = (rows + 127) / 128 * ((columns + 127) / 128);
    auto* const s = allocate<float>(count);
    fill_scales<<<64, 256>>>(s, count, 1 / std::sqrt(1.6f * static_cast<float>(columns)), next());
    *scales = s;
    auto* const p = allocate<uint32_t>(rows * columns / 4);
    fill_codes<<<1024, 256>>>(p, rows * columns / 4, next());
    return p;
  }
  void* rows(bool fp8, int64_t count, const Fp8Row& at) {
    if (!fp8) return const_cast<void*>(bf16(count, at.c + at.r));
    auto* const p = allocate<unsigned char>(count * at.bytes());
    fill_rows<<<1024, 128>>>(p, count, at, next());
    return p;
  }

 private:
  uint64_t next() { return seed_ += uint64_t{1} << 34; }
  uint64_t seed_ = 0;
};

/// V2-Lite's sizes and weights, and a sequence of `length` tokens whose last one is the row.
void make_model(Resident* p, int length) {
  p->layers = kLayers, p->dense_layers = 1, p->d = 2048, p->heads = 16, p->c = 512, p->r = 64, p->n = 128, p->v = 128;
  p->inner = 1408, p->dense_inner = 10944, p->experts = 64, p->top_k = 6, p->shared = 2, p->vocab = kVocab;
  p->norm_bf16 = true, p->eps = p->latent_eps = p->ffn_eps = p->final_eps = 1e-6f;
  p->attention_scale = 0.0721688f, p->routed_scale = 1, p->under_way = 2, p->stream_under_way = 3;
  p->max_pages = kPages, p->cache_slots = kPages * kPage, p->position_end = kPages * kPage;
  const void* const ones = upload(std::vector<uint16_t>(static_cast<size_t>(p->d), 0x3f80));
  const Fp8Row row{p->c, p->r};
  const int64_t nq = p->heads * (p->n + p->r) + p->c + p->r;
  Weights make;
  for (int l = 0; l < p->layers; ++l) {
    ResidentLayer& layer = p->layer[l];
    const bool dense = l < p->dense_layers, fp8 = p->fp8_weights;
    const int64_t inner = dense ? p->dense_inner : p->inner, matrices = dense ? 1 : p->experts + p->shared;
    const int64_t scaled = (inner + 127) / 128 * 128;  // gate and up begin with a block of scales each
    layer.norm = layer.latent_norm = layer.ffn_norm = ones;
    layer.weight = make.of(fp8, nq, p->d, &layer.weight_scale);
    layer.w_uk = make.bf16(p->heads * p->n, p->c);
    layer.w_uv = make.bf16(p->heads * p->v, p->c);
    layer.w_o = make.of(fp8, p->d, p->heads * p->v, &layer.o_scale);
    layer.gate = make.bf16(p->experts, p->d);
    layer.w_gate_up = make.of(fp8, 2 * matrices * scaled, p->d, &layer.gate_up_scale);
    layer.w_down = make.of(fp8, matrices * p->d, inner, &layer.down_scale);
    layer.cache = make.rows(p->fp8_cache, p->cache_slots, row);
  }
  p->head = make.bf16(p->vocab, p->d), p->final_norm = ones;
  p->logits = allocate<float>(p->vocab), p->x_out = allocate<uint16_t>(p->d);

  std::vector<int32_t> table(kPages);
  for (int i = 0; i < kPages; ++i) table[static_cast<size_t>(i)] = (i * 37 + 11) % kPages;
  const int last = length - 1, slot = table[static_cast<size_t>(last / kPage)] * kPage + last % kPage;
  p->block_table = upload(table);
  p->position = upload(std::vector<int32_t>{last}), p->slot = upload(std::vector<int32_t>{slot});
  p->length = upload(std::vector<int32_t>{length});
  std::vector<float> angles;
  for (int i = 0; i < p->position_end; ++i) {
    for (int j = 0; j < p->r / 2; ++j) {
      const double angle = i * std::pow(10000.0, -2.0 * j / p->r);
      angles.push_back(static_cast<float>(std::cos(angle)));
      angles.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  p->cos_sin = upload(angles);
}

}  // namespace

int main(int argc, char** argv) {
  const auto type = [&](int i) { return argc > i ? std::string(argv[i]) : std::string(); };
  const auto known = [](const std::string& name) { return name == "bf16" || name == "fp8"; };
  const int length = argc > 3 ? std::atoi(argv[3]) : 0, steps = argc > 4 ? std::atoi(argv[4]) : 40;
  if (!known(type(1)) || !known(type(2)) || length < 1 || length > kPages * kPage || steps < 1)
    fail("arguments", "resident-step bf16|fp8 bf16|fp8 LENGTH [STEPS], a length from 1 to 38400");
  static Resident p;
  p.fp8_weights = type(1) == "fp8", p.fp8_cache = type(2) == "fp8";
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  const int blocks = device.multiProcessorCount;
  make_model(&p, length);
  p.links = allocate<unsigned char>(resident_link_bytes(&p, blocks));
  p.epoch = upload(std::vector<uint32_t>{1});
  if (!resident_fits(p, blocks)) fail("resident_fits", "not these types on this GPU");
  check(load_resident(), "load_resident");
  auto* const x = allocate<uint32_t>(kRows * p.d / 2);
  fill_bf16<<<64, 256>>>(x, kRows * p.d / 2, 1.0f, 77);
  check(cudaDeviceSynchronize(), "making weights");

  cudaEvent_t began{}, ended{};
  check(cudaEventCreate(&began), "cudaEventCreate");
  check(cudaEventCreate(&ended), "cudaEventCreate");
  std::vector<float> times, logits(kVocab);
  uint64_t hash = 1469598103934665603ull;
  for (int step = 0; step < steps + kWarmUp; ++step) {
    p.x = x + step % kRows * (p.d / 2);
    check(cudaEventRecord(began), "cudaEventRecord");
    check(p.fp8_weights ? launch_resident_f8(p, blocks, nullptr) : launch_resident_bf16(p, blocks, nullptr), "launch");
    check(cudaEventRecord(ended), "cudaEventRecord");
    check(cudaDeviceSynchronize(), "a step");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, began, ended), "cudaEventElapsedTime");
    if (step >= kWarmUp) times.push_back(ms * 1000);
    if (step % 8 != 1) continue;
    check(cudaMemcpy(logits.data(), p.logits, logits.size() * sizeof(float), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (const float logit : logits) {
      uint32_t bits;
      std::memcpy(&bits, &logit, sizeof(bits));
      if (!std::isfinite(logit)) fail("logits", "not finite");
      hash = (hash ^ bits) * 1099511628211ull;
    }
  }
  std::sort(times.begin(), times.end());
  std::printf("%s weights, %s cache, %d tokens: median %.1f us, least %.1f, 90th percentile %.1f; logits %016llx\n",
              type(1).c_str(), type(2).c_str(), length, times[times.size() / 2], times[0], times[times.size() * 9 / 10],
              static_cast<unsigned long long>(hash));
  return 0;
}
