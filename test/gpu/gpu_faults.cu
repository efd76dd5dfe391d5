// gpu_faults.cu - an addon for test/gpu/lost.test.ts that does to a GPU what no operation does: a kernel that writes to
// address 0, and one that keeps every multiprocessor busy for a given time, so that nothing else gets one.
//
//   writeToNull()       returns when the kernel has been launched
//   holdFor(seconds)    the same
//
// Both use the process's context, as every part of the process does. Built as the target gpu-faults.
#include <cuda_runtime.h>
#include <node_api.h>

#include <cstdint>

namespace {

__global__ void write_to_null(int* nowhere) { *nowhere = 1; }

__global__ void hold(uint64_t nanoseconds) {
  const auto now = [] {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
  };
  const uint64_t begin = now();
  while (now() - begin < nanoseconds) __nanosleep(10000);
}

/// A stream that waits for no other.
cudaStream_t stream() {
  static cudaStream_t made = nullptr;
  if (made == nullptr) cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
  return made;
}

napi_value answer(napi_env env, cudaError_t error) {
  if (error != cudaSuccess) napi_throw_error(env, nullptr, cudaGetErrorString(error));
  return nullptr;
}

napi_value write_to_null_now(napi_env env, napi_callback_info) {
  write_to_null<<<1, 1, 0, stream()>>>(nullptr);
  return answer(env, cudaGetLastError());
}

/// One block a multiprocessor, with all of its shared memory: no other block fits beside it.
napi_value hold_for(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument = nullptr;
  double seconds = 0;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  if (napi_get_value_double(env, argument, &seconds) != napi_ok || !(seconds > 0 && seconds <= 60)) {
    napi_throw_range_error(env, nullptr, "holdFor: up to 60 seconds");
    return nullptr;
  }
  int device = 0, blocks = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaError_t error = cudaFuncSetAttribute(hold, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    hold<<<blocks, 32, bytes, stream()>>>(static_cast<uint64_t>(seconds * 1e9));
    error = cudaGetLastError();
  }
  return answer(env, error);
}

napi_value init(napi_env env, napi_value exports) {
  napi_value function = nullptr;
  napi_create_function(env, "writeToNull", NAPI_AUTO_LENGTH, write_to_null_now, nullptr, &function);
  napi_set_named_property(env, exports, "writeToNull", function);
  napi_create_function(env, "holdFor", NAPI_AUTO_LENGTH, hold_for, nullptr, &function);
  napi_set_named_property(env, exports, "holdFor", function);
  return exports;
}

}  // namespace

NAPI_MODULE(gpu_faults, init)
