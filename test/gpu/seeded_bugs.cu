// seeded_bugs.cu - one bug for each tool of compute-sanitizer, to prove that the tool, as scripts/gpu-run.sh calls it,
// finds such a bug on this machine: a run of `seeded_bugs TOOL` under TOOL must fail. And four right programs that
// racecheck blames nevertheless: they show which ways of synchronising it does not follow, so why scripts/gpu-run.sh
// leaves the kernels that are built on them out of it (docs/gpu-tests.md).
// Built as the target seeded-bugs.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cuda/device/mma.cuh"
#include "cuda/ptx/bulk.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/warpgroup.cuh"

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

/// right: a warp's writes are shown to another warp by one arrival of its first lane, behind a __syncwarp(), which
/// orders the others' writes before it. As product_ring and the tile products hand over their sums and tiles.
__global__ void one_lane_arrives_for_its_warp(int* out) {
  __shared__ int s_values[32];
  __shared__ uint64_t s_written;
  const uint32_t written = mla::cuda::shared_address(&s_written);
  if (threadIdx.x == 0) {
    mla::cuda::mbarrier_init(written, 1);
    mla::cuda::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    s_values[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncwarp();
    if (threadIdx.x == 0) mla::cuda::mbarrier_arrive(written);
  } else {
    mla::cuda::mbarrier_wait(written, 0);
    out[threadIdx.x - 32] = s_values[(threadIdx.x + 1) % 32];
  }
}

/// right: the copy engine writes over what a warp has read, after the warp's first lane has said so behind a
/// __syncwarp(). As every ring of stages.
__global__ void refill_after_one_lane_has_arrived(const int* in, int* out) {
  __shared__ __align__(128) int s_values[32];
  __shared__ uint64_t s_barriers[2];
  const uint32_t full = mla::cuda::shared_address(s_barriers), empty = full + 8;
  if (threadIdx.x == 0) {
    mla::cuda::mbarrier_init(full, 1);
    mla::cuda::mbarrier_init(empty, 1);
    mla::cuda::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    for (uint32_t turn = 0; turn < 2; ++turn) {
      mla::cuda::mbarrier_wait(full, turn);
      out[turn * 32 + threadIdx.x] = s_values[(threadIdx.x + 1) % 32];
      __syncwarp();
      if (threadIdx.x == 0) mla::cuda::mbarrier_arrive(empty);
    }
  } else if (threadIdx.x == 32) {
    for (uint32_t turn = 0; turn < 2; ++turn) {
      mla::cuda::mbarrier_wait(empty, turn ^ 1);
      mla::cuda::mbarrier_arrive_expect(full, sizeof(s_values));
      mla::cuda::bulk_load(mla::cuda::shared_address(s_values), in, sizeof(s_values), full, mla::cuda::kEvictFirst);
    }
  }
}

/// right: in each turn a half of the block writes and arrives at a named barrier, the other half waits for it there and
/// reads; before the next turn all meet. As the two halves of mla_decode_wide show each other their probabilities.
__global__ void hand_over_at_a_named_barrier(int* out) {
  __shared__ int s_values[128];
  for (int turn = 0; turn < 3; ++turn) {
    __syncthreads();
    if (threadIdx.x < 128) {
      s_values[threadIdx.x] = static_cast<int>(threadIdx.x) + turn;
      mla::cuda::named_barrier_arrive(1, 256);
    } else {
      mla::cuda::named_barrier_sync(1, 256);
      out[threadIdx.x - 128] = s_values[threadIdx.x - 128];
    }
  }
}

/// right: a half of the block meets twice at a named barrier of its own, then all meet between a write and a read. As
/// the warps that choose in route_large_one meet during the choice. Among fewer threads it is not blamed every time.
__global__ void meet_by_half_before(int* out) {
  __shared__ int s_values[1024];
  for (int meeting = 0; meeting < 2 && threadIdx.x < 512; ++meeting) mla::cuda::named_barrier_sync(1, 512);
  s_values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x % 128] = s_values[(threadIdx.x + 33) % 1024];
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
  } else if (std::strcmp(tool, "racecheck-relay") == 0) {
    one_lane_arrives_for_its_warp<<<1, 64>>>(out);
  } else if (std::strcmp(tool, "racecheck-refill") == 0) {
    refill_after_one_lane_has_arrived<<<1, 64>>>(in, out);
  } else if (std::strcmp(tool, "racecheck-handover") == 0) {
    hand_over_at_a_named_barrier<<<1, 256>>>(out);
  } else if (std::strcmp(tool, "racecheck-detour") == 0) {
    meet_by_half_before<<<1, 1024>>>(out);
  } else {
    std::fprintf(stderr,
                 "usage: seeded-bugs memcheck | racecheck | initcheck | synccheck | racecheck-relay | "
                 "racecheck-refill | racecheck-handover | racecheck-detour\n");
    return 2;
  }
  cudaDeviceSynchronize();  // whether it complains is the tool's business
  return 0;
}
