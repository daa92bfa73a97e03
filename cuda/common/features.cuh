// Feature maps of queries and keys, one head vector at a time, spread over `Lanes` neighbouring
// lanes.
#ifndef FLA_CUDA_COMMON_FEATURES_CUH_
#define FLA_CUDA_COMMON_FEATURES_CUH_

#include "cuda/common/types.cuh"

namespace fla::cuda {

constexpr float kL2NormEps = 1e-6f;
constexpr float kNormalizeEps = 1e-6f;
constexpr float kExpClamp = 80.f;

template <int Lanes>
__device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
  for (int i = Lanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}
template <int Lanes>
__device__ __forceinline__ float lane_max(float x) {
#pragma unroll
  for (int i = Lanes / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}

// 1 / sqrt(sum x^2 + eps) of a vector, where sum_of_squares(scale) is that of scale * x. Squares of
// large features (exp) leave float's range: such vectors are made smaller first, and beside them
// eps is nothing. All lanes of the warp must call this together.
template <typename SumOfSquares>
__device__ __forceinline__ float inverse_norm(SumOfSquares sum_of_squares) {
  constexpr float kShrink = 0x1p-96f;
  const float inverse = rsqrtf(sum_of_squares(1.f) + kL2NormEps);
  if (!__any_sync(0xffffffffu, inverse == 0.f)) return inverse;
  const float shrunk = kShrink * rsqrtf(sum_of_squares(kShrink));
  return inverse == 0.f ? shrunk : inverse;
}

// What the map does to one element; l2norm and softmax need the whole vector as well.
__device__ __forceinline__ float feature_of(FeatureMap map, float x) {
  switch (map) {
    case FeatureMap::kElu1:
      return x > 0.f ? x + 1.f : expf(x);
    case FeatureMap::kRelu:
      return fmaxf(x, 0.f);
    case FeatureMap::kExp:
      return expf(fminf(x, kExpClamp));
    case FeatureMap::kSilu:
      return x / (1.f + expf(-x));
    default:
      return x;
  }
}

// The same for N elements; the map is looked at once. Rounded: to 16 bits afterwards, so that the
// error of fast_exp2, that of its argument (2^-24 |x|), does not matter.
template <bool Rounded, int N>
__device__ __forceinline__ void map_elements(FeatureMap map, float (&x)[N]) {
  const auto exponential = [](float y) {
    if constexpr (Rounded) {
      return fast_exp2(y * kLog2e);
    } else {
      return expf(y);
    }
  };
  switch (map) {
    case FeatureMap::kElu1:
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = x[i] > 0.f ? x[i] + 1.f : exponential(x[i]);
      break;
    case FeatureMap::kRelu:
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = fmaxf(x[i], 0.f);
      break;
    case FeatureMap::kExp:
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = exponential(fminf(x[i], kExpClamp));
      break;
    case FeatureMap::kSilu:
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float divisor = 1.f + exponential(-x[i]);
        x[i] = Rounded ? __fdividef(x[i], divisor) : x[i] / divisor;
      }
      break;
    default:
      break;
  }
}

// Maps a vector of `size` elements in place. load(i) and store(i, x) reach element i; lane `lane`
// of the Lanes that share the vector handles elements lane, lane + Lanes, ... below `size`. All
// lanes of the warp must call this together.
template <int Lanes, typename Load, typename Store>
__device__ __forceinline__ void map_features(FeatureMap map, bool l2norm, int lane, int size,
                                             Load load, Store store) {
  const auto norm_of = [&](const auto& element) {
    return inverse_norm([&](float scale) {
      float squares = 0.f;
      for (int i = lane; i < size; i += Lanes) {
        const float x = scale * element(i);
        squares += x * x;
      }
      return lane_sum<Lanes>(squares);
    });
  };
  float shift = 0.f, factor = 1.f;
  if (map == FeatureMap::kSoftmax) {
    float largest = -INFINITY, total = 0.f;
    for (int i = lane; i < size; i += Lanes) largest = fmaxf(largest, load(i));
    shift = lane_max<Lanes>(largest);
    for (int i = lane; i < size; i += Lanes) total += expf(load(i) - shift);
    factor = 1.f / lane_sum<Lanes>(total);
  } else if (map == FeatureMap::kL2Norm) {
    factor = norm_of(load);
  }
  const auto value = [&](int i) {
    const float x = load(i);
    return factor * (map == FeatureMap::kSoftmax ? expf(x - shift) : feature_of(map, x));
  };
  const float norm = l2norm ? norm_of(value) : 1.f;
  for (int i = lane; i < size; i += Lanes) store(i, norm * value(i));
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_FEATURES_CUH_
