// Pass 1 of the rules linear and gated: what each segment adds to the state, and its total decay.
// See linear_attention_gated.cuh. Grid: x = (b, value head, segment), y = dv tile. The chunks are
// walked from the last to the first: the sum never has to be rescaled, pass 2 starts where this
// pass ended and finds those tiles in the L2 cache, and the walk can stop where the decay up to the
// segment's end is 0 in float.
#ifndef FLA_CUDA_LINEAR_ATTENTION_GATED_STATES_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_GATED_STATES_CUH_

#include "cuda/linear_attention_gated.cuh"

namespace fla::cuda {

template <typename Cfg>
__global__ void __launch_bounds__(Cfg::kThreads, Cfg::kMinBlocks)
    gated_states_kernel(const __grid_constant__ GatedArgs p) {
  using IO = typename Cfg::IO;
  using E = typename Cfg::E;
  using QK = typename Cfg::QK;
  using M = typename Cfg::Mma;
  constexpr int C = Cfg::C, NT = Cfg::NT, MT = Cfg::MT, KT = Cfg::KT;
  constexpr int kTiles = NT + (Cfg::kGeneral ? 1 : 0);
  extern __shared__ __align__(1024) unsigned char memory[];

  const GatedBlock<Cfg> block(p, memory, false);
  allow_next_grid();
  if (p.causal && block.segment == p.segments - 1) return;  // its sum is not needed
  const int warp = block.warp, lane = threadIdx.x & 31, c = lane & 3;
  const int warp_col = block.first_column();
  const int pair_col = threadIdx.x % Cfg::kPairs * 2;

  float state[MT][kTiles][4] = {};
  float after = 0.f;  // log2 decay from the chunk's end to the segment's end
  float2 column_after = make_float2(0.f, 0.f);  // the same for this thread's column pair

  int chunk = block.chunks - 1;
  block.load(chunk);
  block.load_decays(chunk);
  typename GatedBlock<Cfg>::Scalars scalars;
  const bool loads_scalars = warp == 0 && block.has_scalars();
  if (loads_scalars) block.load_scalars(chunk, scalars);
  for (; chunk >= 0; --chunk) {
    const bool more = chunk > 0;
    if (loads_scalars) block.store_scalars(chunk, scalars);
    copy_async_wait<0>();
    if constexpr (Cfg::kWgmma) fence_for_wgmma();
    if (block.per_key()) {
      const bool gone = (column_after.x < kVanished || pair_col >= p.K) &&
                        (column_after.y < kVanished || pair_col + 1 >= p.K);
      if (__syncthreads_and(gone)) break;
    } else {
      __syncthreads();
      if (after < kVanished) break;
    }
    if (more) {
      if (p.stages == 2) block.load(chunk - 1);
      if (loads_scalars) block.load_scalars(chunk - 1, scalars);
    }

    QK* k_tile = block.tile_k(chunk);
    if constexpr (Cfg::kGeneral) {
      if (block.maps()) {
        block.map_tile(block.raw_k(chunk), k_tile, true, chunk);
        if constexpr (Cfg::kWgmma) fence_for_wgmma();
        __syncthreads();
      }
      if (block.per_key()) {
        typename GatedBlock<Cfg>::ColumnSums sums;
        block.column_sums(chunk, sums);
        block.decay_to_end(k_tile, sums, column_after);
        column_after.x += sums.total.x;
        column_after.y += sums.total.y;
        if constexpr (Cfg::kWgmma) fence_for_wgmma();
        __syncthreads();
        if (more) block.load_decays(chunk - 1);
      }
    }

    const float* gk = block.gk + (chunk & 1) * C;
    const bool per_head = block.per_head();
    if (per_head) after += gk[C - 1];
    const bool steps = !Cfg::kWgmma || per_head || (Cfg::kGeneral && p.normalize);
    if constexpr (Cfg::kWgmma) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
      const uint64_t k = wgmma_operand(k_tile);
      const uint64_t v = wgmma_operand(panel_of<C>(block.tile_v(chunk), warp_col));
      constexpr uint64_t kPanel = C * 128 >> 4;
      if (!per_head) {
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) wgmma_pin(state[mt]);
        wgmma_fence();
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
          for (int kt = 0; kt < KT; ++kt) {
            wgmma<true, true, true>(state[mt], k + mt * kPanel + kt * kStepRows,
                                    v + kt * kStepRows);
          }
        }
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) wgmma_pin(state[mt]);
      }
#endif
    }
    float added[M::kAddOutside ? MT : 1][M::kAddOutside ? kTiles : 1][4] = {};
#pragma unroll
    for (int kt = 0; kt < KT; ++kt) {
      if (!steps) break;
      typename M::A keys[MT];
#pragma unroll
      for (int mt = 0; mt < MT; ++mt) {
        RawA<QK> raw;
        load_a_transposed<QK, 64>(raw, panel_of<C>(k_tile, block.state_row(mt)), kt * 16,
                                  block.state_row(mt) % 64);
        RawA<E> a = widen<E>(raw);
        if (per_head) {
          const float2 lo = *reinterpret_cast<const float2*>(gk + kt * 16 + 2 * c);
          const float2 hi = *reinterpret_cast<const float2*>(gk + kt * 16 + 2 * c + 8);
          scale_columns(a, make_float2(fast_exp2(after - lo.x), fast_exp2(after - lo.y)),
                        make_float2(fast_exp2(after - hi.x), fast_exp2(after - hi.y)));
        }
        keys[mt] = M::prepare(a);
      }
      const auto add = [&](int mt, int n, const typename M::B& b) {
        if constexpr (M::kAddOutside) {
          M::mma(added[mt][n], keys[mt], b);
        } else {
          M::mma(state[mt][n], keys[mt], b);
        }
      };
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        if (Cfg::kWgmma && !per_head) break;
        RawB<IO> v0, v1;
        load_b<IO, 64>(v0, v1, panel_of<C>(block.tile_v(chunk), warp_col), kt * 16,
                       warp_col % 64 + n * 8);
        const auto b0 = M::prepare(widen<E>(v0)), b1 = M::prepare(widen<E>(v1));
#pragma unroll
        for (int mt = 0; mt < MT; ++mt) {
          add(mt, n, b0);
          add(mt, n + 1, b1);
        }
      }
      if constexpr (Cfg::kGeneral) {
        if (p.normalize) {
          const auto b = M::prepare(ones_column<E>());
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) add(mt, NT, b);
        }
      }
    }
    if constexpr (M::kAddOutside) {
#pragma unroll
      for (int mt = 0; mt < MT; ++mt) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) state[mt][n][i] += added[mt][n][i];
        }
      }
    }
    if (p.stages == 1 && more) {
      __syncthreads();
      block.load(chunk - 1);
    }
  }

  float* target = block.segment_state(block.segment);
  const bool owns_z = blockIdx.y == 0 && warp_col == 0;
  for_each_state(block, state, [&](float& x, int i, int j) {
    if (j < p.V || owns_z) target[i * p.W + j] = x;
  });
  if (blockIdx.y > 0) return;
  const int64_t at = (static_cast<int64_t>(block.b) * p.HV + block.h) * p.segments + block.segment;
  if (block.per_key()) {
    if (threadIdx.x < Cfg::kPairs) {
      if (pair_col < p.K) p.segment_decay[at * p.K + pair_col] = column_after.x;
      if (pair_col + 1 < p.K) p.segment_decay[at * p.K + pair_col + 1] = column_after.y;
    }
  } else if (threadIdx.x == 0) {
    p.segment_decay[at] = after;
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_GATED_STATES_CUH_
