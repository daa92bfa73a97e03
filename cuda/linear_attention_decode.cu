// LinearAttention token by token, all four rules: for short inputs (decoding), where moving the
// state once is all the work there is, and for calls that the chunked kernels do not take.
// One token with the usual options goes to linear_attention_token*.cu.
//
// A block of 4 warps owns 32 columns of one state: 8 lanes share a row, 4 elements each, so that a
// warp moves 4 rows of 128 (float state) or 64 bytes at a time. The state stays in registers over
// all tokens. Queries, keys and per-key decay are mapped once per block, by one warp each, and read
// from shared memory. Per token, with S already decayed:
//   linear, gated   w = v                       o = S'q + (q.k) w
//   delta rules     w = beta (v - S'k)          o = S'q + (q.k) w,   S += k w'
// S'k and S'q are summed over the rows of a warp by shuffles, over the warps in shared memory.
// The normaliser is one more column, carried by every thread and written by one per row; a block
// then walks all columns of one head, so that nobody still reads it.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/common/features.cuh"
#include "cuda/common/fours.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kColumns = 32;                 // of the state, per block
constexpr int kLanes = kColumns / 4;         // that share a row
constexpr int kRows = 32 * kWarps / kLanes;  // of the state, that a block touches at a time

struct DecodeArgs {
  int T, Hq, Hk, HV, HO, K, V, W, group;  // W = V + normalize; group = query heads per state
  int parts;                              // of kColumns columns
  float scale;
  bool decays, delta, before, bonus, causal, normalize, l2norm;
  bool vector_state, vector_value, vector_output;  // four elements at a time are legal
  FeatureMap feature_map;
  DecayKind decay_kind;
  BetaKind beta_kind;
  DType decay_type, beta_type, mask_type, bonus_type;
  const void *query, *key, *value, *past_state, *decay, *beta, *mask, *bonus_u;
  void *output, *present_state;
};

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
  float total = 0.f, factor = 1.f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = p.feature_map == FeatureMap::kSoftmax ? expf(x[i] - largest)
                                                 : feature_of(p.feature_map, x[i]);
    if (lane + 32 * i >= p.K) x[i] = 0.f;
    total += x[i];
  }
  const auto sum_of_squares = [&](float scale) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) squares += (x[i] * scale) * (x[i] * scale);
    return lane_sum<32>(squares);
  };
  if (p.feature_map == FeatureMap::kSoftmax) factor = 1.f / lane_sum<32>(total);
  if (p.feature_map == FeatureMap::kL2Norm) factor = inverse_norm(sum_of_squares);
  if (p.l2norm) {
    factor *= inverse_norm([&](float scale) { return sum_of_squares(scale * factor); });
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (lane + 32 * i < KP) out[lane + 32 * i] = keep ? x[i] * factor : 0.f;
  }
}

// The same, out of line: for queries beyond the first two of a group.
template <int KP, typename IO>
__device__ __noinline__ void stage_more_features(const DecodeArgs& p, const IO* src, float* out) {
  stage_features<KP>(p, src, true, out);
}

// What the rows of a block add up to: for each of its columns (and the normaliser's) the products
// of the state with a query and with the key, and the product of query and key.
template <int Slots>
struct Sums {
  float query[Slots] = {}, key[Slots] = {}, self = 0.f;
};
template <int Slots>
struct PartialSums {
  float query[kWarps][kColumns], key[kWarps][kColumns], extra[kWarps][4];  // extra: self, z's two
};

// Adds up over all warps, in their order. Every thread gets the sums of its own columns.
template <int Slots>
__device__ __forceinline__ void add_up(Sums<Slots>& sums, PartialSums<Slots>& shared, bool key) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, col = lane % kLanes * 4;
  const auto over_rows = [](float x) {
#pragma unroll
    for (int i = 16; i >= kLanes; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
  };
#pragma unroll
  for (int j = 0; j < Slots; ++j) {
    sums.query[j] = over_rows(sums.query[j]);
    if (key) sums.key[j] = over_rows(sums.key[j]);
  }
  sums.self = over_rows(sums.self);
  if (lane < kLanes) {
    store4(shared.query[warp] + col, sums.query);
    if (key) store4(shared.key[warp] + col, sums.key);
  }
  if (lane == 0) {
    shared.extra[warp][0] = sums.self;
    if constexpr (Slots == 5) {
      shared.extra[warp][1] = sums.query[4];
      shared.extra[warp][2] = sums.key[4];
    }
  }
  __syncthreads();
  sums = {};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    float x[4];
    load4(shared.query[i] + col, x);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.query[j] += x[j];
    if (key) {
      load4(shared.key[i] + col, x);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.key[j] += x[j];
    }
    load4(shared.extra[i], x);
    sums.self += x[0];
    if constexpr (Slots == 5) {
      sums.query[4] += x[1];
      sums.key[4] += x[2];
    }
  }
}

// Blocks per multiprocessor, so that nothing spills.
template <int R, bool Normalize>
constexpr int kResident = R == 4   ? 7 - 2 * Normalize
                          : R == 8 ? 6 - 2 * Normalize
                                   : 3 - Normalize;

template <typename IO, typename ST, int R, bool Normalize>
__global__ void __launch_bounds__(32 * kWarps, kResident<R, Normalize>)
    decode_kernel(const __grid_constant__ DecodeArgs p) {
  constexpr int KP = kRows * R, kStagedQueries = 2;
  constexpr int kSlots = Normalize ? 5 : 4;  // the last one is the normaliser's column
  // Per token parity: keys, decay factors, the first queries of the group. Then queries beyond
  // those.
  __shared__ __align__(16) float staged[2][2 + kStagedQueries][KP], more_queries[kWarps][KP];
  __shared__ __align__(16) PartialSums<kSlots>
      partial[2];  // in turns, so that one barrier suffices
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, first_row = threadIdx.x / kLanes;
  const int blocks_per_head = Normalize ? 1 : p.parts;
  const int64_t state_index = blockIdx.x / blocks_per_head;  // b * HV + h
  const int b = static_cast<int>(state_index / p.HV), h = static_cast<int>(state_index % p.HV);
  const int hk = h / (p.HV / p.Hk);
  const int64_t state_at = state_index * p.K * p.W;
  const bool per_key = p.decays && p.decay_kind == DecayKind::kPerKey;
  const ST* past = static_cast<const ST*>(p.past_state);
  ST* present = static_cast<ST*>(p.present_state);

  float state[R][kSlots];
  int turn = 0;
  const auto query = [&](int64_t t, int n) {
    const int hq = (h * p.group + n) / (p.HO / p.Hq);
    return static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K;
  };
  const int first_part = static_cast<int>(blockIdx.x % blocks_per_head);
  const int last_part = Normalize ? p.parts : first_part + 1;
  for (int part = first_part; part < last_part; ++part) {
    const int col = part * kColumns + lane % kLanes * 4;
    const bool whole = p.vector_state && col < p.V;
    if (past && whole) {
      Four<ST> raw[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const int row = min(first_row + kRows * i, p.K - 1);
        raw[i] = load4(past + state_at + static_cast<int64_t>(row) * p.W + col);
      }
#pragma unroll
      for (int i = 0; i < R; ++i) {
        if (first_row + kRows * i >= p.K) raw[i] = {};
        widen4(ST(), raw[i], state[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const int row = first_row + kRows * i;
        const ST* at = past + state_at + static_cast<int64_t>(row) * p.W + col;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state[i][j] = past && row < p.K && col + j < p.V ? to_float(at[j]) : 0.f;
        }
      }
    }
    if constexpr (Normalize) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const int row = first_row + kRows * i;
        const ST* at = past + state_at + static_cast<int64_t>(row) * p.W + p.V;
        state[i][4] = past && row < p.K ? to_float(*at) : 0.f;
      }
    }

    // Adds the products of the state with a vector in shared memory.
    const auto read_state = [&](const float* x, float(&to)[kSlots]) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int j = 0; j < kSlots; ++j) to[j] += x[first_row + kRows * i] * state[i][j];
      }
    };
    // Output of query head n of the group, by one warp.
    const auto write_output = [&](int64_t t, int n, const float(&x)[kSlots]) {
      if (warp != n % kWarps || lane >= kLanes) return;
      float y[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] = p.scale * x[j];
        if constexpr (Normalize) y[j] /= p.scale * x[4] + kNormalizeEps;
      }
      IO* out = static_cast<IO*>(p.output) + (t * p.HO + h * p.group + n) * p.V + col;
      if (p.vector_output && col < p.V) {
        store4(out, y);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (col + j < p.V) out[j] = from_float<IO>(y[j]);
        }
      }
    };

    for (int token = 0; token < p.T; ++token) {
      const int64_t t = static_cast<int64_t>(b) * p.T + token;
      float(*vectors)[KP] = staged[token & 1];
      const bool seen = !p.mask || load_as_float(p.mask, p.mask_type, t) != 0.f;
      const IO* value = static_cast<const IO*>(p.value) + (t * p.HV + h) * p.V + col;
      float w[kSlots];
      if (p.vector_value && col < p.V) {
        load4(value, w);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) w[j] = col + j < p.V ? to_float(value[j]) : 0.f;
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
      const float* keys = vectors[0];

      // Query head n of the group, in shared memory; for n in order.
      const auto staged_query = [&](int n) -> const float* {
        if (n < kStagedQueries) return vectors[2 + n];
        const int slot = (n - kStagedQueries) % kWarps;
        if (slot == 0) {
          __syncthreads();
          if (n + warp < p.group) {
            stage_more_features<KP>(p, query(t, n + warp), more_queries[warp]);
          }
          __syncthreads();
        }
        return more_queries[slot];
      };
      // The token itself is not in the state yet: its part of the output is self * w.
      const bool with_self = p.bonus || !p.before;
      const auto add_self = [&](const float* q, float& self) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
          const int row = first_row + kRows * i;
          float u = 1.f;
          if (p.bonus && row < p.K) u = load_as_float(p.bonus_u, p.bonus_type, h * p.K + row);
          self += q[row] * keys[row] * u;
        }
      };
      const auto add_and_write = [&](Sums<kSlots>& sums, int n, bool key, bool update) {
        add_up(sums, partial[turn], key);
        turn ^= 1;
        if (update) {
#pragma unroll
          for (int j = 0; j < kSlots; ++j) w[j] = beta * (w[j] - sums.key[j]);
        }
        if (!p.causal) return;
#pragma unroll
        for (int j = 0; j < kSlots; ++j) sums.query[j] += sums.self * w[j];
        write_output(t, n, sums.query);
      };
      const auto read_query = [&](int n) {
        Sums<kSlots> sums;
        const float* q = staged_query(n);
        read_state(q, sums.query);
        if (with_self) add_self(q, sums.self);
        add_and_write(sums, n, false, false);
      };

      // Read before the update: the state is still undecayed.
      Sums<kSlots> sums;
      if (p.causal && p.before) {
        for (int n = 1; n < p.group; ++n) read_query(n);
        read_state(vectors[2], sums.query);
      }
      if (p.decays) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
          const float factor = per_key ? vectors[1][first_row + kRows * i] : decay;
#pragma unroll
          for (int j = 0; j < kSlots; ++j) state[i][j] *= factor;
        }
      }
      if (p.causal && !p.before) read_state(vectors[2], sums.query);
      if (p.causal && with_self) add_self(vectors[2], sums.self);
      if (p.delta) read_state(keys, sums.key);
      if (p.causal || p.delta) add_and_write(sums, 0, p.delta, p.delta);
      if (p.causal && !p.before) {
        for (int n = 1; n < p.group; ++n) read_query(n);
      }
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const float k = keys[first_row + kRows * i];
#pragma unroll
        for (int j = 0; j < kSlots; ++j) state[i][j] += k * w[j];
      }
    }
    if (!p.causal) {  // every token reads the last state
      for (int token = 0; token < p.T; ++token) {
        const int64_t t = static_cast<int64_t>(b) * p.T + token;
        for (int n = 0; n < p.group; ++n) {
          __syncthreads();
          if (warp == 0) stage_more_features<KP>(p, query(t, n), more_queries[0]);
          __syncthreads();
          Sums<kSlots> sums;
          read_state(more_queries[0], sums.query);
          add_up(sums, partial[turn], false);
          turn ^= 1;
          write_output(t, n, sums.query);
        }
      }
    }

    if (present) {
#pragma unroll
      for (int i = 0; i < R; ++i) {
        const int row = first_row + kRows * i;
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
    }
    if (Normalize) __syncthreads();  // staged vectors are free again
  }
  if (Normalize && present && lane % kLanes == 0) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
      const int row = first_row + kRows * i;
      if (row < p.K) {
        present[state_at + static_cast<int64_t>(row) * p.W + p.V] =
            from_float<ST>(state[i][kSlots - 1]);
      }
    }
  }
}

template <typename IO, typename ST>
cudaError_t launch(const DecodeArgs& args, int64_t heads, cudaStream_t stream) {
  const int64_t blocks = heads * (args.normalize ? 1 : args.parts);
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
  if (linear_attention_token_takes(p)) return launch_linear_attention_token(p, stream);
  if (linear_attention_token_normalized_takes(p)) {
    return launch_linear_attention_token_normalized(p, stream);
  }
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
  const auto in_fours = [](const void* pointer, int width, DType type) {
    return width % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * size_of(type)) == 0;
  };
  a.vector_state = !p.normalize && in_fours(p.past_state, a.V, p.state) &&
                   in_fours(p.present_state, a.V, p.state);
  a.vector_value = in_fours(p.value, a.V, p.io);
  a.vector_output = in_fours(p.output, a.V, p.io);
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
