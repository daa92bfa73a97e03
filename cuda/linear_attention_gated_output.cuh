// Pass 2 of the rules linear and gated: outputs and the final state. See
// linear_attention_gated.cuh. Grid: x = (b, output head, segment), y = dv tile. A warp owns 16 rows
// of the chunk for the scores and the output, and KP/kRowWarps rows of the state, both over VW
// columns of dv.
#ifndef FLA_CUDA_LINEAR_ATTENTION_GATED_OUTPUT_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_GATED_OUTPUT_CUH_

#include "cuda/linear_attention_gated.cuh"

namespace fla::cuda {

// Scores of a chunk whose per-key decay is too strong to be split between Q and K: one by one, in
// float. Tiles hold features without decay. Rows of `scores` [C][C] are complete, zeros included.
template <typename Cfg>
__device__ void direct_scores(const GatedBlock<Cfg>& block, int chunk, typename Cfg::E* scores) {
  using E = typename Cfg::E;
  using QK = typename Cfg::QK;
  constexpr int KP = Cfg::KP, C = Cfg::C, kSteps = KP / 64;
  const int lane = threadIdx.x & 31;
  const QK* q_tile = block.tile_q(chunk);
  const QK* k_tile = block.tile_k(chunk);
  for (int row = threadIdx.x / 32; row < C; row += Cfg::kThreads / 32) {
    float2 q[kSteps], decay[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      q[i] = load2(q_tile + panel_offset<QK, C>(row, lane * 2 + i * 64));
      decay[i] = make_float2(0.f, 0.f);
    }
    const int last = block.p.before ? row - 1 : row;
    for (int s = C - 1; s > last; --s) {
      if (lane == 0) scores[row * C + s] = from_float<E>(0.f);
    }
    for (int s = last; s >= 0; --s) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const float2 k = load2(k_tile + panel_offset<QK, C>(s, lane * 2 + i * 64));
        const float2 g = block.decay2(chunk, s, lane * 2 + i * 64);
        sum += q[i].x * k.x * fast_exp2(decay[i].x) + q[i].y * k.y * fast_exp2(decay[i].y);
        decay[i].x += g.x * kLog2e;
        decay[i].y += g.y * kLog2e;
      }
      sum = lane_sum<32>(sum);
      if (lane == 0) scores[row * C + s] = from_float<E>(sum);
    }
  }
}

// diagonal[r] = q_r . (u * k_r): what a token reads of itself with read == bonus.
template <typename Cfg>
__device__ void bonus_diagonal(const GatedBlock<Cfg>& block, int chunk) {
  using QK = typename Cfg::QK;
  const int lane = threadIdx.x & 31;
  const QK* q_tile = block.tile_q(chunk);
  const QK* k_tile = block.tile_k(chunk);
  for (int row = threadIdx.x / 32; row < Cfg::C; row += Cfg::kThreads / 32) {
    float sum = 0.f;
    for (int i = lane; i < block.p.K; i += 32) {
      const int at = panel_offset<QK, Cfg::C>(row, i);
      sum += load_as_float(block.p.bonus_u, block.p.bonus_type, block.h * block.p.K + i) *
             to_float(q_tile[at]) * to_float(k_tile[at]);
    }
    sum = lane_sum<32>(sum);
    if (lane == 0) block.diagonal[row] = sum;
  }
}

// Feature maps, then the per-key decay folded into the tiles. Returns whether the scores were
// computed directly; then the keys carry e^{G_C - G} instead of e^-G.
template <typename Cfg>
__device__ bool transform_chunk(const GatedBlock<Cfg>& block, int chunk, typename Cfg::E* scores) {
  using QK = typename Cfg::QK;
  const GatedArgs& p = block.p;
  QK* q_tile = block.tile_q(chunk);
  QK* k_tile = block.tile_k(chunk);
  if (block.maps()) {
#pragma unroll 1
    for (int keys = 0; keys <= p.causal; ++keys) {
      block.map_tile(keys ? block.raw_k(chunk) : block.raw_q(chunk), keys ? k_tile : q_tile, keys,
                     chunk);
    }
    if constexpr (Cfg::kWgmma) fence_for_wgmma();
    __syncthreads();
  }
  if (p.bonus) {
    bonus_diagonal(block, chunk);
    __syncthreads();
  }
  if (!Cfg::kOutputPerKey || !block.per_key()) return false;

  typename GatedBlock<Cfg>::ColumnSums sums;
  block.column_sums(chunk, sums);
  const float2 before = sums.before, total = sums.total;
  const bool direct = __syncthreads_or(fminf(total.x, total.y) < -kMaxExponent);
  if (direct) {
    direct_scores(block, chunk, scores);
    __syncthreads();
  }
  const float2 zero = make_float2(0.f, 0.f);
  const bool split = Cfg::kSplit && !direct;
  QK* const q_rest = split ? reinterpret_cast<QK*>(block.rest_q(chunk)) : nullptr;
  block.decay_columns(q_tile, sums, p.before ? 0 : 1, 1.f, zero, before, q_rest);
  if (direct) {
    block.decay_to_end(k_tile, sums, zero);
  } else {
    block.decay_columns(k_tile, sums, 1, -1.f, zero, make_float2(-before.x, -before.y),
                        split ? reinterpret_cast<QK*>(block.rest_k(chunk)) : nullptr);
  }
  if constexpr (Cfg::kWgmma) fence_for_wgmma();
  __syncthreads();
  return direct;
}

// This warp's 16 rows of Q K', by one warp. Columns right of the diagonal block are left alone.
template <typename Cfg>
__device__ __forceinline__ void add_scores(const GatedBlock<Cfg>& block, typename Cfg::QK* q_tile,
                                           typename Cfg::QK* k_tile,
                                           float (&scores)[2 * Cfg::KT][4]) {
  using QK = typename Cfg::QK;
  using M = typename Cfg::MmaQK;
  constexpr int KP = Cfg::KP;
  const int row_block = block.warp % Cfg::kRowWarps;
#pragma unroll
  for (int ks = 0; ks < KP / 16; ++ks) {
    RawA<QK> raw;
    load_a<QK, 64>(raw, panel_of<Cfg::C>(q_tile, ks * 16), row_block * 16, ks * 16 % 64);
    const auto a = M::prepare(raw);
#pragma unroll
    for (int j = 0; j < Cfg::KT; ++j) {
      if (j > row_block) continue;
      RawB<QK> b0, b1;
      load_b_transposed<QK, 64>(b0, b1, panel_of<Cfg::C>(k_tile, ks * 16), j * 16, ks * 16 % 64);
      M::mma(scores[2 * j], a, M::prepare(b0));
      M::mma(scores[2 * j + 1], a, M::prepare(b1));
    }
  }
}

template <typename Cfg>
__device__ __forceinline__ void read_scores(const GatedBlock<Cfg>& block,
                                            const typename Cfg::E* from,
                                            float (&scores)[2 * Cfg::KT][4]) {
  const int lane = threadIdx.x & 31;
  const int row = block.warp % Cfg::kRowWarps * 16 + (lane >> 2), col = 2 * (lane & 3);
#pragma unroll
  for (int nt = 0; nt < 2 * Cfg::KT; ++nt) {
    const float2 lo = load2(from + row * Cfg::C + nt * 8 + col);
    const float2 hi = load2(from + (row + 8) * Cfg::C + nt * 8 + col);
    scores[nt][0] = lo.x;
    scores[nt][1] = lo.y;
    scores[nt][2] = hi.x;
    scores[nt][3] = hi.y;
  }
}

// Mask and per-head decay; the result is a left operand over the chunk's tokens, 0 right of the
// diagonal.
template <typename Cfg>
__device__ __forceinline__ void weigh_scores(const GatedBlock<Cfg>& block, int chunk,
                                             float (&scores)[2 * Cfg::KT][4],
                                             RawA<typename Cfg::E> (&weights)[Cfg::KT]) {
  constexpr int C = Cfg::C, KT = Cfg::KT;
  const GatedArgs& p = block.p;
  const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
  const int row_block = block.warp % Cfg::kRowWarps, row = row_block * 16 + g;
  const float* gq = block.gq + (chunk & 1) * C;
  const float* gk = block.gk + (chunk & 1) * C;
  const bool per_head = block.per_head();
  const float row_decay[2] = {gq[row], gq[row + 8]};
  const int first_hidden = p.before ? 0 : 1;
#pragma unroll
  for (int j = 0; j < KT; ++j) {
    if (j > row_block) {
      const float zero[4] = {};
      weights[j] = raw_a<typename Cfg::E>(zero, zero);
      continue;
    }
#pragma unroll
    for (int n = 2 * j; n < 2 * j + 2; ++n) {
      const int col = n * 8 + 2 * c;
      if (per_head) {
        const float2 column_decay = *reinterpret_cast<const float2*>(gk + col);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float exponent = row_decay[i >> 1] - (i & 1 ? column_decay.y : column_decay.x);
          scores[n][i] *= fast_exp2(exponent);
        }
      }
      if (j == row_block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int s = col + (i & 1), r = row + (i >> 1) * 8;
          if (s - r >= first_hidden) scores[n][i] = 0.f;
          if constexpr (Cfg::kGeneral) {
            if (p.bonus && s == r) scores[n][i] = block.diagonal[r];
          }
        }
      }
    }
    weights[j] = raw_a<typename Cfg::E>(scores[2 * j], scores[2 * j + 1]);
  }
}

template <typename Cfg>
__global__ void __launch_bounds__(Cfg::kThreads, Cfg::kMinBlocks)
    gated_output_kernel(const __grid_constant__ GatedArgs p) {
  using IO = typename Cfg::IO;
  using E = typename Cfg::E;
  using QK = typename Cfg::QK;
  using M = typename Cfg::Mma;
  constexpr int C = Cfg::C, KP = Cfg::KP, VW = Cfg::VW;
  constexpr int NT = Cfg::NT, MT = Cfg::MT, KT = Cfg::KT;
  constexpr int kTiles = NT + (Cfg::kGeneral ? 1 : 0);
  constexpr bool kHoldKeys = sizeof(E) == 2 && KP < 256;
  extern __shared__ __align__(1024) unsigned char memory[];

  const GatedBlock<Cfg> block(p, memory, true);
  const uint32_t warp = block.warp;
  const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
  const int row_block = warp % Cfg::kRowWarps, row = row_block * 16 + g;
  const int warp_col = block.first_column();

  block.load(0);
  block.load_decays(0);
  typename GatedBlock<Cfg>::Scalars scalars;
  const bool loads_scalars = warp == 0 && block.has_scalars();
  if (loads_scalars) block.load_scalars(0, scalars);

  float state[MT][kTiles][4] = {};
  if (p.states_in_workspace) {
    wait_for_previous_grid();
    const float* start = block.segment_state(p.causal ? block.segment : 0);
    for_each_state(block, state, [&](float& x, int i, int j) { x = start[i * p.W + j]; });
  } else if (p.past_state) {
    const int64_t at = (static_cast<int64_t>(block.b) * p.HV + block.h) * p.K * p.W;
    for_each_state(block, state, [&](float& x, int i, int j) {
      x = load_as_float(p.past_state, p.state_type, at + i * p.W + j);
    });
  }

  const auto store_operand = [&](int chunk) {
    E* tile = block.state_tile(chunk);
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
      const int d = block.state_row(mt) + g;
      const uint32_t at = panel_offset<E, KP>(d, warp_col) ^ 2 * c;
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        store2(tile + (at ^ nt * 8), state[mt][nt][0], state[mt][nt][1]);
        store2(tile + (at ^ nt * 8) + 8 * 64, state[mt][nt][2], state[mt][nt][3]);
      }
      if constexpr (Cfg::kGeneral) {
        if (p.normalize && c == 0 && warp_col == 0) {
          block.z[(chunk & 1) * KP + d] = state[mt][NT][0];
          block.z[(chunk & 1) * KP + d + 8] = state[mt][NT][2];
        }
      }
    }
  };
  const auto scale_rows = [&]() {
#pragma unroll
    for (int mt = 0; mt < MT; ++mt) {
      const float lo = fast_exp2(block.column_total[block.state_row(mt) + g]);
      const float hi = fast_exp2(block.column_total[block.state_row(mt) + g + 8]);
#pragma unroll
      for (int nt = 0; nt < kTiles; ++nt) {
        state[mt][nt][0] *= lo;
        state[mt][nt][1] *= lo;
        state[mt][nt][2] *= hi;
        state[mt][nt][3] *= hi;
      }
    }
  };

  // The fence also waits for this thread's stores to global memory, so it comes before those of the
  // output.
  const auto publish_tiles = [&](bool decays_under_way = false) {
    if (decays_under_way) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    if constexpr (Cfg::kWgmma) fence_for_wgmma();
  };
  store_operand(0);
  publish_tiles();
  for (int chunk = 0; chunk < block.chunks; ++chunk) {
    const bool more = chunk + 1 < block.chunks;
    if (loads_scalars) block.store_scalars(chunk, scalars);
    if (p.stages == 1) {
      publish_tiles();
    } else if constexpr (Cfg::kKeyRestInDecays) {
      copy_async_wait<0>();
    }
    __syncthreads();
    if (more) {
      if (p.stages == 2) block.load(chunk + 1);
      if (loads_scalars) block.load_scalars(chunk + 1, scalars);
    }
    bool direct = false;
    // Scores computed one by one wait in the operand buffer of the next chunk, where there are two.
    E* const direct_tile = Cfg::kStateBuffers == 2
                               ? block.state_tile(chunk + 1)
                               : reinterpret_cast<E*>(memory + block.layout.scores);
    if constexpr (Cfg::kGeneral) {
      direct = transform_chunk(block, chunk, direct_tile);
    }
    const bool split = Cfg::kSplit && !direct;
    const bool late_decays = Cfg::kKeyRestInDecays && split;
    if (Cfg::kGeneral && more && !late_decays) block.load_decays(chunk + 1);
    const float* gk = block.gk + (chunk & 1) * C;
    const float* gq = block.gq + (chunk & 1) * C;
    const bool per_head = block.per_head();

    RawA<E> weights[KT];
    float scores[2 * KT][4] = {}, out[kTiles][4] = {};
    if constexpr (Cfg::kWgmma) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
      const uint64_t q = wgmma_operand(block.tile_q(chunk)), k = wgmma_operand(block.tile_k(chunk));
      const uint64_t s = wgmma_operand(panel_of<KP>(block.state_tile(chunk), warp_col));
      // Step `ks` along dk, in the panels of queries and keys.
      constexpr uint64_t kPanel = C * 128 >> 4;
      const auto step = [](int ks) { return ks / 4 * kPanel + ks % 4 * kStepColumns; };
      // Whether operands have a rest is known where this is compiled: the compiler serialises
      // warpgroup products that stand in a branch.
      const auto add_state = [&](auto rests) {
        wgmma<false, false, true>(out, q, s);
#pragma unroll
        for (int ks = 1; ks < KP / 16; ++ks) {
          wgmma<true, false, true>(out, q + step(ks), s + ks * kStepRows);
        }
        if constexpr (decltype(rests)::value) {
          const uint64_t rest = wgmma_operand(block.rest_q(chunk));
#pragma unroll
          for (int ks = 0; ks < KP / 16; ++ks) {
            wgmma<true, false, true>(out, rest + step(ks), s + ks * kStepRows);
          }
        }
        wgmma_commit();
      };
      constexpr std::bool_constant<Cfg::kSplit> kRests;
      wgmma_pin(out);
      if (p.causal && !direct) {
        wgmma_pin(scores);
        wgmma_fence();
        wgmma<false, false, false>(scores, q, k);
#pragma unroll
        for (int ks = 1; ks < KP / 16; ++ks) {
          wgmma<true, false, false>(scores, q + step(ks), k + step(ks));
        }
        if constexpr (Cfg::kSplit) {
          const uint64_t q_rest = wgmma_operand(block.rest_q(chunk)),
                         k_rest = wgmma_operand(block.rest_k(chunk));
#pragma unroll
          for (int ks = 0; ks < KP / 16; ++ks) {
            wgmma<true, false, false>(scores, q_rest + step(ks), k + step(ks));
            wgmma<true, false, false>(scores, q + step(ks), k_rest + step(ks));
          }
        }
        wgmma_commit();
        add_state(kRests);
        wgmma_wait<1>();
        wgmma_pin(scores);
        weigh_scores(block, chunk, scores, weights);
        wgmma_wait<0>();
      } else if (direct) {
        wgmma_fence();
        add_state(std::false_type{});
        wgmma_wait<0>();
        read_scores(block, direct_tile, scores);
        weigh_scores(block, chunk, scores, weights);
      } else {
        wgmma_fence();
        add_state(kRests);
        wgmma_wait<0>();
      }
      wgmma_pin(out);
#endif
    } else if (p.causal) {
      if (direct) {
        read_scores(block, direct_tile, scores);
      } else {
        QK *const q = block.tile_q(chunk), *const k = block.tile_k(chunk);
        add_scores(block, q, k, scores);
        if constexpr (Cfg::kSplit) {
          if (split) {
            add_scores(block, block.rest_q(chunk), k, scores);
            add_scores(block, q, block.rest_k(chunk), scores);
          }
        }
      }
      weigh_scores(block, chunk, scores, weights);
    }

    // Q S0, the normaliser's column by ordinary steps
    const bool steps = !Cfg::kWgmma || (Cfg::kGeneral && p.normalize);
#pragma unroll
    for (int ks = 0; ks < KP / 16; ++ks) {
      if (!steps) break;
      RawA<QK> raw;
      load_a<QK, 64>(raw, panel_of<Cfg::C>(block.tile_q(chunk), ks * 16), row_block * 16,
                     ks * 16 % 64);
      const auto a = M::prepare(widen<E>(raw));
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        if constexpr (Cfg::kWgmma) break;
        RawB<E> b0, b1;
        load_b<E, 64>(b0, b1, panel_of<KP>(block.state_tile(chunk), warp_col), ks * 16,
                      warp_col % 64 + n * 8);
        M::mma(out[n], a, M::prepare(b0));
        M::mma(out[n + 1], a, M::prepare(b1));
      }
      if constexpr (Cfg::kGeneral) {
        if (p.normalize) {
          const float* z = block.z + (chunk & 1) * KP + ks * 16 + 2 * c;
          const RawB<E> b =
              raw_b<E>(g ? 0.f : z[0], g ? 0.f : z[1], g ? 0.f : z[8], g ? 0.f : z[9]);
          M::mma(out[NT], a, M::prepare(b));
        }
      }
    }
    if (per_head) {
      const float lo = fast_exp2(gq[row]), hi = fast_exp2(gq[row + 8]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        out[n][0] *= lo;
        out[n][1] *= lo;
        out[n][2] *= hi;
        out[n][3] *= hi;
      }
    }

    if (p.causal) {
      const float chunk_decay = gk[C - 1];
      if (per_head) {
        const float factor = fast_exp2(chunk_decay);
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) state[mt][n][i] *= factor;
          }
        }
      } else if (direct) {
        scale_rows();
      }

      const auto load_keys = [&](int mt, int kt) {
        RawA<QK> raw;
        load_a_transposed<QK, 64>(raw, panel_of<C>(block.tile_k(chunk), block.state_row(mt)),
                                  kt * 16, block.state_row(mt) % 64);
        RawA<E> keys = widen<E>(raw);
        if (per_head) {
          const float2 lo = *reinterpret_cast<const float2*>(gk + kt * 16 + 2 * c);
          const float2 hi = *reinterpret_cast<const float2*>(gk + kt * 16 + 2 * c + 8);
          scale_columns(keys,
                        make_float2(fast_exp2(chunk_decay - lo.x), fast_exp2(chunk_decay - lo.y)),
                        make_float2(fast_exp2(chunk_decay - hi.x), fast_exp2(chunk_decay - hi.y)));
        }
        return keys;
      };
      RawA<E> keys[MT][KT];
      if (kHoldKeys && (!Cfg::kWgmma || per_head || (Cfg::kGeneral && p.normalize))) {
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
          for (int kt = 0; kt < KT; ++kt) keys[mt][kt] = load_keys(mt, kt);
        }
      }
      if constexpr (Cfg::kWgmma) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        const uint64_t k = wgmma_operand(block.tile_k(chunk));
        const uint64_t v = wgmma_operand(panel_of<C>(block.tile_v(chunk), warp_col));
        constexpr uint64_t kPanel = C * 128 >> 4;
        const auto add_values = [&]() {
#pragma unroll
          for (int kt = 0; kt < 4; ++kt) wgmma<true, true>(out, weights[kt], v + kt * kStepRows);
        };
        const auto pin_state = [&]() {
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) wgmma_pin(state[mt]);
        };
        wgmma_pin(out);
        pin_state();
        if (per_head) {
          wgmma_fence();
          add_values();
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
            for (int kt = 0; kt < 4; ++kt)
              wgmma<true, true>(state[mt], keys[mt][kt], v + kt * kStepRows);
          }
          wgmma_commit();
          wgmma_wait<0>();
        } else {
          wgmma_fence();
          add_values();
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
            for (int kt = 0; kt < 4; ++kt) {
              wgmma<true, true, true>(state[mt], k + mt * kPanel + kt * kStepRows,
                                      v + kt * kStepRows);
            }
          }
          wgmma_commit();
          wgmma_wait<0>();
        }
        wgmma_pin(out);
        pin_state();
#endif
      }

      // O += scores V and S += K'V, 16 columns at a time; then the normaliser's column
#pragma unroll
      for (int n = Cfg::kWgmma ? NT : 0; n < kTiles; n += 2) {
        if (n == NT && !p.normalize) break;
        const bool pair = n < NT;
        float added[MT][2][4] = {};
#pragma unroll
        for (int kt = 0; kt < KT; ++kt) {
          RawB<E> b0 = ones_column<E>(), b1 = b0;
          if (pair) {
            RawB<IO> v0, v1;
            load_b<IO, 64>(v0, v1, panel_of<C>(block.tile_v(chunk), warp_col), kt * 16,
                           warp_col % 64 + n * 8);
            b0 = widen<E>(v0);
            b1 = widen<E>(v1);
          }
          const auto left = M::prepare(b0), right = M::prepare(b1);
          if (kt <= row_block) {
            const auto a = M::prepare(weights[kt]);
            M::mma(out[n], a, left);
            if (pair) M::mma(out[n + 1], a, right);
          }
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) {
            const auto a = M::prepare(kHoldKeys ? keys[mt][kt] : load_keys(mt, kt));
            M::mma(M::kAddOutside ? added[mt][0] : state[mt][n], a, left);
            if (pair) M::mma(M::kAddOutside ? added[mt][1] : state[mt][n + 1], a, right);
          }
        }
        if constexpr (M::kAddOutside) {
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              state[mt][n][i] += added[mt][0][i];
              if (pair) state[mt][n + 1][i] += added[mt][1][i];
            }
          }
        }
      }
      if constexpr (Cfg::kOutputPerKey) {
        if (block.per_key() && !direct) scale_rows();
      }
    }

    if (more) {
      if (Cfg::kStateBuffers == 1 || direct || split) __syncthreads();
      if (late_decays) block.load_decays(chunk + 1);
      store_operand(chunk + 1);
    }
    publish_tiles(more && late_decays);

    // Output, through this warp's part of the query tile, whose readers are the warps of the same
    // rows.
    float factor[2] = {p.scale, p.scale};
    if constexpr (Cfg::kGeneral) {
      if (p.normalize) {
        factor[0] /= p.scale * __shfl_sync(0xffffffffu, out[NT][0], lane & ~3) + kNormalizeEps;
        factor[1] /= p.scale * __shfl_sync(0xffffffffu, out[NT][2], lane & ~3) + kNormalizeEps;
      }
    }
    if constexpr (Cfg::kColWarps > 1) {
      asm volatile("bar.sync %0, %1;" ::"r"(1 + row_block), "n"(32 * Cfg::kColWarps) : "memory");
    } else {
      __syncwarp();
    }
    IO* staged = block.raw_q(chunk);
    const uint32_t at = panel_offset<IO, C>(row, warp_col) ^ 2 * c;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      store2(staged + (at ^ n * 8), out[n][0] * factor[0], out[n][1] * factor[0]);
      store2(staged + (at ^ n * 8) + 8 * 64, out[n][2] * factor[1], out[n][3] * factor[1]);
    }
    __syncwarp();
    const int rows = block.valid_rows(chunk);
    IO* target =
        static_cast<IO*>(p.output) + (block.token(chunk) * p.HO + block.ho) * p.V + block.v0;
    const int64_t stride = static_cast<int64_t>(p.HO) * p.V;
    if (p.vector_o) {
      constexpr int kPiece = 16 / sizeof(IO), kPieces = VW / kPiece;
#pragma unroll
      for (int i = lane; i < 16 * kPieces; i += 32) {
        const int r = row_block * 16 + i / kPieces, col = warp_col + i % kPieces * kPiece;
        if (r < rows && col < block.cols) {
          *reinterpret_cast<uint4*>(target + r * stride + col) =
              *reinterpret_cast<const uint4*>(staged + panel_offset<IO, C>(r, col));
        }
      }
    } else {
      for (int i = lane; i < 16 * VW; i += 32) {
        const int r = row_block * 16 + i / VW, col = warp_col + i % VW;
        if (r < rows && col < block.cols) {
          target[r * stride + col] = staged[panel_offset<IO, C>(r, col)];
        }
      }
    }

    if (more && p.stages == 1) {
      __syncthreads();
      block.load(chunk + 1);
    }
  }

  const bool owns_state =
      block.ho % (p.HO / p.HV) == 0 && block.segment == (p.causal ? p.segments - 1 : 0);
  if (p.present_state && owns_state) {
    const bool owns_z = blockIdx.y == 0 && warp_col == 0;
    const int64_t at = (static_cast<int64_t>(block.b) * p.HV + block.h) * p.K * p.W;
    for_each_state(block, state, [&](float& x, int i, int j) {
      if (j < p.V || owns_z) store_from_float(p.present_state, p.state_type, at + i * p.W + j, x);
    });
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_GATED_OUTPUT_CUH_
