// LinearAttention token by token, all four rules: for short inputs (decoding), where moving the
// state once is all the work there is, and for devices whose shared memory the chunked kernels do
// not fit.
//
// A block owns 32 columns of one state, a warp 8: lane pairs share a row (two 16-byte halves), so
// that every access to the state moves whole 32-byte sectors. The state stays in registers over all
// tokens. Queries, keys and per-key decay are mapped once per block, by one warp each, and read
// from shared memory. Per token, with S already decayed:
//   linear, gated   w = v                       o = S'q + (q.k) w
//   delta rules     w = beta (v - S'k)          o = S'q + (q.k) w,   S += k w'
// The normaliser is one more column, carried by every warp and written by the first; a block then
// walks all columns of one head, so that nobody still reads it.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/common/features.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr int kColumns = 8;  // of the state, per warp

struct DecodeArgs {
  int T, Hq, Hk, HV, HO, K, V, W, group;  // W = V + normalize; group = query heads per state
  int parts;                              // of kColumns columns
  float scale;
  bool decays, delta, before, bonus, causal, normalize, l2norm, vector_state;
  FeatureMap feature_map;
  DecayKind decay_kind;
  BetaKind beta_kind;
  DType decay_type, beta_type, mask_type, bonus_type;
  const void *query, *key, *value, *past_state, *decay, *beta, *mask, *bonus_u;
  void *output, *present_state;
};

constexpr int kWarps = 4;

// Maps a head vector into shared memory, by one warp. Elements from K on become 0.
template <int KP, typename IO>
__device__ __forceinline__ void stage_features(const DecodeArgs& p, const IO* src, bool keep,
                                               float* out) {
  constexpr int N = (KP + 31) / 32;
  const int lane = threadIdx.x & 31;
  float x[N], largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = lane + 32 * i < p.K ? to_float(src[lane + 32 * i]) : 0.f;
  if (p.feature_map == FeatureMap::kSoftmax) {
#pragma unroll
    for (int i = 0; i < N; ++i) largest = lane + 32 * i < p.K ? fmaxf(largest, x[i]) : largest;
    largest = lane_max<32>(largest);
  }
  float total = 0.f, squares = 0.f, factor = 1.f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = p.feature_map == FeatureMap::kSoftmax ? expf(x[i] - largest)
                                                 : feature_of(p.feature_map, x[i]);
    if (lane + 32 * i >= p.K) x[i] = 0.f;
    total += x[i];
    squares += x[i] * x[i];
  }
  if (p.feature_map == FeatureMap::kSoftmax) factor = 1.f / lane_sum<32>(total);
  if (p.feature_map == FeatureMap::kL2Norm) factor = rsqrtf(lane_sum<32>(squares) + kL2NormEps);
  if (p.l2norm) factor *= rsqrtf(lane_sum<32>(squares) * factor * factor + kL2NormEps);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (lane + 32 * i < KP) out[lane + 32 * i] = keep ? x[i] * factor : 0.f;
  }
}

template <int N>
__device__ __forceinline__ void load4(const float* from, float (&to)[N]) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  to[0] = x.x;
  to[1] = x.y;
  to[2] = x.z;
  to[3] = x.w;
}
template <int N>
__device__ __forceinline__ void store4(float* to, const float (&from)[N]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
template <typename T, int N>
__device__ __forceinline__ void load4(const T* from, float (&to)[N]) {
  const uint2 x = *reinterpret_cast<const uint2*>(from);
  const float2 lo = unpack2(T(), x.x), hi = unpack2(T(), x.y);
  to[0] = lo.x;
  to[1] = lo.y;
  to[2] = hi.x;
  to[3] = hi.y;
}
template <typename T, int N>
__device__ __forceinline__ void store4(T* to, const float (&from)[N]) {
  *reinterpret_cast<uint2*>(to) =
      make_uint2(pack2(T(), from[0], from[1]), pack2(T(), from[2], from[3]));
}

// Sum over the lanes that hold the same columns.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int i = 16; i > 1; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

template <typename IO, typename ST, int R, bool Normalize>
__global__ void __launch_bounds__(32 * kWarps, R == 16 || Normalize ? 2 : 5)
    decode_kernel(const __grid_constant__ DecodeArgs p) {
  constexpr int KP = 16 * R, kStagedQueries = 2;
  constexpr int kSlots = Normalize ? 5 : 4;  // the last one is the normaliser's column
  // Per token parity: keys, decay factors, the first queries of the group. Then queries beyond
  // those.
  __shared__ float staged[2][2 + kStagedQueries][KP], more_queries[kWarps][KP];
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, first_row = lane >> 1;
  const int blocks_per_head = Normalize ? 1 : (p.parts + kWarps - 1) / kWarps;
  const int64_t state_index = blockIdx.x / blocks_per_head;  // b * HV + h
  const int b = static_cast<int>(state_index / p.HV), h = static_cast<int>(state_index % p.HV);
  const int hk = h / (p.HV / p.Hk);
  const int64_t state_at = state_index * p.K * p.W;
  const bool per_key = p.decays && p.decay_kind == DecayKind::kPerKey;
  const ST* past = static_cast<const ST*>(p.past_state);
  ST* present = static_cast<ST*>(p.present_state);

  float state[R][kSlots];
  const auto query = [&](int64_t t, int n) {
    const int hq = (h * p.group + n) / (p.HO / p.Hq);
    return static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K;
  };
  const int first_part = static_cast<int>(blockIdx.x % blocks_per_head) * kWarps;
  const int last_part = Normalize ? p.parts : first_part + 1;
  for (int base = first_part; base < last_part; base += kWarps) {
    const int col = (base + warp) * kColumns + (lane & 1) * 4;
    const bool whole = p.vector_state && col < p.V;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int row = first_row + 16 * i;
#pragma unroll
      for (int j = 0; j < kSlots; ++j) state[i][j] = 0.f;
      if (!past || row >= p.K) continue;
      const ST* at = past + state_at + static_cast<int64_t>(row) * p.W;
      if (whole) {
        load4(at + col, state[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (col + j < p.V) state[i][j] = to_float(at[col + j]);
        }
      }
      if constexpr (Normalize) state[i][4] = to_float(at[p.V]);
    }

    for (int token = 0; token < p.T; ++token) {
      const int64_t t = static_cast<int64_t>(b) * p.T + token;
      float(*vectors)[KP] = staged[token & 1];
      const bool seen = !p.mask || load_as_float(p.mask, p.mask_type, t) != 0.f;
      float w[kSlots];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        w[j] = col + j < p.V
                   ? to_float(static_cast<const IO*>(p.value)[(t * p.HV + h) * p.V + col + j])
                   : 0.f;
      }
      if constexpr (Normalize) w[4] = 1.f;
      float decay = 1.f, beta = seen ? 1.f : 0.f;
      if (p.decays && !per_key && seen) {
        decay = exp2f(kLog2e * load_as_float(p.decay, p.decay_type, t * p.HV + h));
      }
      if (p.delta && seen && p.beta_kind != BetaKind::kNone) {
        const int64_t at = p.beta_kind == BetaKind::kShared ? t : t * p.HV + h;
        beta = load_as_float(p.beta, p.beta_type, at);
      }
      if (warp == 0) {
        stage_features<KP>(p, static_cast<const IO*>(p.key) + (t * p.Hk + hk) * p.K, seen,
                           vectors[0]);
      } else if (warp == 1) {
        for (int i = lane; per_key && i < KP; i += 32) {
          const bool decays = seen && i < p.K;
          vectors[1][i] =
              decays
                  ? exp2f(kLog2e * load_as_float(p.decay, p.decay_type, (t * p.HV + h) * p.K + i))
                  : 1.f;
        }
      } else if (warp - 2 < p.group) {
        stage_features<KP>(p, query(t, warp - 2), true, vectors[warp]);
      }
      __syncthreads();

      // o for every query head of this state. `with_self` adds the token itself, which is not in
      // the state yet.
      const auto read_out = [&](bool with_self) {
        for (int n = 0; n < p.group; ++n) {
          const float* q = vectors[2 + n];
          if (n >= kStagedQueries) {
            const int slot = (n - kStagedQueries) % kWarps;
            if (slot == 0) {
              __syncthreads();
              if (n + warp < p.group)
                stage_features<KP>(p, query(t, n + warp), true, more_queries[warp]);
              __syncthreads();
            }
            q = more_queries[slot];
          }
          float sums[kSlots] = {}, self = 0.f;
#pragma unroll
          for (int i = 0; i < R; ++i) {
            const int row = first_row + 16 * i;
            const float x = q[row];
#pragma unroll
            for (int j = 0; j < kSlots; ++j) sums[j] += x * state[i][j];
            if (!with_self) continue;
            float u = 1.f;
            if (p.bonus && row < p.K) u = load_as_float(p.bonus_u, p.bonus_type, h * p.K + row);
            self += x * vectors[0][row] * u;
          }
          if (with_self) self = row_sum(self);
#pragma unroll
          for (int j = 0; j < kSlots; ++j) sums[j] = p.scale * (row_sum(sums[j]) + self * w[j]);
          const float divisor = Normalize ? sums[kSlots - 1] + kNormalizeEps : 1.f;
          if (lane < 2) {
            IO* out = static_cast<IO*>(p.output) + (t * p.HO + h * p.group + n) * p.V + col;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              if (col + j < p.V) out[j] = from_float<IO>(sums[j] / divisor);
            }
          }
        }
      };

      // Read before the update: the state is still undecayed, the bonus adds the token itself.
      if (p.causal && p.before) read_out(p.bonus);
      if (p.decays) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
          const float factor = per_key ? vectors[1][first_row + 16 * i] : decay;
#pragma unroll
          for (int j = 0; j < kSlots; ++j) state[i][j] *= factor;
        }
      }
      if (p.delta) {
        float sums[kSlots] = {};
#pragma unroll
        for (int i = 0; i < R; ++i) {
          const float k = vectors[0][first_row + 16 * i];
#pragma unroll
          for (int j = 0; j < kSlots; ++j) sums[j] += k * state[i][j];
        }
#pragma unroll
        for (int j = 0; j < kSlots; ++j) w[j] = beta * (w[j] - row_sum(sums[j]));
      }
      if (p.causal && !p.before) read_out(true);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const float k = vectors[0][first_row + 16 * i];
#pragma unroll
        for (int j = 0; j < kSlots; ++j) state[i][j] += k * w[j];
      }
      if (!p.causal && token == p.T - 1) {
        // Bidirectional: every token reads the last state.
        for (int other = 0; other < p.T; ++other) {
          const int64_t to = static_cast<int64_t>(b) * p.T + other;
          for (int n = 0; n < p.group; ++n) {
            __syncthreads();
            if (warp == 0) stage_features<KP>(p, query(to, n), true, more_queries[0]);
            __syncthreads();
            float sums[kSlots] = {};
#pragma unroll
            for (int i = 0; i < R; ++i) {
#pragma unroll
              for (int j = 0; j < kSlots; ++j)
                sums[j] += more_queries[0][first_row + 16 * i] * state[i][j];
            }
#pragma unroll
            for (int j = 0; j < kSlots; ++j) sums[j] = p.scale * row_sum(sums[j]);
            const float divisor = Normalize ? sums[kSlots - 1] + kNormalizeEps : 1.f;
            if (lane < 2) {
              IO* out = static_cast<IO*>(p.output) + (to * p.HO + h * p.group + n) * p.V + col;
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                if (col + j < p.V) out[j] = from_float<IO>(sums[j] / divisor);
              }
            }
          }
        }
      }
    }

    if (!present) continue;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int row = first_row + 16 * i;
      if (row >= p.K) continue;
      ST* at = present + state_at + static_cast<int64_t>(row) * p.W + col;
      if (whole) {
        store4(at, state[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (col + j < p.V) at[j] = from_float<ST>(state[i][j]);
        }
      }
    }
    if (Normalize) __syncthreads();  // staged vectors are free again
  }
  if (present && Normalize) {
    __syncthreads();
    if (warp > 0 || lane % 2 > 0) return;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int row = first_row + 16 * i;
      if (row < p.K) {
        present[state_at + static_cast<int64_t>(row) * p.W + p.V] =
            from_float<ST>(state[i][kSlots - 1]);
      }
    }
  }
}

template <typename IO, typename ST>
cudaError_t launch(const DecodeArgs& args, int64_t heads, cudaStream_t stream) {
  const int64_t blocks = heads * (args.normalize ? 1 : (args.parts + kWarps - 1) / kWarps);
  const auto pick = [&](auto normalize) {
    constexpr bool N = decltype(normalize)::value;
    return args.K <= 64    ? decode_kernel<IO, ST, 4, N>
           : args.K <= 128 ? decode_kernel<IO, ST, 8, N>
                           : decode_kernel<IO, ST, 16, N>;
  };
  const auto kernel = args.normalize ? pick(std::true_type()) : pick(std::false_type());
  kernel<<<static_cast<unsigned>(blocks), 32 * kWarps, 0, stream>>>(args);
  return cudaGetLastError();
}

template <typename IO>
cudaError_t launch_state(const DecodeArgs& args, bool float_state, int64_t heads,
                         cudaStream_t stream) {
  return float_state ? launch<IO, float>(args, heads, stream) : launch<IO, IO>(args, heads, stream);
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
  a.parts = (a.V + kColumns - 1) / kColumns;
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
  const int64_t piece = 4 * size_of(p.state);
  a.vector_state = a.W % 4 == 0 && a.V % 4 == 0 &&
                   reinterpret_cast<uintptr_t>(p.past_state) % piece == 0 &&
                   reinterpret_cast<uintptr_t>(p.present_state) % piece == 0;
  const int64_t heads = p.B * p.HV;
  const bool float_state = p.state == DType::kFloat32;
  switch (p.io) {
    case DType::kBFloat16:
      return launch_state<bf16>(a, float_state, heads, stream);
    case DType::kFloat16:
      return launch_state<f16>(a, float_state, heads, stream);
    default:
      return launch<float, float>(a, heads, stream);
  }
}

}  // namespace fla::cuda
