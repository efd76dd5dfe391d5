// convert.cc - conversions between element types, and the block-scaled fp8 format. Test:
// test/cpu/reference-convert.test.ts.
#include "cpu/kernels.h"
#include "cpu/kernels/simd.h"

namespace mla::cpu::MLA_CPU_ISA {
namespace {

constexpr int64_t kGrainElements = 1 << 15;

MLA_INLINE void store_any(float* p, F v) { store(p, v); }
MLA_INLINE void store_any(Bf16* p, F v) { store(p, v); }
MLA_INLINE void store_any(F16* p, F v) {
#if defined(MLA_SIMD_512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(MLA_SIMD_256)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) convert(v[i], p + i);
#endif
}

template <class From, class To>
void cast_range(const From* from, To* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_any(to + i, load(from + i));
  if (i < n) {
    const size_t rest = static_cast<size_t>(n - i);
    To last[kLanes];
    store_any(last, load_tail(from + i, static_cast<int>(rest)));
    std::memcpy(to + i, last, sizeof(To) * rest);
  }
}

template <class Fn>
void visit_cast(DType t, Fn&& f) {
  if (t == DType::kF16) {
    f(F16{});
  } else {
    visit_float(t, f);
  }
}

/// max |x| over the finite elements of n.
template <class T>
float largest(const T* x, int64_t n) {
  const F inf = set1(__builtin_inff());
  F best = zero();
  int64_t i = 0;
  for (; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const F a = vabs(rest >= kLanes ? load(x + i) : load_tail(x + i, static_cast<int>(rest)));
    best = vmax(a < inf ? a : zero(), best);
  }
  return hmax(best);
}

/// The scale of a block whose largest magnitude is `top`; 1 for a block of zeros, so that no zero is divided by.
float block_scale(float top, bool pow2) {
  if (top == 0) return 1.0f;
  const float scale = top / 448.0f;
  if (scale < 0x1p-126f) return 0x1p-126f;
  if (!pow2) return scale;
  const uint32_t bits = float_bits(scale);
  return float_from_bits((bits + 0x7fffffu) & 0xff800000u);  // up to the next power of two, if it is none
}

/// to_f8e4m3 lane by lane; the bytes stand in the low bits of the lanes.
MLA_INLINE U f8_bits(F v) {
  const U u = (U)v;
  const U magnitude = u & 0x7fffffffu;
  const U sign = (u >> 24) & 0x80u;
  // Below 2^-6 adding 2^14 leaves units of 2^-9 in the lowest mantissa bit, rounded to nearest even.
  const U small = (U)((F)magnitude + set1(0x1p14f)) - 0x46800000u;
  const U normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - 0x3c000000u) >> 20;
  const U is_small = (U)((F)magnitude < set1(0x1p-6f));
  const U is_large = (U)((F)magnitude >= set1(448.0f));
  const U is_nan = (U)(v != v);
  U code = (is_small & small) | (~is_small & normal);
  code = (is_large & 0x7eu) | (~is_large & code);
  code = (is_nan & 0x7fu) | (~is_nan & code);
  return sign | code;
}

template <class T>
void quantize_row(const T* x, int64_t n, float scale, F8E4M3* q) {
  const F divisor = set1(scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t rest = n - i;
    const int count = rest >= kLanes ? kLanes : static_cast<int>(rest);
    const U code = f8_bits((count == kLanes ? load(x + i) : load_tail(x + i, count)) / divisor);
    for (int j = 0; j < count; ++j) q[i + j].bits = static_cast<uint8_t>(code[j]);
  }
}

}  // namespace

Status cast(const CastParams& p, Context& ctx) {
  visit_cast(p.x.dtype, [&](auto from_tag) {
    visit_cast(p.out.dtype, [&](auto to_tag) {
      using From = decltype(from_tag);
      using To = decltype(to_tag);
      ctx.pool->parallel_for(p.x.numel(), kGrainElements, [&](int64_t begin, int64_t end, int) {
        cast_range(p.x.as<From>() + begin, p.out.as<To>() + begin, end - begin);
      });
    });
  });
  return Status::Ok();
}

/// An infinity does not count for the scale and saturates to 448 * scale; NaN stays NaN.
Status quantize(const QuantizeParams& p, Context& ctx) {
  const int64_t rows = p.x.dim(0), columns = p.x.dim(1);
  const int64_t block_rows = (rows + kScaleBlock - 1) / kScaleBlock;
  const int64_t block_columns = (columns + kScaleBlock - 1) / kScaleBlock;
  visit_float(p.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    ctx.pool->parallel_for(block_rows * block_columns, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t row0 = block / block_columns * kScaleBlock, column0 = block % block_columns * kScaleBlock;
        const int64_t row1 = row0 + kScaleBlock < rows ? row0 + kScaleBlock : rows;
        const int64_t width = column0 + kScaleBlock < columns ? kScaleBlock : columns - column0;
        const T* x = p.x.as<T>() + column0;
        float top = 0;
        for (int64_t row = row0; row < row1; ++row) {
          const float a = largest(x + row * columns, width);
          top = a > top ? a : top;
        }
        const float scale = block_scale(top, p.pow2);
        p.scale.as<float>()[block] = scale;
        F8E4M3* q = p.q.as<F8E4M3>() + column0;
        for (int64_t row = row0; row < row1; ++row) quantize_row(x + row * columns, width, scale, q + row * columns);
      }
    });
  });
  return Status::Ok();
}

Status dequantize(const DequantizeParams& p, Context& ctx) {
  const int64_t rows = p.q.dim(0), columns = p.q.dim(1);
  const int64_t block_columns = (columns + kScaleBlock - 1) / kScaleBlock;
  if (columns == 0) return Status::Ok();
  visit_float(p.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    ctx.pool->parallel_for(rows, kGrainElements / columns + 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t block = 0; block < block_columns; ++block) {
          const int64_t s = row / kScaleBlock * block_columns + block, column = block * kScaleBlock;
          const int64_t width = column + kScaleBlock < columns ? kScaleBlock : columns - column;
          const float scale =
              p.scale.dtype == DType::kF8E8M0 ? to_f32(p.scale.as<F8E8M0>()[s]) : p.scale.as<float>()[s];
          const F8E4M3* q = p.q.as<F8E4M3>() + row * columns + column;
          T* out = p.out.as<T>() + row * columns + column;
          for (int64_t i = 0; i < width; i += kLanes) {
            const int64_t rest = width - i;
            if (rest >= kLanes) {
              store(out + i, load(q + i) * set1(scale));
            } else {
              store_tail(out + i, load_tail(q + i, static_cast<int>(rest)) * set1(scale), static_cast<int>(rest));
            }
          }
        }
      }
    });
  });
  return Status::Ok();
}

}  // namespace mla::cpu::MLA_CPU_ISA
