// Rules linear and gated, chunk-parallel on tensor cores; shared by the two passes.
//
//   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t',  o_t = scale * S_t' q_t      (g = 0 for rule linear)
//
// The sequence is cut into segments, a segment into chunks of C tokens. Pass 1
// (gated_states_kernel) sums up what each segment adds to the state; gated_scan_kernel turns these
// into the state before each segment; pass 2 (gated_output_kernel) walks each segment with the
// state in registers. With one segment per head only pass 2 runs. Inside a chunk, with G_r the
// inclusive sum of log decays up to row r and Gq_r = G_r (read after the update) or G_{r-1}
// (before):
//
//   O  = scale * [(Q . e^Gq) S0 + ((Q K') . D) V],  D_rs = e^{Gq_r - G_s} for s <= r (s < r before)
//   S1 = e^{G_C} S0 + (K . e^{G_C - G})' V
//
// Decay per head: D is formed from differences, so nothing can overflow. Decay per key dimension:
// Q K' . D becomes (Q . e^Gq)(K . e^-G)' while e^-G stays below 2^kMaxExponent over the chunk,
// which is decided per chunk; a chunk with stronger decay computes its scores one by one. Exponents
// are base 2. Papers: Katharopoulos et al. 2020, Yang et al. 2023 (GLA), Dao and Gu 2024 (SSD).
#ifndef FLA_CUDA_LINEAR_ATTENTION_GATED_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_GATED_CUH_

#include <type_traits>

#include "cuda/common/features.cuh"
#include "cuda/common/fours.cuh"
#include "cuda/common/tile.cuh"
#include "cuda/common/wgmma.cuh"

namespace fla::cuda {

constexpr float kMaxExponent = 64.f;
constexpr float kVanished = -126.f;      // fast_exp2 gives 0 below
constexpr float kMinLog2Decay = -150.f;  // decay 0, and so is what follows from it
constexpr float kMinLogDecay = -104.f;   // the same, natural

struct GatedArgs {
  int T, Hq, Hk, HV, HO, K, V, W;  // W = V + normalize: width of the state's rows
  int segments, segment_chunks;
  int stages;  // chunk buffers in shared memory, 1 or 2
  float scale;
  bool causal, normalize, before, bonus, l2norm;
  FeatureMap feature_map;
  DecayKind decay_kind;
  DType decay_type, mask_type, bonus_type, state_type;
  bool vector_qk, vector_v, vector_g, vector_o;  // 16-byte accesses are legal
  bool states_in_workspace;
  const void *query, *key, *value, *past_state, *decay, *mask, *bonus_u;
  void *output, *present_state;
  float*
      segment_state;  // [B*HV, segments, K, W]: pass 1's sums, then the state before each segment
  float* segment_decay;  // [B*HV, segments] or [B*HV, segments, K]: log2
};

// Tiles are kept as panels of 64 columns, one after the other: [columns / 64][Rows][64].
template <typename E, int Rows>
__device__ __forceinline__ uint32_t panel_offset(uint32_t row, uint32_t col) {
  return (col >> 6) * (Rows * 64) + tile_offset<E, 64>(row, col & 63);
}
template <int Rows, typename E>
__device__ __forceinline__ E* panel_of(E* tile, uint32_t col) {
  return tile + (col >> 6) * (Rows * 64);
}
template <typename E, int Rows, int Width, int Threads>
__device__ __forceinline__ void load_panels(E* tile, const E* src, int64_t row_stride,
                                            int valid_rows, int cols, bool vectorised) {
#pragma unroll
  for (int col = 0; col < Width; col += 64) {
    load_tile<E, Rows, 64, Threads>(tile + col * Rows, src + col, row_stride, valid_rows,
                                    max(cols - col, 0), vectorised);
  }
}

// General kernels transform queries and keys in shared memory before use; the others feed them to
// the tensor cores as they are.
template <typename IO_, typename Mma_, int KP_, bool General_, bool Split_ = false>
struct GatedConfig {
  using IO = IO_;
  using Mma = Mma_;
  using E = typename Mma::Element;
  using QK = std::conditional_t<General_, E, IO>;  // elements of the query and key tiles
  using MmaQK = std::conditional_t<std::is_same_v<QK, f16>, MmaF16, Mma>;
  static constexpr bool kGeneral = General_;
  static constexpr bool kConverts = General_ && !std::is_same_v<IO, E>;
  static constexpr int KP = KP_;                                      // dk rounded up
  static constexpr int C = KP == 256 ? 32 : 64;                       // tokens per chunk
  static constexpr int kRowWarps = C / 16;                            // warps over the chunk's rows
  static constexpr int kColWarps = KP == 64 ? 1 : KP == 128 ? 2 : 4;  // warps over dv
  static constexpr int VP = KP == 128 ? 128 : 64;                     // dv columns per block
  static constexpr int VW = VP / kColWarps;                           // dv columns per warp
  static constexpr int NT = VW / 8;
  static constexpr int KT = C / 16;               // 16-token steps per chunk
  static constexpr int MT = KP / 16 / kRowWarps;  // 16-row tiles of the state per warp
  // A warpgroup's instructions take 64x64 panels of bf16: the chunk's rows by one warpgroup's
  // columns.
  static constexpr bool kWgmma = kHasWgmma && KP <= 128 && std::is_same_v<E, bf16>;
  static constexpr int kThreads = 32 * kRowWarps * kColWarps;
  static constexpr int kPairs = KP / 2;  // column pairs
  static constexpr int kParts =
      kThreads / kPairs;  // threads per column pair, each with C/kParts tokens
  static constexpr int kRows = C / kParts;
  static constexpr int kMinBlocks = KP > 64 ? 1 : sizeof(E) == 4 ? 2 : 3;  // per multiprocessor
  static constexpr int kStateBuffers = sizeof(E) == 2 ? 2 : 1;
  // Queries and keys times their decay per key keep what rounding to bf16 takes off in tiles of
  // their own: in the operand buffer of the next chunk, or the keys' one, where there is no room
  // for it, in place of the decays.
  // A kernel of its own, for decay per key only: a branch between warpgroup products makes the
  // compiler serialise them.
  static constexpr bool kSplit = Split_;
  using WithoutRests = GatedConfig<IO_, Mma_, KP_, General_>;
  // Whether the kernel for the output takes decay per key: in bf16 only the one with rests does.
  static constexpr bool kOutputPerKey = General_ && (Split_ || !std::is_same_v<E, bf16>);
  static_assert(!kSplit || (General_ && std::is_same_v<E, bf16>));
  static constexpr bool kKeyRestInDecays = kSplit && VP < 2 * C;
};

// Shared memory, in bytes from its start. The same on host and device.
template <typename Cfg>
struct GatedLayout {
  int q, k, v, stage;         // within a stage; size of a stage
  int g;                      // per-key decay, one buffer
  int tile_q, tile_k;         // transformed queries and keys
  int state, scores, floats;  // state operand; scores of the one-by-one path; small arrays
  int total;

  // Sums over parts of a column exist with per-key decay only, cumulative decays per head only.
  static constexpr bool kSharedSums = Cfg::kParts * Cfg::KP <= 4 * Cfg::C;
  static constexpr int kFloats = 7 * Cfg::C + (3 + (kSharedSums ? 0 : Cfg::kParts)) * Cfg::KP;

  __host__ __device__ GatedLayout(const GatedArgs& p, bool output) {
    constexpr int kTile = Cfg::C * Cfg::KP;
    const bool per_key = Cfg::kGeneral && p.decay_kind == DecayKind::kPerKey;
    const int io = sizeof(typename Cfg::IO), e = sizeof(typename Cfg::E);
    q = 0;
    k = output ? kTile * io : 0;
    v = k + kTile * io;
    stage = v + Cfg::C * Cfg::VP * io;
    g = p.stages * stage;
    tile_q = g + (per_key ? kTile * size_of(p.decay_type) : 0);
    tile_k = tile_q + (Cfg::kConverts && output ? kTile * e : 0);
    state = tile_k + (Cfg::kConverts ? kTile * e : 0);
    scores = state + (output ? Cfg::kStateBuffers * Cfg::KP * Cfg::VP * e : 0);
    floats = scores + (output && per_key && Cfg::kStateBuffers == 1 ? Cfg::C * Cfg::C * e : 0);
    total = floats + kFloats * 4;
  }
};

// One block's view: where its chunks come from, its shared memory, its place in the work.
template <typename Cfg>
struct GatedBlock {
  using IO = typename Cfg::IO;
  using E = typename Cfg::E;
  using QK = typename Cfg::QK;
  static constexpr int C = Cfg::C, KP = Cfg::KP, VP = Cfg::VP;

  const GatedArgs& p;
  const GatedLayout<Cfg> layout;
  unsigned char* shared;
  const bool output;
  int b, h, hq, hk, ho;  // batch row; value head = state; query, key and output heads
  int segment, first_chunk, chunks;
  int v0, cols;  // first dv column and their number
  uint32_t warp;
  // small arrays
  float *gq, *gk, *visible;  // [2][C]
  float* diagonal;           // [C]
  float *column_total, *z;   // [KP], [2][KP]
  float* part_total;         // [kParts][KP]

  __device__ GatedBlock(const GatedArgs& args, unsigned char* memory, bool is_output)
      : p(args), layout(args, is_output), shared(memory), output(is_output) {
    const int heads = is_output ? p.HO : p.HV;
    const int unit = blockIdx.x / p.segments;
    segment = blockIdx.x % p.segments;
    b = unit / heads;
    const int head = unit % heads;
    h = is_output ? head / (p.HO / p.HV) : head;
    ho = head;
    hq = is_output ? head / (p.HO / p.Hq) : 0;
    hk = h / (p.HV / p.Hk);
    const int total = (p.T + C - 1) / C;
    first_chunk = segment * p.segment_chunks;
    chunks = min(p.segment_chunks, total - first_chunk);
    v0 = blockIdx.y * VP;
    cols = min(VP, p.V - v0);
    warp = warp_index();
    gq = reinterpret_cast<float*>(shared + layout.floats);
    gk = gq + 2 * C;
    visible = gk + 2 * C;
    diagonal = visible + 2 * C;
    column_total = diagonal + C;
    z = column_total + KP;
    part_total = GatedLayout<Cfg>::kSharedSums ? gq : z + 2 * KP;
  }

  __device__ bool per_key() const {
    return Cfg::kSplit || (Cfg::kGeneral && p.decay_kind == DecayKind::kPerKey);
  }
  __device__ bool per_head() const { return !Cfg::kSplit && p.decay_kind == DecayKind::kPerHead; }
  __device__ int64_t token(int chunk) const {
    return static_cast<int64_t>(b) * p.T + static_cast<int64_t>(first_chunk + chunk) * C;
  }
  __device__ int valid_rows(int chunk) const { return min(C, p.T - (first_chunk + chunk) * C); }

  __device__ unsigned char* stage(int chunk) const {
    return shared + (p.stages == 2 ? chunk & 1 : 0) * layout.stage;
  }
  __device__ IO* raw_q(int chunk) const { return reinterpret_cast<IO*>(stage(chunk) + layout.q); }
  __device__ IO* raw_k(int chunk) const { return reinterpret_cast<IO*>(stage(chunk) + layout.k); }
  __device__ IO* tile_v(int chunk) const { return reinterpret_cast<IO*>(stage(chunk) + layout.v); }
  __device__ QK* tile_q(int chunk) const {
    return reinterpret_cast<QK*>(Cfg::kConverts ? shared + layout.tile_q : stage(chunk) + layout.q);
  }
  __device__ QK* tile_k(int chunk) const {
    return reinterpret_cast<QK*>(Cfg::kConverts ? shared + layout.tile_k : stage(chunk) + layout.k);
  }
  __device__ E* state_tile(int chunk) const {
    const int buffer = Cfg::kStateBuffers == 2 ? chunk & 1 : 0;
    return reinterpret_cast<E*>(shared + layout.state) + buffer * KP * VP;
  }
  // What rounding took off decayed queries and keys (kSplit).
  __device__ E* rest_q(int chunk) const { return state_tile(chunk + 1); }
  __device__ E* rest_k(int chunk) const {
    return Cfg::kKeyRestInDecays ? reinterpret_cast<E*>(shared + layout.g)
                                 : state_tile(chunk + 1) + C * KP;
  }

  // Log decay of token `row` in columns col, col + 1; per-key decay only. Natural logarithm.
  template <typename G>
  __device__ float2 decay2(int chunk, uint32_t row, uint32_t col) const {
    const G* tile = reinterpret_cast<const G*>(shared + layout.g);
    float2 g = load2(tile + panel_offset<G, C>(row, col));
    if (p.mask && visible[(chunk & 1) * C + row] == 0.f) g = make_float2(0.f, 0.f);
    return make_float2(fmaxf(g.x, kMinLogDecay), fmaxf(g.y, kMinLogDecay));
  }
  // The same, of the type that the call says.
  __device__ float2 decay2(int chunk, uint32_t row, uint32_t col) const {
    return p.decay_type == DType::kFloat32 ? decay2<float>(chunk, row, col)
                                           : decay2<IO>(chunk, row, col);
  }

  // Starts the copies of a chunk's tiles.
  __device__ void load(int chunk) const {
    const int64_t t = token(chunk);
    const int rows = valid_rows(chunk);
    if (output) {
      load_panels<IO, C, KP, Cfg::kThreads>(
          raw_q(chunk), static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K,
          static_cast<int64_t>(p.Hq) * p.K, rows, p.K, p.vector_qk);
    }
    if (!output || p.causal) {
      load_panels<IO, C, KP, Cfg::kThreads>(
          raw_k(chunk), static_cast<const IO*>(p.key) + (t * p.Hk + hk) * p.K,
          static_cast<int64_t>(p.Hk) * p.K, rows, p.K, p.vector_qk);
      load_panels<IO, C, VP, Cfg::kThreads>(
          tile_v(chunk), static_cast<const IO*>(p.value) + (t * p.HV + h) * p.V + v0,
          static_cast<int64_t>(p.HV) * p.V, rows, cols, p.vector_v);
    }
    copy_async_commit();
  }

  // The same for per-key decay. There is one buffer: the chunk before must be done with it.
  __device__ void load_decays(int chunk) const {
    if (!per_key()) return;
    const int64_t t = token(chunk), start = (t * p.HV + h) * p.K;
    const int64_t stride = static_cast<int64_t>(p.HV) * p.K;
    const int rows = valid_rows(chunk);
    if (p.decay_type == DType::kFloat32) {
      load_panels<float, C, KP, Cfg::kThreads>(reinterpret_cast<float*>(shared + layout.g),
                                               static_cast<const float*>(p.decay) + start, stride,
                                               rows, p.K, p.vector_g);
    } else {
      load_panels<IO, C, KP, Cfg::kThreads>(reinterpret_cast<IO*>(shared + layout.g),
                                            static_cast<const IO*>(p.decay) + start, stride, rows,
                                            p.K, p.vector_g);
    }
    copy_async_commit();
  }

  // Whether the kernel needs per-token scalars at all.
  __device__ bool has_scalars() const { return Cfg::kGeneral || per_head(); }

  // What one lane of warp 0 holds of the next chunk's per-token scalars, as loaded: rows lane *
  // kScalars + i.
  static constexpr int kScalars = C / 32;
  struct Scalars {
    uint32_t g[kScalars], mask[kScalars];
  };

  __device__ void load_scalars(int chunk, Scalars& s) const {
    const int64_t t = token(chunk);
    const int rows = valid_rows(chunk);
#pragma unroll
    for (int i = 0; i < kScalars; ++i) {
      const int row = (threadIdx.x & 31) * kScalars + i;
      s.g[i] = 0;
      s.mask[i] = 0;
      if (row >= rows) continue;
      if (per_head()) s.g[i] = load_bits(p.decay, p.decay_type, (t + row) * p.HV + h);
      if (Cfg::kGeneral && p.mask) s.mask[i] = load_bits(p.mask, p.mask_type, t + row);
    }
  }

  // Warp 0: cumulative decays and visibility of a chunk, into the small arrays.
  __device__ void store_scalars(int chunk, const Scalars& s) const {
    const int lane = threadIdx.x & 31, at = (chunk & 1) * C + lane * kScalars;
    const int rows = valid_rows(chunk);
    float g[kScalars], sum = 0.f;
#pragma unroll
    for (int i = 0; i < kScalars; ++i) {
      bool seen = lane * kScalars + i < rows;
      if (Cfg::kGeneral && p.mask) seen = seen && as_float(p.mask_type, s.mask[i]) != 0.f;
      visible[at + i] = seen ? 1.f : 0.f;
      g[i] =
          seen && per_head() ? fmaxf(as_float(p.decay_type, s.g[i]) * kLog2e, kMinLog2Decay) : 0.f;
      sum += g[i];
    }
    float before = sum;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const float x = __shfl_up_sync(0xffffffffu, before, i);
      if (lane >= i) before += x;
    }
    before = __shfl_up_sync(0xffffffffu, before, 1);
    if (lane == 0) before = 0.f;
#pragma unroll
    for (int i = 0; i < kScalars; ++i) {
      const float through = before + g[i];
      gk[at + i] = through;
      gq[at + i] = p.before ? before : through;
      before = through;
    }
  }

  // Applies feature map, normalisation and mask to one tile. Columns from K on and hidden keys
  // become 0.
  __device__ void map_tile(const IO* src, QK* dst, bool is_key, int chunk) const {
    const float* seen = visible + (chunk & 1) * C;
    if (p.l2norm || p.feature_map == FeatureMap::kL2Norm || p.feature_map == FeatureMap::kSoftmax) {
      const int lane = threadIdx.x & 31;
      for (int row = threadIdx.x / 32; row < C; row += Cfg::kThreads / 32) {
        const bool keep = !is_key || seen[row] != 0.f;
        map_features<32>(
            p.feature_map, p.l2norm, lane, p.K,
            [&](int i) { return to_float(src[panel_offset<IO, C>(row, i)]); },
            [&](int i, float x) {
              dst[panel_offset<QK, C>(row, i)] = from_float<QK>(keep ? x : 0.f);
            });
        for (int i = p.K + lane; i < KP; i += 32) {
          dst[panel_offset<QK, C>(row, i)] = from_float<QK>(0.f);
        }
      }
    } else {
      constexpr int kPieces = KP / 8;  // of a row; a tile keeps them together
      static_assert(C * kPieces % Cfg::kThreads == 0);
#pragma unroll 2
      for (int i = threadIdx.x; i < C * kPieces; i += Cfg::kThreads) {
        const int row = i / kPieces, col = i % kPieces * 8;
        const int kept = !is_key || seen[row] != 0.f ? p.K - col : 0;
        float x[8];
        load8(src + panel_offset<IO, C>(row, col), x);
        map_elements<sizeof(IO) == 2>(p.feature_map, x);
        if (kept < 8) {
#pragma unroll
          for (int j = 0; j < 8; ++j) x[j] = j < kept ? x[j] : 0.f;
        }
        store8(dst + panel_offset<QK, C>(row, col), x);
      }
    }
  }

  __device__ bool maps() const {
    return Cfg::kConverts || p.feature_map != FeatureMap::kIdentity || p.l2norm || p.mask;
  }

  // A thread's column pair over its rows: sums of the log decays (natural) from its first row up
  // to, but without, each row; the last one includes all. The others are log2: from the chunk's
  // first row to the thread's first, from after the thread's last to the chunk's end, and all.
  struct ColumnSums {
    float2 sums[Cfg::kRows + 1];
    float2 before, after, total;
  };

  template <typename G>
  __device__ void add_columns(int chunk, uint32_t first, uint32_t col, ColumnSums& out) const {
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < Cfg::kRows; ++i) {
      out.sums[i] = sum;
      const float2 g = decay2<G>(chunk, first + i, col);
      sum.x += g.x;
      sum.y += g.y;
    }
    out.sums[Cfg::kRows] = sum;
  }

  // All threads of the block call this; column_total is there after the next barrier.
  __device__ void column_sums(int chunk, ColumnSums& out) const {
    const uint32_t col = threadIdx.x % Cfg::kPairs * 2, part = threadIdx.x / Cfg::kPairs;
    if (p.decay_type == DType::kFloat32) {
      add_columns<float>(chunk, part * Cfg::kRows, col, out);
    } else {
      add_columns<IO>(chunk, part * Cfg::kRows, col, out);
    }
    store2(part_total + part * KP + col, out.sums[Cfg::kRows].x * kLog2e,
           out.sums[Cfg::kRows].y * kLog2e);
    __syncthreads();
    out.before = out.after = out.total = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < Cfg::kParts; ++i) {
      const float2 x = load2(part_total + i * KP + col);
      if (i == part) out.before = out.total;
      if (i > part) {
        out.after.x += x.x;
        out.after.y += x.y;
      }
      out.total.x += x.x;
      out.total.y += x.y;
    }
    if (part == 0) store2(column_total + col, out.total.x, out.total.y);
  }

  // Multiplies row i of this thread's rows and columns of a tile by 2^(offset + slope * log2e *
  // (sums[i + shift] - from)). What rounding takes off goes to `rest`, if there is one.
  __device__ void decay_columns(QK* tile, const ColumnSums& s, int shift, float slope, float2 from,
                                float2 offset, QK* rest = nullptr) const {
    const uint32_t col = threadIdx.x % Cfg::kPairs * 2,
                   first = threadIdx.x / Cfg::kPairs * Cfg::kRows;
    slope *= kLog2e;
#pragma unroll
    for (int i = 0; i < Cfg::kRows; ++i) {
      const uint32_t at = panel_offset<QK, C>(first + i, col);
      const float2 sum = shift ? s.sums[i + 1] : s.sums[i];
      float2 x = load2(tile + at);
      x.x *= fast_exp2(fmaf(slope, sum.x - from.x, offset.x));
      x.y *= fast_exp2(fmaf(slope, sum.y - from.y, offset.y));
      store2(tile + at, x.x, x.y);
      if constexpr (Cfg::kSplit) {
        if (rest) {
          const float2 rounded = unpack2(QK(), pack2(QK(), x.x, x.y));
          store2(rest + at, x.x - rounded.x, x.y - rounded.y);
        }
      }
    }
  }

  // Multiplies keys by what is left of them `later` (log2) after the chunk's end. The last rows
  // weigh most: their exponents are sums of what follows, not differences of long sums.
  __device__ void decay_to_end(QK* keys, const ColumnSums& s, float2 later) const {
    decay_columns(keys, s, 1, -1.f, s.sums[Cfg::kRows],
                  make_float2(s.after.x + later.x, s.after.y + later.y));
  }

  // This warp's rows (d) and columns (dv) of the state.
  __device__ int state_row(int mt) const {
    return (mt * Cfg::kRowWarps + warp % Cfg::kRowWarps) * 16;
  }
  __device__ int first_column() const { return warp / Cfg::kRowWarps * Cfg::VW; }

  __device__ float* segment_state(int s) const {
    return p.segment_state + ((static_cast<int64_t>(b) * p.HV + h) * p.segments + s) * p.K * p.W;
  }
};

// Runs fn(element, row, col) for every element of this warp's part of the state that exists. The
// last tile of `state` is the normaliser's column, col == V, when the kernel carries it.
template <typename Cfg, int Tiles, typename Fn>
__device__ __forceinline__ void for_each_state(const GatedBlock<Cfg>& block,
                                               float (&state)[Cfg::MT][Tiles][4], Fn fn) {
  const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
#pragma unroll
  for (int mt = 0; mt < Cfg::MT; ++mt) {
#pragma unroll
    for (int nt = 0; nt < Cfg::NT; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = block.state_row(mt) + g + (i >> 1) * 8;
        const int col = block.first_column() + nt * 8 + 2 * c + (i & 1);
        if (row < block.p.K && col < block.cols) fn(state[mt][nt][i], row, block.v0 + col);
      }
    }
    if constexpr (Tiles > Cfg::NT) {
      if (block.p.normalize && c == 0) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const int row = block.state_row(mt) + g + i * 4;
          if (row < block.p.K) fn(state[mt][Cfg::NT][i], row, block.p.V);
        }
      }
    }
  }
}

// An operand that holds the normaliser's column of ones: column 0 is 1, the others 0.
template <typename E>
__device__ __forceinline__ RawB<E> ones_column() {
  const float x = (threadIdx.x & 31) < 4 ? 1.f : 0.f;
  return raw_b<E>(x, x, x, x);
}

// Operands of the arithmetic's type from those of the tile's type.
template <typename To, typename From>
__device__ __forceinline__ RawA<To> widen(const RawA<From>& a) {
  if constexpr (std::is_same_v<To, From>) {
    return a;
  } else {
    RawA<To> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack2(From(), a.r[i]);
      out.r[2 * i] = x.x;
      out.r[2 * i + 1] = x.y;
    }
    return out;
  }
}
template <typename To, typename From>
__device__ __forceinline__ RawB<To> widen(const RawB<From>& b) {
  if constexpr (std::is_same_v<To, From>) {
    return b;
  } else {
    RawB<To> out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 x = unpack2(From(), b.r[i]);
      out.r[2 * i] = x.x;
      out.r[2 * i + 1] = x.y;
    }
    return out;
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_GATED_CUH_
