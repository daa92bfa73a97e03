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
// blocks. Two barriers per chunk.
//
// Parallel in the sequence: a segment maps the state affinely, S_out = Map S_in + N. With Output =
// false the kernel walks a segment from S = 0 (giving N) and from S = I with v = 0 (giving Map); a
// scan over the segments gives each its initial state; with Output = true the kernel then walks
// each segment from there.
#ifndef FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_

#include "cuda/common/features.cuh"
#include "cuda/common/tile.cuh"

namespace fla::cuda::delta {

constexpr int kThreads = 128;
constexpr int kBlock = 16;    // tokens per step of the recurrence
constexpr int kColumns = 64;  // state columns per thread block (and per tile)
// log2 of the smallest decay over a block whose inverse is still formed.
constexpr float kSmallestBlockDecay = -100.f;

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
  float* states =
      nullptr;            // [B*HV, segments, 64 value_tiles, 64 panels]: N of segment i-1, then S_i
  float* maps = nullptr;  // [B*HV, segments - 1, 64 panels (input), 64 panels (output)]

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

template <typename IO_, typename Mma_, int Panels_, bool PerKey_, bool Output_>
struct Shape {
  using IO = IO_;
  using Mma = Mma_;
  using E = typename Mma::Element;
  static constexpr bool kPerKey = PerKey_, kOutput = Output_;
  static constexpr int kK = 64 * Panels_;  // padded key dims
  // Without output there are two kinds of column, N and Map; where registers allow a warp takes
  // both.
  static constexpr int kKinds = !kOutput && Panels_ == 1 ? 2 : 1;

  static constexpr int kKeyTiles = 1 + kOutput + kPerKey;
  static constexpr int kLoad = Panels_ * kKeyTiles * int(sizeof(E)) / 2;
  static constexpr int kBlocks = kLoad <= 6 ? 4 : kLoad <= 12 ? 2 : 1;  // per chunk
  static constexpr int kTokens = kBlocks * kBlock;                      // per chunk
  static constexpr int kStages = sizeof(E) == 2 ? 2 : 1;

  static constexpr int kKeyElements = kTokens * kK;
  static constexpr int kValueElements = kTokens * kColumns;
  static constexpr int kStageElements = (1 + kOutput) * kKeyElements + kValueElements;
  static constexpr int kOperand =
      32 * 8;  // elements of a 16x16 B operand, in the order of the lanes
  static constexpr int kScratchStride = 20;
  static constexpr int kScratch = kBlock * kScratchStride * 4;  // bytes
  static constexpr int kBlockBytes = 2 * kOperand * int(sizeof(E)) > kScratch
                                         ? 2 * kOperand* int(sizeof(E))
                                         : kScratch;

  static constexpr int kEndKeysAt = kStages * kStageElements * int(sizeof(E));
  static constexpr int kBlocksAt = kEndKeysAt + (kPerKey ? kKeyElements * int(sizeof(E)) : 0);
  static constexpr int kRowsAt = kBlocksAt + kBlocks * kBlockBytes;
  static constexpr int kDecayAt = kRowsAt + kTokens * 16;
  static constexpr int kSharedBytes = kDecayAt + kBlocks * (kPerKey ? 2 * kK : 1) * 4 + 16;

  static constexpr int kFit = 227 * 1024 / (kSharedBytes + 1024);
  static constexpr int kWanted = sizeof(E) == 4 || Panels_ > 1 ? 2 : kOutput && !kPerKey ? 4 : 3;
  static constexpr int kResident = kFit < 1 ? 1 : kFit < kWanted ? kFit : kWanted;
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

template <class S>
struct Walk;
template <class S>
__device__ void add_exact(const Walk<S> w, int stage, int block, int64_t t0, int d, uint32_t seen,
                          bool x_in_range, bool y_in_range);

// One thread block's walk over one segment.
template <class S>
struct Walk {
  using IO = typename S::IO;
  using Mma = typename S::Mma;
  using E = typename S::E;
  static constexpr int kK = S::kK, kSteps = kK / 16;
  using State = float[S::kKinds][2 * kSteps][4];  // [column, key dim] accumulators

  const Plan& plan;
  const LinearAttentionParams& p;
  char* const shared;
  int lane, warp, g, c;  // g = lane / 4, c = lane % 4
  int tile;              // which 64 columns: value tiles first, then (without output) tiles of Map
  int segment;
  int64_t b, h, hk, hq, ho;

  __device__ Walk(const Plan& plan, char* shared, int tiles, int segments)
      : plan(plan), p(plan.p), shared(shared) {
    lane = threadIdx.x & 31;
    warp = threadIdx.x >> 5;
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
  }

  // Shared memory.
  __device__ E* keys(int stage) const {
    return reinterpret_cast<E*>(shared) + stage * S::kStageElements;
  }
  __device__ E* queries(int stage) const { return keys(stage) + S::kKeyElements; }
  __device__ E* values(int stage) const { return keys(stage) + (1 + S::kOutput) * S::kKeyElements; }
  // Keys times e^{G_15 - G}; the keys themselves when decay is per head.
  __device__ E* end_keys(int stage) const {
    return S::kPerKey ? reinterpret_cast<E*>(shared + S::kEndKeysAt) : keys(stage);
  }
  __device__ float* scratch(int block) const {
    return reinterpret_cast<float*>(shared + S::kBlocksAt + block * S::kBlockBytes);
  }
  // (I + M)^-1 and A of a block; they take the place of its scratch.
  __device__ Operand<E>* inverse(int block) const {
    return reinterpret_cast<Operand<E>*>(scratch(block));
  }
  __device__ Operand<E>* scores(int block) const { return inverse(block) + 32; }
  // Per token: beta, beta e^G, the decay of its query, e^{G_15 - G}. Per-key decay uses beta only.
  __device__ float4* rows() const { return reinterpret_cast<float4*>(shared + S::kRowsAt); }
  // e^{G_15} of a block, and with per-key decay e^{-G_15}.
  __device__ float* block_decay(int block) const {
    return reinterpret_cast<float*>(shared + S::kDecayAt) + block * (S::kPerKey ? kK : 1);
  }
  __device__ float* block_growth(int block) const { return block_decay(block) + S::kBlocks * kK; }

  __device__ bool is_map(int kind) const { return kind == 1 || tile >= plan.value_tiles; }
  __device__ int map_tile(int kind) const { return kind == 1 ? tile : tile - plan.value_tiles; }
  // Does this kind of column exist for this thread block?
  __device__ bool exists(int kind) const { return kind == 0 || tile * kColumns < kK; }

  __device__ bool visible(int64_t t) const {
    return t < p.T && (!p.mask || load_as_float(p.mask, p.mask_dtype, b * p.T + t) != 0.f);
  }

  // ---- Loading a chunk

  template <int Width, typename Column>
  __device__ void load_elements(E* dst, const void* src, int64_t stride, int valid_rows,
                                const Column& column) const {
    for (int i = threadIdx.x; i < S::kTokens * Width; i += kThreads) {
      const int row = i / Width, col = i % Width;
      const int64_t at = column(col);
      float x = 0.f;
      if (row < valid_rows) {
        if (at >= 0) x = to_float(static_cast<const IO*>(src)[row * stride + at]);
        if (at == -2) x = 1.f;
      }
      dst[tile_offset<E, Width>(row, col)] = from_float<E>(x);
    }
  }

  template <int Width>
  __device__ void load_matrix(E* dst, const void* src, int64_t stride, int valid_rows,
                              int64_t size) const {
    if constexpr (sizeof(IO) == sizeof(E)) {
      if (plan.vectorised) {
        load_tile<E, S::kTokens, Width, kThreads>(dst, static_cast<const E*>(src), stride,
                                                  valid_rows, static_cast<int>(size), true);
        return;
      }
    }
    load_elements<Width>(dst, src, stride, valid_rows,
                         [&](int col) { return col < size ? int64_t{col} : int64_t{-1}; });
  }

  __device__ void load(int stage, int64_t t0) const {
    const int rows = static_cast<int>(min(p.T - t0, int64_t{S::kTokens}));
    const int64_t t = b * p.T + t0;
    load_matrix<kK>(keys(stage), static_cast<const IO*>(p.key) + (t * p.Hk + hk) * p.K, p.Hk * p.K,
                    rows, p.K);
    if constexpr (S::kOutput) {
      load_matrix<kK>(queries(stage), static_cast<const IO*>(p.query) + (t * p.Hq + hq) * p.K,
                      p.Hq * p.K, rows, p.K);
    }
    if (is_map(0)) return;
    const IO* value = static_cast<const IO*>(p.value) + (t * p.HV + h) * p.V;
    if (p.normalize) {
      load_elements<kColumns>(values(stage), value, p.HV * p.V, rows, [&](int col) -> int64_t {
        const int64_t column = plan.column(tile * kColumns + col);
        return column == p.V ? -2 : column;
      });
    } else {
      load_matrix<kColumns>(values(stage), value + tile * kColumns, p.HV * p.V, rows,
                            p.V - tile * kColumns);
    }
  }

  // Feature map, l2norm and mask, in place. Eight lanes share a row.
  __device__ void map_rows(E* rows, int64_t t0, bool masked) const {
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < S::kTokens; row += kThreads / 8) {
      const bool keep = !masked || visible(t0 + row);
      map_features<8>(
          p.feature_map, p.qk_l2norm, lane & 7, t0 + row < p.T ? static_cast<int>(p.K) : 0,
          [&](int i) { return to_float(rows[tile_offset<E, kK>(row, i)]); },
          [&](int i, float x) {
            rows[tile_offset<E, kK>(row, i)] = from_float<E>(keep ? x : 0.f);
          });
    }
  }

  // ---- What a block of 16 tokens needs: made by one warp

  // Two neighbouring log2 decays of token t.
  __device__ float2 key_decay(int64_t t, int d) const {
    const int64_t at = ((b * p.T + t) * p.HV + h) * p.K + d;
    float2 x = {0.f, 0.f};
    if (p.K % 2 == 0) {
      if (d >= p.K) return x;
      x = p.decay_dtype == DType::kFloat32    ? load2(static_cast<const float*>(p.decay) + at)
          : p.decay_dtype == DType::kBFloat16 ? load2(static_cast<const bf16*>(p.decay) + at)
                                              : load2(static_cast<const f16*>(p.decay) + at);
    } else {
      if (d < p.K) x.x = load_as_float(p.decay, p.decay_dtype, at);
      if (d + 1 < p.K) x.y = load_as_float(p.decay, p.decay_dtype, at + 1);
    }
    return make_float2(x.x * kLog2e, x.y * kLog2e);
  }

  // Per-key decay: keys and queries times e^G in place, keys times e^{G_15 - G} to end_keys, the
  // block's decay. Returns whether the scratch holds sums to add.
  __device__ bool decay_rows(int stage, int block, int64_t t0, uint32_t seen) const {
    const int row0 = block * kBlock;
    const bool before = p.read != ReadMode::kAfter;
    bool exact = false;
#pragma unroll 1
    for (int d = 2 * lane; d < kK; d += 64) {
      float2 G[kBlock];
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        G[i] = seen >> i & 1 ? key_decay(t0 + row0 + i, d) : make_float2(0.f, 0.f);
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
        add_exact<S>(*this, stage, block, t0, d, seen, x_in_range, y_in_range);
      }
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const int at = tile_offset<E, kK>(row0 + i, d);
        const float2 e = {fast_exp2(G[i].x), fast_exp2(G[i].y)};
        const float2 k = load2(keys(stage) + at);
        store2(keys(stage) + at, k.x * e.x, k.y * e.y);
        store2(end_keys(stage) + at, k.x * fast_exp2(last.x - G[i].x),
               k.y * fast_exp2(last.y - G[i].y));
        if constexpr (S::kOutput) {
          float2 eq = e;
          if (before) {
            eq = i == 0 ? make_float2(1.f, 1.f)
                        : make_float2(fast_exp2(G[i - (i > 0)].x), fast_exp2(G[i - (i > 0)].y));
          }
          const float2 q = load2(queries(stage) + at);
          store2(queries(stage) + at, q.x * eq.x, q.y * eq.y);
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

  __device__ void prepare(int stage, int block, int64_t t0) const {
    const int row0 = block * kBlock;
    const bool before = p.read != ReadMode::kAfter;
    const int64_t t = t0 + row0 + (lane & 15);
    const bool seen = visible(t);
    float beta = 0.f;
    if (seen) {
      beta = p.beta_kind == BetaKind::kNone ? 1.f
             : p.beta_kind == BetaKind::kShared
                 ? load_as_float(p.beta, p.beta_dtype, b * p.T + t)
                 : load_as_float(p.beta, p.beta_dtype, (b * p.T + t) * p.HV + h);
    }
    float G = 0.f, Gq = 0.f;  // per-head decay, inclusive; Gq is what the query sees
    bool exact = false;
    if constexpr (S::kPerKey) {
      if (lane < 16) rows()[row0 + lane] = make_float4(beta, beta, 1.f, 1.f);
      exact = decay_rows(stage, block, t0, __ballot_sync(0xffffffffu, seen));
    } else {
      if (seen && p.decay_kind != DecayKind::kNone) {
        G = load_as_float(p.decay, p.decay_dtype, (b * p.T + t) * p.HV + h) * kLog2e;
      }
#pragma unroll
      for (int i = 1; i < kBlock; i *= 2) {
        const float other = __shfl_up_sync(0xffffffffu, G, i, kBlock);
        if ((lane & 15) >= i) G += other;
      }
      const float previous = __shfl_up_sync(0xffffffffu, G, 1, kBlock);
      Gq = !before ? G : (lane & 15) ? previous : 0.f;
      const float last = __shfl_sync(0xffffffffu, G, 15);
      if (lane < 16) {
        rows()[row0 + lane] =
            make_float4(beta, beta * fast_exp2(G), fast_exp2(Gq), fast_exp2(last - G));
      }
      if (lane == 0) *block_decay(block) = fast_exp2(last);
    }

    float kk[2][4] = {}, qk[2][4] = {};  // [row g or g+8, column 8i + 2c]
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1;
      RawA<E> a;
      load_b_transposed<E, kK>(b0, b1, end_keys(stage), row0, 16 * i);
      load_a<E, kK>(a, keys(stage), row0, 16 * i);
      float2 lo, hi;
      if constexpr (S::kPerKey) {
        lo = load2(block_growth(block) + 16 * i + 2 * c);
        hi = load2(block_growth(block) + 16 * i + 2 * c + 8);
        scale_columns(a, lo, hi);
      }
      multiply<Mma>(kk, a, b0, b1);
      if constexpr (S::kOutput) {
        load_a<E, kK>(a, queries(stage), row0, 16 * i);
        if constexpr (S::kPerKey) scale_columns(a, lo, hi);
        multiply<Mma>(qk, a, b0, b1);
      }
    }

    float* const m = scratch(block);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = g + 8 * e;
      const float beta_r = __shfl_sync(0xffffffffu, beta, r);
      const float G_r = __shfl_sync(0xffffffffu, G, r), Gq_r = __shfl_sync(0xffffffffu, Gq, r);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int s = 8 * (i >> 1) + 2 * c + (i & 1);
        float& x = kk[i >> 1][2 * e + (i & 1)];
        float& y = qk[i >> 1][2 * e + (i & 1)];
        if (exact) {
          if (s < r) x += m[r * S::kScratchStride + s];
          if (s <= r) y += m[s * S::kScratchStride + r];
        }
        if constexpr (!S::kPerKey) {
          const float G_s = __shfl_sync(0xffffffffu, G, s);
          x *= fast_exp2(G_r - G_s);
          y *= fast_exp2(Gq_r - G_s);
        }
        x = s < r ? beta_r * x : 0.f;
        if (before ? s >= r : s > r) y = 0.f;
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
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
      const float2 y = load2(m + (g + 8 * (i & 1)) * S::kScratchStride + 8 * (i >> 1) + 2 * c);
      kk[i >> 1][2 * (i & 1)] = y.x;
      kk[i >> 1][2 * (i & 1) + 1] = y.y;
    }
    __syncwarp();
    inverse(block)[lane] = operand_of<E>(kk[0], kk[1]);
    if constexpr (S::kOutput) scores(block)[lane] = operand_of<E>(qk[0], qk[1]);
  }

  // ---- The recurrence over blocks

  __device__ void step(int stage, int block, int64_t t0, State& state) const {
    const int row0 = block * kBlock;
    float ks[S::kKinds][2][4] = {}, o[2][4] = {};  // [column, token]
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1, q0, q1;
      load_b_transposed<E, kK>(b0, b1, keys(stage), row0, 16 * i);
      if constexpr (S::kOutput) load_b_transposed<E, kK>(q0, q1, queries(stage), row0, 16 * i);
#pragma unroll
      for (int kind = 0; kind < S::kKinds; ++kind) {
        const RawA<E> a = raw_a<E>(state[kind][2 * i], state[kind][2 * i + 1]);
        multiply<Mma>(ks[kind], a, b0, b1);
        if constexpr (S::kOutput) multiply<Mma>(o, a, q0, q1);
      }
    }

    float4 row[4];  // of tokens 2c, 2c+1, 2c+8, 2c+9
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = rows()[row0 + 8 * (i >> 1) + 2 * c + (i & 1)];
    float v[2][4] = {};
    if (!is_map(0)) {
      RawA<E> a;
      load_a_transposed<E, kColumns>(a, values(stage), row0, 16 * warp);
      unpack_a(a, v[0], v[1]);
    }
    const Operand<E> x = inverse(block)[lane];
    RawA<E> u_end[S::kKinds], u_a;
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
      multiply<Mma>(u, raw_a<E>(ks[kind][0], ks[kind][1]), x.top, x.bottom);
      if constexpr (S::kOutput) u_a = raw_a<E>(u[0], u[1]);
      if constexpr (!S::kPerKey) {
#pragma unroll
        for (int i = 0; i < 8; ++i) u[i >> 2][i & 3] *= row[2 * (i >> 2) + (i & 1)].w;
      }
      u_end[kind] = raw_a<E>(u[0], u[1]);
    }

    const float decay = S::kPerKey ? 1.f : *block_decay(block);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      RawB<E> b0, b1;
      load_b<E, kK>(b0, b1, end_keys(stage), row0, 16 * i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float2 d = {decay, decay};
        if constexpr (S::kPerKey) d = load2(block_decay(block) + 16 * i + 8 * j + 2 * c);
#pragma unroll
        for (int kind = 0; kind < S::kKinds; ++kind) {
          float(&y)[4] = state[kind][2 * i + j];
          y[0] *= d.x;
          y[1] *= d.y;
          y[2] *= d.x;
          y[3] *= d.y;
          Mma::mma(y, Mma::prepare(u_end[kind]), Mma::prepare(j ? b1 : b0));
        }
      }
    }

    if constexpr (S::kOutput) {
      if constexpr (!S::kPerKey) {
#pragma unroll
        for (int i = 0; i < 8; ++i) o[i >> 2][i & 3] *= row[2 * (i >> 2) + (i & 1)].z;
      }
      const Operand<E> a = scores(block)[lane];
      multiply<Mma>(o, u_a, a.top, a.bottom);
      store_output(stage, block, t0, o);
    }
  }

  __device__ void store_output(int stage, int block, int64_t t0, float (&o)[2][4]) const {
    const float scale = p.scale != 0.f ? p.scale : rsqrtf(static_cast<float>(p.K));
    const int row0 = block * kBlock;
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i >> 2][i & 3] *= scale;
    if (p.normalize) {  // column 15 of the warp is z
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float z = __shfl_sync(0xffffffffu, o[i >> 1][2 + (i & 1)], 28 + c) + kNormalizeEps;
        o[i >> 1][i & 1] /= z;
        o[i >> 1][2 + (i & 1)] /= z;
      }
    }
    const int64_t t = t0 + row0;
    IO* const out = static_cast<IO*>(p.output) + ((b * p.T + t) * plan.HO + ho) * p.V;
    if constexpr (sizeof(IO) == 2 && sizeof(E) == 2) {
      if (plan.vectorised) {  // through this warp's own columns of the values, which it has read
        char* const at = reinterpret_cast<char*>(values(stage));
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t y =
              transpose_8x8(pack2(IO(), o[i >> 1][2 * (i & 1)], o[i >> 1][2 * (i & 1) + 1]));
          const int offset =
              tile_offset<E, kColumns>(row0 + 8 * (i >> 1) + g, 16 * warp + 8 * (i & 1));
          *reinterpret_cast<uint32_t*>(at + 2 * offset + 4 * c) = y;
        }
        __syncwarp();
        const int r = lane >> 1, col = 16 * warp + 8 * (lane & 1);
        const int64_t column = tile * kColumns + col;
        if (t + r < p.T && column < p.V) {
          *reinterpret_cast<uint4*>(out + r * plan.HO * p.V + column) =
              *reinterpret_cast<const uint4*>(at + 2 * tile_offset<E, kColumns>(row0 + r, col));
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = 8 * (i >> 2) + 2 * c + (i & 1);
      const int64_t column = plan.column(tile * kColumns + 16 * warp + g + 8 * (i >> 1 & 1));
      if (t + r < p.T && column >= 0 && column < p.V) {
        out[r * plan.HO * p.V + column] = from_float<IO>(o[i >> 2][i & 3]);
      }
    }
  }

  // ---- State in and out. Element pair (column j, key dims d and d+1) for every pair a lane holds.

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

  __device__ void run() const {
    const int64_t begin = segment * plan.segment_tokens;
    const int64_t end = min(begin + plan.segment_tokens, p.T);
    const bool prefetch = S::kStages == 2 && plan.vectorised;
    const bool mapped = p.feature_map != FeatureMap::kIdentity || p.qk_l2norm;
    int stage = 0;
    if (prefetch && begin < end) {
      load(0, begin);
      copy_async_commit();
    }
    State state;
    load_state(state);
#pragma unroll 1
    for (int64_t t0 = begin; t0 < end; t0 += S::kTokens) {
      if (!prefetch) {
        __syncthreads();
        load(0, t0);
        copy_async_commit();
      }
      copy_async_wait<0>();
      __syncthreads();
      if (prefetch && t0 + S::kTokens < end) {
        load(stage ^ 1, t0 + S::kTokens);
        copy_async_commit();
      }
      if (mapped || p.mask) {
        map_rows(keys(stage), t0, true);
        if (S::kOutput && mapped) map_rows(queries(stage), t0, false);
        __syncthreads();
      }
      if (warp < S::kBlocks) prepare(stage, warp, t0);
      __syncthreads();
#pragma unroll 1
      for (int block = 0; block < S::kBlocks && t0 + block * kBlock < end; ++block) {
        step(stage, block, t0, state);
      }
      if (prefetch) stage ^= 1;
    }
    store_state(state);
  }
};

// Adds to the block's scratch, pair by pair, the terms of key dims (d, d+1) that are not in range:
// sum_d k_r k_s e^{G_r - G_s} at [r][s], sum_d q_r k_s e^{..} at [s][r]. Rare and out of line;
// takes a copy so that the caller's members stay in registers.
template <class S>
__device__ __noinline__ void add_exact(const Walk<S> w, int stage, int block, int64_t t0, int d,
                                       uint32_t seen, bool x_in_range, bool y_in_range) {
  constexpr int kK = S::kK;
  using E = typename S::E;
  float* sums = w.scratch(block);
  const int row0 = block * kBlock;
  const bool before = w.p.read != ReadMode::kAfter;
#pragma unroll 1
  for (int s = 0; s < kBlock; ++s) {
    const float2 ks = load2(w.keys(stage) + tile_offset<E, kK>(row0 + s, d));
    const float2 from = {x_in_range ? 0.f : ks.x, y_in_range ? 0.f : ks.y};
    float2 exponent = {0.f, 0.f};
#pragma unroll 1
    for (int r = s; r < kBlock; ++r) {
      const float2 earlier = exponent;
      if (r > s && (seen >> r & 1)) {
        const float2 step = w.key_decay(t0 + row0 + r, d);
        exponent.x += step.x;
        exponent.y += step.y;
      }
      if (r > s) {
        const float2 kr = load2(w.keys(stage) + tile_offset<E, kK>(row0 + r, d));
        const float sum = lane_sum<32>(kr.x * from.x * fast_exp2(exponent.x) +
                                       kr.y * from.y * fast_exp2(exponent.y));
        if (w.lane == 0) sums[r * S::kScratchStride + s] += sum;
      }
      if constexpr (S::kOutput) {
        const float2 q = load2(w.queries(stage) + tile_offset<E, kK>(row0 + r, d));
        const float2 e = before ? earlier : exponent;
        const float sum =
            lane_sum<32>(q.x * from.x * fast_exp2(e.x) + q.y * from.y * fast_exp2(e.y));
        if (w.lane == 0) sums[s * S::kScratchStride + r] += sum;
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, S::kResident)
    linear_attention_delta_chunk_kernel(const __grid_constant__ Plan plan, int tiles,
                                        int segments) {
  extern __shared__ __align__(128) char shared[];
  Walk<S>(plan, shared, tiles, segments).run();
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
  kernel<<<static_cast<unsigned>(blocks), kThreads, S::kSharedBytes, stream>>>(plan, tiles,
                                                                               segments);
  return cudaGetLastError();
}

// Walks every segment: Output = false writes plan.states (N) and plan.maps, Output = true the
// results. Defined, one element type each, in linear_attention_delta_{bf16,f16,f32}.cu.
template <typename IO>
cudaError_t launch_walk(const Plan& plan, bool output, cudaStream_t stream);

template <typename IO, class Mma, bool PerKey, bool Output>
cudaError_t launch_panels(const Plan& plan, cudaStream_t stream) {
  switch (plan.panels) {
    case 1:
      return launch<Shape<IO, Mma, 1, PerKey, Output>>(plan, stream);
    case 2:
      return launch<Shape<IO, Mma, 2, PerKey, Output>>(plan, stream);
    default:
      return launch<Shape<IO, Mma, 4, PerKey, Output>>(plan, stream);
  }
}

template <typename IO, class MmaHead, class MmaKey>
cudaError_t launch_walk_with(const Plan& plan, bool output, cudaStream_t stream) {
  if (plan.p.decay_kind == DecayKind::kPerKey) {
    return output ? launch_panels<IO, MmaKey, true, true>(plan, stream)
                  : launch_panels<IO, MmaKey, true, false>(plan, stream);
  }
  return output ? launch_panels<IO, MmaHead, false, true>(plan, stream)
                : launch_panels<IO, MmaHead, false, false>(plan, stream);
}

}  // namespace fla::cuda::delta

#endif  // FLA_CUDA_LINEAR_ATTENTION_DELTA_CUH_
