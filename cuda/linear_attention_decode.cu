// LinearAttention token by token, all four rules: for short inputs (decoding), where moving the state once is
// all the work there is, and for devices whose shared memory the chunked kernels do not fit.
//
// A warp owns 8 columns of one state: lane pairs share a row (two 16-byte halves), so that every access to the
// state moves whole 32-byte sectors. The state stays in registers over all tokens. Per token, with S already
// decayed and both sums over dk running over the lanes at once:
//   linear, gated   w = v                       o = S'q + (q.k) w
//   delta rules     w = beta (v - S'k)          o = S'q + (q.k) w,   S += k w'
// The normaliser is one more column, carried by every warp of the head and written by the first; a block then
// walks all columns of one head, so that nobody still reads it.
#include <algorithm>
#include <cmath>

#include "cuda/common/async.cuh"
#include "cuda/common/features.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr int kColumns = 8;  // of the state, per warp

struct DecodeArgs {
  int T, Hq, Hk, HV, HO, K, V, W, group;  // W = V + normalize; group = query heads per state
  int warps_per_head;
  float scale;
  bool decays, delta, before, bonus, causal, normalize, l2norm, vector_state;
  FeatureMap feature_map;
  DecayKind decay_kind;
  BetaKind beta_kind;
  DType io, state, decay_type, beta_type, mask_type, bonus_type;
  const void *query, *key, *value, *past_state, *decay, *beta, *mask, *bonus_u;
  void *output, *present_state;
};

// Elements lane / 2 + 16 i of a head vector, mapped. Elements from K on are 0.
template <int R>
__device__ __forceinline__ void load_features(const DecodeArgs& p, const void* src, int64_t at,
                                              float (&x)[R]) {
  const int first = (threadIdx.x & 31) >> 1;
  // every element is held twice, by both lanes of a pair: sums over 32 lanes count it twice
  float largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    x[i] = first + 16 * i < p.K ? load_as_float(src, p.io, at + first + 16 * i) : 0.f;
    if (first + 16 * i < p.K) largest = fmaxf(largest, x[i]);
  }
  if (p.feature_map == FeatureMap::kSoftmax) largest = lane_max<32>(largest);
  float total = 0.f, squares = 0.f;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    if (first + 16 * i >= p.K) continue;
    x[i] = p.feature_map == FeatureMap::kSoftmax ? expf(x[i] - largest)
                                                 : feature_of(p.feature_map, x[i]);
    total += x[i];
    squares += x[i] * x[i];
  }
  float factor = 1.f;
  if (p.feature_map == FeatureMap::kSoftmax) {
    factor = 2.f / lane_sum<32>(total);
  } else if (p.feature_map == FeatureMap::kL2Norm) {
    factor = rsqrtf(lane_sum<32>(squares) * 0.5f + kL2NormEps);
  }
  if (p.l2norm) {
    const float sum = lane_sum<32>(squares) * 0.5f * factor * factor;
    factor *= rsqrtf(sum + kL2NormEps);
  }
#pragma unroll
  for (int i = 0; i < R; ++i) x[i] *= factor;
}

// Sum over the lanes that hold the same columns.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int i = 16; i > 1; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// All tokens, for columns [part * kColumns, (part + 1) * kColumns) of state `state_index` = b * HV + h. Leaves the
// normaliser in state[.][4], unwritten.
template <int R>
__device__ __forceinline__ void run_columns(const DecodeArgs& p, int64_t state_index, int part,
                                            float (&state)[R][5]) {
  const int lane = threadIdx.x & 31;
  const int b = static_cast<int>(state_index / p.HV), h = static_cast<int>(state_index % p.HV);
  const int first_row = lane >> 1, col = part * kColumns + (lane & 1) * 4;
  const int hk = h / (p.HV / p.Hk);
  const int64_t state_at = state_index * p.K * p.W;

#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first_row + 16 * i;
#pragma unroll
    for (int j = 0; j < 5; ++j) state[i][j] = 0.f;
    if (!p.past_state || row >= p.K) continue;
    const int64_t at = state_at + static_cast<int64_t>(row) * p.W + col;
    if (p.vector_state && p.state == DType::kFloat32) {
      if (col < p.V) {
        const float4 x = *reinterpret_cast<const float4*>(static_cast<const float*>(p.past_state) + at);
        state[i][0] = x.x;
        state[i][1] = x.y;
        state[i][2] = x.z;
        state[i][3] = x.w;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (col + j < p.V) state[i][j] = load_as_float(p.past_state, p.state, at + j);
      }
    }
    if (p.normalize) {
      state[i][4] = load_as_float(p.past_state, p.state, state_at + static_cast<int64_t>(row) * p.W + p.V);
    }
  }

  const auto read_out = [&](int64_t t, bool with_self, const float (&k)[R], const float (&w)[5]) {
    for (int n = 0; n < p.group; ++n) {
      const int ho = h * p.group + n, hq = ho / (p.HO / p.Hq);
      float q[R];
      load_features(p, p.query, (t * p.Hq + hq) * p.K, q);
      float sums[5] = {}, self = 0.f;
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < 5; ++j) sums[j] += q[i] * state[i][j];
        float x = q[i] * k[i];
        const int row = first_row + 16 * i;
        if (p.bonus && row < p.K) x *= load_as_float(p.bonus_u, p.bonus_type, h * p.K + row);
        self += x;
      }
      self = with_self ? row_sum(self) : 0.f;
#pragma unroll
      for (int j = 0; j < 5; ++j) sums[j] = p.scale * (row_sum(sums[j]) + self * w[j]);
      const float divisor = p.normalize ? sums[4] + kNormalizeEps : 1.f;
      if (lane < 2) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (col + j < p.V) {
            store_from_float(p.output, p.io, (t * p.HO + ho) * p.V + col + j, sums[j] / divisor);
          }
        }
      }
    }
  };

  for (int token = 0; token < p.T; ++token) {
    const int64_t t = static_cast<int64_t>(b) * p.T + token;
    const bool seen = !p.mask || load_as_float(p.mask, p.mask_type, t) != 0.f;
    float k[R], w[5];
    load_features(p, p.key, (t * p.Hk + hk) * p.K, k);
    if (!seen) {
#pragma unroll
      for (int i = 0; i < R; ++i) k[i] = 0.f;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w[j] = col + j < p.V ? load_as_float(p.value, p.io, (t * p.HV + h) * p.V + col + j) : 0.f;
    }
    w[4] = p.normalize ? 1.f : 0.f;
    // Read before the update: the state is still undecayed, the bonus adds the token itself.
    if (p.causal && p.before) read_out(t, p.bonus, k, w);

    if (p.decays && seen) {
      const bool per_key = p.decay_kind == DecayKind::kPerKey;
      const float all =
          per_key ? 0.f : exp2f(kLog2e * load_as_float(p.decay, p.decay_type, t * p.HV + h));
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const int row = first_row + 16 * i;
        float factor = all;
        if (per_key && row < p.K) {
          factor = exp2f(kLog2e * load_as_float(p.decay, p.decay_type, (t * p.HV + h) * p.K + row));
        }
#pragma unroll
        for (int j = 0; j < 5; ++j) state[i][j] *= factor;
      }
    }
    if (p.delta) {
      float beta = seen ? 1.f : 0.f;
      if (seen && p.beta_kind != BetaKind::kNone) {
        const int64_t at = p.beta_kind == BetaKind::kShared ? t : t * p.HV + h;
        beta = load_as_float(p.beta, p.beta_type, at);
      }
#pragma unroll
      for (int j = 0; j < 5; ++j) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < R; ++i) sum += k[i] * state[i][j];
        w[j] = beta * (w[j] - row_sum(sum));
      }
    }
    // Reading after the update: S'q + (q.k) w needs no second pass over a changed state.
    if (p.causal && !p.before) read_out(t, true, k, w);
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int j = 0; j < 5; ++j) state[i][j] += k[i] * w[j];
    }
  }
  if (!p.causal) {
    const float none[R] = {}, no_write[5] = {};
    for (int token = 0; token < p.T; ++token) {
      read_out(static_cast<int64_t>(b) * p.T + token, false, none, no_write);
    }
  }

  if (!p.present_state) return;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int row = first_row + 16 * i;
    if (row >= p.K) continue;
    const int64_t at = state_at + static_cast<int64_t>(row) * p.W + col;
    if (p.vector_state && p.state == DType::kFloat32) {
      if (col < p.V) {
        *reinterpret_cast<float4*>(static_cast<float*>(p.present_state) + at) =
            make_float4(state[i][0], state[i][1], state[i][2], state[i][3]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (col + j < p.V) store_from_float(p.present_state, p.state, at + j, state[i][j]);
      }
    }
  }
}

template <int R>
__global__ void __launch_bounds__(256) decode_kernel(const __grid_constant__ DecodeArgs p) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  float state[R][5];
  if (!p.normalize) {
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * warps + warp;
    run_columns<R>(p, unit / p.warps_per_head, static_cast<int>(unit % p.warps_per_head), state);
    return;
  }
  for (int part = warp; part < p.warps_per_head; part += warps) {
    run_columns<R>(p, blockIdx.x, part, state);
  }
  __syncthreads();
  if (p.present_state && threadIdx.x < 32 && threadIdx.x % 2 == 0) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int row = threadIdx.x / 2 + 16 * i;
      const int64_t at = (static_cast<int64_t>(blockIdx.x) * p.K + row) * p.W + p.V;
      if (row < p.K) store_from_float(p.present_state, p.state, at, state[i][4]);
    }
  }
}

template <int R>
cudaError_t launch(const DecodeArgs& args, int64_t heads, cudaStream_t stream) {
  const int64_t warps = heads * args.warps_per_head;
  int per_block = args.normalize ? std::min(args.warps_per_head, 8) : 4;
  while (!args.normalize && warps % per_block != 0) per_block /= 2;
  const int64_t blocks = args.normalize ? heads : warps / per_block;
  decode_kernel<R><<<static_cast<unsigned>(blocks), per_block * 32, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_linear_attention_decode(const LinearAttentionParams& p, cudaStream_t stream) {
  DecodeArgs a = {};
  a.T = static_cast<int>(p.T);
  a.Hq = static_cast<int>(p.Hq);
  a.Hk = static_cast<int>(p.Hk);
  a.HV = static_cast<int>(p.HV);
  a.HO = std::max(a.Hq, a.HV);
  a.K = static_cast<int>(p.K);
  a.V = static_cast<int>(p.V);
  a.W = a.V + (p.normalize ? 1 : 0);
  a.group = a.HO / a.HV;
  a.warps_per_head = (a.V + kColumns - 1) / kColumns;
  a.scale = p.scale != 0.f ? p.scale : 1.f / std::sqrt(static_cast<float>(p.K));
  a.decays = (p.rule == UpdateRule::kGated || p.rule == UpdateRule::kGatedDelta) &&
             p.decay_kind != DecayKind::kNone;
  a.delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
  a.before = p.read != ReadMode::kAfter;
  a.bonus = p.read == ReadMode::kBonus;
  a.causal = p.causal;
  a.normalize = p.normalize;
  a.l2norm = p.qk_l2norm;
  a.feature_map = p.feature_map;
  a.decay_kind = p.decay_kind;
  a.beta_kind = p.beta_kind;
  a.io = p.io;
  a.state = p.state;
  a.decay_type = p.decay_dtype;
  a.beta_type = p.beta_dtype;
  a.mask_type = p.mask_dtype;
  a.bonus_type = p.bonus_dtype;
  a.query = p.query;
  a.key = p.key;
  a.value = p.value;
  a.past_state = p.past_state;
  a.decay = p.decay;
  a.beta = p.beta;
  a.mask = p.mask;
  a.bonus_u = p.bonus;
  a.output = p.output;
  a.present_state = p.present_state;
  a.vector_state = a.W % 4 == 0 && a.V % 4 == 0 && reinterpret_cast<uintptr_t>(p.past_state) % 16 == 0 &&
                   reinterpret_cast<uintptr_t>(p.present_state) % 16 == 0;
  const int64_t heads = p.B * p.HV;
  if (p.K <= 64) return launch<4>(a, heads, stream);
  if (p.K <= 128) return launch<8>(a, heads, stream);
  return launch<16>(a, heads, stream);
}

}  // namespace fla::cuda
