// table.cc - the kernels of one instruction set, as a table.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {

const KernelTable& table();

#if defined(MLA_SIMD_512)
#define MLA_PATH "avx512"
#elif defined(MLA_SIMD_256)
#define MLA_PATH "avx2"
#elif defined(MLA_SIMD_128)
#define MLA_PATH "x86-64-v2"
#else
#define MLA_PATH "generic"
#endif

const KernelTable& table() {
  static constexpr KernelTable kTable = {MLA_PATH,
#define MLA_CPU_KERNEL(Name, verb) &MLA_CPU_ISA::verb,
                                         MLA_OPS(MLA_CPU_KERNEL)
#undef MLA_CPU_KERNEL
  };
  return kTable;
}

}  // namespace mla::cpu::MLA_CPU_ISA
