// CausalConvWithState: one thread per output element, then one per row of the state. The op moves
// each byte once and does a handful of multiplications with it, so there is nothing to tile: the
// kernel - 1 re-reads of an input element hit the L1 cache.
#include "cuda/causal_conv_with_state.h"
#include "cuda/common/types.cuh"

namespace fla {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

template <typename T>
struct Conv {
  int64_t rows;  // B * C
  int64_t C;
  int64_t length;  // T
  int64_t kernel;
  bool silu;
  const T* input;
  const T* weight;
  const T* bias;
  const T* past;
  T* output;
  T* present;
};

// Element `t` of [past | input] of a row, counted from the first of past.
template <typename T>
__device__ float extended(const Conv<T>& p, int64_t row, int64_t t) {
  const int64_t carried = p.kernel - 1;
  if (t >= carried) return cuda::to_float(p.input[row * p.length + t - carried]);
  return p.past ? cuda::to_float(p.past[row * carried + t]) : 0.f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) convolve(const Conv<T> p) {
  const int64_t total = p.rows * p.length;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t row = i / p.length;
    const int64_t t = i % p.length;
    const int64_t channel = row % p.C;
    float sum = p.bias ? cuda::to_float(p.bias[channel]) : 0.f;
    for (int64_t j = 0; j < p.kernel; ++j) {
      sum += cuda::to_float(p.weight[channel * p.kernel + j]) * extended(p, row, t + j);
    }
    p.output[i] = cuda::from_float<T>(p.silu ? sum / (1.f + expf(-sum)) : sum);
  }
}

// A row's state moves towards its beginning, so that past and present may be the same memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) carry(const Conv<T> p) {
  const int64_t row = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (row >= p.rows) return;
  const int64_t carried = p.kernel - 1;
  for (int64_t j = 0; j < carried; ++j) {
    p.present[row * carried + j] = cuda::from_float<T>(extended(p, row, p.length + j));
  }
}

int64_t blocks(int64_t items) { return (items + kThreads - 1) / kThreads; }

template <typename T>
cudaError_t launch(const CausalConvWithStateParams& params, cudaStream_t stream) {
  const Conv<T> p{params.B * params.C,
                  params.C,
                  params.T,
                  params.kernel,
                  params.silu,
                  static_cast<const T*>(params.input),
                  static_cast<const T*>(params.weight),
                  static_cast<const T*>(params.bias),
                  static_cast<const T*>(params.past_state),
                  static_cast<T*>(params.output),
                  static_cast<T*>(params.present_state)};
  const int64_t elements = p.rows * p.length;
  if (elements > 0) {
    const int64_t grid = blocks(elements) < kMaxBlocks ? blocks(elements) : kMaxBlocks;
    convolve<T><<<static_cast<unsigned>(grid), kThreads, 0, stream>>>(p);
  }
  // Second, because the first reads the past that this may overwrite.
  if (p.present && p.rows > 0 && p.kernel > 1) {
    carry<T><<<static_cast<unsigned>(blocks(p.rows)), kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t causal_conv_with_state_cuda(const CausalConvWithStateParams& params,
                                        cudaStream_t stream) {
  switch (params.io) {
    case DType::kFloat32:
      return launch<float>(params, stream);
    case DType::kFloat16:
      return launch<cuda::f16>(params, stream);
    case DType::kBFloat16:
      return launch<cuda::bf16>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fla
