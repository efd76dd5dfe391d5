// seeded_bugs.cu - one bug for each tool of compute-sanitizer, to prove that the tool, as scripts/gpu-run.sh calls it,
// finds such a bug on this machine: a run of `seeded_bugs TOOL` under TOOL must fail.
// Built as the target seeded-bugs.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

/// memcheck: the last thread writes behind the array.
__global__ void write_past_the_end(int* out, int n) {
  if (static_cast<int>(threadIdx.x) <= n) out[threadIdx.x] = 1;
}

/// racecheck: no barrier between one thread's write and its neighbour's read.
__global__ void forget_a_barrier(int* out) {
  __shared__ int s_values[128];
  s_values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = s_values[(threadIdx.x + 33) % 128];
}

/// initcheck: what nobody wrote is read.
__global__ void read_what_nobody_wrote(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x] + 1; }

/// synccheck: half of a warp waits for a barrier that the other half never reaches.
__global__ void wait_in_a_branch(int* out) {
  if (threadIdx.x % 32 < 16) __syncthreads();
  out[threadIdx.x] = 1;
}

}  // namespace

int main(int argc, char** argv) {
  const char* const tool = argc > 1 ? argv[1] : "";
  int *in = nullptr, *out = nullptr;
  if (cudaMalloc(&in, 128 * sizeof(int)) != cudaSuccess || cudaMalloc(&out, 128 * sizeof(int)) != cudaSuccess) return 2;
  if (std::strcmp(tool, "memcheck") == 0) {
    write_past_the_end<<<1, 256>>>(out, 128);
  } else if (std::strcmp(tool, "racecheck") == 0) {
    forget_a_barrier<<<1, 128>>>(out);
  } else if (std::strcmp(tool, "initcheck") == 0) {
    read_what_nobody_wrote<<<1, 128>>>(in, out);
  } else if (std::strcmp(tool, "synccheck") == 0) {
    wait_in_a_branch<<<1, 128>>>(out);
  } else {
    std::fprintf(stderr, "usage: seeded-bugs memcheck | racecheck | initcheck | synccheck\n");
    return 2;
  }
  cudaDeviceSynchronize();  // whether it complains is the tool's business
  return 0;
}
