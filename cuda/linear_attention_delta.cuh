// LinearAttention on a CUDA device, rules delta and gated_delta, many tokens: the kernel that walks
// a segment of the sequence.
//
//   S = diag(e^g) S + beta k (v - (diag(e^g) S)' k)',  o = scale S'q      (g = 0 for the rule
//   delta)
//
// Within a block of 16 tokens, with G the decay summed from the block's start (inclusive):
//   M_rs = beta_r sum_d k_rd k_sd e^{G_rd - G_sd}  for s < r,   A_rs = sum_d q_rd k_sd e^{G_rd -
//   G_sd}  for s <= r U = (I + M)^-1 (beta (V - (K e^G) S)),  O = scale ((Q e^G) S + A U),  S =
//   e^{G_15} S + (K e^{G_15 - G})' U
// (Yang et al. 2024, arXiv 2406.06484 and 2412.06464; per-key decay: Kimi Linear, arXiv
// 2510.26692.) The inverse is forward substitution in float, exact for any keys. Every exponent
// that is formed is <= 0; only the 16x16 products with per-key decay multiply by e^{-G_15}, and
// dimensions where that would overflow are summed pair by pair instead.
//
// A thread block of 4 warps owns 64 columns of the state and keeps them, transposed, in registers:
// warp w the columns 16w..16w+15 as mma accumulators [column x key dim], which are also the A
// operand of the next product. So R, U and O [column x token] never leave the warp; K and Q are the
// B operands, in shared memory. M, A and the inverse belong to a block of tokens, not to columns:
// warp w makes those of block w of each chunk of up to 64 tokens, then all four warps walk the
// blocks. Two barriers per chunk. Where there are few thread blocks, four more warps make all that
// for the next chunk meanwhile, and there is one barrier per chunk (run_ahead).
//
// Parallel in the sequence: a segment maps the state affinely, S_out = Map S_in + N. With Output =
// false the kernel walks a segment from S = 0 (giving N) and from S = I with v = 0 (giving Map); a
// scan over the segments gives each its initial state; with Output = true the kernel then walks
// each segment from there.
#ifndef FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_

#include <type_traits>

#include "cuda/common/features.cuh"
#include "cuda/common/tile.cuh"

namespace fla::cuda::delta {

constexpr int kThreads = 128;
constexpr int kBlock = 16;                    // tokens per step of the recurrence
constexpr int kColumns = 64;                  // state columns per thread block (and per tile)
constexpr int kLeastSharedBytes = 99 * 1024;  // per thread block, on any device from sm_80 on
// Those of an H100. A constant, so that results do not depend on the device.
constexpr int64_t kMultiprocessors = 132;
// log2 of the smallest decay over a block whose inverse is still formed.
constexpr float kSmallestBlockDecay = -100.f;
// log2 of the smallest per-head decay over a chunk whose inverse is still formed; f16 has little
// range.
template <typename E>
constexpr float kSmallestChunkDecay = -60.f;
template <>
inline constexpr float kSmallestChunkDecay<f16> = -4.f;

// What a launch needs besides the call itself.
struct Plan {
  LinearAttentionParams p;
  int64_t HO = 0;       // output heads, max(Hq, HV)
  int panels = 1;       // key dims are padded to 64 panels: 1, 2 or 4
  int value_tiles = 0;  // tiles of 64 columns; with normalize a tile holds 60 values and z 4 times
  int segments = 1;     // per head
  int64_t segment_tokens = 0;  // a multiple of 64
  bool scan = false;           // initial states come from `states`
  bool vectorised = false;     // rows of query, key, value, output are whole aligned 16-byte pieces
  bool decay_pairs = false;    // per-key decay can be read two by two
  bool fold_norm = false;      // qk_l2norm as factors of rows instead of on keys and queries
  float* states =
      nullptr;            // [B*HV, segments, 64 value_tiles, 64 panels]: N of segment i-1, then S_i
  float* maps = nullptr;  // [B*HV, segments - 1, 64 panels (input), 64 panels (output)]

  __host__ __device__ bool mapped() const {
    return p.feature_map != FeatureMap::kIdentity || (p.qk_l2norm && !fold_norm);
  }
  __host__ __device__ int64_t state_size() const {
    return int64_t{kColumns} * value_tiles * kColumns * panels;
  }
  __host__ __device__ int64_t map_size() const {
    return int64_t{kColumns} * panels * kColumns * panels;
  }
  // The state column that padded column `j` holds, or -1.
  __host__ __device__ int64_t column(int64_t j) const {
    if (!p.normalize) return j < p.V ? j : -1;
    if (j % 16 == 15) return p.V;
    const int64_t column = j / 16 * 15 + j % 16;
    return column < p.V ? column : -1;
  }
};

// bf16 or f16, as the call says: for kernels that compute in tf32 anyway.
struct AnyHalf {
  uint16_t bits;
};

// Ahead: four more warps make what the next chunk's blocks need while the first four walk this one.
template <typename IO_, typename Mma_, int Panels_, bool PerKey_, bool Output_, int MostBlocks_ = 4,
          bool Ahead_ = false>
struct Shape {
  using IO = IO_;
  using Mma = Mma_;
  using E = typename Mma::Element;
  static constexpr bool kPerKey = PerKey_, kOutput = Output_, kAhead = Ahead_;
  static constexpr int kK = 64 * Panels_;  // padded key dims
  // Without output there are two kinds of column, N and Map; where registers allow a warp takes
  // both.
  static constexpr int kKinds = !kOutput && Panels_ == 1 ? 2 : 1;

  static constexpr bool kMaps = sizeof(E) == 4;  // see launch_walk
  static constexpr bool kPrefetchDecay = PerKey_ && Panels_ <= 2;
  // Decay per key rounds keys and queries more often; the 16x16 products make up for that in bf16:
  // what rounding takes off their operands is multiplied too.
  static constexpr bool kSplit = PerKey_ && std::is_same_v<E, bf16>;

  static constexpr int kStages = kAhead ? 3 : sizeof(E) == 2 ? 2 : 1;
  // Blocks per chunk, such that a multiprocessor holds two thread blocks.
  static constexpr int kKeyTiles = Panels_ * (1 + kOutput + kPerKey) * int(sizeof(E)) / 2;
  static constexpr int kWantedBlocks = kKeyTiles <= 6 ? 4 : kKeyTiles <= 12 ? 2 : 1;
  static constexpr int kBlocks = kWantedBlocks < MostBlocks_ ? kWantedBlocks : MostBlocks_;
  static constexpr int kTokens = kBlocks * kBlock;  // per chunk

  static constexpr int kKeyElements = kTokens * kK;
  static constexpr int kValueElements = kTokens * kColumns;
  static constexpr int kStageElements = (1 + kOutput) * kKeyElements + kValueElements;
  // Elements of a 16x16 B operand, in the order of the lanes.
  static constexpr int kOperand = 32 * 8;
  static constexpr int kScratchStride = 20;
  static constexpr int kScratch = kBlock * kScratchStride * 4;  // bytes
  static constexpr int kBlockBytes = 2 * kOperand * int(sizeof(E)) > kScratch
                                         ? 2 * kOperand* int(sizeof(E))
                                         : kScratch;

  static constexpr int kEndKeysAt = kStages * kStageElements * int(sizeof(E));
  static constexpr int kBlocksAt = kEndKeysAt + (kPerKey ? kKeyElements * int(sizeof(E)) : 0);
  static constexpr int kRowsAt = kBlocksAt + kBlocks * kBlockBytes;
  static constexpr int kDecayAt = kRowsAt + kTokens * 16;
  // What a chunk's blocks need, from the keys for its end to its decays; twice where it is made
  // ahead.
  static constexpr int kNeedsBytes =
      kDecayAt + kBlocks * (kPerKey ? 2 * kK : 2) * 4 + 16 - kEndKeysAt;
  static_assert(!kAhead || kNeedsBytes % 16 == 0);
  static constexpr int kSharedBytes = kEndKeysAt + (kAhead ? 2 : 1) * kNeedsBytes;

  static constexpr int kFit = 227 * 1024 / (kSharedBytes + 1024);
  static constexpr int kWanted = sizeof(E) == 4 || Panels_ > 1 ? 2 : kOutput && !kPerKey ? 4 : 3;
  static constexpr int kResident = kAhead || kFit < 1 ? 1 : kFit < kWanted ? kFit : kWanted;
};

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

template <typename E>
__device__ __forceinline__ void unpack_a(const RawA<E>& a, float (&left)[4], float (&right)[4]) {
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = a.r[i];
      right[i] = a.r[4 + i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 x = unpack2(E(), a.r[i]), y = unpack2(E(), a.r[2 + i]);
      left[2 * i] = x.x;
      left[2 * i + 1] = x.y;
      right[2 * i] = y.x;
      right[2 * i + 1] = y.y;
    }
  }
}

// d0, d1 += a * (b0, b1)
template <class Mma, class A, class B>
__device__ __forceinline__ void multiply(float (&d)[2][4], const A& a, const B& b0, const B& b1) {
  const auto& pa = Mma::prepare(a);
  Mma::mma(d[0], pa, Mma::prepare(b0));
  Mma::mma(d[1], pa, Mma::prepare(b1));
}

// The B operand of a 16x16 matrix Y used as Y' (inner index along Y's columns), kept in lane order.
template <typename E>
struct alignas(16) Operand {
  RawB<E> top, bottom;  // rows 0..7 and 8..15 of Y
};
template <typename E>
__device__ __forceinline__ Operand<E> operand_of(const float (&left)[4], const float (&right)[4]) {
  return {raw_b<E>(left[0], left[1], right[0], right[1]),
          raw_b<E>(left[2], left[3], right[2], right[3])};
}

// Two neighbouring decays (key dims d and d+1 of a token), as read; `at` is the first one's index.
__device__ __forceinline__ float2 fetch_key_decay(const Plan& plan, int64_t at, int d) {
  const LinearAttentionParams& p = plan.p;
  float2 x = {0.f, 0.f};
  if (d >= p.K) return x;
  if (plan.decay_pairs) {
    if (p.decay_dtype == DType::kFloat32) return load2(static_cast<const float*>(p.decay) + at);
    x.x = __uint_as_float(static_cast<const uint32_t*>(p.decay)[at / 2]);
    return x;
  }
  x.x = __uint_as_float(load_bits(p.decay, p.decay_dtype, at));
  if (d + 1 < p.K) x.y = __uint_as_float(load_bits(p.decay, p.decay_dtype, at + 1));
  return x;
}
// ... as log2.
__device__ __forceinline__ float2 key_decay(const Plan& plan, float2 x) {
  const DType type = plan.p.decay_dtype;
  if (!plan.decay_pairs) {
    x.x = as_float(type, __float_as_uint(x.x));
    x.y = as_float(type, __float_as_uint(x.y));
  } else if (type == DType::kBFloat16) {
    x = unpack2(bf16(), __float_as_uint(x.x));
  } else if (type == DType::kFloat16) {
    x = unpack2(f16(), __float_as_uint(x.x));
  }
  return make_float2(x.x * kLog2e, x.y * kLog2e);
}

// Adds to a block's sums, pair by pair, the terms of key dims d and d+1 where they are not in
// range: sum_d k_r k_s e^{G_r - G_s} at [r][s], sum_d q_r k_s e^{..} at [s][r]. `decay_at` is the
// index of the block's first decay for d, `seen` has a bit per visible token. Rare, so out of line.
template <class S>
__device__ __noinline__ void add_exact(const Plan& plan, float* sums, const typename S::E* k_rows,
                                       const typename S::E* q_rows, int64_t decay_at, int d,
                                       uint32_t seen, bool x_in_range, bool y_in_range) {
  constexpr int kK = S::kK;
  using E = typename S::E;
  const bool before = plan.p.read != ReadMode::kAfter;
  const bool first_lane = threadIdx.x % 32 == 0;
#pragma unroll 1
  for (int s = 0; s < kBlock; ++s) {
    const float2 ks = load2(k_rows + tile_offset<E, kK>(s, d));
    const float2 from = {x_in_range ? 0.f : ks.x, y_in_range ? 0.f : ks.y};
    float2 exponent = {0.f, 0.f};
#pragma unroll 1
    for (int r = s; r < kBlock; ++r) {
      const float2 earlier = exponent;
      if (r > s && (seen >> r & 1)) {
        const int64_t at = decay_at + r * plan.p.HV * plan.p.K;
        const float2 step = key_decay(plan, fetch_key_decay(plan, at, d));
        exponent.x += step.x;
        exponent.y += step.y;
      }
      if (r > s) {
        const float2 kr = load2(k_rows + tile_offset<E, kK>(r, d));
        const float sum = lane_sum<32>(kr.x * from.x * fast_exp2(exponent.x) +
                                       kr.y * from.y * fast_exp2(exponent.y));
        if (first_lane) sums[r * S::kScratchStride + s] += sum;
      }
      if constexpr (S::kOutput) {
        const float2 q = load2(q_rows + tile_offset<E, kK>(r, d));
        const float2 e = before ? earlier : exponent;
        const float sum =
            lane_sum<32>(q.x * from.x * fast_exp2(e.x) + q.y * from.y * fast_exp2(e.y));
        if (first_lane) sums[s * S::kScratchStride + r] += sum;
      }
    }
  }
}

// One thread block's walk over one segment.
template <class S>
struct Walk {
  using IO = typename S::IO;
  using Mma = typename S::Mma;
  using E = typename S::E;
  static constexpr int kK = S::kK, kSteps = kK / 16;
  using State = float[S::kKinds][2 * kSteps][4];  // [column, key dim] accumulators

  // The 16 bytes of each group of rows of a tile that this thread copies.
  template <int Width>
  struct Piece {
    static constexpr int kSize = 16 / sizeof(E), kPerRow = Width / kSize;
    static constexpr int kRows = kThreads / kPerRow;
    static __device__ int row() { return threadIdx.x % kThreads / kPerRow; }
    static __device__ int col() { return threadIdx.x % kPerRow * kSize; }
  };

  // Gates of the chunk to come, as read: a lane's token, and for per-key decay all tokens of two
  // key dims.
  struct Gates {
    uint32_t beta_raw, decay_raw, mask_raw;
    // Settled: zeros for a token that is not seen. Per-head decay as log2, summed from the block's
    // start, inclusive (G) and as the query sees it (Gq).
    bool seen;
    float beta, G, Gq;
    float2 key_decay[S::kPrefetchDecay ? kK / 64 : 1][kBlock];
  };

  const Plan& plan;
  const LinearAttentionParams& p;
  char* const shared;
  char* needs;           // where kEndKeysAt and what follows are counted from
  int lane, warp, g, c;  // g = lane / 4, c = lane % 4; of the four warps with the same task
  int tile;              // which 64 columns: value tiles first, then (without output) tiles of Map
  int segment;
  int64_t b, h, hk, hq, ho;
  int64_t begin, end;  // tokens of the segment
  const IO* key_at;    // where this thread's pieces of the next chunk start
  const IO* query_at;
  const IO* value_at;
  IO* out_at;    // where this thread's piece of the next block goes
  int out_step;  // from block to block

  __device__ Walk(const Plan& plan, char* shared, int tiles, int segments)
      : plan(plan), p(plan.p), shared(shared), needs(shared) {
    lane = threadIdx.x & 31;
    warp = threadIdx.x % kThreads >> 5;
    g = lane >> 2;
    c = lane & 3;
    int64_t i = blockIdx.x;
    segment = i % segments;
    i /= segments;
    tile = i % tiles;
    i /= tiles;
    const int64_t heads = S::kOutput ? plan.HO : p.HV;
    b = i / heads;
    ho = i % heads;
    h = S::kOutput && p.Hq > p.HV ? ho / (p.Hq / p.HV) : ho;
    hq = p.Hq >= p.HV ? ho : ho / (p.HV / p.Hq);
    hk = h / (p.HV / p.Hk);
    begin = segment * plan.segment_tokens;
    end = min(begin + plan.segment_tokens, p.T);
    key_at = first_piece<kK>(p.key, p.Hk, hk, p.K, 0);
    query_at = first_piece<kK>(p.query, p.Hq, hq, p.K, 0);
    value_at = first_piece<kColumns>(p.value, p.HV, h, p.V, tile * kColumns);
    out_step = static_cast<int>(kBlock * plan.HO * p.V);
    out_at = static_cast<IO*>(p.output) + ((b * p.T + begin + lane / 2) * plan.HO + ho) * p.V +
             tile * kColumns + 16 * warp + 8 * (lane & 1);
  }

  template <int Width>
  __device__ const IO* first_piece(const void* base, int64_t heads, int64_t head, int64_t size,
                                   int skip) const {
    using P = Piece<Width>;
    const int64_t t = b * p.T + begin + P::row();
    return static_cast<const IO*>(base) + (t * heads + head) * size + skip +
           (skip + P::col() < size ? P::col() : 0);
  }

  // Shared memory.
  __device__ E* keys(int stage) const {
    return reinterpret_cast<E*>(shared) + stage * S::kStageElements;
  }
  __device__ E* queries(int stage) const { return keys(stage) + S::kKeyElements; }
  __device__ E* values(int stage) const { return keys(stage) + (1 + S::kOutput) * S::kKeyElements; }
  // Keys times e^{G_15 - G}; the keys themselves when decay is per head.
  __device__ E* end_keys(int stage) const {
    return S::kPerKey ? reinterpret_cast<E*>(needs + S::kEndKeysAt) : keys(stage);
  }
  __device__ float* scratch(int block) const {
    return reinterpret_cast<float*>(needs + S::kBlocksAt + block * S::kBlockBytes);
  }
  // (I + M)^-1 and A of a block; they take the place of its scratch.
  __device__ Operand<E>* inverse(int block) const {
    return reinterpret_cast<Operand<E>*>(scratch(block));
  }
  __device__ Operand<E>* scores(int block) const { return inverse(block) + 32; }
  // Per token: beta, and the factors of (K S), of (Q S) and of U in the new state.
  __device__ float4* rows() const { return reinterpret_cast<float4*>(needs + S::kRowsAt); }
  // e^{G_15} of a block, and with per-key decay e^{-G_15}.
  __device__ float* block_decay(int block) const {
    return reinterpret_cast<float*>(needs + S::kDecayAt) + block * (S::kPerKey ? kK : 1);
  }
  // log2 of the per-head decay of each block.
  __device__ float* block_totals() const { return block_decay(0) + S::kBlocks; }
  // Per-head decay of the whole chunk, where the state is scaled once per chunk; block_decay is 1
  // then.
  __device__ float* chunk_decay() const { return block_decay(0) + 2 * S::kBlocks; }
  __device__ float* block_growth(int block) const { return block_decay(block) + S::kBlocks * kK; }

  __device__ bool is_map(int kind) const { return kind == 1 || tile >= plan.value_tiles; }
  __device__ int map_tile(int kind) const { return kind == 1 ? tile : tile - plan.value_tiles; }
  // Does this kind of column exist for this thread block?
  __device__ bool exists(int kind) const { return kind == 0 || tile * kColumns < kK; }

  // ---- Loading a chunk

  // Starts copying this thread's pieces of a chunk and moves on to the next chunk.
  template <int Width>
  __device__ void copy_pieces(E* dst, const IO*& at, const void* base, int64_t stride,
                              int valid_rows, int64_t size) const {
    using P = Piece<Width>;
    const bool inside = P::col() < size;
    if (valid_rows >= S::kTokens) {
#pragma unroll
      for (int i = 0; i < S::kTokens; i += P::kRows) {
        copy_async_16(dst + tile_offset<E, Width>(i + P::row(), P::col()), at + i * stride, inside);
      }
    } else {
#pragma unroll
      for (int i = 0; i < S::kTokens; i += P::kRows) {
        const bool valid = inside && i + P::row() < valid_rows;
        copy_async_16(dst + tile_offset<E, Width>(i + P::row(), P::col()),
                      valid ? static_cast<const void*>(at + i * stride) : base, valid);
      }
    }
    at += S::kTokens * stride;
  }

  // Elements of query, key, value and output.
  __device__ float2 widen(uint32_t two) const {
    if constexpr (!std::is_same_v<IO, AnyHalf>) {
      return unpack2(IO(), two);
    } else {
      return p.io == DType::kBFloat16 ? unpack2(bf16(), two) : unpack2(f16(), two);
    }
  }
  __device__ float read(const IO* from) const {
    if constexpr (!std::is_same_v<IO, AnyHalf>) {
      return to_float(*from);
    } else {
      return load_as_float(from, p.io, 0);
    }
  }
  __device__ void write(IO* to, float x) const {
    if constexpr (!std::is_same_v<IO, AnyHalf>) {
      *to = from_float<IO>(x);
    } else {
      store_from_float(to, p.io, 0, x);
    }
  }

  // Copies whole pieces of 8 elements and converts them.
  template <int Width>
  __device__ void widen_pieces(E* dst, const IO* src, int64_t stride, int valid_rows,
                               int64_t size) const {
    constexpr int kPieces = Width / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < S::kTokens * kPieces; i += kThreads) {
      const int row = i / kPieces, col = i % kPieces * 8;
      uint4 x = {0, 0, 0, 0};
      if (row < valid_rows && col < size) {
        x = *reinterpret_cast<const uint4*>(src + row * stride + col);
      }
      const float2 y0 = widen(x.x), y1 = widen(x.y), y2 = widen(x.z), y3 = widen(x.w);
      *reinterpret_cast<float4*>(dst + tile_offset<E, Width>(row, col)) =
          make_float4(y0.x, y0.y, y1.x, y1.y);
      *reinterpret_cast<float4*>(dst + tile_offset<E, Width>(row, col + 4)) =
          make_float4(y2.x, y2.y, y3.x, y3.y);
    }
  }

  // Element by element: column(col) is the source column, -1 for zero, -2 for one.
  template <int Width, typename Column>
  __device__ void load_elements(E* dst, const void* src, int64_t stride, int valid_rows,
                                const Column& column) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < S::kTokens * Width; i += kThreads) {
      const int row = i / Width, col = i % Width;
      const int64_t at = column(col);
      float x = 0.f;
      if (row < valid_rows) {
        if (at >= 0) x = read(static_cast<const IO*>(src) + row * stride + at);
        if (at == -2) x = 1.f;
      }
      dst[tile_offset<E, Width>(row, col)] = from_float<E>(x);
    }
  }

  __device__ void load(int stage, int64_t t0) {
    const int rows = static_cast<int>(min(p.T - t0, int64_t{S::kTokens}));
    if constexpr (sizeof(IO) == sizeof(E)) {
      if (plan.vectorised) {
        copy_pieces<kK>(keys(stage), key_at, p.key, p.Hk * p.K, rows, p.K);
        if constexpr (S::kOutput) {
          copy_pieces<kK>(queries(stage), query_at, p.query, p.Hq * p.K, rows, p.K);
        }
        if (!is_map(0)) {
          copy_pieces<kColumns>(values(stage), value_at, p.value, p.HV * p.V, rows,
                                p.V - tile * kColumns);
        }
        return;
      }
    }
    const int64_t t = b * p.T + t0;
    if constexpr (sizeof(IO) < sizeof(E)) {
      if (plan.vectorised) {
        widen_pieces<kK>(keys(stage), static_cast<const IO*>(p.key) + (t * p.Hk + hk) * p.K,
                         p.Hk * p.K, rows, p.K);
        if constexpr (S::kOutput) {
          widen_pieces<kK>(queries(stage), static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K,
                           p.Hq * p.K, rows, p.K);
        }
        if (!is_map(0)) {
          widen_pieces<kColumns>(
              values(stage),
              static_cast<const IO*>(p.value) + (t * p.HV + h) * p.V + tile * kColumns, p.HV * p.V,
              rows, p.V - tile * kColumns);
        }
        return;
      }
    }
    const auto key_column = [&](int col) -> int64_t { return col < p.K ? col : -1; };
    load_elements<kK>(keys(stage), static_cast<const IO*>(p.key) + (t * p.Hk + hk) * p.K,
                      p.Hk * p.K, rows, key_column);
    if constexpr (S::kOutput) {
      load_elements<kK>(queries(stage), static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K,
                        p.Hq * p.K, rows, key_column);
    }
    if (is_map(0)) return;
    load_elements<kColumns>(values(stage), static_cast<const IO*>(p.value) + (t * p.HV + h) * p.V,
                            p.HV * p.V, rows, [&](int col) -> int64_t {
                              const int64_t column = plan.column(tile * kColumns + col);
                              return p.normalize && column == p.V ? -2 : column;
                            });
  }

  // Feature map and l2norm, in place. Eight lanes share a row.
  __device__ void map_rows(E* rows, int64_t t0) const {
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < S::kTokens; row += kThreads / 8) {
      map_features<8>(
          p.feature_map, p.qk_l2norm && !plan.fold_norm, lane & 7,
          t0 + row < p.T ? static_cast<int>(p.K) : 0,
          [&](int i) { return to_float(rows[tile_offset<E, kK>(row, i)]); },
          [&](int i, float x) { rows[tile_offset<E, kK>(row, i)] = from_float<E>(x); });
    }
  }

  // Where the decay of token t and key dim d is.
  __device__ int64_t decay_index(int64_t t, int d) const {
    return ((b * p.T + t) * p.HV + h) * p.K + d;
  }

  __device__ void fetch(Gates& gates, int64_t t0) const {
    if (warp >= S::kBlocks) return;
    t0 += warp * kBlock;
    const int64_t t = b * p.T + t0 + (lane & 15);
    gates.beta_raw = gates.decay_raw = gates.mask_raw = 0;
    if (t0 + (lane & 15) < p.T) {
      gates.mask_raw = p.mask ? load_bits(p.mask, p.mask_dtype, t) : 1;
      if (p.beta_kind != BetaKind::kNone) {
        gates.beta_raw =
            load_bits(p.beta, p.beta_dtype, p.beta_kind == BetaKind::kShared ? t : t * p.HV + h);
      }
      if (p.decay_kind == DecayKind::kPerHead) {
        gates.decay_raw = load_bits(p.decay, p.decay_dtype, t * p.HV + h);
      }
    }
    if constexpr (S::kPrefetchDecay) {
#pragma unroll
      for (int i = 0; i < kK / 64; ++i) fetch_key_decays(gates.key_decay[i], t0, 64 * i + 2 * lane);
    }
  }

  // The decays of tokens t..t+15 for key dims d and d+1, as read.
  __device__ void fetch_key_decays(float2 (&x)[kBlock], int64_t t, int d) const {
    const int64_t at = ((b * p.T + t) * p.HV + h) * p.K + d, step = p.HV * p.K;
    const bool whole = plan.decay_pairs && t + kBlock <= p.T && d < p.K;
    if (whole && p.decay_dtype == DType::kFloat32) {
      const float* const from = static_cast<const float*>(p.decay) + at;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) x[i] = load2(from + i * step);
    } else if (whole) {
      const uint16_t* const from = static_cast<const uint16_t*>(p.decay) + at;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        x[i].x = *reinterpret_cast<const float*>(from + i * step);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        x[i] = make_float2(0.f, 0.f);
        if (t + i < p.T) x[i] = fetch_key_decay(plan, at + i * step, d);
      }
    }
  }

  __device__ void decode_key_decays(float2 (&G)[kBlock], const float2 (&raw)[kBlock],
                                    uint32_t seen) const {
    const uint32_t all = 0xffff;
    if (plan.decay_pairs && p.decay_dtype == DType::kFloat32 && (seen & all) == all) {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) G[i] = make_float2(raw[i].x * kLog2e, raw[i].y * kLog2e);
    } else if (plan.decay_pairs && p.decay_dtype == DType::kBFloat16 && (seen & all) == all) {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        G[i] = unpack2(bf16(), __float_as_uint(raw[i].x));
        G[i] = make_float2(G[i].x * kLog2e, G[i].y * kLog2e);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        G[i] = seen >> i & 1 ? key_decay(plan, raw[i]) : make_float2(0.f, 0.f);
      }
    }
  }

  // Decodes the gates; the total decay of the warp's block goes to block_totals.
  __device__ void settle(Gates& gates) const {
    if (warp >= S::kBlocks) return;
    gates.seen = as_float(p.mask ? p.mask_dtype : DType::kBool, gates.mask_raw) != 0.f;
    gates.beta = gates.G = gates.Gq = 0.f;
    if (gates.seen) {
      gates.beta = p.beta_kind == BetaKind::kNone ? 1.f : as_float(p.beta_dtype, gates.beta_raw);
    }
    if constexpr (!S::kPerKey) {
      float G = 0.f;
      if (p.decay_kind != DecayKind::kNone) {
        if (gates.seen) G = as_float(p.decay_dtype, gates.decay_raw) * kLog2e;
#pragma unroll
        for (int i = 1; i < kBlock; i *= 2) {
          const float other = __shfl_up_sync(0xffffffffu, G, i, kBlock);
          if ((lane & 15) >= i) G += other;
        }
      }
      const float previous = __shfl_up_sync(0xffffffffu, G, 1, kBlock);
      gates.G = G;
      gates.Gq = p.read == ReadMode::kAfter ? G : lane & 15 ? previous : 0.f;
      if (lane == 15) block_totals()[warp] = G;
    }
  }

  // ---- What a block of 16 tokens needs: made by one warp

  // Per-key decay: keys and queries times e^G in place, keys times e^{G_15 - G} to end_keys, the
  // block's decay. Returns whether the scratch holds sums to add.
  __device__ bool decay_rows(int stage, int block, int64_t t0, uint32_t seen,
                             const Gates& gates) const {
    E* const k_rows = keys(stage) + block * kBlock * kK;
    E* const q_rows = queries(stage) + block * kBlock * kK;
    E* const end_rows = end_keys(stage) + block * kBlock * kK;
    const bool before = p.read != ReadMode::kAfter;
    bool exact = false;
#pragma unroll(S::kPrefetchDecay ? 2 : 1)
    for (int panel = 0; panel < kK / 64; ++panel) {
      const int d = 64 * panel + 2 * lane;
      float2 G[kBlock];
      if constexpr (S::kPrefetchDecay) {
        decode_key_decays(G, gates.key_decay[panel], seen);
      } else {
        float2 raw[kBlock];
        fetch_key_decays(raw, t0 + block * kBlock, d);
        decode_key_decays(G, raw, seen);
      }
#pragma unroll
      for (int i = 1; i < kBlock; ++i) {
        G[i].x += G[i - 1].x;
        G[i].y += G[i - 1].y;
      }
      const float2 last = G[kBlock - 1];
      const bool x_in_range = last.x >= kSmallestBlockDecay,
                 y_in_range = last.y >= kSmallestBlockDecay;
      if (__any_sync(0xffffffffu, !x_in_range || !y_in_range)) {
        if (!exact) {
          for (int i = lane; i < kBlock * S::kScratchStride; i += 32) scratch(block)[i] = 0.f;
          __syncwarp();
        }
        exact = true;
        add_exact<S>(plan, scratch(block), k_rows, q_rows, decay_index(t0 + block * kBlock, d), d,
                     seen, x_in_range, y_in_range);
      }
      float2 earlier = {1.f, 1.f};
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const int at = tile_offset<E, kK>(i, d);
        const float2 e = {fast_exp2(G[i].x), fast_exp2(G[i].y)};
        const float2 k = load2(k_rows + at);
        store2(k_rows + at, k.x * e.x, k.y * e.y);
        store2(end_rows + at, k.x * fast_exp2(last.x - G[i].x), k.y * fast_exp2(last.y - G[i].y));
        if constexpr (S::kOutput) {
          const float2 q = load2(q_rows + at), eq = before ? earlier : e;
          store2(q_rows + at, q.x * eq.x, q.y * eq.y);
          earlier = e;
        }
      }
      store2(block_decay(block) + d, fast_exp2(last.x), fast_exp2(last.y));
      store2(block_growth(block) + d, x_in_range ? fast_exp2(-last.x) : 0.f,
             y_in_range ? fast_exp2(-last.y) : 0.f);
    }
    __syncwarp();
    return exact;
  }

  // x (I + M) = I by forward substitution; lane i % 16 has column i. `m` is M transposed, in the
  // scratch.
  __device__ void invert(const float* m, float (&x)[kBlock]) const {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) x[i] = i == (lane & 15) ? 1.f : 0.f;
#pragma unroll
    for (int s = 0; s < kBlock - 1; ++s) {
#pragma unroll
      for (int i = (s + 1) / 4 * 4; i < kBlock; i += 4) {
        const float4 y = *reinterpret_cast<const float4*>(m + s * S::kScratchStride + i);
        if (i > s) x[i] -= y.x * x[s];
        if (i + 1 > s) x[i + 1] -= y.y * x[s];
        if (i + 2 > s) x[i + 2] -= y.z * x[s];
        x[i + 3] -= y.w * x[s];
      }
    }
  }

  // 1 / |row| of rows g and g + 8 of a block.
  __device__ float2 inverse_norms(const E* rows) const {
    float squares[2][4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawA<E> a;
      RawB<E> b0, b1;
      load_a<E, kK>(a, rows, 0, 16 * i);
      load_b_transposed<E, kK>(b0, b1, rows, 0, 16 * i);
      multiply<Mma>(squares, a, b0, b1);
    }
    const int owner = 4 * g + g / 2;  // the lane with the diagonal
    const float lo = __shfl_sync(0xffffffffu, lane & 4 ? squares[0][1] : squares[0][0], owner);
    const float hi = __shfl_sync(0xffffffffu, lane & 4 ? squares[1][3] : squares[1][2], owner);
    const auto norm = [&](int row, float sum) {
      return inverse_norm([&](float scale) {
        if (scale == 1.f) return sum;
        float small = 0.f;
#pragma unroll 1
        for (int d = c; d < kK; d += 4) {
          const float x = scale * to_float(rows[tile_offset<E, kK>(row, d)]);
          small += x * x;
        }
        return lane_sum<4>(small);
      });
    };
    return make_float2(norm(g, lo), norm(g + 8, hi));
  }
  // From rows g and g + 8 to the row of this lane's token.
  __device__ float of_token(float2 x) const {
    const int owner = 4 * (lane & 7);
    const float lo = __shfl_sync(0xffffffffu, x.x, owner);
    const float hi = __shfl_sync(0xffffffffu, x.y, owner);
    return lane & 8 ? hi : lo;
  }

  // d += a * (b0, b1), the columns of a multiplied first where decay is per key.
  __device__ static void scale_and_multiply(float (&d)[2][4], RawA<E>& a, float2 lo, float2 hi,
                                            const RawB<E>& b0, const RawB<E>& b1) {
    if constexpr (S::kSplit) {
      multiply<Mma>(d, scale_and_split(a, lo, hi), b0, b1);
    } else if constexpr (S::kPerKey) {
      scale_columns(a, lo, hi);
    }
    multiply<Mma>(d, a, b0, b1);
  }

  __device__ void prepare(int stage, int block, int64_t t0, const Gates& gates) const {
    const bool before = p.read != ReadMode::kAfter;
    const E* const k_rows = keys(stage) + block * kBlock * kK;
    const E* const q_rows = queries(stage) + block * kBlock * kK;
    const E* const end_rows = end_keys(stage) + block * kBlock * kK;
    float2 k_norm = {1.f, 1.f}, q_norm = {1.f, 1.f};
    float k_factor = 1.f, q_factor = 1.f;
    if (plan.fold_norm) {
      k_norm = inverse_norms(k_rows);
      k_factor = of_token(k_norm);
      if constexpr (S::kOutput) {
        q_norm = inverse_norms(q_rows);
        q_factor = of_token(q_norm);
      }
      __syncwarp();
    }
    const float beta = gates.beta, G = gates.G, Gq = gates.Gq;
    bool exact = false;
    float from_start = 0.f,
          to_end = 0.f;  // factors as log2 that make the state's scale that of the chunk
    if constexpr (S::kPerKey) {
      exact = decay_rows(stage, block, t0, __ballot_sync(0xffffffffu, gates.seen), gates);
    } else {
      const float* const totals = block_totals();
      float total = 0.f;
#pragma unroll
      for (int i = 0; i < S::kBlocks; ++i) {
        if (i < block) from_start += totals[i];
        total += totals[i];
      }
      to_end = totals[block] - G;
      const bool per_chunk = total >= kSmallestChunkDecay<E>;
      if (per_chunk) {
        to_end = -from_start - G;
      } else {
        from_start = 0.f;
      }
      if (lane == 0) {
        *block_decay(block) = per_chunk ? 1.f : fast_exp2(totals[block]);
        if (block == 0) *chunk_decay() = per_chunk ? fast_exp2(total) : 1.f;
      }
    }
    const float scale = p.scale != 0.f ? p.scale : rsqrtf(static_cast<float>(p.K));
    if (lane < 16) {
      rows()[block * kBlock + lane] =
          make_float4(beta, beta * k_factor * fast_exp2(from_start + G),
                      scale * q_factor * fast_exp2(from_start + Gq), k_factor * fast_exp2(to_end));
    }

    float kk[2][4] = {}, qk[2][4] = {};  // [row g or g+8, column 8i + 2c]
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1;
      RawA<E> a;
      load_b_transposed<E, kK>(b0, b1, end_rows, 0, 16 * i);
      load_a<E, kK>(a, k_rows, 0, 16 * i);
      float2 lo = {1.f, 1.f}, hi = lo;
      if constexpr (S::kPerKey) {
        lo = load2(block_growth(block) + 16 * i + 2 * c);
        hi = load2(block_growth(block) + 16 * i + 2 * c + 8);
      }
      scale_and_multiply(kk, a, lo, hi, b0, b1);
      if constexpr (S::kOutput) {
        load_a<E, kK>(a, q_rows, 0, 16 * i);
        scale_and_multiply(qk, a, lo, hi, b0, b1);
      }
    }

    float* const m = scratch(block);
    float G_s[4], k_s[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int s = 8 * (i >> 1) + 2 * c + (i & 1);
      G_s[i] = __shfl_sync(0xffffffffu, G, s);
      k_s[i] = __shfl_sync(0xffffffffu, k_factor, s);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = g + 8 * e;
      const float k_r = __shfl_sync(0xffffffffu, beta, r) * (e ? k_norm.y : k_norm.x);
      const float q_r = scale * (e ? q_norm.y : q_norm.x);
      const float G_r = __shfl_sync(0xffffffffu, G, r), Gq_r = __shfl_sync(0xffffffffu, Gq, r);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int s = 8 * (i >> 1) + 2 * c + (i & 1);
        float& x = kk[i >> 1][2 * e + (i & 1)];
        float& y = qk[i >> 1][2 * e + (i & 1)];
        if (i >= 2 && e == 0) {  // above the diagonal
          x = y = 0.f;
          continue;
        }
        if (exact) {
          if (s < r) x += m[r * S::kScratchStride + s];
          if (s <= r) y += m[s * S::kScratchStride + r];
        }
        if constexpr (!S::kPerKey) {
          const float decay = fast_exp2(G_r - G_s[i]);
          x *= decay;
          if (S::kOutput) y *= before ? fast_exp2(Gq_r - G_s[i]) : decay;
        }
        x = s < r ? k_r * k_s[i] * x : 0.f;
        y = s < r || (s == r && !before) ? q_r * k_s[i] * y : 0.f;
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i >> 1 == 2) continue;
      const int r = g + 8 * (i >> 1 & 1), s = 8 * (i >> 2) + 2 * c + (i & 1);
      m[s * S::kScratchStride + r] = kk[i >> 2][i & 3];
    }
    __syncwarp();
    float x[kBlock];
    invert(m, x);
    __syncwarp();
    if (lane < 16) {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) m[i * S::kScratchStride + lane] = x[i];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i == 2) continue;
      const float2 y = load2(m + (g + 8 * (i & 1)) * S::kScratchStride + 8 * (i >> 1) + 2 * c);
      kk[i >> 1][2 * (i & 1)] = y.x;
      kk[i >> 1][2 * (i & 1) + 1] = y.y;
    }
    __syncwarp();
    inverse(block)[lane] = operand_of<E>(kk[0], kk[1]);
    if constexpr (S::kOutput) scores(block)[lane] = operand_of<E>(qk[0], qk[1]);
  }

  // ---- The recurrence over blocks

  __device__ static void scale_state(State& state, float factor) {
#pragma unroll
    for (int kind = 0; kind < S::kKinds; ++kind) {
#pragma unroll
      for (int i = 0; i < 8 * kSteps; ++i) state[kind][i >> 2][i & 3] *= factor;
    }
  }

  __device__ void step(int stage, int block, int64_t t0, State& state) {
    const E* const k_rows = keys(stage) + block * kBlock * kK;
    const E* const q_rows = queries(stage) + block * kBlock * kK;
    const E* const end_rows = end_keys(stage) + block * kBlock * kK;
    E* const v_rows = values(stage) + block * kBlock * kColumns;
    float ks[S::kKinds][2][4] = {}, o[2][4] = {};  // [column, token]
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1, q0, q1;
      load_b_transposed<E, kK>(b0, b1, k_rows, 0, 16 * i);
      if constexpr (S::kOutput) load_b_transposed<E, kK>(q0, q1, q_rows, 0, 16 * i);
#pragma unroll
      for (int kind = 0; kind < S::kKinds; ++kind) {
        const RawA<E> a = raw_a<E>(state[kind][2 * i], state[kind][2 * i + 1]);
        multiply<Mma>(ks[kind], a, b0, b1);
        if constexpr (S::kOutput) multiply<Mma>(o, a, q0, q1);
      }
    }

    float4 row[4];  // of tokens 2c, 2c+1, 2c+8, 2c+9
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      row[i] = (rows() + block * kBlock)[8 * (i >> 1) + 2 * c + (i & 1)];
    }
    float v[2][4] = {};
    if (!is_map(0)) {
      RawA<E> a;
      load_a_transposed<E, kColumns>(a, v_rows, 0, 16 * warp);
      unpack_a(a, v[0], v[1]);
    }
    const Operand<E> x = inverse(block)[lane];
    RawA<E> u_end[S::kKinds], u_a, u_rest;
#pragma unroll
    for (int kind = 0; kind < S::kKinds; ++kind) {
      float u[2][4] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4& w = row[2 * (i >> 2) + (i & 1)];
        float& y = ks[kind][i >> 2][i & 3];
        y *= -w.y;
        if (kind == 0) y += w.x * v[i >> 2][i & 3];
      }
      const RawA<E> r = raw_a<E>(ks[kind][0], ks[kind][1]);
      if constexpr (S::kSplit) {
        multiply<Mma>(u, raw_rest(r, ks[kind][0], ks[kind][1]), x.top, x.bottom);
      }
      multiply<Mma>(u, r, x.top, x.bottom);
      if constexpr (S::kOutput) {
        u_a = raw_a<E>(u[0], u[1]);
        if constexpr (S::kSplit) u_rest = raw_rest(u_a, u[0], u[1]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) u[i >> 2][i & 3] *= row[2 * (i >> 2) + (i & 1)].w;
      u_end[kind] = raw_a<E>(u[0], u[1]);
    }

    const float decay = S::kPerKey ? 0.f : *block_decay(block);
    if (S::kPerKey || decay != 1.f) {
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        float2 d = {decay, decay};
        if constexpr (S::kPerKey) d = load2(block_decay(block) + 8 * i + 2 * c);
#pragma unroll
        for (int kind = 0; kind < S::kKinds; ++kind) {
          float(&y)[4] = state[kind][i];
          y[0] *= d.x;
          y[1] *= d.y;
          y[2] *= d.x;
          y[3] *= d.y;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1;
      load_b<E, kK>(b0, b1, end_rows, 0, 16 * i);
#pragma unroll
      for (int kind = 0; kind < S::kKinds; ++kind) {
        const auto& u = Mma::prepare(u_end[kind]);
        Mma::mma(state[kind][2 * i], u, Mma::prepare(b0));
        Mma::mma(state[kind][2 * i + 1], u, Mma::prepare(b1));
      }
    }

    if constexpr (S::kOutput) {
#pragma unroll
      for (int i = 0; i < 8; ++i) o[i >> 2][i & 3] *= row[2 * (i >> 2) + (i & 1)].z;
      const Operand<E> a = scores(block)[lane];
      if constexpr (S::kSplit) multiply<Mma>(o, u_rest, a.top, a.bottom);
      multiply<Mma>(o, u_a, a.top, a.bottom);
      store_output(v_rows, t0 + block * kBlock, o);
    }
  }

  // Outputs of tokens t..t+15; `v_rows` are their values.
  __device__ void store_output(E* v_rows, int64_t t, float (&o)[2][4]) {
    if constexpr (sizeof(IO) == 2 && sizeof(E) == 2) {
      if (plan.vectorised) {  // through this warp's own columns of the values, which it has read
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t y =
              transpose_8x8(pack2(IO(), o[i >> 1][2 * (i & 1)], o[i >> 1][2 * (i & 1) + 1]));
          const int at = tile_offset<E, kColumns>(8 * (i >> 1) + g, 16 * warp + 8 * (i & 1));
          *reinterpret_cast<uint32_t*>(v_rows + at + 2 * c) = y;
        }
        __syncwarp();
        const int r = lane >> 1, col = 16 * warp + 8 * (lane & 1);
        if (t + r < p.T && tile * kColumns + col < p.V) {
          *reinterpret_cast<uint4*>(out_at) =
              *reinterpret_cast<const uint4*>(v_rows + tile_offset<E, kColumns>(r, col));
        }
        out_at += out_step;
        return;
      }
    }
    if (p.normalize) {  // column 15 of the warp is z
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float z = __shfl_sync(0xffffffffu, o[i >> 1][2 + (i & 1)], 28 + c) + kNormalizeEps;
        o[i >> 1][i & 1] /= z;
        o[i >> 1][2 + (i & 1)] /= z;
      }
    }
    IO* const out = static_cast<IO*>(p.output) + ((b * p.T + t) * plan.HO + ho) * p.V;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = 8 * (i >> 2) + 2 * c + (i & 1);
      const int64_t column = plan.column(tile * kColumns + 16 * warp + g + 8 * (i >> 1 & 1));
      if (t + r < p.T && column >= 0 && column < p.V) {
        write(out + r * plan.HO * p.V + column, o[i >> 2][i & 3]);
      }
    }
  }

  template <typename F>
  __device__ void for_each_pair(State& state, int kind, const F& f) const {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        f(16 * warp + g + 8 * e, 8 * i + 2 * c, state[kind][i][2 * e], state[kind][i][2 * e + 1]);
      }
    }
  }

  __device__ float* segment_state(int64_t i) const {
    return plan.states + ((b * p.HV + h) * plan.segments + i) * plan.state_size() +
           int64_t{tile} * kColumns * kK;
  }

  __device__ void load_state(State& state) const {
#pragma unroll
    for (int kind = 0; kind < S::kKinds; ++kind) {
      for_each_pair(state, kind, [&](int j, int d, float& x, float& y) {
        x = y = 0.f;
        if constexpr (!S::kOutput) {
          const int input = map_tile(kind) * kColumns + j;
          if (is_map(kind) && exists(kind)) {
            x = input == d ? 1.f : 0.f;
            y = input == d + 1 ? 1.f : 0.f;
          }
        } else if (plan.scan) {
          const float2 s = load2(segment_state(segment) + j * kK + d);
          x = s.x;
          y = s.y;
        } else if (p.past_state) {
          const int64_t column = plan.column(tile * kColumns + j), width = p.V + p.normalize;
          const int64_t at = ((b * p.HV + h) * p.K + d) * width + column;
          if (column >= 0 && d < p.K) x = load_as_float(p.past_state, p.state, at);
          if (column >= 0 && d + 1 < p.K) y = load_as_float(p.past_state, p.state, at + width);
        }
      });
    }
  }

  __device__ void store_state(State& state) const {
    if constexpr (S::kOutput) {
      const bool owner = segment == plan.segments - 1 && ho % (plan.HO / p.HV) == 0;
      if (!owner || !p.present_state) return;
      for_each_pair(state, 0, [&](int j, int d, float x, float y) {
        const int64_t column = plan.column(tile * kColumns + j), width = p.V + p.normalize;
        const bool duplicate = column == p.V && (tile > 0 || j != 15);  // z
        if (column < 0 || duplicate) return;
        const int64_t at = ((b * p.HV + h) * p.K + d) * width + column;
        if (d < p.K) store_from_float(p.present_state, p.state, at, x);
        if (d + 1 < p.K) store_from_float(p.present_state, p.state, at + width, y);
      });
    } else {
#pragma unroll
      for (int kind = 0; kind < S::kKinds; ++kind) {
        if (!exists(kind)) continue;
        float* const at =
            is_map(kind)
                ? plan.maps + ((b * p.HV + h) * (plan.segments - 1) + segment) * plan.map_size() +
                      int64_t{map_tile(kind)} * kColumns * kK
                : segment_state(segment + 1);
        for_each_pair(state, kind,
                      [&](int j, int d, float x, float y) { store2(at + j * kK + d, x, y); });
      }
    }
  }

  __device__ void run() {
    constexpr bool kPrefetch = S::kStages == 2;
    // With decay per key the first turn only starts the loads of the first chunk: what fetches is
    // long, and this way inlined once.
    constexpr int kFirst = S::kPerKey ? -S::kTokens : 0;
    const bool mapped = plan.mapped();
    int stage = 0;
    Gates gates;
    if (!S::kPerKey && begin < end) {
      if constexpr (kPrefetch) {
        load(0, begin);
        copy_async_commit();
      }
      fetch(gates, begin);
    }
    State state;
    load_state(state);
#pragma unroll 1
    for (int64_t t0 = begin + kFirst; t0 < end; t0 += S::kTokens) {
      const bool walks = !S::kPerKey || t0 >= begin, more = t0 + S::kTokens < end;
      if (walks) {
        if constexpr (!kPrefetch) {
          __syncthreads();
          load(0, t0);
          copy_async_commit();
        }
        settle(gates);
        copy_async_wait<0>();
        __syncthreads();
      }
      if constexpr (kPrefetch) {
        if (more) {
          load(stage ^ 1, t0 + S::kTokens);
          copy_async_commit();
        }
      }
      if (walks) {
        if constexpr (S::kMaps) {
          if (mapped) {
#pragma unroll 1
            for (int i = 0; i < 1 + S::kOutput; ++i) map_rows(i ? queries(stage) : keys(stage), t0);
            __syncthreads();
          }
        }
        if (warp < S::kBlocks) prepare(stage, warp, t0, gates);
        __syncthreads();
      }
      if (more) fetch(gates, t0 + S::kTokens);
      if (walks) {
#pragma unroll 1
        for (int block = 0; block < S::kBlocks && t0 + block * kBlock < end; ++block) {
          step(stage, block, t0, state);
        }
        if (!S::kPerKey && p.decay_kind != DecayKind::kNone) scale_state(state, *chunk_decay());
      }
      if (kPrefetch) stage ^= 1;
    }
    store_state(state);
  }

  // The same, by 2 kThreads threads: while four warps walk chunk i, four others make what chunk
  // i + 1 needs and start to load chunk i + 2. For calls with few thread blocks, where one alone on
  // its multiprocessor is bound by latency.
  __device__ void run_ahead() {
    const int chunks = static_cast<int>((end - begin + S::kTokens - 1) / S::kTokens);
    const auto first = [&](int chunk) { return begin + int64_t{chunk} * S::kTokens; };
    const auto use = [&](int chunk) { needs = shared + (chunk & 1) * S::kNeedsBytes; };
    // The two halves stand in branches of their own, which neither __syncthreads nor bar.sync must.
    const auto meet = [] { asm volatile("barrier.sync 1, %0;" ::"n"(2 * kThreads) : "memory"); };
    if (threadIdx.x >= kThreads) {
      Gates gates;
      // The inputs of a chunk, in two steps; there after the barrier that follows the second.
      const auto start_copies = [&](int chunk) {
        if (chunk < chunks) load(chunk % S::kStages, first(chunk));
        copy_async_commit();
      };
      const auto take_gates = [&](int chunk) {
        if (chunk >= chunks) return;
        use(chunk);
        fetch(gates, first(chunk));
        settle(gates);
      };
      const auto make = [&](int chunk) {
        if (chunk < 0 || chunk >= chunks || warp >= S::kBlocks) return;
        use(chunk);
        prepare(chunk % S::kStages, warp, first(chunk), gates);
      };
#pragma unroll 1
      for (int chunk = -2; chunk < chunks; ++chunk) {
        start_copies(chunk + 2);
        make(chunk + 1);
        take_gates(chunk + 2);
        copy_async_wait<0>();
        meet();
      }
      return;
    }
    State state;
    load_state(state);
    meet();
    meet();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      use(chunk);
      const int64_t t0 = first(chunk);
#pragma unroll 1
      for (int block = 0; block < S::kBlocks && t0 + block * kBlock < end; ++block) {
        step(chunk % S::kStages, block, t0, state);
      }
      if (!S::kPerKey && p.decay_kind != DecayKind::kNone) scale_state(state, *chunk_decay());
      meet();
    }
    store_state(state);
  }
};

template <class S>
__global__ void __launch_bounds__((S::kAhead ? 2 : 1) * kThreads, S::kResident)
    linear_attention_delta_chunk_kernel(const __grid_constant__ Plan plan, int tiles,
                                        int segments) {
  extern __shared__ __align__(128) char shared[];
  Walk<S> walk(plan, shared, tiles, segments);
  if constexpr (S::kAhead) {
    walk.run_ahead();
  } else {
    walk.run();
  }
}

template <class S>
cudaError_t launch(const Plan& plan, cudaStream_t stream) {
  const auto kernel = linear_attention_delta_chunk_kernel<S>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  if (error != cudaSuccess) return error;
  const int map_tiles = plan.panels;
  const int tiles = S::kOutput       ? plan.value_tiles
                    : S::kKinds == 2 ? (plan.value_tiles > map_tiles ? plan.value_tiles : map_tiles)
                                     : plan.value_tiles + map_tiles;
  const int segments = S::kOutput ? plan.segments : plan.segments - 1;
  const int64_t heads = plan.p.B * (S::kOutput ? plan.HO : plan.p.HV);
  const int64_t blocks = heads * tiles * segments;
  const int threads = (S::kAhead ? 2 : 1) * kThreads;
  kernel<<<static_cast<unsigned>(blocks), threads, S::kSharedBytes, stream>>>(plan, tiles,
                                                                              segments);
  return cudaGetLastError();
}

// Walks every segment: Output = false writes plan.states (N) and plan.maps, Output = true the
// results. Each is defined in a linear_attention_delta_*.cu of its own.
cudaError_t launch_walk_bf16(const Plan& plan, bool output, cudaStream_t stream);
cudaError_t launch_walk_f16(const Plan& plan, bool output, cudaStream_t stream);   // decay per head
cudaError_t launch_walk_tf32(const Plan& plan, bool output, cudaStream_t stream);  // for both
cudaError_t launch_walk_f32(const Plan& plan, bool output, cudaStream_t stream);

// That a thread block may use on the current device; 0 where that is unknown.
inline int most_shared_bytes() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most;
}

// With warps that prepare ahead for few thread blocks, with shorter chunks where a device lacks the
// shared memory.
template <typename IO, class Mma, int Panels, bool PerKey, bool Output>
cudaError_t launch_fitting(const Plan& plan, cudaStream_t stream) {
  using Wanted = Shape<IO, Mma, Panels, PerKey, Output>;
  if constexpr (Output && Panels == 2 && sizeof(typename Mma::Element) == 2) {
    using Ahead = Shape<IO, Mma, Panels, PerKey, Output, 4, true>;
    const int64_t blocks = plan.p.B * plan.HO * plan.value_tiles * plan.segments;
    if (blocks <= kMultiprocessors && plan.vectorised && !plan.mapped() &&
        most_shared_bytes() >= Ahead::kSharedBytes) {
      return launch<Ahead>(plan, stream);
    }
  }
  if constexpr (Wanted::kSharedBytes > kLeastSharedBytes) {
    using Smaller = Shape<IO, Mma, Panels, PerKey, Output, Wanted::kBlocks / 2>;
    static_assert(Smaller::kSharedBytes <= kLeastSharedBytes);
    if (most_shared_bytes() < Wanted::kSharedBytes) return launch<Smaller>(plan, stream);
  }
  return launch<Wanted>(plan, stream);
}

template <typename IO, class Mma, bool PerKey, bool Output>
cudaError_t launch_panels(const Plan& plan, cudaStream_t stream) {
  switch (plan.panels) {
    case 1:
      return launch_fitting<IO, Mma, 1, PerKey, Output>(plan, stream);
    case 2:
      return launch_fitting<IO, Mma, 2, PerKey, Output>(plan, stream);
    default:
      return launch_fitting<IO, Mma, 4, PerKey, Output>(plan, stream);
  }
}

template <typename IO, class Mma, bool PerKey>
cudaError_t launch_walk_with(const Plan& plan, bool output, cudaStream_t stream) {
  return output ? launch_panels<IO, Mma, PerKey, true>(plan, stream)
                : launch_panels<IO, Mma, PerKey, false>(plan, stream);
}
template <typename IO, class Mma>
cudaError_t launch_walk_with(const Plan& plan, bool output, cudaStream_t stream) {
  return plan.p.decay_kind == DecayKind::kPerKey
             ? launch_walk_with<IO, Mma, true>(plan, output, stream)
             : launch_walk_with<IO, Mma, false>(plan, output, stream);
}

}  // namespace fla::cuda::delta

#endif  // FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_
