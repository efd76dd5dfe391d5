// copy.cu - strided copies of bytes, and copies of cache pages.
//
//   copy       block i of block_bytes goes from src + i * src_stride to dst + i * dst_stride
//   copyPages  cache[:, to] = cache[:, from] for each pair, one after the other; pairs that name no page do nothing
//
// Both move units of 16 bytes, or of 4, 2 or 1 where addresses, strides and sizes allow no more. copy: a thread takes
// every n-th unit of all blocks, n threads in all; block and unit advance by constant steps, so that there is one
// division per thread. copyPages: a thread takes the same unit of a page of one layer through all pairs, so that a page
// may be copied on after it was written. Grid: enough blocks of 256 threads to fill the GPU, or one per unit if fewer.
// Bandwidth-bound; positions in 64 bits. Test: test/gpu/rows.test.ts.
#include <algorithm>

#include "common/checked.h"
#include "cuda/device/numeric.cuh"
#include "cuda/device/pdl.cuh"
#include "cuda/launch.h"
#include "cuda/memory/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;

struct CopyArgs {
  const char* src;
  char* dst;
  int64_t units;  // of a block
  int64_t total;  // of all blocks
  int64_t src_stride, dst_stride;
  int64_t step_blocks, step_units;  // what n threads further on means
};

template <class Unit>
__global__ __launch_bounds__(kThreads) void copy_kernel(CopyArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x, step = int64_t{gridDim.x} * kThreads;
  int64_t block = first / a.units, unit = first % a.units;
  for (int64_t i = first; i < a.total; i += step) {
    const Unit* const from = reinterpret_cast<const Unit*>(a.src + block * a.src_stride);
    reinterpret_cast<Unit*>(a.dst + block * a.dst_stride)[unit] = from[unit];
    block += a.step_blocks;
    unit += a.step_units;
    if (unit >= a.units) {
      unit -= a.units;
      ++block;
    }
  }
}

struct CopyPagesArgs {
  const int32_t* pairs;  // [n, 2]
  char* cache;           // [layers, pages, page_bytes]
  int64_t n, layers, pages, page_bytes;
};

template <class Unit>
__global__ __launch_bounds__(kThreads) void copy_pages_kernel(CopyPagesArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t units = a.page_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.layers * units; i += step) {
    Unit* const layer = reinterpret_cast<Unit*>(a.cache + i / units * a.pages * a.page_bytes);
    const int64_t unit = i % units;
    for (int64_t pair = 0; pair < a.n; ++pair) {
      const int64_t from = a.pairs[2 * pair], to = a.pairs[2 * pair + 1];
      if (from < 0 || to < 0 || from >= a.pages || to >= a.pages || from == to) continue;
      layer[to * units + unit] = layer[from * units + unit];
    }
  }
}

unsigned blocks_for(int64_t units, const Traits& traits) {
  const int64_t most = int64_t{traits.multiprocessors} * kBlocksPerMultiprocessor;
  return static_cast<unsigned>(std::min(ceil_div(units, kThreads), most));
}

/// The largest of 16, 4, 2 and 1 that divides all bits of x.
int unit_of(uint64_t x) { return x % 16 == 0 ? 16 : x % 4 == 0 ? 4 : x % 2 == 0 ? 2 : 1; }

template <class Unit>
Status launch_copy(CopyArgs args, int64_t blocks, int64_t block_bytes, const Launch& launch) {
  args.units = block_bytes / static_cast<int64_t>(sizeof(Unit));
  args.total = args.units * blocks;
  const unsigned grid = blocks_for(args.total, *launch.traits);
  args.step_blocks = int64_t{grid} * kThreads / args.units;
  args.step_units = int64_t{grid} * kThreads % args.units;
  return cuda_status(launch_pdl(copy_kernel<Unit>, dim3(grid), dim3(kThreads), 0, launch.stream, args), "copy_kernel");
}

}  // namespace

Status copy(const CopyParams& p, const Launch& launch) noexcept {
  int64_t blocks = p.blocks, block_bytes = p.block_bytes;
  if (blocks == 0 || block_bytes == 0) return Status::Ok();
  CopyArgs args{};
  args.src = p.src.as<const char>() + p.src_offset;
  args.dst = p.dst.as<char>() + p.dst_offset;
  args.src_stride = p.src_stride;
  args.dst_stride = p.dst_stride;
  if (blocks == 1 || (args.src_stride == block_bytes && args.dst_stride == block_bytes)) {
    // One run of bytes: the strides do not limit the unit.
    block_bytes *= blocks;
    blocks = 1;
    args.src_stride = args.dst_stride = 0;
  }
  switch (unit_of(reinterpret_cast<uintptr_t>(args.src) | reinterpret_cast<uintptr_t>(args.dst) |
                  static_cast<uint64_t>(args.src_stride) | static_cast<uint64_t>(args.dst_stride) |
                  static_cast<uint64_t>(block_bytes))) {
    case 16: return launch_copy<uint4>(args, blocks, block_bytes, launch);
    case 4: return launch_copy<uint32_t>(args, blocks, block_bytes, launch);
    case 2: return launch_copy<uint16_t>(args, blocks, block_bytes, launch);
    default: return launch_copy<uint8_t>(args, blocks, block_bytes, launch);
  }
}

Status copyPages(const CopyPagesParams& p, const Launch& launch) noexcept {
  CopyPagesArgs args;
  args.pairs = p.pairs.as<const int32_t>();
  args.cache = p.cache.as<char>();
  args.n = p.pairs.dim(0);
  args.layers = p.cache.dim(0);
  args.pages = p.cache.dim(1);
  args.page_bytes = p.cache.dim(2) * p.cache.dim(3) * dtype_bytes(p.cache.dtype);  // a multiple of 64
  if (args.n == 0 || args.layers == 0 || args.pages == 0) return Status::Ok();
  const bool vector = aligned16(args.cache);
  const int64_t units = args.layers * (args.page_bytes / (vector ? 16 : 2));
  return cuda_status(launch_pdl(vector ? copy_pages_kernel<uint4> : copy_pages_kernel<uint16_t>,
                                dim3(blocks_for(units, *launch.traits)), dim3(kThreads), 0, launch.stream, args),
                     "copy_pages_kernel");
}

Status load_copy_kernels() {
  MLA_RETURN_IF_ERROR(load_kernel(copy_kernel<uint4>, "copy_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(copy_kernel<uint32_t>, "copy_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(copy_kernel<uint16_t>, "copy_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(copy_kernel<uint8_t>, "copy_kernel"));
  MLA_RETURN_IF_ERROR(load_kernel(copy_pages_kernel<uint4>, "copy_pages_kernel"));
  return load_kernel(copy_pages_kernel<uint16_t>, "copy_pages_kernel");
}

}  // namespace mla::cuda
