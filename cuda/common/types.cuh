// Element types: conversion to and from float, loads whose type is known at run time only.
#ifndef FLA_CUDA_COMMON_TYPES_CUH_
#define FLA_CUDA_COMMON_TYPES_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ops/linear_attention/cpu.h"

namespace fla::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two neighbouring elements at once; `p` is aligned to both.
__device__ __forceinline__ float2 load2(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ __forceinline__ float2 load2(const f16* p) {
  return __half22float2(*reinterpret_cast<const __half2*>(p));
}
__device__ __forceinline__ float2 load2(const bf16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}
__device__ __forceinline__ void store2(float* p, float x, float y) {
  *reinterpret_cast<float2*>(p) = make_float2(x, y);
}
__device__ __forceinline__ void store2(f16* p, float x, float y) {
  *reinterpret_cast<__half2*>(p) = __floats2half2_rn(x, y);
}
__device__ __forceinline__ void store2(bf16* p, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(x, y);
}

__host__ __device__ constexpr int size_of(DType t) {
  return t == DType::kFloat32 ? 4 : t == DType::kBool ? 1 : 2;
}

// Element `i` of a tensor whose type is a run-time value. The branch is uniform.
__device__ __forceinline__ float load_as_float(const void* p, DType type, int64_t i) {
  switch (type) {
    case DType::kFloat32:
      return static_cast<const float*>(p)[i];
    case DType::kFloat16:
      return to_float(static_cast<const f16*>(p)[i]);
    case DType::kBFloat16:
      return to_float(static_cast<const bf16*>(p)[i]);
    default:
      return static_cast<const uint8_t*>(p)[i] ? 1.f : 0.f;
  }
}

__device__ __forceinline__ void store_from_float(void* p, DType type, int64_t i, float x) {
  switch (type) {
    case DType::kFloat16:
      static_cast<f16*>(p)[i] = from_float<f16>(x);
      break;
    case DType::kBFloat16:
      static_cast<bf16*>(p)[i] = from_float<bf16>(x);
      break;
    default:
      static_cast<float*>(p)[i] = x;
  }
}

// The bits of element `i`, for as_float later: a load that nothing waits for yet.
__device__ __forceinline__ uint32_t load_bits(const void* p, DType type, int64_t i) {
  if (type == DType::kFloat32) return static_cast<const uint32_t*>(p)[i];
  if (type == DType::kBool) return static_cast<const uint8_t*>(p)[i];
  return static_cast<const uint16_t*>(p)[i];
}
__device__ __forceinline__ float as_float(DType type, uint32_t bits) {
  if (type == DType::kFloat32) return __uint_as_float(bits);
  if (type == DType::kBFloat16) return __uint_as_float(bits << 16);
  if (type == DType::kFloat16) return to_float(__ushort_as_half(static_cast<unsigned short>(bits)));
  return bits ? 1.f : 0.f;
}

// The warp's index in its block, known to the compiler to be the same for all lanes.
__device__ __forceinline__ uint32_t warp_index() {
  return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
}

constexpr float kLog2e = 1.4426950408889634f;

// 2^x in one instruction; results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_TYPES_CUH_
