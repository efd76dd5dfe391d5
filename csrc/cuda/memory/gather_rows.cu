// gather_rows.cu - rows of a table by number.
//
//   out[t] = table[ids[t]]; zeros where ids[t] is negative or past the table
//
// Grid (T, ceil(d / 2048)), block 256, a thread for 8 elements; 16-byte accesses where rows are aligned to that.
// Bandwidth-bound: reads and writes each element once, offsets in 64 bits. Limit: T < 2^31. Test:
// test/gpu/rows.test.ts.
#include "cuda/device/pdl.cuh"
#include "cuda/device/rows.cuh"
#include "cuda/launch.h"
#include "cuda/memory/kernels.h"

namespace mla::cuda {
namespace {

constexpr int kThreads = 256;

struct GatherArgs {
  const void* table;   // [entries, d]
  const int32_t* ids;  // [T]
  void* out;           // [T, d]
  int64_t entries, d;
  bool vector;
};

template <class From, class To>
__global__ __launch_bounds__(kThreads) void gather_rows_kernel(GatherArgs a) {
  pdl_wait();
  pdl_launch_dependents();
  const int64_t row = blockIdx.x;
  const int64_t at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kChunk;
  if (at >= a.d) return;
  const int64_t id = a.ids[row];
  float v[kChunk] = {};
  if (id >= 0 && id < a.entries) load_chunk(static_cast<const From*>(a.table) + id * a.d, at, a.d, a.vector, v);
  store_chunk(static_cast<To*>(a.out) + row * a.d, at, a.d, a.vector, v);
}

using Kernel = void (*)(GatherArgs);

Kernel kernel_of(DType from, DType to) {
  if (from == DType::kBF16)
    return to == DType::kBF16 ? gather_rows_kernel<Bf16, Bf16> : gather_rows_kernel<Bf16, float>;
  return to == DType::kBF16 ? gather_rows_kernel<float, Bf16> : gather_rows_kernel<float, float>;
}

}  // namespace

Status gatherRows(const GatherRowsParams& p, const Launch& launch) noexcept {
  const int64_t rows = p.out.dim(0), d = p.out.dim(1);
  if (rows == 0 || d == 0) return Status::Ok();
  GatherArgs args;
  args.table = p.table.data;
  args.ids = p.ids.as<const int32_t>();
  args.out = p.out.data;
  args.entries = p.table.dim(0);
  args.d = d;
  args.vector = d % kChunk == 0 && aligned16(args.table) && aligned16(args.out);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(div_up<int64_t>(d, kThreads * kChunk)));
  return cuda_status(launch_pdl(kernel_of(p.table.dtype, p.out.dtype), grid, dim3(kThreads), 0, launch.stream, args),
                     "gather_rows_kernel");
}

Status load_gather_kernels() {
  for (const DType from : {DType::kF32, DType::kBF16}) {
    for (const DType to : {DType::kF32, DType::kBF16}) {
      MLA_RETURN_IF_ERROR(load_kernel(kernel_of(from, to), "gather_rows_kernel"));
    }
  }
  return Status::Ok();
}

}  // namespace mla::cuda
