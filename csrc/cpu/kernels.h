// kernels.h - the CPU kernels, one function per operation, compiled once per instruction set.
//
// Every file under csrc/cpu/kernels/ is compiled several times with MLA_CPU_ISA set to the name of a namespace
// (baseline, avx2, avx512) and the matching compiler flags; kernel_table() picks one at run time. Code in those files
// must sit inside `namespace mla::cpu::MLA_CPU_ISA` and must not define anything inline outside of it: the linker would
// merge such a function and might keep the copy with the wrong instructions.
#pragma once
#include "common/status.h"
#include "cpu/thread_pool.h"
#include "ops/ops.h"

namespace mla::cpu {

/// What a kernel may use besides its arguments.
struct Context {
  ThreadPool* pool;
  View workspace;  // u8; at least workspace_bytes(op, threads) long
};

/// One entry per operation.
struct KernelTable {
  const char* name;
#define MLA_CPU_KERNEL(Name, verb) Status (*verb)(const Name##Params& p, Context& ctx);
  MLA_OPS(MLA_CPU_KERNEL)
#undef MLA_CPU_KERNEL
};

/// The best table for this processor.
const KernelTable& kernel_table();

/// Scratch bytes that an operation needs for its shapes (data pointers may be null).
int64_t workspace_bytes(const Op& op, int threads);

/// Elements of the plan tensor of decodePlan.
int64_t decode_plan_ints(int64_t max_sequences, int64_t heads, int threads);

}  // namespace mla::cpu

#ifdef MLA_CPU_ISA
namespace mla::cpu::MLA_CPU_ISA {
#define MLA_CPU_KERNEL(Name, verb) Status verb(const Name##Params& p, Context& ctx);
MLA_OPS(MLA_CPU_KERNEL)
#undef MLA_CPU_KERNEL
}  // namespace mla::cpu::MLA_CPU_ISA
#endif
