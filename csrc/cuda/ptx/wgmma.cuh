// wgmma.cuh - matrix products of a warpgroup: D[64 x N] (+)= A[64 x K] * B[K x N], asynchronous (PTX ISA, "wgmma").
//
// K is 16 with bf16, 32 with e4m3; sums are float32. A comes from shared memory or (bf16) from registers, B from shared
// memory, both as tiles with a 128-byte swizzle, as the copy engine lays them down (tensor_map.h):
//   K-major     rows of 64 bf16 (128 e4m3) along k, 128 bytes each; 8 rows are an atom of 1024 bytes
//   transposed  (bf16) rows of 64 along m or n, one row for each k
// `wgmma_tile(address, leading, stride)` describes one: the address (atom base 1024-aligned; advancing by k inside of a
// K-major row adds 32 bytes), bytes between neighbouring atoms along k (K-major: unused, 1; transposed: along m or n),
// and bytes between 8-row groups (K-major: along m or n; transposed: along k).
//
// Thread i of the warpgroup, warp w = i / 32, g = i % 32 / 4, q = i % 4, holds of D rows 16w + g and 16w + g + 8:
//   d[4j], d[4j+1]: row 16w + g, columns 8j + 2q and the next;  d[4j+2], d[4j+3]: row 16w + g + 8.
// A from registers (16 k): a[0] row 16w + g, k 2q and the next; a[1] row + 8; a[2] k + 8; a[3] row + 8, k + 8.
//
// Order: wgmma_fence() before the first product that touches registers written otherwise; products; wgmma_commit();
// wgmma_wait<groups left>() before D (or A's registers) is touched again. `keep(d)` stops the compiler from moving
// other uses of the registers across that wait. `accumulate` 0 starts from zero. Test: test/gpu/ptx.cu.
#pragma once
#include <cstdint>

namespace mla::cuda {

__device__ __forceinline__ uint64_t wgmma_tile(uint32_t address, uint32_t leading, uint32_t stride) {
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 |
         uint64_t{1} << 62;
}

/// The tile `bytes` further on, within the block's shared memory: the address is all that changes, so 32 bits do.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t tile, uint32_t bytes) {
  return (tile & 0xFFFFFFFF00000000) | (static_cast<uint32_t>(tile) + (bytes >> 4));
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

template <int kCount>
__device__ __forceinline__ void keep(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

enum class Major { kK = 0, kTransposed = 1 };

/// The instructions for one N; d has N / 2 registers. Instances below.
template <int N>
struct Wgmma;

// The registers of D as the assembler's text counts them, and as operands.
#define MLA_WGMMA_TEXT_8 "%0,%1,%2,%3"
#define MLA_WGMMA_TEXT_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define MLA_WGMMA_TEXT_24 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11"
#define MLA_WGMMA_TEXT_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define MLA_WGMMA_TEXT_40 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
#define MLA_WGMMA_TEXT_48 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23"
#define MLA_WGMMA_TEXT_56 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27"
#define MLA_WGMMA_TEXT_64                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31"
#define MLA_WGMMA_TEXT_80                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define MLA_WGMMA_TEXT_96                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define MLA_WGMMA_TEXT_112                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55"
#define MLA_WGMMA_TEXT_128                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63"
#define MLA_WGMMA_TEXT_144                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71"
#define MLA_WGMMA_TEXT_160                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define MLA_WGMMA_TEXT_176                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87"
#define MLA_WGMMA_TEXT_192                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82," \
  "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define MLA_WGMMA_TEXT_208                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103"
#define MLA_WGMMA_TEXT_224                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82," \
  "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107," \
  "%108,%109,%110,%111"
#define MLA_WGMMA_TEXT_240                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"   \
  "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,"     \
  "%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119"
#define MLA_WGMMA_TEXT_256                                                                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"   \
  "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82," \
  "%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107," \
  "%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define MLA_WGMMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MLA_WGMMA_D8(i) MLA_WGMMA_D4(i), MLA_WGMMA_D4(i + 4)
#define MLA_WGMMA_D16(i) MLA_WGMMA_D8(i), MLA_WGMMA_D8(i + 8)
#define MLA_WGMMA_D32(i) MLA_WGMMA_D16(i), MLA_WGMMA_D16(i + 16)
#define MLA_WGMMA_D64(i) MLA_WGMMA_D32(i), MLA_WGMMA_D32(i + 32)
#define MLA_WGMMA_REGISTERS_8 MLA_WGMMA_D4(0)
#define MLA_WGMMA_REGISTERS_16 MLA_WGMMA_D8(0)
#define MLA_WGMMA_REGISTERS_24 MLA_WGMMA_D8(0), MLA_WGMMA_D4(8)
#define MLA_WGMMA_REGISTERS_32 MLA_WGMMA_D16(0)
#define MLA_WGMMA_REGISTERS_40 MLA_WGMMA_D16(0), MLA_WGMMA_D4(16)
#define MLA_WGMMA_REGISTERS_48 MLA_WGMMA_D16(0), MLA_WGMMA_D8(16)
#define MLA_WGMMA_REGISTERS_56 MLA_WGMMA_D16(0), MLA_WGMMA_D8(16), MLA_WGMMA_D4(24)
#define MLA_WGMMA_REGISTERS_64 MLA_WGMMA_D32(0)
#define MLA_WGMMA_REGISTERS_80 MLA_WGMMA_D32(0), MLA_WGMMA_D8(32)
#define MLA_WGMMA_REGISTERS_96 MLA_WGMMA_D32(0), MLA_WGMMA_D16(32)
#define MLA_WGMMA_REGISTERS_112 MLA_WGMMA_D32(0), MLA_WGMMA_D16(32), MLA_WGMMA_D8(48)
#define MLA_WGMMA_REGISTERS_128 MLA_WGMMA_D64(0)
#define MLA_WGMMA_REGISTERS_144 MLA_WGMMA_D64(0), MLA_WGMMA_D8(64)
#define MLA_WGMMA_REGISTERS_160 MLA_WGMMA_D64(0), MLA_WGMMA_D16(64)
#define MLA_WGMMA_REGISTERS_176 MLA_WGMMA_D64(0), MLA_WGMMA_D16(64), MLA_WGMMA_D8(80)
#define MLA_WGMMA_REGISTERS_192 MLA_WGMMA_D64(0), MLA_WGMMA_D32(64)
#define MLA_WGMMA_REGISTERS_208 MLA_WGMMA_D64(0), MLA_WGMMA_D32(64), MLA_WGMMA_D8(96)
#define MLA_WGMMA_REGISTERS_224 MLA_WGMMA_D64(0), MLA_WGMMA_D32(64), MLA_WGMMA_D16(96)
#define MLA_WGMMA_REGISTERS_240 MLA_WGMMA_D64(0), MLA_WGMMA_D32(64), MLA_WGMMA_D16(96), MLA_WGMMA_D8(112)
#define MLA_WGMMA_REGISTERS_256 MLA_WGMMA_D64(0), MLA_WGMMA_D64(64)

#define MLA_WGMMA(N, D, D1, D2, D3, D4, D5, D6)                                                                        \
  template <>                                                                                                          \
  struct Wgmma<N> {                                                                                                    \
    /* bf16, both from shared memory */                                                                                \
    template <Major kA = Major::kK, Major kB = Major::kK>                                                              \
    static __device__ __forceinline__ void bf16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {           \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #D2                                                              \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MLA_WGMMA_TEXT_##N                     \
                   "}, %" #D ", %" #D1 ", p, 1, 1, %" #D3 ", %" #D4 "; }"                                              \
                   : MLA_WGMMA_REGISTERS_##N                                                                           \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(static_cast<int>(kA)), "n"(static_cast<int>(kB)));           \
    }                                                                                                                  \
    /* bf16, A from registers */                                                                                       \
    template <Major kB = Major::kK>                                                                                    \
    static __device__ __forceinline__ void bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,                 \
                                                int accumulate) {                                                      \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #D5                                                              \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" MLA_WGMMA_TEXT_##N                     \
                   "}, {%" #D ",%" #D1 ",%" #D2 ",%" #D3 "}, %" #D4 ", p, 1, 1, %" #D6 "; }"                           \
                   : MLA_WGMMA_REGISTERS_##N                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(static_cast<int>(kB)));  \
    }                                                                                                                  \
    /* e4m3, both from shared memory, both K-major */                                                                  \
    static __device__ __forceinline__ void e4m3(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {           \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #D2                                                              \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" MLA_WGMMA_TEXT_##N "}, %" #D ", %" #D1 \
                                                                                                   ", p, 1, 1; }"      \
                   : MLA_WGMMA_REGISTERS_##N                                                                           \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                 \
    }                                                                                                                  \
  };

MLA_WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
MLA_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
MLA_WGMMA(24, 12, 13, 14, 15, 16, 17, 18)
MLA_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
MLA_WGMMA(40, 20, 21, 22, 23, 24, 25, 26)
MLA_WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
MLA_WGMMA(56, 28, 29, 30, 31, 32, 33, 34)
MLA_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
MLA_WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
MLA_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
MLA_WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
MLA_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
MLA_WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
MLA_WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
MLA_WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
MLA_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
MLA_WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
MLA_WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
MLA_WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
MLA_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)

#undef MLA_WGMMA

}  // namespace mla::cuda
