// Four neighbouring elements at a time.
#ifndef FLA_CUDA_COMMON_FOURS_CUH_
#define FLA_CUDA_COMMON_FOURS_CUH_

#include <type_traits>

#include "cuda/common/mma.cuh"

namespace fla::cuda {

// Four neighbouring elements as they lie in memory: loads of many such are under way at a time,
// where a conversion after each would wait for it.
template <typename T>
using Four = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
template <typename T>
__device__ __forceinline__ Four<T> load4(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <int N>
__device__ __forceinline__ void widen4(float, const uint4& x, float (&to)[N]) {
  to[0] = __uint_as_float(x.x);
  to[1] = __uint_as_float(x.y);
  to[2] = __uint_as_float(x.z);
  to[3] = __uint_as_float(x.w);
}
template <typename T, int N>
__device__ __forceinline__ void widen4(T, const uint2& x, float (&to)[N]) {
  const float2 lo = unpack2(T(), x.x), hi = unpack2(T(), x.y);
  to[0] = lo.x;
  to[1] = lo.y;
  to[2] = hi.x;
  to[3] = hi.y;
}
template <typename T, int N>
__device__ __forceinline__ void load4(const T* from, float (&to)[N]) {
  widen4(T(), load4(from), to);
}
template <int N>
__device__ __forceinline__ void store4(float* to, const float (&from)[N]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
template <typename T, int N>
__device__ __forceinline__ void store4(T* to, const float (&from)[N]) {
  *reinterpret_cast<uint2*>(to) =
      make_uint2(pack2(T(), from[0], from[1]), pack2(T(), from[2], from[3]));
}

// Eight of them, 16 bytes aligned, for use at once.
template <typename T>
__device__ __forceinline__ void load8(const T* from, float (&to)[8]) {
  if constexpr (sizeof(T) == 4) {
    const float4 lo = *reinterpret_cast<const float4*>(from),
                 hi = *reinterpret_cast<const float4*>(from + 4);
    to[0] = lo.x;
    to[1] = lo.y;
    to[2] = lo.z;
    to[3] = lo.w;
    to[4] = hi.x;
    to[5] = hi.y;
    to[6] = hi.z;
    to[7] = hi.w;
  } else {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack2(T(), pairs[i]);
      to[2 * i] = pair.x;
      to[2 * i + 1] = pair.y;
    }
  }
}
template <typename T>
__device__ __forceinline__ void store8(T* to, const float (&from)[8]) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
    *reinterpret_cast<float4*>(to + 4) = make_float4(from[4], from[5], from[6], from[7]);
  } else {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack2(T(), from[0], from[1]), pack2(T(), from[2], from[3]),
                   pack2(T(), from[4], from[5]), pack2(T(), from[6], from[7]));
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_FOURS_CUH_
