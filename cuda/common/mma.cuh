// Matrix products of one warp: 16x8x16 steps with float accumulators, on operands in one of three
// forms.
//   MmaBf16, MmaF16  16-bit operands, one instruction per step
//   MmaTf32<1>       float operands rounded to tf32 (10 bits of mantissa, float's range)
//   MmaTf32<3>       float operands split into two tf32 halves, three products: float accuracy
// Element positions are those of mma.m16n8k16, with g = lane / 4 and c = lane % 4:
//   A 16x16  elements (g, 2c..2c+1) (g+8, 2c..) (g, 2c+8..) (g+8, 2c+8..)
//   B 16x8   elements (2c..2c+1, g) (2c+8.., g)
//   C 16x8   elements (g, 2c..2c+1) (g+8, 2c..2c+1)
// The tf32 forms permute the inner index the same way in A and B, so all forms share these
// positions. Operands are loaded raw (RawA, RawB: the tile's own elements), may be scaled, and are
// then prepared.
#ifndef FLA_CUDA_COMMON_MMA_CUH_
#define FLA_CUDA_COMMON_MMA_CUH_

#include "cuda/common/async.cuh"
#include "cuda/common/types.cuh"

namespace fla::cuda {

template <typename E>
struct RawA {
  uint32_t r[4];
};
template <typename E>
struct RawB {
  uint32_t r[2];
};
template <>
struct RawA<float> {
  float r[8];
};
template <>
struct RawB<float> {
  float r[4];
};

__device__ __forceinline__ uint32_t pack2(bf16, float x, float y) {
  __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack2(f16, float x, float y) {
  __half2 v = __floats2half2_rn(x, y);
  return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ float2 unpack2(bf16, uint32_t v) {
  return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack2(f16, uint32_t v) {
  return __half22float2(*reinterpret_cast<__half2*>(&v));
}

// A from two neighbouring C tiles (columns 0..7 and 8..15).
template <typename E>
__device__ __forceinline__ RawA<E> raw_a(const float (&left)[4], const float (&right)[4]) {
  RawA<E> a;
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a.r[i] = left[i];
      a.r[4 + i] = right[i];
    }
  } else {
    a.r[0] = pack2(E(), left[0], left[1]);
    a.r[1] = pack2(E(), left[2], left[3]);
    a.r[2] = pack2(E(), right[0], right[1]);
    a.r[3] = pack2(E(), right[2], right[3]);
  }
  return a;
}

// What rounding to E takes off in raw_a.
template <typename E>
__device__ __forceinline__ RawA<E> raw_rest(const RawA<E>& a, const float (&left)[4],
                                            const float (&right)[4]) {
  static_assert(sizeof(E) == 2, "float is not rounded");
  const float2 x0 = unpack2(E(), a.r[0]), x1 = unpack2(E(), a.r[1]), y0 = unpack2(E(), a.r[2]),
               y1 = unpack2(E(), a.r[3]);
  RawA<E> rest;
  rest.r[0] = pack2(E(), left[0] - x0.x, left[1] - x0.y);
  rest.r[1] = pack2(E(), left[2] - x1.x, left[3] - x1.y);
  rest.r[2] = pack2(E(), right[0] - y0.x, right[1] - y0.y);
  rest.r[3] = pack2(E(), right[2] - y1.x, right[3] - y1.y);
  return rest;
}

template <typename E>
__device__ __forceinline__ RawB<E> raw_b(float x0, float x1, float x2, float x3) {
  RawB<E> b;
  if constexpr (sizeof(E) == 4) {
    b.r[0] = x0;
    b.r[1] = x1;
    b.r[2] = x2;
    b.r[3] = x3;
  } else {
    b.r[0] = pack2(E(), x0, x1);
    b.r[1] = pack2(E(), x2, x3);
  }
  return b;
}

// Multiplies the columns (inner index) of A: lo for 2c and 2c+1, hi for 2c+8 and 2c+9.
template <typename E>
__device__ __forceinline__ void scale_columns(RawA<E>& a, float2 lo, float2 hi) {
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a.r[2 * i] *= lo.x;
      a.r[2 * i + 1] *= lo.y;
      a.r[4 + 2 * i] *= hi.x;
      a.r[5 + 2 * i] *= hi.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 x = unpack2(E(), a.r[i]);
      a.r[i] = pack2(E(), x.x * lo.x, x.y * lo.y);
      x = unpack2(E(), a.r[2 + i]);
      a.r[2 + i] = pack2(E(), x.x * hi.x, x.y * hi.y);
    }
  }
}

// The same for E of 16 bits; returns what rounding takes off.
template <typename E>
__device__ __forceinline__ RawA<E> scale_and_split(RawA<E>& a, float2 lo, float2 hi) {
  RawA<E> rest;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 factor = i < 2 ? lo : hi;
    float2 x = unpack2(E(), a.r[i]);
    x = make_float2(x.x * factor.x, x.y * factor.y);
    a.r[i] = pack2(E(), x.x, x.y);
    const float2 rounded = unpack2(E(), a.r[i]);
    rest.r[i] = pack2(E(), x.x - rounded.x, x.y - rounded.y);
  }
  return rest;
}

struct MmaBf16 {
  using Element = bf16;
  using A = RawA<bf16>;
  using B = RawB<bf16>;
  static constexpr bool kAddOutside = false;
  static __device__ __forceinline__ const A& prepare(const A& a) { return a; }
  static __device__ __forceinline__ const B& prepare(const B& b) { return b; }
  static __device__ __forceinline__ void mma(float (&d)[4], const A& a, const B& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  }
};

struct MmaF16 {
  using Element = f16;
  using A = RawA<f16>;
  using B = RawB<f16>;
  static constexpr bool kAddOutside = false;
  static __device__ __forceinline__ const A& prepare(const A& a) { return a; }
  static __device__ __forceinline__ const B& prepare(const B& b) { return b; }
  static __device__ __forceinline__ void mma(float (&d)[4], const A& a, const B& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  }
};

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

template <int N, int Terms>
struct Tf32Operand {
  uint32_t hi[N];
  uint32_t lo[Terms == 3 ? N : 1];
};

template <int Terms>
struct MmaTf32 {
  using Element = float;
  using A = Tf32Operand<8, Terms>;
  using B = Tf32Operand<4, Terms>;
  // The tensor cores truncate when they add to an accumulator. Long sums of float quality must be
  // added up outside of them.
  static constexpr bool kAddOutside = Terms == 3;

  template <int N>
  static __device__ __forceinline__ Tf32Operand<N, Terms> split(const float (&x)[N]) {
    Tf32Operand<N, Terms> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out.hi[i] = to_tf32(x[i]);
      if constexpr (Terms == 3) out.lo[i] = to_tf32(x[i] - __uint_as_float(out.hi[i]));
    }
    return out;
  }
  static __device__ __forceinline__ A prepare(const RawA<float>& a) { return split(a.r); }
  static __device__ __forceinline__ B prepare(const RawB<float>& b) { return split(b.r); }

  static __device__ __forceinline__ void step(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ void product(float (&d)[4], const uint32_t* a,
                                                 const uint32_t* b) {
    step(d, a[0], a[2], a[4], a[6], b[0], b[2]);
    step(d, a[1], a[3], a[5], a[7], b[1], b[3]);
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const A& a, const B& b) {
    if constexpr (Terms == 3) {
      product(d, a.lo, b.hi);
      product(d, a.hi, b.lo);
    }
    product(d, a.hi, b.hi);
  }
};

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_MMA_CUH_
