// LinearAttention of one token, all four rules, with the options that models decode with. A call
// for one sequence takes 2.5 us, most of them spent on fetching instructions and waiting for
// memory: so there are few of them, all loads are under way before the first is used, and there is
// one barrier. linear_attention_decode.cu does the same for more tokens and every option.
//
// A block of 4 warps owns 32 columns of one state: 8 lanes share R neighbouring rows, 4 columns
// each. With d the decay, read after the update:
//   linear, gated   w = v
//   delta rules     w = beta (v - (d S)'k)
//   o = (d S)'q + (q.k) w,   S = d S + k w'
// The sums over rows are taken of S as it is read; d multiplies them, or q and k if it is per key.
#include <cmath>

#include "cuda/common/features.cuh"
#include "cuda/common/fours.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = 32;                   // of the state, per block
constexpr int kLanes = kColumns / 4;           // that share rows
constexpr int kGroups = 32 * kWarps / kLanes;  // of rows

struct TokenArgs {
  int HV, V, Hq, Hk;
  unsigned query_group, key_group;  // value heads per query head, per key head
  float scale;
  bool before;
  FeatureMap feature_map;
  DecayKind decay_kind;  // kNone where the rule has none
  BetaKind beta_kind;
  DType decay_type, beta_type, mask_type;
  const void *query, *key, *value, *past_state, *decay, *beta, *mask;
  void *output, *present_state;
};

template <typename T, int N>
__device__ __forceinline__ void load_fours(const T* from, Four<T> (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = load4(from + 4 * i);
}
template <typename T, int N>
__device__ __forceinline__ void widen_fours(const Four<T> (&from)[N / 4], float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N / 4; ++i) {
    float x[4];
    widen4(T(), from[i], x);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[4 * i + j] = x[j];
  }
}

// K == kGroups * R.
template <typename IO, typename ST, int R, bool Delta>
__global__ void __launch_bounds__(32 * kWarps)
    linear_attention_token_kernel(const __grid_constant__ TokenArgs p) {
  constexpr int K = kGroups * R;
  struct Partial {
    float4 query[kLanes], key[kLanes];
    float self;
  };
  __shared__ Partial partial[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part_lane = lane % kLanes;
  const int row = threadIdx.x / kLanes * R;
  const int col = blockIdx.x * kColumns + part_lane * 4, h = blockIdx.y, b = blockIdx.z;
  const int64_t state_index = int64_t{b} * p.HV + h;
  const bool inside = col < p.V, per_key = p.decay_kind == DecayKind::kPerKey;
  const int64_t state_at = (state_index * K + row) * p.V + col;

  Four<ST> raw[R];
  if (p.past_state && inside) {
    const ST* past = static_cast<const ST*>(p.past_state) + state_at;
#pragma unroll
    for (int i = 0; i < R; ++i) raw[i] = load4(past + i * p.V);
  } else {
#pragma unroll
    for (int i = 0; i < R; ++i) raw[i] = {};
  }
  Four<IO> raw_k[R / 4], raw_q[R / 4], raw_v = {};
  const int64_t key_head = int64_t{b} * p.Hk + static_cast<unsigned>(h) / p.key_group;
  const int64_t query_head = int64_t{b} * p.Hq + static_cast<unsigned>(h) / p.query_group;
  load_fours(static_cast<const IO*>(p.key) + key_head * K + row, raw_k);
  load_fours(static_cast<const IO*>(p.query) + query_head * K + row, raw_q);
  if (inside) raw_v = load4(static_cast<const IO*>(p.value) + state_index * p.V + col);
  uint32_t raw_mask = 1, raw_beta = 0, raw_decay = 0;
  if (p.mask) raw_mask = load_bits(p.mask, p.mask_type, b);
  if (Delta && p.beta_kind != BetaKind::kNone) {
    raw_beta = load_bits(p.beta, p.beta_type, p.beta_kind == BetaKind::kShared ? b : state_index);
  }
  if (p.decay_kind == DecayKind::kPerHead)
    raw_decay = load_bits(p.decay, p.decay_type, state_index);
  uint32_t raw_key_decay[R] = {};
  if (per_key) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      raw_key_decay[i] = load_bits(p.decay, p.decay_type, state_index * K + row + i);
    }
  }

  float k[R], q[R], v[4];
  widen_fours<IO>(raw_k, k);
  widen_fours<IO>(raw_q, q);
  widen4(IO(), raw_v, v);
  const bool seen = !p.mask || as_float(p.mask_type, raw_mask) != 0.f;
  if (p.feature_map != FeatureMap::kIdentity) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      k[i] = feature_of(p.feature_map, k[i]);
      q[i] = feature_of(p.feature_map, q[i]);
    }
  }
  float self = 0.f;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    if (!seen) k[i] = 0.f;
    self += q[i] * k[i];
  }
  float decay = 1.f, beta = seen ? 1.f : 0.f, key_decay[R];
#pragma unroll
  for (int i = 0; i < R; ++i) key_decay[i] = 1.f;
  if (p.decay_kind == DecayKind::kPerHead && seen) {
    decay = exp2f(kLog2e * as_float(p.decay_type, raw_decay));
  }
  if (per_key && seen) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      key_decay[i] = exp2f(kLog2e * as_float(p.decay_type, raw_key_decay[i]));
    }
  }
  if (Delta && seen && p.beta_kind != BetaKind::kNone) beta = as_float(p.beta_type, raw_beta);

  float of_query[4] = {}, of_key[4] = {};
#pragma unroll
  for (int i = 0; i < R; ++i) {
    float s[4];
    widen4(ST(), raw[i], s);
    const float qd = p.before ? q[i] : q[i] * key_decay[i], kd = k[i] * key_decay[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      of_query[j] += qd * s[j];
      if (Delta) of_key[j] += kd * s[j];
    }
  }
  const auto over_rows = [](float x) {
#pragma unroll
    for (int i = 16; i >= kLanes; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
  };
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    of_query[j] = over_rows(of_query[j]);
    if (Delta) of_key[j] = over_rows(of_key[j]);
  }
  self = over_rows(self);
  if (lane < kLanes) {
    partial[warp].query[lane] = make_float4(of_query[0], of_query[1], of_query[2], of_query[3]);
    if (Delta) {
      partial[warp].key[lane] = make_float4(of_key[0], of_key[1], of_key[2], of_key[3]);
    }
    if (lane == 0) partial[warp].self = self;
  }
  __syncthreads();
  float4 sum_query = {}, sum_key = {};
  self = 0.f;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const auto add = [](float4& to, const float4& x) {
      to = make_float4(to.x + x.x, to.y + x.y, to.z + x.z, to.w + x.w);
    };
    add(sum_query, partial[i].query[part_lane]);
    if (Delta) add(sum_key, partial[i].key[part_lane]);
    self += partial[i].self;
  }

  float w[4] = {v[0], v[1], v[2], v[3]};
  if (Delta) {
    w[0] = beta * (v[0] - decay * sum_key.x);
    w[1] = beta * (v[1] - decay * sum_key.y);
    w[2] = beta * (v[2] - decay * sum_key.z);
    w[3] = beta * (v[3] - decay * sum_key.w);
  }
  if (warp == 0 && lane < kLanes && inside) {
    const float read = p.before ? 1.f : decay, own = p.before ? 0.f : self;
    const float o[4] = {
        p.scale * (read * sum_query.x + own * w[0]), p.scale * (read * sum_query.y + own * w[1]),
        p.scale * (read * sum_query.z + own * w[2]), p.scale * (read * sum_query.w + own * w[3])};
    store4(static_cast<IO*>(p.output) + state_index * p.V + col, o);
  }
  if (!p.present_state || !inside) return;
  ST* present = static_cast<ST*>(p.present_state) + state_at;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    float s[4];
    widen4(ST(), raw[i], s);
#pragma unroll
    for (int j = 0; j < 4; ++j) s[j] = decay * key_decay[i] * s[j] + k[i] * w[j];
    store4(present + i * p.V, s);
  }
}

template <typename IO, typename ST, bool Delta>
cudaError_t launch(const TokenArgs& args, int64_t K, int64_t B, cudaStream_t stream) {
  const auto kernel = K == 64    ? linear_attention_token_kernel<IO, ST, 4, Delta>
                      : K == 128 ? linear_attention_token_kernel<IO, ST, 8, Delta>
                                 : linear_attention_token_kernel<IO, ST, 16, Delta>;
  const dim3 grid((args.V + kColumns - 1) / kColumns, args.HV, static_cast<unsigned>(B));
  kernel<<<grid, 32 * kWarps, 0, stream>>>(args);
  return cudaGetLastError();
}

bool is_delta(const LinearAttentionParams& p) {
  return p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
}

template <typename IO, typename ST>
cudaError_t launch_rule(const LinearAttentionParams& p, const TokenArgs& args,
                        cudaStream_t stream) {
  return is_delta(p) ? launch<IO, ST, true>(args, p.K, p.B, stream)
                     : launch<IO, ST, false>(args, p.K, p.B, stream);
}

template <typename IO>
cudaError_t launch_state(const LinearAttentionParams& p, const TokenArgs& args,
                         cudaStream_t stream) {
  return p.state == DType::kFloat32 ? launch_rule<IO, float>(p, args, stream)
                                    : launch_rule<IO, IO>(p, args, stream);
}

}  // namespace

bool linear_attention_token_takes(const LinearAttentionParams& p) {
  const auto in_fours = [](const void* pointer, DType type) {
    return reinterpret_cast<uintptr_t>(pointer) % (4 * size_of(type)) == 0;
  };
  constexpr int64_t kMostBlocks = 65535;  // along y and z
  const bool by_element =
      p.feature_map != FeatureMap::kL2Norm && p.feature_map != FeatureMap::kSoftmax;
  return p.T == 1 && p.B <= kMostBlocks && p.HV <= kMostBlocks &&
         (p.K == 64 || p.K == 128 || p.K == 256) && p.V % 4 == 0 && p.Hq <= p.HV && p.causal &&
         by_element && !p.qk_l2norm && !p.normalize && p.read != ReadMode::kBonus &&
         in_fours(p.query, p.io) && in_fours(p.key, p.io) && in_fours(p.value, p.io) &&
         in_fours(p.output, p.io) && in_fours(p.past_state, p.state) &&
         in_fours(p.present_state, p.state);
}

cudaError_t launch_linear_attention_token(const LinearAttentionParams& p, cudaStream_t stream) {
  const bool gated = p.rule == UpdateRule::kGated || p.rule == UpdateRule::kGatedDelta;
  TokenArgs a = {};
  a.HV = static_cast<int>(p.HV);
  a.V = static_cast<int>(p.V);
  a.Hq = static_cast<int>(p.Hq);
  a.Hk = static_cast<int>(p.Hk);
  a.query_group = a.HV / a.Hq;
  a.key_group = a.HV / a.Hk;
  a.scale = p.scale != 0.f ? p.scale : 1.f / std::sqrt(static_cast<float>(p.K));
  a.before = p.read == ReadMode::kBefore;
  a.feature_map = p.feature_map;
  a.decay_kind = gated ? p.decay_kind : DecayKind::kNone;
  a.beta_kind = p.beta_kind;
  a.decay_type = p.decay_dtype;
  a.beta_type = p.beta_dtype;
  a.mask_type = p.mask_dtype;
  a.query = p.query;
  a.key = p.key;
  a.value = p.value;
  a.past_state = p.past_state;
  a.decay = p.decay;
  a.beta = p.beta;
  a.mask = p.mask;
  a.output = p.output;
  a.present_state = p.present_state;
  switch (p.io) {
    case DType::kBFloat16:
      return launch_state<bf16>(p, a, stream);
    case DType::kFloat16:
      return launch_state<f16>(p, a, stream);
    default:
      return launch_rule<float, float>(p, a, stream);
  }
}

}  // namespace fla::cuda
