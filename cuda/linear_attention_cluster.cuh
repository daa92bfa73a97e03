// Rule linear in one pass over the inputs (sm_90a): the blocks of a thread block cluster walk the
// sequence of one head together. For K, V <= 64, bfloat16, and few heads; the two passes of
// linear_attention_gated.cuh take everything else. The algebra is the same, with chunks of 128.
//
// In each step a cluster takes R tiles of 128 tokens, one per block:
//   1. warpgroup 0 sums up what its tile adds to the state, total = K'V, and sends it, cut into 16
//      slices, to the slices' owners in the cluster
//   2. the scanning warpgroup of each owner adds up its slices over the blocks and sends to every
//      block, as a matrix operand, the state before its tile. The state itself stays in the
//      scanning threads' registers from step to step.
//   3. warpgroups 0 and 1 compute 64 tokens of output each from that state and the tile
// 1 runs kAhead steps ahead of 3, so that nobody waits for the exchange. Inputs are read once,
// through a ring of tiles that one thread keeps full. All exchange is stores to the other blocks'
// shared memory; the order of summation is fixed.
#ifndef FLA_CUDA_LINEAR_ATTENTION_CLUSTER_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_CLUSTER_CUH_

#include "cuda/common/cluster.cuh"
#include "cuda/common/tile.cuh"
#include "cuda/common/wgmma.cuh"

namespace fla::cuda {
namespace cluster {

constexpr int kTokens = 128;    // of a tile
constexpr int kSlices = 16;     // of the state: 8 columns of every other 8 rows
constexpr int kAhead = 2;       // steps by which totals go before outputs
constexpr int kKeyTiles = 4;    // of keys and values, in flight
constexpr int kQueryTiles = 2;  // of queries; outputs leave through them
constexpr int kStates = kAhead + 1;
constexpr int kGroup = 128;                // threads of a warpgroup
constexpr int kThreads = 3 * kGroup + 32;  // computing, scanning; the last warp copies
constexpr int kTileElements = kTokens * 64, kTileBytes = kTileElements * 2;
constexpr int kStateElements = 64 * 64;

struct Args {
  CUtensorMap query, key, value, output;  // [d, head, token, batch]
  const void* past_state;
  void* present_state;
  int T, Hq, Hk, HV, K, V, steps;
  float scale;
  bool before;
  DType state_type;
};

// Shared memory, each part aligned to 1024 bytes.
struct Shared {
  bf16 key[kKeyTiles][kTileElements];      // [token][64]
  bf16 value[kKeyTiles][kTileElements];    // [token][64]
  bf16 query[kQueryTiles][kTileElements];  // [token][64]
  bf16 state[kStates][kStateElements];     // [column / 8][row][8]: the state before a tile
  float2 inbox[2][kSlices][kGroup];        // [source, slice of this block][thread]
};

struct Barriers {
  uint64_t keys_full[kKeyTiles], keys_empty[kKeyTiles];
  uint64_t queries_full[kQueryTiles], queries_empty[kQueryTiles];
  uint64_t inbox_full[2], state_full[kStates];
  uint64_t second_done[2];  // warpgroup 1 is done with a tile
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where a ring of N buffers stands.
template <int N>
struct Ring {
  int at = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++at == N) {
      at = 0;
      parity ^= 1;
    }
  }
};

// A state in shared memory as an operand [row x column], without the hardware's permutation: blocks
// of 8 rows by 8 columns of 128 bytes, one after the other along the rows.
__device__ __forceinline__ uint64_t state_operand(const bf16* state) {
  constexpr uint64_t kAlongColumns = uint64_t{64 * 16 >> 4} << 32;
  constexpr uint64_t kAlongRows = uint64_t{128 >> 4} << 16;
  return kAlongColumns | kAlongRows | (shared_address(state) & 0x3ffff) >> 4;
}
constexpr uint64_t kStepState = 2 * 128 >> 4;  // 16 rows

template <int R>
struct Block {
  static constexpr int kOwned = kSlices / R;  // slices per block

  const Args& p;
  Shared& shared;
  Barriers& barriers;
  int b, h, hq, hk;
  int rank;

  __device__ int first_token(int step) const { return (step * R + rank) * kTokens; }

  // One thread: keeps the tiles full. Keys and values go before the queries: they are needed
  // earlier.
  __device__ void copy_tiles() const {
    constexpr int kLead = kKeyTiles - 1;
    Ring<kKeyTiles> keys;
    Ring<kQueryTiles> queries;
    const auto copy_keys = [&](int step) {
      if (step >= p.steps) return;
      uint64_t* full = &barriers.keys_full[keys.at];
      barrier_wait(&barriers.keys_empty[keys.at], keys.parity ^ 1);
      barrier_expect(full, 2 * kTileBytes);
      load_box(shared.key[keys.at], p.key, 0, hk, first_token(step), b, full);
      load_box(shared.value[keys.at], p.value, 0, h, first_token(step), b, full);
      keys.next();
    };
    for (int step = 0; step < kLead; ++step) copy_keys(step);
    for (int step = 0; step < p.steps; ++step) {
      uint64_t* full = &barriers.queries_full[queries.at];
      barrier_wait(&barriers.queries_empty[queries.at], queries.parity ^ 1);
      barrier_expect(full, kTileBytes);
      load_box(shared.query[queries.at], p.query, 0, hq, first_token(step), b, full);
      queries.next();
      copy_keys(step + kLead);
    }
  }

  // A warpgroup: thread = a row and two columns of each of this block's slices. Slice 2 n + i has
  // columns 8 n .. 8 n + 7 of the rows 16 w + 8 i .. 16 w + 8 i + 7.
  __device__ void scan() const {
    const int thread = threadIdx.x % kGroup, lane = thread & 31;
    const auto row_of = [&](int j) {
      return thread / 32 * 16 + (rank * kOwned + j) % 2 * 8 + lane / 4;
    };
    const auto column_of = [&](int j) { return (rank * kOwned + j) / 2 * 8 + lane % 4 * 2; };
    float2 state[kOwned];
    const auto for_each = [&](auto act) {
      const int64_t head = static_cast<int64_t>(b) * p.HV + h;
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        const int d = row_of(j), v = column_of(j);
        const int64_t at = (head * p.K + d) * p.V + v;
        act(state[j].x, d < p.K && v < p.V, at);
        act(state[j].y, d < p.K && v + 1 < p.V, at + 1);
      }
    };
    for_each([&](float& x, bool exists, int64_t at) {
      x = p.past_state && exists ? load_as_float(p.past_state, p.state_type, at) : 0.f;
    });
    Ring<kStates> states;
    for (int step = 0; step < p.steps; ++step) {
      const int buffer = step & 1;
      uint64_t* full = &barriers.inbox_full[buffer];
      if (thread == 0) barrier_expect(full, sizeof(shared.inbox[0]));
      barrier_wait(full, step >> 1 & 1);
      float2 added[kOwned][R];
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
#pragma unroll
        for (int i = 0; i < R; ++i) added[j][i] = shared.inbox[buffer][i * kOwned + j][thread];
      }
      const uint32_t state_full = shared_address(&barriers.state_full[states.at]);
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        const int at = (column_of(j) / 8 * 64 + row_of(j)) * 8 + lane % 4 * 2;
        const uint32_t address = shared_address(shared.state[states.at] + at);
#pragma unroll
        for (int i = 0; i < R; ++i) {
          store_remote(address_in(address, i), pack2(bf16(), state[j].x, state[j].y),
                       address_in(state_full, i));
          state[j].x += added[j][i].x;
          state[j].y += added[j][i].y;
        }
      }
      states.next();
    }
    if (!p.present_state) return;
    for_each([&](float& x, bool exists, int64_t at) {
      if (exists) store_from_float(p.present_state, p.state_type, at, x);
    });
  }

  // Warpgroup 0: starts total = K'V of a tile.
  __device__ void start_total(float (&total)[8][4], int at) const {
    const uint64_t key = wgmma_operand(shared.key[at]), value = wgmma_operand(shared.value[at]);
    wgmma_pin(total);
    wgmma_fence();
    wgmma<false, true, true>(total, key, value);
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      wgmma<true, true, true>(total, key + i * kStepRows, value + i * kStepRows);
    }
    wgmma_commit();
  }

  // Sends a tile's total to the owners of its slices.
  __device__ void send_total(const float (&total)[8][4], int step) const {
    const int buffer = step & 1;
    const uint32_t full = shared_address(&barriers.inbox_full[buffer]);
    const uint32_t inbox =
        shared_address(&shared.inbox[buffer][rank * kOwned][threadIdx.x % kGroup]);
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const uint32_t to = inbox + i % kOwned * sizeof(shared.inbox[0][0]);
      store_remote(address_in(to, i / kOwned),
                   make_float2(total[i / 2][i % 2 * 2], total[i / 2][i % 2 * 2 + 1]),
                   address_in(full, i / kOwned));
    }
  }

  struct Rings {
    Ring<kKeyTiles> ahead, keys;
    Ring<kQueryTiles> queries;
    Ring<kStates> states;
  };

  // Warpgroup 0, before the first step: the total of a tile.
  __device__ void first_total(int step, Rings& rings) const {
    float total[8][4];
    barrier_wait(&barriers.keys_full[rings.ahead.at], rings.ahead.parity);
    start_total(total, rings.ahead.at);
    wgmma_wait<0>();
    wgmma_pin(total);
    send_total(total, step);
    rings.ahead.next();
  }

  // Warpgroups 0 and 1: the output of tokens 64 W to 64 W + 63 of a tile. With More, also the total
  // of the tile kAhead steps later.
  template <int W, bool More>
  __device__ void compute_step(int step, Rings& rings) const {
    const int thread = threadIdx.x % kGroup, lane = thread & 31, warp = thread / 32;
    const int row = warp * 16 + (lane >> 2), c = lane & 3;  // row: within the warpgroup's
    const int keys = rings.keys.at, queries = rings.queries.at;
    constexpr uint64_t kHalf = 64 * 128 >> 4;  // 64 rows of a tile

    // 3: scores, and what the state gives
    if (W == 1) barrier_wait(&barriers.keys_full[keys], rings.keys.parity);
    barrier_wait(&barriers.queries_full[queries], rings.queries.parity);
    const uint64_t key = wgmma_operand(shared.key[keys]), value = wgmma_operand(shared.value[keys]);
    bf16* const own_queries = shared.query[queries] + W * 64 * 64;
    const uint64_t query = wgmma_operand(own_queries);
    float scores[W + 1][8][4], out[8][4];
#pragma unroll
    for (int i = 0; i <= W; ++i) wgmma_pin(scores[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i <= W; ++i) {
      wgmma<false, false, false>(scores[i], query, key + i * kHalf);
#pragma unroll
      for (int d = 1; d < 4; ++d) {
        wgmma<true, false, false>(scores[i], query + d * kStepColumns,
                                  key + i * kHalf + d * kStepColumns);
      }
    }
    wgmma_commit();
    uint64_t* state_full = &barriers.state_full[rings.states.at];
    if (W == 1 && thread == 0) barrier_expect(state_full, kStateElements * 2);
    barrier_wait(state_full, rings.states.parity);
    fence_for_wgmma();
    const uint64_t state = state_operand(shared.state[rings.states.at]);
    wgmma_pin(out);
    wgmma_fence();
    wgmma<false, false, true>(out, query, state);
#pragma unroll
    for (int d = 1; d < 4; ++d) {
      wgmma<true, false, true>(out, query + d * kStepColumns, state + d * kStepState);
    }
    wgmma_commit();

    // 1 of a later tile
    float total[8][4];
    if constexpr (More) {
      barrier_wait(&barriers.keys_full[rings.ahead.at], rings.ahead.parity);
      start_total(total, rings.ahead.at);
    }
    if (thread == 0 && step > 0) {  // the last step's output has left its query tile
      wait_for_store_reads<0>();
      barrier_arrive(&barriers.queries_empty[queries ^ 1]);
    }

    wgmma_wait<More + 1>();
    RawA<bf16> weights[W + 1][4];
#pragma unroll
    for (int i = 0; i <= W; ++i) {
      wgmma_pin(scores[i]);
      if (i == W) {  // the diagonal block: a key is hidden from this distance to its query on
        const int hidden = p.before ? 0 : 1;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (8 * n + 2 * c + (e & 1) - row - (e >> 1) * 8 >= hidden) scores[i][n][e] = 0.f;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        weights[i][k] = raw_a<bf16>(scores[i][2 * k], scores[i][2 * k + 1]);
      }
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i <= W; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma<true, true>(out, weights[i][k], value + i * kHalf + k * kStepRows);
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(out);
    if (lane == 0) {
      barrier_arrive(&barriers.keys_empty[keys]);
      if (W == 1) barrier_arrive(&barriers.second_done[step & 1]);
    }

    // Out through this warpgroup's rows of the query tile.
    const uint32_t at = tile_offset<bf16, 64>(row, 0) + 2 * c;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      store2(own_queries + (at ^ n * 8), out[n][0] * p.scale, out[n][1] * p.scale);
      store2(own_queries + (at ^ n * 8) + 8 * 64, out[n][2] * p.scale, out[n][3] * p.scale);
    }
    fence_for_wgmma();
    named_barrier<kGroup>(1 + W);
    if (thread == 0) {
      store_box(p.output, own_queries, 0, h, first_token(step) + W * 64, b);
    }
    if constexpr (More) {
      wgmma_pin(total);
      // The inbox's buffer is free: its owner has sent the state of this step. So is the state's
      // buffer, once warpgroup 1 is done with the last step as well.
      if (step > 0) barrier_wait(&barriers.second_done[(step - 1) & 1], (step - 1) >> 1 & 1);
      send_total(total, step + kAhead);
      rings.ahead.next();
    }
    rings.keys.next();
    rings.queries.next();
    rings.states.next();
  }

  template <int W>
  __device__ void compute() const {
    Rings rings;
    if constexpr (W == 0) {
      for (int step = 0; step < min(kAhead, p.steps); ++step) first_total(step, rings);
    }
    int step = 0;
    for (; step < p.steps - kAhead; ++step) compute_step<W, W == 0>(step, rings);
    for (; step < p.steps; ++step) compute_step<W, false>(step, rings);
    if (threadIdx.x % kGroup == 0) wait_for_store_reads<0>();
  }

  __device__ void run() const {
    const int warp = warp_index();
    if (warp < 4) {
      compute<0>();
    } else if (warp < 8) {
      compute<1>();
    } else if (warp < 12) {
      scan();
    } else if ((threadIdx.x & 31) == 0) {
      copy_tiles();
    }
  }
};

#endif

// Grid: x = (b, head, rank). Without sm_90a the kernel is empty, which shows in its static shared
// memory.
template <int R>
__global__ void __launch_bounds__(kThreads, 1)
    linear_cluster_kernel(const __grid_constant__ Args p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ Barriers barriers;
  const int head = blockIdx.x / R, h = head % p.HV;
  const Block<R> block = {p,
                          *reinterpret_cast<Shared*>(memory),
                          barriers,
                          head / p.HV,
                          h,
                          h / (p.HV / p.Hq),
                          h / (p.HV / p.Hk),
                          static_cast<int>(cluster_rank())};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kKeyTiles; ++i) {
      barrier_init(&barriers.keys_full[i], 1);
      barrier_init(&barriers.keys_empty[i], 8);
    }
    for (int i = 0; i < kQueryTiles; ++i) {
      barrier_init(&barriers.queries_full[i], 1);
      barrier_init(&barriers.queries_empty[i], 2);
    }
    for (int i = 0; i < kStates; ++i) barrier_init(&barriers.state_full[i], 1);
    for (int i = 0; i < 2; ++i) {
      barrier_init(&barriers.inbox_full[i], 1);
      barrier_init(&barriers.second_done[i], 4);
    }
    barrier_init_fence();
  }
  cluster_sync();
  block.run();
  __syncwarp();
  cluster_sync();
#endif
}

}  // namespace cluster
}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_CLUSTER_CUH_
