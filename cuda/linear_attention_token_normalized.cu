// LinearAttention of one token with the normaliser, rules linear and gated: what models that were
// rewritten to linear attention decode with. The normaliser is one more column of the state, so its
// rows start anywhere: a lane owns one column and a warp reads rows of 32 neighbouring ones.
//
//   S = d S + k (v, 1)',  o = scale S'q / (scale z'q + eps)      (z: the last column of S)
//
// A thread block owns all columns of one state, 4 warps for each 32 of them, each with a quarter of
// the rows; the first four have the normaliser as well. All have read it, in place or not, before
// the first of them writes: between a call's reads and its writes is a barrier. Up to 8 query heads
// share a state.
#include <algorithm>
#include <cmath>

#include "cuda/common/features.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr int kRowWarps = 4;
constexpr int kColumns = 32;   // per warp
constexpr int kMostParts = 4;  // of kColumns columns
constexpr int kMostGroup = 8;  // query heads per state

struct NormalizedArgs {
  int HV, V, Hq, Hk, HO, group;  // group: output heads per state
  float scale;
  bool before;
  FeatureMap feature_map;
  DecayKind decay_kind;
  DType decay_type, mask_type;
  const void *query, *key, *value, *past_state, *decay, *mask;
  void *output, *present_state;
};

template <typename IO, typename ST, int K>
__global__ void __launch_bounds__(32 * kRowWarps * kMostParts, 1)
    linear_attention_token_normalized_kernel(const __grid_constant__ NormalizedArgs p) {
  constexpr int kRows = K / kRowWarps;  // of a warp
  __shared__ __align__(16) float keys[K], decays[K], queries[kMostGroup][K];
  __shared__ float sums[kMostGroup][kMostParts][kRowWarps][kColumns];
  __shared__ float2 ends[kMostGroup][kRowWarps];  // z'q and k'q
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row_warp = warp % kRowWarps, part = warp / kRowWarps, first_row = row_warp * kRows;
  const int col = part * kColumns + lane, h = blockIdx.x, b = blockIdx.y, W = p.V + 1;
  const int64_t state_index = int64_t{b} * p.HV + h;
  const int64_t state_at = (state_index * K + first_row) * W;
  const bool inside = col < p.V, has_z = part == 0 && lane < kRows;

  ST raw[kRows], raw_z = from_float<ST>(0.f);
#pragma unroll
  for (int i = 0; i < kRows; ++i) raw[i] = raw_z;
  if (p.past_state) {
    const ST* const past = static_cast<const ST*>(p.past_state) + state_at;
    if (inside) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) raw[i] = past[i * W + col];
    }
    if (has_z) raw_z = past[lane * W + p.V];
  }
  float v = 0.f;
  if (inside) v = to_float(static_cast<const IO*>(p.value)[state_index * p.V + col]);
  const bool seen = !p.mask || load_as_float(p.mask, p.mask_type, b) != 0.f;
  const bool per_key = p.decay_kind == DecayKind::kPerKey;
  float decay = 1.f;
  if (p.decay_kind == DecayKind::kPerHead && seen) {
    decay = exp2f(kLog2e * load_as_float(p.decay, p.decay_type, state_index));
  }
  const IO* const key = static_cast<const IO*>(p.key) + (int64_t{b} * p.Hk + h / (p.HV / p.Hk)) * K;
  for (int i = threadIdx.x; i < K; i += blockDim.x) {
    keys[i] = seen ? feature_of(p.feature_map, to_float(key[i])) : 0.f;
    decays[i] = per_key && seen
                    ? exp2f(kLog2e * load_as_float(p.decay, p.decay_type, state_index * K + i))
                    : decay;
  }
  for (int i = threadIdx.x; i < K * p.group; i += blockDim.x) {
    const int head = (h * p.group + i / K) / (p.HO / p.Hq);
    const IO* const query = static_cast<const IO*>(p.query) + (int64_t{b} * p.Hq + head) * K;
    queries[i / K][i % K] = feature_of(p.feature_map, to_float(query[i % K]));
  }
  __syncthreads();

  float state[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) state[i] = to_float(raw[i]);
  float z = to_float(raw_z);
  const auto forget = [&] {
#pragma unroll
    for (int i = 0; i < kRows; ++i) state[i] *= decays[first_row + i];
    if (has_z) z *= decays[first_row + lane];
  };
  if (!p.before) forget();
#pragma unroll 1
  for (int n = 0; n < p.group; ++n) {
    const float* const query = queries[n] + first_row;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kRows; ++i) sum += query[i] * state[i];
    sums[n][part][row_warp][lane] = sum;
    if (part == 0) {
      const float q = lane < kRows ? query[lane] : 0.f;
      const float k = lane < kRows ? keys[first_row + lane] : 0.f;
      const float of_z = lane_sum<32>(q * z), self = lane_sum<32>(q * k);
      if (lane == 0) ends[n][row_warp] = make_float2(of_z, self);
    }
  }
  __syncthreads();

#pragma unroll 1
  for (int n = row_warp; n < p.group; n += kRowWarps) {
    float sum = 0.f, of_z = 0.f, self = 0.f;
#pragma unroll
    for (int i = 0; i < kRowWarps; ++i) {
      sum += sums[n][part][i][lane];
      of_z += ends[n][i].x;
      self += ends[n][i].y;
    }
    if (p.before) self = 0.f;
    const float o = p.scale * (sum + self * v) / (p.scale * (of_z + self) + kNormalizeEps);
    const int64_t head = int64_t{b} * p.HO + h * p.group + n;
    if (inside) static_cast<IO*>(p.output)[head * p.V + col] = from_float<IO>(o);
  }
  if (!p.present_state) return;
  if (p.before) forget();
  ST* const present = static_cast<ST*>(p.present_state) + state_at;
  if (inside) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      present[i * W + col] = from_float<ST>(state[i] + keys[first_row + i] * v);
    }
  }
  if (has_z) present[lane * W + p.V] = from_float<ST>(z + keys[first_row + lane]);
}

template <typename IO, typename ST>
cudaError_t launch(const NormalizedArgs& args, int64_t K, int64_t B, cudaStream_t stream) {
  const auto kernel = K == 64 ? linear_attention_token_normalized_kernel<IO, ST, 64>
                              : linear_attention_token_normalized_kernel<IO, ST, 128>;
  const int parts = (args.V + kColumns - 1) / kColumns;
  const dim3 grid(args.HV, static_cast<unsigned>(B));
  kernel<<<grid, 32 * kRowWarps * parts, 0, stream>>>(args);
  return cudaGetLastError();
}

template <typename IO>
cudaError_t launch_state(const LinearAttentionParams& p, const NormalizedArgs& args,
                         cudaStream_t stream) {
  return p.state == DType::kFloat32 ? launch<IO, float>(args, p.K, p.B, stream)
                                    : launch<IO, IO>(args, p.K, p.B, stream);
}

}  // namespace

bool linear_attention_token_normalized_takes(const LinearAttentionParams& p) {
  constexpr int64_t kMostRows = 65535;  // blocks along y
  const bool by_element =
      p.feature_map != FeatureMap::kL2Norm && p.feature_map != FeatureMap::kSoftmax;
  const bool additive = p.rule == UpdateRule::kLinear || p.rule == UpdateRule::kGated;
  return p.T == 1 && p.normalize && additive && p.causal && by_element && !p.qk_l2norm &&
         p.read != ReadMode::kBonus && (p.K == 64 || p.K == 128) && p.V <= kColumns * kMostParts &&
         p.B <= kMostRows && std::max(p.Hq, p.HV) / p.HV <= kMostGroup;
}

cudaError_t launch_linear_attention_token_normalized(const LinearAttentionParams& p,
                                                     cudaStream_t stream) {
  NormalizedArgs a = {};
  a.HV = static_cast<int>(p.HV);
  a.V = static_cast<int>(p.V);
  a.Hq = static_cast<int>(p.Hq);
  a.Hk = static_cast<int>(p.Hk);
  a.HO = std::max(a.Hq, a.HV);
  a.group = a.HO / a.HV;
  a.scale = p.scale != 0.f ? p.scale : 1.f / std::sqrt(static_cast<float>(p.K));
  a.before = p.read == ReadMode::kBefore;
  a.feature_map = p.feature_map;
  a.decay_kind = p.rule == UpdateRule::kGated ? p.decay_kind : DecayKind::kNone;
  a.decay_type = p.decay_dtype;
  a.mask_type = p.mask_dtype;
  a.query = p.query;
  a.key = p.key;
  a.value = p.value;
  a.past_state = p.past_state;
  a.decay = p.decay;
  a.mask = p.mask;
  a.output = p.output;
  a.present_state = p.present_state;
  switch (p.io) {
    case DType::kBFloat16:
      return launch_state<bf16>(p, a, stream);
    case DType::kFloat16:
      return launch_state<f16>(p, a, stream);
    default:
      return launch<float, float>(a, p.K, p.B, stream);
  }
}

}  // namespace fla::cuda
