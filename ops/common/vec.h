// One register of floats in the widest form this translation unit was compiled for, on the
// compiler's vector extensions (GCC, Clang). Included once per ISA: everything lives in an unnamed
// namespace so that no AVX code can be merged into another ISA's copy. For the same reason, no
// std:: templates here.
#ifndef FLA_OPS_COMMON_VEC_H_
#define FLA_OPS_COMMON_VEC_H_

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "ops/common/cpu.h"

#define FLA_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define FLA_UNROLL _Pragma("unroll")
#else
#define FLA_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fla {
namespace {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef float VecLoose __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t IVec __attribute__((vector_size(VL * 4)));
typedef uint32_t UVec __attribute__((vector_size(VL * 4)));

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

FLA_INLINE Vec splat(float x) { return x - Vec{}; }
FLA_INLINE int imin(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }
FLA_INLINE int64_t lmin(int64_t a, int64_t b) { return a < b ? a : b; }
FLA_INLINE int64_t lmax(int64_t a, int64_t b) { return a > b ? a : b; }
FLA_INLINE int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
FLA_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
FLA_INLINE Vec vmin(Vec a, Vec b) { return a < b ? a : b; }

FLA_INLINE IVec lane_index() {
  IVec v{};
  for (int i = 0; i < VL; i++) v[i] = i;
  return v;
}

// ---- loads and stores of VL elements, unaligned

FLA_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecLoose*>(p); }
FLA_INLINE void store(float* p, Vec x) { *reinterpret_cast<VecLoose*>(p) = x; }

typedef uint16_t U16Vec __attribute__((vector_size(VL * 2)));
FLA_INLINE U16Vec load_u16(const void* p) {
  U16Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

FLA_INLINE Vec load(const BFloat* p) {
  return reinterpret_cast<Vec>(__builtin_convertvector(load_u16(p), UVec) << 16);
}

FLA_INLINE void store(BFloat* p, Vec x) {
  UVec u = reinterpret_cast<UVec>(x);
  UVec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest even
  UVec quiet = (u >> 16) | 0x40;
  U16Vec out = __builtin_convertvector(x == x ? rounded : quiet, U16Vec);
  memcpy(p, &out, sizeof out);
}

#if defined(__AVX512F__)
FLA_INLINE Vec load(const Half* p) {
  return reinterpret_cast<Vec>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
FLA_INLINE void store(Half* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
FLA_INLINE Vec load(const Half* p) {
  return reinterpret_cast<Vec>(
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
FLA_INLINE void store(Half* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
// float16 by integer arithmetic: rebias the exponent with an exact multiply, which also normalises
// subnormals; rounding is to nearest even.
FLA_INLINE Vec load(const Half* p) {
  UVec h = __builtin_convertvector(load_u16(p), UVec);
  UVec magnitude = (h & 0x7fff) << 13;
  Vec finite = reinterpret_cast<Vec>(magnitude) * 0x1p112f;
  UVec special = magnitude | 0x7f800000;  // inf and NaN keep their mantissa
  UVec bits = (h & 0x7c00) == 0x7c00 ? special : reinterpret_cast<UVec>(finite);
  return reinterpret_cast<Vec>(bits | ((h & 0x8000) << 16));
}
FLA_INLINE void store(Half* p, Vec x) {
  UVec u = reinterpret_cast<UVec>(x);
  UVec sign = (u >> 16) & 0x8000;
  UVec a = u & 0x7fffffff;
  // Adding 0.5 lines the 10 bits of a subnormal half up with the low bits of the float.
  UVec subnormal = reinterpret_cast<UVec>(reinterpret_cast<Vec>(a) + splat(0.5f)) - 0x3f000000;
  UVec normal = (a - 0x38000000 + 0xfff + ((a >> 13) & 1)) >> 13;
  UVec finite = a < 0x38800000 ? subnormal : normal;
  UVec big = a > 0x7f800000 ? (UVec{} + 0x7e00) : (UVec{} + 0x7c00);
  U16Vec out = __builtin_convertvector(sign | (a >= 0x477ff000 ? big : finite), U16Vec);
  memcpy(p, &out, sizeof out);
}
#endif

// The first n < VL elements; the rest read as zero and are never touched in memory.
template <typename T>
FLA_INLINE Vec load_part(const T* p, int n) {
  T lanes[VL];
  memset(lanes, 0, sizeof lanes);
  memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
template <typename T>
FLA_INLINE void store_part(T* p, Vec x, int n) {
  T lanes[VL];
  store(lanes, x);
  memcpy(p, lanes, n * sizeof(T));
}
#if defined(__AVX512F__)
FLA_INLINE Vec load_part(const float* p, int n) {
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
}
FLA_INLINE void store_part(float* p, Vec x, int n) {
  _mm512_mask_storeu_ps(p, (1u << n) - 1, reinterpret_cast<__m512>(x));
}
#endif

// Keeps x in a register: compilers like to fold a load into each of its uses, and then load ports
// are the limit.
FLA_INLINE void keep(Vec& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#else
  (void)x;
#endif
}

// ---- arithmetic

FLA_INLINE float sum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x));
#elif defined(__AVX2__)
  const __m256 y = reinterpret_cast<__m256>(x);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

FLA_INLINE float max_lane(Vec x) {
  float m = x[0];
  for (int i = 1; i < VL; i++) m = x[i] > m ? x[i] : m;
  return m;
}

// e^x within about 1 ulp; 0 below -87.3, saturating at e^88. NaN stays NaN.
FLA_INLINE Vec vexp(Vec x) {
  const float round_bias = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vec xc = x > splat(88.0f) ? splat(88.0f) : x;
  Vec shifted = xc * 1.44269504088896f + round_bias;
  Vec n = shifted - round_bias;
  Vec r = xc - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IVec scaled = reinterpret_cast<IVec>(p) + (reinterpret_cast<IVec>(shifted) << 23);
  return x < splat(-87.3f) ? Vec{} : reinterpret_cast<Vec>(scaled);
}

FLA_INLINE float exp1(float x) { return vexp(splat(x))[0]; }

// log x within about 1 ulp, for x normal and > 0.
FLA_INLINE Vec vlog(Vec x) {
  IVec bits = reinterpret_cast<IVec>(x);
  Vec m = reinterpret_cast<Vec>((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  IVec low = m < splat(0.707106781186547524f);                      // -1 where true
  Vec e = __builtin_convertvector((bits >> 23) - 126 + low, Vec);
  m = (low ? m + m : m) - 1.0f;
  Vec p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  Vec z = m * m;
  return (m + (p * m * z + e * -2.12194440e-4f - z * 0.5f)) + e * 0.693359375f;
}

// A bound on log |x| from above, at most log 2 too large; below -87 for 0 and subnormals.
FLA_INLINE Vec log_bound(Vec x) {
  IVec exponent = (reinterpret_cast<IVec>(x) >> 23) & 0xff;
  return __builtin_convertvector(exponent - 126, Vec) * 0.693147180559945f;
}

FLA_INLINE Vec vtanh(Vec x) {
  Vec z = x * x;
  // Near 0 the series, where the quotient would cancel.
  Vec p = splat(62.0f / 2835);
  p = p * z - 17.0f / 315;
  p = p * z + 2.0f / 15;
  p = p * z - 1.0f / 3;
  Vec near = x + x * z * p;
  Vec size = x < Vec{} ? -x : x;
  Vec far = 1.0f - 2.0f / (vexp(size + size) + 1.0f);
  return z < splat(0.09f) ? near : (x < Vec{} ? -far : far);
}

// ---- rows of any length and dtype

template <typename T>
FLA_INLINE void load_row_as(float* dst, const T* src, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(dst + i, load(src + i));
  if (i < n)
    store_part(dst + i, load_part(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

template <typename T>
FLA_INLINE void store_row_as(T* dst, const float* src, int64_t n) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) store(dst + i, load(src + i));
  if (i < n)
    store_part(dst + i, load_part(src + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

// dst[0..n) = base[offset..offset+n), as float.
inline void load_row(float* dst, const void* base, int64_t offset, int64_t n, DType dtype) {
  if (dtype == DType::kFloat32)
    return load_row_as(dst, static_cast<const float*>(base) + offset, n);
  if (dtype == DType::kFloat16) return load_row_as(dst, static_cast<const Half*>(base) + offset, n);
  return load_row_as(dst, static_cast<const BFloat*>(base) + offset, n);
}

// base[offset..offset+n) = src[0..n), rounded to dtype.
inline void store_row(void* base, int64_t offset, const float* src, int64_t n, DType dtype) {
  if (dtype == DType::kFloat32) return store_row_as(static_cast<float*>(base) + offset, src, n);
  if (dtype == DType::kFloat16) return store_row_as(static_cast<Half*>(base) + offset, src, n);
  store_row_as(static_cast<BFloat*>(base) + offset, src, n);
}

FLA_INLINE float load_one(const void* base, int64_t offset, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(base)[offset];
    case DType::kFloat16:
      return load_part(static_cast<const Half*>(base) + offset, 1)[0];
    case DType::kBFloat16:
      return load_part(static_cast<const BFloat*>(base) + offset, 1)[0];
    case DType::kBool:
      break;
  }
  return static_cast<const uint8_t*>(base)[offset] ? 1.0f : 0.0f;
}

FLA_INLINE void store_one(void* base, int64_t offset, float x, DType dtype) {
  if (dtype == DType::kFloat32)
    static_cast<float*>(base)[offset] = x;
  else
    store_row(base, offset, &x, 1, dtype);
}

inline int64_t size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kBool ? 1 : 2;
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_COMMON_VEC_H_
