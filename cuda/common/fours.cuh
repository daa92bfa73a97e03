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

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_FOURS_CUH_
