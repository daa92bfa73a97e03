// What the CUDA test and bench programs share: device buffers, random inputs, a float64 reference
// on the GPU, error measures.
#ifndef FLA_TEST_CUDA_SUPPORT_CUH_
#define FLA_TEST_CUDA_SUPPORT_CUH_

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/common/types.cuh"
#include "cuda/linear_attention.h"

#define CHECK(call)                                                                        \
  do {                                                                                     \
    const cudaError_t error_ = (call);                                                     \
    if (error_ != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

namespace fla_test {

using fla::DType;
using fla::LinearAttentionParams;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    if (bytes) CHECK(cudaMalloc(&data_, bytes));
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() { cudaFree(data_); }
  void* get() const { return data_; }
  size_t size() const { return bytes_; }
  // All bits set: NaN in every float type.
  void poison() const {
    if (bytes_) CHECK(cudaMemset(data_, 0xff, bytes_));
  }
  void upload(const void* from) const {
    if (bytes_) CHECK(cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice));
  }
  void copy_from(const Buffer& other) const {
    if (bytes_) CHECK(cudaMemcpy(data_, other.data_, bytes_, cudaMemcpyDeviceToDevice));
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

__global__ void differ_kernel(const unsigned char* a, const unsigned char* b, size_t n,
                              int* found) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n; i += stride) {
    if (a[i] != b[i]) *found = 1;
  }
}

// Whether two buffers of one size hold different bits. Waits for the default stream.
inline bool differ(const Buffer& a, const Buffer& b) {
  static int* found = [] {
    int* p;
    CHECK(cudaMalloc(&p, sizeof(int)));
    return p;
  }();
  CHECK(cudaMemset(found, 0, sizeof(int)));
  if (a.size()) {
    differ_kernel<<<512, 256>>>(static_cast<unsigned char*>(a.get()),
                                static_cast<unsigned char*>(b.get()), a.size(), found);
  }
  int host;
  CHECK(cudaMemcpy(&host, found, sizeof(host), cudaMemcpyDeviceToHost));
  return host != 0;
}

enum class Fill {
  kNormal,      // a * N(0,1)
  kUniform,     // a + (b - a) * U
  kLogSigmoid,  // log(sigmoid(N(0,1))) * a
  kUnit,        // head vectors of length 1, `width` elements each
  kVisible      // 1 with probability a
};

__device__ inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
__device__ inline float uniform_at(uint64_t seed, uint64_t i) {
  return static_cast<float>(mix(seed ^ mix(i)) >> 40) * 0x1p-24f + 0x1p-25f;
}
__device__ inline float normal_at(uint64_t seed, uint64_t i) {
  return sqrtf(-2.f * logf(uniform_at(seed, 2 * i))) * cospif(2.f * uniform_at(seed, 2 * i + 1));
}

__global__ void fill_kernel(void* out, DType type, int64_t n, Fill fill, float a, float b,
                            int width, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += stride) {
    float x = 0.f;
    if (fill == Fill::kNormal) x = a * normal_at(seed, i);
    if (fill == Fill::kUniform) x = a + (b - a) * uniform_at(seed, i);
    if (fill == Fill::kLogSigmoid) x = -a * log1pf(expf(-normal_at(seed, i)));
    if (fill == Fill::kVisible) x = uniform_at(seed, i) < a ? 1.f : 0.f;
    if (fill == Fill::kUnit) {
      float sum = 0.f;
      for (int64_t j = i / width * width; j < i / width * width + width; ++j) {
        sum += normal_at(seed, j) * normal_at(seed, j);
      }
      x = normal_at(seed, i) * rsqrtf(sum);
    }
    if (type == DType::kBool) {
      static_cast<uint8_t*>(out)[i] = x != 0.f;
    } else {
      fla::cuda::store_from_float(out, type, i, x);
    }
  }
}

inline void fill(const Buffer& buffer, DType type, Fill kind, float a, float b, int width,
                 uint64_t seed) {
  const int64_t n = buffer.size() / fla::cuda::size_of(type);
  if (n == 0) return;
  fill_kernel<<<1024, 256>>>(buffer.get(), type, n, kind, a, b, width, seed);
  CHECK(cudaGetLastError());
}

// ---- float64 reference: one block per state, one thread per column, token after token ----

__device__ inline double reference_value(const void* p, DType type, int64_t i) {
  return fla::cuda::load_as_float(p, type, i);
}

// Mapped head vector into out[0..K), by one warp.
__device__ inline void reference_features(const LinearAttentionParams& p, const void* src,
                                          int64_t at, double* out) {
  using fla::FeatureMap;
  const int lane = threadIdx.x & 31;
  const auto sum_over = [&](auto term) {
    double x = 0;
    for (int i = lane; i < p.K; i += 32) x += term(i);
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
  };
  double largest = -INFINITY;
  for (int i = lane; i < p.K; i += 32) largest = fmax(largest, reference_value(src, p.io, at + i));
  for (int i = 16; i > 0; i /= 2) largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, i));
  const auto raw = [&](int i) {
    const double x = reference_value(src, p.io, at + i);
    switch (p.feature_map) {
      case FeatureMap::kElu1:
        return x > 0 ? x + 1 : exp(x);
      case FeatureMap::kRelu:
        return fmax(x, 0.0);
      case FeatureMap::kExp:
        return exp(fmin(x, 80.0));
      case FeatureMap::kSilu:
        return x / (1 + exp(-x));
      case FeatureMap::kSoftmax:
        return exp(x - largest);
      default:
        return x;
    }
  };
  double factor = 1;
  if (p.feature_map == FeatureMap::kSoftmax) factor = 1 / sum_over(raw);
  if (p.feature_map == FeatureMap::kL2Norm) {
    factor = 1 / sqrt(sum_over([&](int i) { return raw(i) * raw(i); }) + 1e-6);
  }
  if (p.qk_l2norm) {
    factor /= sqrt(sum_over([&](int i) { return factor * raw(i) * factor * raw(i); }) + 1e-6);
  }
  for (int i = lane; i < p.K; i += 32) out[i] = factor * raw(i);
}

// Grid: x = state b * HV + h. Threads: at least W = V + normalize, whole warps, at least 2 warps.
// KP >= K.
template <int KP>
__global__ void reference_kernel(const LinearAttentionParams p, double* output, double* present) {
  using fla::DecayKind;
  using fla::UpdateRule;
  __shared__ double q[KP], k[KP], decay[KP], denominator;
  const int W = p.V + p.normalize, j = threadIdx.x;
  const int64_t b = blockIdx.x / p.HV, h = blockIdx.x % p.HV;
  const int64_t HO = p.Hq > p.HV ? p.Hq : p.HV, group = HO / p.HV;
  const bool delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
  const bool gated = p.rule == UpdateRule::kGated || p.rule == UpdateRule::kGatedDelta;
  const double scale = p.scale != 0 ? p.scale : 1 / sqrt(static_cast<double>(p.K));
  double S[KP];
  for (int i = 0; i < KP; ++i) {
    S[i] = p.past_state && j < W && i < p.K
               ? reference_value(p.past_state, p.state, (blockIdx.x * p.K + i) * W + j)
               : 0;
  }
  const auto read = [&](int64_t t, bool self, double v) {
    for (int64_t n = 0; n < group; ++n) {
      const int64_t ho = h * group + n, hq = ho / (HO / p.Hq);
      __syncthreads();
      if (threadIdx.x < 32) reference_features(p, p.query, (t * p.Hq + hq) * p.K, q);
      __syncthreads();
      double sum = 0;
#pragma unroll
      for (int i = 0; i < KP; ++i) {
        if (i >= p.K) continue;
        double s = S[i];
        if (self) s += reference_value(p.bonus, p.bonus_dtype, h * p.K + i) * k[i] * v;
        sum += q[i] * s;
      }
      sum *= scale;
      if (p.normalize) {
        if (j == p.V) denominator = sum + 1e-6;
        __syncthreads();
        sum /= denominator;
      }
      if (j < p.V) output[(t * HO + ho) * p.V + j] = sum;
    }
  };
  for (int64_t token = 0; token < p.T; ++token) {
    const int64_t t = b * p.T + token;
    const bool seen = !p.mask || reference_value(p.mask, p.mask_dtype, t) != 0;
    __syncthreads();
    if (threadIdx.x < 32) {
      reference_features(p, p.key, (t * p.Hk + h / (p.HV / p.Hk)) * p.K, k);
    } else if (threadIdx.x < 64) {
      for (int i = threadIdx.x - 32; i < p.K; i += 32) {
        double g = 0;
        if (gated && seen && p.decay_kind == DecayKind::kPerHead) {
          g = reference_value(p.decay, p.decay_dtype, t * p.HV + h);
        } else if (gated && seen && p.decay_kind == DecayKind::kPerKey) {
          g = reference_value(p.decay, p.decay_dtype, (t * p.HV + h) * p.K + i);
        }
        decay[i] = exp(g);
      }
    }
    __syncthreads();
    double v = j < p.V ? reference_value(p.value, p.io, (t * p.HV + h) * p.V + j) : 1;
    if (p.causal && p.read != fla::ReadMode::kAfter) {
      read(t, p.read == fla::ReadMode::kBonus && seen, v);
    }
    double dot = 0;
#pragma unroll
    for (int i = 0; i < KP; ++i) {
      if (i >= p.K) continue;
      if (gated) S[i] *= decay[i];
      if (delta) dot += S[i] * k[i];
    }
    if (delta) {
      double beta = seen ? 1 : 0;
      if (seen && p.beta_kind == fla::BetaKind::kPerHead) {
        beta = reference_value(p.beta, p.beta_dtype, t * p.HV + h);
      } else if (seen && p.beta_kind == fla::BetaKind::kShared) {
        beta = reference_value(p.beta, p.beta_dtype, t);
      }
      v = beta * (v - dot);
    }
    if (seen) {
#pragma unroll
      for (int i = 0; i < KP; ++i) {
        if (i < p.K) S[i] += k[i] * v;
      }
    }
    if (p.causal && p.read == fla::ReadMode::kAfter) read(t, false, 0);
  }
  if (!p.causal) {
    for (int64_t token = 0; token < p.T; ++token) read(b * p.T + token, false, 0);
  }
  if (present && j < W) {
    for (int i = 0; i < p.K; ++i) present[(blockIdx.x * p.K + i) * W + j] = S[i];
  }
}

inline void run_reference(const LinearAttentionParams& p, double* output, double* present) {
  if (p.B == 0 || p.HV == 0) return;
  const int W = static_cast<int>(p.V) + p.normalize;
  const int threads = std::max(64, (W + 31) / 32 * 32);
  const unsigned blocks = static_cast<unsigned>(p.B * p.HV);
  if (p.K <= 64) {
    reference_kernel<64><<<blocks, threads>>>(p, output, present);
  } else {
    reference_kernel<256><<<blocks, threads>>>(p, output, present);
  }
  CHECK(cudaGetLastError());
}

// sums[0] += |actual - expected|^2, sums[1] += |expected|^2; NaN anywhere stays NaN.
template <typename Expected>
__global__ void error_kernel(const void* actual, DType type, const Expected* expected, int64_t n,
                             double* sums) {
  double difference = 0, size = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n;
       i += stride) {
    const double e = expected[i], a = fla::cuda::load_as_float(actual, type, i);
    difference += (a - e) * (a - e);
    size += e * e;
  }
  atomicAdd(sums, difference);
  atomicAdd(sums + 1, size);
}

// ||actual - expected|| / ||expected||; the norm of actual where expected is all zero.
template <typename Expected>
double relative_error(const void* actual, DType type, const Expected* expected, int64_t n) {
  if (n == 0) return 0;
  static double* sums = [] {
    double* p;
    CHECK(cudaMalloc(&p, 2 * sizeof(double)));
    return p;
  }();
  CHECK(cudaMemset(sums, 0, 2 * sizeof(double)));
  error_kernel<<<512, 256>>>(actual, type, expected, n, sums);
  double host[2];
  CHECK(cudaMemcpy(host, sums, sizeof(host), cudaMemcpyDeviceToHost));
  return std::sqrt(host[1] == 0 ? host[0] : host[0] / host[1]);
}

// ---- a call with its buffers ----

struct Sizes {
  int64_t output, state;  // elements
};
inline Sizes sizes_of(const LinearAttentionParams& p) {
  return {p.B * p.T * std::max(p.Hq, p.HV) * p.V, p.B * p.HV * p.K * (p.V + p.normalize)};
}

// Everything a call reads and writes, owned. `params` points into the buffers.
struct Call {
  std::string name;
  LinearAttentionParams params;
  Buffer query, key, value, past_state, decay, beta, mask, bonus, output, present_state, workspace;

  void bind() {
    params.query = query.get();
    params.key = key.get();
    params.value = value.get();
    params.past_state = past_state.get();
    params.decay = decay.get();
    params.beta = beta.get();
    params.mask = mask.get();
    params.bonus = bonus.get();
    params.output = output.get();
    params.present_state = present_state.get();
  }
  void allocate_outputs() {
    const Sizes sizes = sizes_of(params);
    output = Buffer(sizes.output * fla::cuda::size_of(params.io));
    present_state = Buffer(sizes.state * fla::cuda::size_of(params.state));
    bind();
    workspace = Buffer(fla::linear_attention_cuda_workspace(params));
  }
  cudaError_t run(cudaStream_t stream = nullptr) const {
    return fla::linear_attention_cuda(params, workspace.get(), stream);
  }
};

}  // namespace fla_test

#endif  // FLA_TEST_CUDA_SUPPORT_CUH_
