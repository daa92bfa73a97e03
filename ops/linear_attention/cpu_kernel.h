// LinearAttention, the kernel proper. Compiled once per ISA by cpu_{portable,avx2,avx512}.cc.
//
//   S_t = a_t S_{t-1} + k_t u_t'
//   u_t = v_t, or for the delta rules beta_t (v_t - (a_t S_{t-1})' k_t)
//   o_t = scale q_t' S_t
//   a_t = e^{g_t}: one number per head, one per key dimension, or 1
//
// Prefill walks chunks of C = 16 tokens, so that S is read and written once per chunk and all the
// work is products of small matrices held in registers. With p_r = a_1 .. a_r inside the chunk and
// D_rs = p_r / p_s, and "." scaling rows or multiplying element by element:
//
//   M = strict_tril(beta K K' . D)
//   U = (I + M)^-1 beta (V - p . K S0)      for the delta rules, otherwise V
//   P = tril(Q K' . D)
//   O = scale (p . Q S0 + P U)
//   S1 = p_C S0 + (K . p_C / p)' U
//
// D comes from running products of a, never from differences of cumulated logs, so a = 0 (a hard
// reset, or g = -inf) is exact. With decay per key dimension D does not factor out of K and Q: they
// are scaled to Q.p and K/p first, which holds while every p stays within [1e-30, 1e30]; a chunk
// that leaves that range is retried in pieces of 4 tokens and then token by token.
//
// Ownership: one work item = a group of neighbouring states (b, hv) x some of their columns;
// columns never interact. S lives in scratch as panels of up to 64 columns, [panel][K][width],
// float32. The normaliser z is a column of S whose v is 1 and is carried as a separate vector.
//
// Decode (T = 1, or a few tokens) skips all that: one pass over S (two for the delta rules) from
// past_state straight to present_state.
//
// Papers: Yang et al. 2024 (GLA, arXiv:2312.06635; DeltaNet, arXiv:2406.06484; Gated DeltaNet,
// arXiv:2412.06464); Sun et al. 2023 (RetNet, arXiv:2307.08621).
#ifndef FLA_OPS_LINEAR_ATTENTION_CPU_KERNEL_H_
#define FLA_OPS_LINEAR_ATTENTION_CPU_KERNEL_H_

#include "ops/common/scratch.h"
#include "ops/common/tile.h"
#include "ops/common/vec.h"
#include "ops/gen/linear_attention_constants.h"
#include "ops/linear_attention/cpu.h"

namespace fla {
namespace {

using gen::linear_attention::kExpClamp;
using gen::linear_attention::kL2normEps;
using gen::linear_attention::kNormalizeEps;

constexpr int RB = VL == 16 ? 16 : 8;        // rows that a triangular solve holds in registers
constexpr int kRowStep = RS > RB ? RS : RB;  // chunks shorter than C are padded to this
static_assert(C % kRowStep == 0 && kRowStep % RT == 0 && kRowStep % RS == 0, "row tiles must nest");
constexpr int kMaxPanel = 64;  // columns
constexpr int ND = 2 * NT;     // registers of a state row that decode takes at once

// ---- feature maps

inline float sum_of_squares(const float* x, int64_t n) {
  Vec squares{};
  for (int64_t i = 0; i < n; i += VL) squares += load(x + i) * load(x + i);
  return sum(squares);
}

// x / sqrt(sum x^2 + eps), padded with zeros. Squares of large features (exp) leave float32's
// range: those rows are made smaller first, and beside them eps is nothing.
inline void l2_normalize(float* x, int64_t n) {
  constexpr float kShrink = 0x1p-96f;
  float total = sum_of_squares(x, n) + kL2normEps;
  if (total > 3e38f) {
    for (int64_t i = 0; i < n; i += VL) store(x + i, load(x + i) * kShrink);
    total = sum_of_squares(x, n);
  }
  const float inverse = 1.0f / __builtin_sqrtf(total);
  for (int64_t i = 0; i < n; i += VL) store(x + i, load(x + i) * inverse);
}

// x[0..round_up(n, VL)) -> phi(x), with the padding beyond n zero again.
inline void feature_map(float* x, int64_t n, FeatureMap map) {
  const int64_t padded = round_up(n, VL);
  switch (map) {
    case FeatureMap::kIdentity:
      return;
    case FeatureMap::kElu1:
      for (int64_t i = 0; i < padded; i += VL) {
        Vec v = load(x + i);
        store(x + i, v > Vec{} ? v + 1.0f : vexp(v));
      }
      break;
    case FeatureMap::kRelu:
      for (int64_t i = 0; i < padded; i += VL) {
        Vec v = load(x + i);
        store(x + i, v < Vec{} ? Vec{} : v);
      }
      break;
    case FeatureMap::kExp:
      for (int64_t i = 0; i < padded; i += VL) {
        Vec v = load(x + i);
        store(x + i, vexp(v > splat(kExpClamp) ? splat(kExpClamp) : v));
      }
      break;
    case FeatureMap::kSilu:
      for (int64_t i = 0; i < padded; i += VL) {
        Vec v = load(x + i);
        store(x + i, v / (1.0f + vexp(-v)));
      }
      break;
    case FeatureMap::kL2Norm:
      l2_normalize(x, padded);
      break;
    case FeatureMap::kSoftmax: {
      for (int64_t i = n; i < padded; i++) x[i] = -__builtin_inff();
      Vec top = load(x);
      for (int64_t i = VL; i < padded; i += VL) top = vmax(top, load(x + i));
      const float shift = max_lane(top);
      Vec total{};
      for (int64_t i = 0; i < padded; i += VL) {
        Vec e = vexp(load(x + i) - shift);
        total += e;
        store(x + i, e);
      }
      const float inverse = 1.0f / sum(total);
      for (int64_t i = 0; i < padded; i += VL) store(x + i, load(x + i) * inverse);
      break;
    }
  }
  for (int64_t i = n; i < padded; i++) x[i] = 0.0f;
}

// ---- the plan of one call, shared by all work items

struct Plan {
  LinearAttentionParams p;
  int64_t kp;       // K padded; row stride of every packed q/k buffer
  int64_t state_v;  // V + normalize: row stride of past_state and present_state
  int64_t heads_out;
  int nq;        // query heads that read one state
  int width;     // columns per panel
  int panels;    // panels per state
  int per_item;  // panels per work item
  int parts;     // work items that share a state's columns
  int group;     // states per work item, neighbours in memory
  int groups;    // per batch entry
  bool delta, per_key, per_head;
  bool plain;    // output needs neither rounding nor dividing
  bool direct;   // decode
  size_t bytes;  // scratch per item
  bool failed;   // out of memory in some item
};

// One state and the columns [v0, v1) of it that the current work item owns.
struct Item {
  int64_t b, hv, panels, v0, v1;
  int64_t hk, hq, ho;  // its key head, and its first query and output heads of nq
  bool first;          // also owns the normaliser
};

FLA_INLINE Item item_at(const Plan& s, int64_t b, int64_t hv, int64_t part) {
  Item it;
  it.b = b;
  it.hv = hv;
  it.hk = hv / (s.p.HV / s.p.Hk);
  it.hq = s.p.Hq >= s.p.HV ? hv * s.nq : hv / (s.p.HV / s.p.Hq);
  it.ho = s.p.Hq >= s.p.HV ? hv * s.nq : hv;
  it.panels = imin(s.per_item, s.panels - part * s.per_item);
  it.v0 = part * s.per_item * s.width;
  it.v1 = imin(it.v0 + it.panels * s.width, s.p.V);
  it.first = part == 0;
  return it;
}

FLA_INLINE int64_t state_offset(const Plan& s, const Item& it) {
  return (it.b * s.p.HV + it.hv) * s.p.K * s.state_v;
}

// ---- one token's inputs, as float32

// Zeroes the padding behind a packed row of K numbers.
FLA_INLINE void pad_row(const Plan& s, float* row) {
  for (int64_t i = s.p.K; i < s.kp; i++) row[i] = 0.0f;
}

inline void map_row(const Plan& s, float* row) {
  pad_row(s, row);
  if (s.p.feature_map != FeatureMap::kIdentity) feature_map(row, s.p.K, s.p.feature_map);
  if (s.p.qk_l2norm) l2_normalize(row, s.kp);
}

inline void load_query(const Plan& s, const Item& it, int64_t t, int i, float* dst) {
  const auto& p = s.p;
  load_row(dst, p.query, ((it.b * p.T + t) * p.Hq + it.hq + i) * p.K, p.K, p.io);
  map_row(s, dst);
}

inline void load_key(const Plan& s, const Item& it, int64_t t, float* dst) {
  const auto& p = s.p;
  load_row(dst, p.key, ((it.b * p.T + t) * p.Hk + it.hk) * p.K, p.K, p.io);
  map_row(s, dst);
}

inline void load_value(const Plan& s, const Item& it, int64_t t, int64_t v0, int64_t n,
                       float* dst) {
  const auto& p = s.p;
  load_row(dst, p.value, ((it.b * p.T + t) * p.HV + it.hv) * p.V + v0, n, p.io);
}

inline void load_decay_row(const Plan& s, const Item& it, int64_t t, float* dst) {
  const auto& p = s.p;
  load_row(dst, p.decay, ((it.b * p.T + t) * p.HV + it.hv) * p.K, p.K, p.decay_dtype);
  pad_row(s, dst);
  for (int64_t i = 0; i < s.kp; i += VL) store(dst + i, vexp(load(dst + i)));
}

FLA_INLINE float load_decay(const Plan& s, const Item& it, int64_t t) {
  const auto& p = s.p;
  return load_one(p.decay, (it.b * p.T + t) * p.HV + it.hv, p.decay_dtype);
}

inline float load_beta(const Plan& s, const Item& it, int64_t t) {
  const auto& p = s.p;
  if (p.beta_kind == BetaKind::kNone) return 1.0f;
  const int64_t token = it.b * p.T + t;
  return load_one(p.beta, p.beta_kind == BetaKind::kShared ? token : token * p.HV + it.hv,
                  p.beta_dtype);
}

inline bool visible(const Plan& s, const Item& it, int64_t t) {
  return !s.p.mask || load_one(s.p.mask, it.b * s.p.T + t, s.p.mask_dtype) != 0.0f;
}

inline void store_output(const Plan& s, const Item& it, int64_t t, int i, int64_t v0, int64_t n,
                         const float* src) {
  const auto& p = s.p;
  const int64_t at = ((it.b * p.T + t) * s.heads_out + it.ho + i) * p.V + v0;
  store_row(p.output, at, src, n, p.io);
}

// ---- token by token

// One token of one state, everything float32.
struct Token {
  int64_t K;
  int nq;
  const float* q;  // [nq] rows, q_stride apart
  int64_t q_stride;
  const float* k;   // [K]
  const float* a;   // [K]
  const float* ak;  // [K]  a.k
  const float* aq;  // [K]  the first query as the delta pass reads the old state: a.q, or q when
                    // reading before
  float beta, scale;
  bool delta, before;
  const float* bonus;  // [nq] (q.u)'k, or null
  float self;          // what the first output takes of the token's own u after the passes below
};

// One register of a state row; `last` lanes of it exist when PART.
template <bool PART, typename TS>
FLA_INLINE Vec get(const TS* cell, int last) {
  if constexpr (PART) return load_part(cell, last);
  return load(cell);
}
template <bool PART, typename TS>
FLA_INLINE void put(TS* cell, Vec x, int last) {
  if constexpr (PART) return store_part(cell, x, last);
  store(cell, x);
}

// o_i = q_i'S for the queries from `first` on.
template <int N, bool PART, typename TS>
inline void read_columns(const Token& x, int first, const TS* S, int64_t stride, float* o,
                         int64_t o_stride, int last) {
  for (int i = first; i < x.nq; i++) {
    const float* q = x.q + i * x.q_stride;
    Vec acc[N] = {};
    for (int64_t d = 0; d < x.K; d++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) acc[j] += q[d] * get<PART>(S + d * stride + j * VL, last);
    }
    FLA_UNROLL
    for (int j = 0; j < N; j++) store(o + i * o_stride + j * VL, acc[j]);
  }
}

// N registers of columns of S: src -> dst (may be the same), v -> u in place, o[i] = scale q_i'S.
template <int N, bool PART, typename TS>
inline void step_columns(const Token& x, const TS* src, TS* dst, int64_t stride, float* v, float* o,
                         int64_t o_stride, int last) {
  const int64_t K = x.K;
  const float *a = x.a, *k = x.k, *q = x.q;
  Vec u[N], out[N] = {};
  FLA_UNROLL
  for (int j = 0; j < N; j++) u[j] = load(v + j * VL);
  if (x.before) read_columns<N, PART>(x, 1, src, stride, o, o_stride, last);
  if (x.delta) {
    Vec w[N] = {};
    const float *ak = x.ak, *aq = x.aq;
    for (int64_t d = 0; d < K; d++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) {
        Vec row = get<PART>(src + d * stride + j * VL, last);
        keep(row);
        w[j] += ak[d] * row;
        out[j] += aq[d] * row;
      }
    }
    FLA_UNROLL
    for (int j = 0; j < N; j++) u[j] = (u[j] - w[j]) * x.beta;
    for (int64_t d = 0; d < K; d++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) {
        const Vec row = get<PART>(src + d * stride + j * VL, last) * a[d] + k[d] * u[j];
        put<PART>(dst + d * stride + j * VL, row, last);
      }
    }
  } else if (x.before) {
    for (int64_t d = 0; d < K; d++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) {
        const Vec row = get<PART>(src + d * stride + j * VL, last);
        out[j] += q[d] * row;
        put<PART>(dst + d * stride + j * VL, row * a[d] + k[d] * u[j], last);
      }
    }
  } else {
    for (int64_t d = 0; d < K; d++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) {
        const Vec row = get<PART>(src + d * stride + j * VL, last) * a[d] + k[d] * u[j];
        put<PART>(dst + d * stride + j * VL, row, last);
        out[j] += q[d] * row;
      }
    }
  }
  FLA_UNROLL
  for (int j = 0; j < N; j++) {
    store(o + j * VL, (out[j] + x.self * u[j]) * x.scale);
    store(v + j * VL, u[j]);
  }
  if (x.nq == 1) return;
  if (!x.before) read_columns<N, PART>(x, 1, dst, stride, o, o_stride, last);
  for (int i = 1; i < x.nq; i++) {
    const float self = x.bonus ? x.bonus[i] : 0.0f;
    FLA_UNROLL
    for (int j = 0; j < N; j++) {
      float* cell = o + i * o_stride + j * VL;
      store(cell, (load(cell) + self * u[j]) * x.scale);
    }
  }
}

// `columns` columns of S; v and o are padded to a multiple of VL.
template <typename TS>
inline void step(const Token& x, const TS* src, TS* dst, int64_t stride, float* v, float* o,
                 int64_t o_stride, int64_t columns) {
  int64_t c = 0;
  for (; c + ND * VL <= columns; c += ND * VL)
    step_columns<ND, false>(x, src + c, dst + c, stride, v + c, o + c, o_stride, VL);
  for (; c + NT * VL <= columns; c += NT * VL)
    step_columns<NT, false>(x, src + c, dst + c, stride, v + c, o + c, o_stride, VL);
  for (; c + VL <= columns; c += VL)
    step_columns<1, false>(x, src + c, dst + c, stride, v + c, o + c, o_stride, VL);
  if (c < columns)
    step_columns<1, true>(x, src + c, dst + c, stride, v + c, o + c, o_stride,
                          static_cast<int>(columns - c));
}

// The normaliser's step: a column whose v is 1. den[i] = scale q_i'z.
inline void step_normalizer(const Token& x, float* z, float* den) {
  Vec w{};
  for (int64_t d = 0; d < x.K; d += VL) w += load(x.ak + d) * load(z + d);
  const float u = x.delta ? x.beta * (1.0f - sum(w)) : 1.0f;
  auto read = [&] {
    for (int i = 0; i < x.nq; i++) den[i] = x.scale * dot(x.q + i * x.q_stride, z, x.K);
  };
  if (x.before) read();
  for (int64_t d = 0; d < x.K; d += VL) {
    Vec kept = load(z + d) * load(x.a + d);
    store(z + d, kept + load(x.k + d) * u);
  }
  if (!x.before) read();
  if (x.bonus)
    for (int i = 0; i < x.nq; i++) den[i] += x.scale * x.bonus[i] * u;
}

inline void normalize_row(float* o, int64_t n, float den) {
  const float inverse = 1.0f / (den + kNormalizeEps);
  for (int64_t i = 0; i < n; i += VL) store(o + i, load(o + i) * inverse);
}

// sum_d q_d u_d k_d: what the bonus lets a token see of itself.
inline float bonus_dot(const float* q, const float* u, const float* k, int64_t n) {
  Vec acc{};
  for (int64_t d = 0; d < n; d += VL) acc += load(q + d) * load(u + d) * load(k + d);
  return sum(acc);
}

// ---- scratch of one item

struct Work {
  float* S;          // [group][panels][kp][width]; w.S and w.z point at the current state
  float* q;          // [nq][C][kp]  q, or q.p
  float* k;          // [C][kp]      k, or k/p
  float* kq;         // [C][kp]      k.p (per-key delta), else k
  float* kh;         // [C][kp]      k.p_C/p, or k without decay
  float* kT;         // [kp][C]      k transposed
  float* a;          // [C][kp]      e^g (per key)
  float* ak;         // [kp]         a.k of one token
  float* aq;         // [kp]         a.q of one token
  float* v;          // [C][panels*width]  v, then u
  float* o;          // [nq][C][width]
  float* P;          // [nq][C][C]
  float* M;          // [C][C]
  float* D;          // [C][C]
  float* z;          // [group][kp]
  float* alpha;      // [kp]         p_C
  float* den;        // [nq][C]      scale q'z
  float* bonus;      // [nq][C]      (q.u)'k
  float* bonus_u;    // [kp]
  const Item* next;  // whose tokens [ahead, ahead_end) are still to be prefetched
  int64_t ahead, ahead_end;
  float a_head[C], beta[C], p[C + 1], row_scale[C], u_z[C];
};

// Lays the arrays out from `base` on; returns the bytes they take. Rows are tokens: C, or 1 for
// decode.
FLA_INLINE size_t carve(const Plan& s, char* base, Work* w) {
  size_t used = 0;
  auto take = [&](int64_t floats) {
    float* at = reinterpret_cast<float*>(base + used);
    used += static_cast<size_t>(round_up(floats * 4, 64));
    return at;
  };
  const int64_t tokens = s.direct ? 1 : C;
  const int64_t columns = static_cast<int64_t>(s.per_item) * s.width, rows = tokens * s.kp;
  w->q = take(s.nq * rows);
  w->k = take(rows);
  w->a = take(rows);
  w->ak = take(s.kp);
  w->aq = take(s.kp);
  w->v = take(tokens * columns);
  w->o = take(s.nq * tokens * (s.direct ? columns : s.width));
  w->z = take(s.group * s.kp);
  w->den = take(s.nq * tokens);
  w->bonus = take(s.nq * tokens);
  w->bonus_u = take(s.kp);
  if (s.direct) return used;
  w->kq = s.per_key && s.delta ? take(rows) : w->k;
  w->kh = s.per_key || s.per_head ? take(rows) : w->k;
  w->kT = take(rows);
  w->P = take(s.nq * C * C);
  w->M = take(C * C);
  w->D = take(C * C);
  w->alpha = take(s.kp);
  w->S = take(s.group * s.kp * columns);
  return used;
}

inline void load_bonus(const Plan& s, const Item& it, const Work& w) {
  if (!s.p.bonus) return;
  load_row(w.bonus_u, s.p.bonus, it.hv * s.p.K, s.p.K, s.p.bonus_dtype);
  pad_row(s, w.bonus_u);
}

inline void load_state(const Plan& s, const Item& it, const Work& w) {
  const auto& p = s.p;
  memset(w.S, 0, sizeof(float) * s.kp * it.panels * s.width);
  memset(w.z, 0, sizeof(float) * s.kp);
  if (!p.past_state) return;
  const int64_t base = state_offset(s, it);
  for (int64_t j = 0; j < it.panels; j++) {
    const int64_t v0 = it.v0 + j * s.width, n = imin(s.width, p.V - v0);
    for (int64_t d = 0; d < p.K; d++)
      load_row(w.S + (j * s.kp + d) * s.width, p.past_state, base + d * s.state_v + v0, n, p.state);
  }
  if (p.normalize)
    for (int64_t d = 0; d < p.K; d++)
      w.z[d] = load_one(p.past_state, base + d * s.state_v + p.V, p.state);
}

inline void store_state(const Plan& s, const Item& it, const Work& w) {
  const auto& p = s.p;
  if (!p.present_state) return;
  const int64_t base = state_offset(s, it);
  for (int64_t j = 0; j < it.panels; j++) {
    const int64_t v0 = it.v0 + j * s.width, n = imin(s.width, p.V - v0);
    for (int64_t d = 0; d < p.K; d++)
      store_row(p.present_state, base + d * s.state_v + v0, w.S + (j * s.kp + d) * s.width, n,
                p.state);
  }
  if (p.normalize && it.first)
    for (int64_t d = 0; d < p.K; d++)
      store_one(p.present_state, base + d * s.state_v + p.V, w.z[d], p.state);
}

// Row r of the packed buffers as a token; before scale_by_decay.
inline Token token_at(const Plan& s, const Work& w, int r) {
  Token x{};
  x.K = s.p.K;
  x.nq = s.nq;
  x.q = x.aq = w.q + r * s.kp;
  x.q_stride = (s.direct ? 1 : C) * s.kp;
  x.k = x.ak = w.k + r * s.kp;
  x.a = w.a + r * s.kp;
  x.beta = w.beta[r];
  x.scale = s.p.scale;
  x.delta = s.delta;
  x.before = s.p.read != ReadMode::kAfter;
  if (s.delta && !x.before) x.self = dot(x.q, x.k, x.K);
  if (s.delta && (s.per_key || s.per_head)) {
    x.ak = w.ak;
    for (int64_t d = 0; d < s.kp; d += VL) store(w.ak + d, load(x.a + d) * load(x.k + d));
    if (!x.before) {
      x.aq = w.aq;
      for (int64_t d = 0; d < s.kp; d += VL) store(w.aq + d, load(x.a + d) * load(x.q + d));
    }
  }
  if (s.p.bonus) {
    x.bonus = w.bonus;
    for (int i = 0; i < s.nq; i++)
      w.bonus[i] = bonus_dot(x.q + i * x.q_stride, w.bonus_u, x.k, x.K);
    x.self = w.bonus[0];
  }
  return x;
}

inline void write_token(const Plan& s, const Item& it, const Work& w, int64_t t, int64_t v0,
                        int64_t width, int64_t o_stride) {
  for (int i = 0; i < s.nq; i++) {
    float* o = w.o + i * o_stride;
    if (s.p.normalize) normalize_row(o, width, w.den[i]);
    store_output(s, it, t, i, v0, imin(width, s.p.V - v0), o);
  }
}

// ---- prefill: packing a chunk

// Rows of one head lie Hq*K (or HV*V) elements apart, which hardware prefetchers do not follow: ask
// for the rows one chunk ahead while this one is computed.
template <int WRITE = 0>
inline void prefetch_row(const void* base, int64_t offset, int64_t n, DType dtype) {
  const int64_t size = size_of(dtype);
  const char* at = static_cast<const char*>(base) + offset * size;
  for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(at + i, WRITE, 3);
}

// One more token of the coming chunk; called once per tile, because a burst would only fill the
// miss buffers.
inline void prefetch_next(const Plan& s, Work& w) {
  if (w.ahead >= w.ahead_end) return;
  const auto& p = s.p;
  const Item& it = *w.next;
  const int64_t token = it.b * p.T + w.ahead++;
  prefetch_row(p.key, (token * p.Hk + it.hk) * p.K, p.K, p.io);
  prefetch_row(p.value, (token * p.HV + it.hv) * p.V + it.v0, it.v1 - it.v0, p.io);
  if (s.per_key) prefetch_row(p.decay, (token * p.HV + it.hv) * p.K, p.K, p.decay_dtype);
  for (int i = 0; i < s.nq; i++) {
    prefetch_row(p.query, (token * p.Hq + it.hq + i) * p.K, p.K, p.io);
    prefetch_row<1>(p.output, (token * s.heads_out + it.ho + i) * p.V + it.v0, it.v1 - it.v0, p.io);
  }
}

inline void pack_queries(const Plan& s, const Item& it, const Work& w, int64_t t0, int c) {
  for (int i = 0; i < s.nq; i++) {
    float* q = w.q + i * C * s.kp;
    for (int r = 0; r < c; r++) load_query(s, it, t0 + r, i, q + r * s.kp);
    memset(q + c * s.kp, 0, sizeof(float) * (C - c) * s.kp);
  }
}

// Keys, values, decay and beta of tokens [t0, t0 + c); the rows up to C are tokens that do nothing.
inline void pack_updates(const Plan& s, const Item& it, Work& w, int64_t t0, int c) {
  const int64_t columns = it.panels * s.width, n = it.v1 - it.v0;
  for (int r = 0; r < C; r++) {
    const bool live = r < c && visible(s, it, t0 + r);
    float* k = w.k + r * s.kp;
    float* v = w.v + r * columns;
    if (live) {
      load_key(s, it, t0 + r, k);
      load_value(s, it, t0 + r, it.v0, n, v);
      for (int64_t i = n; i < columns; i++) v[i] = 0.0f;
    } else {
      memset(k, 0, sizeof(float) * s.kp);
      memset(v, 0, sizeof(float) * columns);
    }
    w.beta[r] = live && s.delta ? load_beta(s, it, t0 + r) : 0.0f;
    w.a_head[r] = live && s.per_head ? load_decay(s, it, t0 + r) : 0.0f;
    if (!s.per_key) continue;
    float* a = w.a + r * s.kp;
    if (live)
      load_decay_row(s, it, t0 + r, a);
    else
      for (int64_t d = 0; d < s.kp; d++) a[d] = 1.0f;
  }
  for (int r = 0; r < C; r += VL) store(w.a_head + r, vexp(load(w.a_head + r)));
}

// Whether every running product of a stays within [1e-30, 1e30].
inline bool decay_in_range(const Plan& s, const Work& w, int c) {
  Vec low = splat(1.0f), high = splat(1.0f);
  for (int64_t d = 0; d < s.p.K; d += VL) {
    Vec p = splat(1.0f);
    for (int r = 0; r < c; r++) {
      p *= load(w.a + r * s.kp + d);
      low = vmin(low, p);
      high = vmax(high, p);
    }
  }
  // Written so that NaN fails.
  return -max_lane(-low) >= 1e-30f && max_lane(high) <= 1e30f;
}

// Per-key decay: q -> q.p (or q.p_{r-1} when reading before), k -> k/p, and kq, kh, alpha.
inline void scale_by_decay(const Plan& s, const Work& w) {
  const bool before = s.p.read != ReadMode::kAfter;
  for (int64_t d = 0; d < s.kp; d += VL) {
    Vec p = splat(1.0f);
    for (int r = 0; r < C; r++) {
      const int64_t at = r * s.kp + d;
      Vec previous = p;
      p *= load(w.a + at);
      Vec k = load(w.k + at);
      for (int i = 0; i < s.nq; i++) {
        float* q = w.q + i * C * s.kp + at;
        store(q, load(q) * (before ? previous : p));
      }
      if (s.delta) store(w.kq + at, k * p);
      store(w.k + at, k / p);
    }
    store(w.alpha + d, p);
    for (int r = 0; r < C; r++) store(w.kh + r * s.kp + d, load(w.k + r * s.kp + d) * p);
  }
}

// Per-head decay (or none): w.p[r] = a_1 .. a_r with w.p[0] = 1, D, kh and alpha.
inline void decay_matrix(const Plan& s, Work& w) {
  const IVec lane = lane_index();
  Vec row[LC];
  for (int j = 0; j < LC; j++) row[j] = Vec{};
  float p = w.p[0] = 1.0f;
  for (int r = 0; r < C; r++) {
    p *= w.a_head[r];
    w.p[r + 1] = p;
    for (int j = 0; j < LC; j++) {
      row[j] = lane + j * VL == r ? splat(1.0f) : row[j] * w.a_head[r];
      store(w.D + r * C + j * VL, row[j]);
    }
  }
  if (!s.per_head) return;
  for (int64_t d = 0; d < s.kp; d += VL) {
    store(w.alpha + d, splat(w.p[C]));
    for (int r = 0; r < C; r++)
      store(w.kh + r * s.kp + d, load(w.k + r * s.kp + d) * w.D[(C - 1) * C + r]);
  }
}

// ---- prefill: the products

// out[r][s] = (A_r . k_s) * row_factor[r] * D[r][s] for s <= r - strict, else 0; D null: all ones.
inline void score(const Plan& s, const Work& w, const float* A, const float* row_factor,
                  const float* D, int strict, int rows, float* out) {
  const IVec lane = lane_index();
  for (int r0 = 0; r0 < rows; r0 += RS) {
    Vec acc[RS][LC] = {};
    fma_tile<RS, LC>(acc, A + r0 * s.kp, s.kp, 1, w.kT, C, s.p.K);
    for (int r = r0; r < r0 + RS; r++) {
      for (int j = 0; j < LC; j++) {
        Vec x = acc[r - r0][j] * row_factor[r];
        if (D && r >= strict) x *= load(D + r * C + j * VL);
        store(out + r * C + j * VL, lane + j * VL <= r - strict ? x : Vec{});
      }
    }
  }
}

// x = (I + M)^-1 x for one register of columns, RB rows of x at a time in registers.
inline void substitute(const float* M, float* x, int64_t stride, int rows) {
  for (int r0 = 0; r0 < rows; r0 += RB) {
    Vec row[RB];
    FLA_UNROLL
    for (int r = 0; r < RB; r++) row[r] = load(x + (r0 + r) * stride);
    for (int k = 0; k < r0; k++) {
      const Vec known = load(x + k * stride);
      FLA_UNROLL
      for (int r = 0; r < RB; r++) row[r] -= M[(r0 + r) * C + k] * known;
    }
    FLA_UNROLL
    for (int k = 0; k < RB; k++) {
      FLA_UNROLL
      for (int r = k + 1; r < RB; r++) row[r] -= M[(r0 + r) * C + r0 + k] * row[k];
    }
    FLA_UNROLL
    for (int r = 0; r < RB; r++) store(x + (r0 + r) * stride, row[r]);
  }
}

// The delta rule for one panel: V -> U in place.
inline void solve_panel(const Plan& s, const Work& w, const float* S, float* v, int64_t v_stride,
                        int rows) {
  float factor[C];  // beta_r p_r
  for (int r = 0; r < C; r++) factor[r] = s.per_head ? w.beta[r] * w.p[r + 1] : w.beta[r];
  for_columns(s.width, [&](auto n, int col) {
    constexpr int N = decltype(n)::value;
    for (int r0 = 0; r0 < rows; r0 += RT) {
      Vec acc[RT][N] = {};
      fma_tile<RT, N>(acc, w.kq + r0 * s.kp, s.kp, 1, S + col, s.width, s.p.K);
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) {
          float* cell = v + (r0 + r) * v_stride + col + j * VL;
          store(cell, load(cell) * w.beta[r0 + r] - acc[r][j] * factor[r0 + r]);
        }
      }
    }
  });
  for (int col = 0; col < s.width; col += VL) substitute(w.M, v + col, v_stride, rows);
}

// o = row_scale . (q S) + P u for one query head and panel; u null: the state alone.
inline void read_panel(const Plan& s, Work& w, int i, const float* S, const float* u,
                       int64_t u_stride, int rows, float* o, int64_t o_stride) {
  const float* q = w.q + i * C * s.kp;
  const float* P = w.P + i * C * C;
  for_columns(s.width, [&](auto n, int col) {
    constexpr int N = decltype(n)::value;
    for (int r0 = 0; r0 < rows; r0 += RT) {
      prefetch_next(s, w);
      Vec acc[RT][N] = {};
      fma_tile<RT, N>(acc, q + r0 * s.kp, s.kp, 1, S + col, s.width, s.p.K);
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) acc[r][j] *= w.row_scale[r0 + r];
      }
      if (u) fma_tile<RT, N>(acc, P + r0 * C, C, 1, u + col, u_stride, r0 + RT);
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) store(o + (r0 + r) * o_stride + col + j * VL, acc[r][j]);
      }
    }
  });
}

// S = alpha . S + kh' u for one panel.
inline void update_panel(const Plan& s, Work& w, float* S, const float* u, int64_t u_stride,
                         int c) {
  const bool decays = s.per_head || s.per_key;
  for_columns(s.width, [&](auto n, int col) {
    constexpr int N = decltype(n)::value;
    for (int64_t d0 = 0; d0 < s.p.K; d0 += RT) {
      prefetch_next(s, w);
      float* cells = S + d0 * s.width + col;
      Vec acc[RT][N];
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        const float keep = decays ? w.alpha[d0 + r] : 1.0f;
        FLA_UNROLL
        for (int j = 0; j < N; j++) acc[r][j] = load(cells + r * s.width + j * VL) * keep;
      }
      fma_tile<RT, N>(acc, w.kh + d0, 1, s.kp, u + col, u_stride, c);
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) store(cells + r * s.width + j * VL, acc[r][j]);
      }
    }
  });
}

// u and den of the normaliser; then z moves on to the end of the chunk.
inline void chunk_normalizer(const Plan& s, Work& w, int c, bool read) {
  for (int r = 0; r < C; r++) w.u_z[r] = r < c ? 1.0f : 0.0f;
  for (int r = 0; s.delta && r < c; r++) {
    const float kept = s.per_head ? w.p[r + 1] : 1.0f;
    float u = w.beta[r] * (1.0f - kept * dot(w.kq + r * s.kp, w.z, s.p.K));
    for (int j = 0; j < r; j++) u -= w.M[r * C + j] * w.u_z[j];
    w.u_z[r] = u;
  }
  for (int i = 0; read && i < s.nq; i++) {
    for (int r = 0; r < c; r++) {
      const float* q = w.q + (i * C + r) * s.kp;
      const float* P = w.P + (i * C + r) * C;
      Vec acc{};
      for (int64_t d = 0; d < s.p.K; d += VL) acc += load(q + d) * load(w.z + d);
      acc *= w.row_scale[r];
      for (int j = 0; j < C; j += VL) acc += load(P + j) * load(w.u_z + j);
      w.den[i * C + r] = sum(acc);
    }
  }
  for (int64_t d = 0; d < s.p.K; d += VL) {
    Vec z = load(w.z + d);
    if (s.per_head || s.per_key) z *= load(w.alpha + d);
    for (int r = 0; r < c; r++) z += load(w.kh + r * s.kp + d) * w.u_z[r];
    store(w.z + d, z);
  }
}

// All query heads of a chunk and panel: read, normalise, write. u null: the state alone.
inline void output_panel(const Plan& s, const Item& it, Work& w, int64_t t0, int c, int rows,
                         int64_t j, const float* u, int64_t u_stride) {
  const auto& p = s.p;
  const float* S = w.S + j * s.kp * s.width;
  const int64_t v0 = it.v0 + j * s.width, n = imin(s.width, p.V - v0);
  const bool straight = s.plain && c == rows && n == s.width;  // no need to go through w.o
  for (int i = 0; i < s.nq; i++) {
    if (straight) {
      float* o =
          static_cast<float*>(p.output) + ((it.b * p.T + t0) * s.heads_out + it.ho + i) * p.V + v0;
      read_panel(s, w, i, S, u, u_stride, rows, o, s.heads_out * p.V);
      continue;
    }
    read_panel(s, w, i, S, u, u_stride, rows, w.o, s.width);
    for (int r = 0; r < c; r++) {
      float* o = w.o + r * s.width;
      if (p.normalize) normalize_row(o, s.width, w.den[i * C + r]);
      store_output(s, it, t0 + r, i, v0, n, o);
    }
  }
}

// ---- prefill: chunks

// Everything about a packed chunk that does not depend on the panel.
inline void prepare_chunk(const Plan& s, Work& w, int rows, bool read) {
  const int before = s.p.read != ReadMode::kAfter;
  for (int i = 0; read && s.p.bonus && i < s.nq * C; i++)
    w.bonus[i] = s.p.scale * bonus_dot(w.q + i * s.kp, w.bonus_u, w.k + i % C * s.kp, s.p.K);
  if (s.per_key)
    scale_by_decay(s, w);
  else
    decay_matrix(s, w);
  transpose(w.k, s.kp, w.kT, s.kp);
  const float* D = s.per_head ? w.D : nullptr;
  if (s.delta) score(s, w, w.kq, w.beta, D, 1, rows, w.M);
  if (!read) return;
  float scales[C];
  for (int r = 0; r < C; r++) {
    scales[r] = s.p.scale;
    w.row_scale[r] = s.per_head ? s.p.scale * w.p[before ? r : r + 1] : s.p.scale;
  }
  for (int i = 0; i < s.nq; i++) {
    float* P = w.P + i * C * C;
    // Reading before the update: o_r sees D_{r-1,s}.
    score(s, w, w.q + i * C * s.kp, scales, D ? D - before * C : D, before, rows, P);
    for (int r = 0; s.p.bonus && r < rows; r++) P[r * C + r] = w.bonus[i * C + r];
  }
}

inline void run_chunk(const Plan& s, const Item& it, Work& w, int64_t t0, int c, bool read) {
  const int rows = static_cast<int>(round_up(c, kRowStep));
  const int64_t columns = it.panels * s.width;
  prepare_chunk(s, w, rows, read);
  if (s.p.normalize) chunk_normalizer(s, w, c, read);
  for (int64_t j = 0; j < it.panels; j++) {
    float* S = w.S + j * s.kp * s.width;
    float* v = w.v + j * s.width;
    if (s.delta) solve_panel(s, w, S, v, columns, rows);
    if (read) output_panel(s, it, w, t0, c, rows, j, v, columns);
    update_panel(s, w, S, v, columns, c);
  }
}

// A packed chunk token by token, for decays too strong to factor.
inline void run_tokens(const Plan& s, const Item& it, Work& w, int64_t t0, int c, bool read) {
  const int64_t columns = it.panels * s.width;
  for (int r = 0; r < c; r++) {
    const Token x = token_at(s, w, r);
    if (s.p.normalize) step_normalizer(x, w.z, w.den);
    for (int64_t j = 0; j < it.panels; j++) {
      float* S = w.S + j * s.kp * s.width;
      step(x, S, S, s.width, w.v + r * columns + j * s.width, w.o, s.width, s.width);
      if (read) write_token(s, it, w, t0 + r, it.v0 + j * s.width, s.width, s.width);
    }
  }
}

// Tokens [t0, t1) in chunks; read: also write their outputs. After them come next's tokens from
// next_t on.
inline void run_range(const Plan& s, const Item& it, Work& w, int64_t t0, int64_t t1, int chunk,
                      bool read, const Item& next, int64_t next_t) {
  for (int64_t t = t0; t < t1; t += chunk) {
    const int c = imin(chunk, t1 - t);
    const bool last = t + c == t1;
    pack_updates(s, it, w, t, c);
    if (read) pack_queries(s, it, w, t, c);
    w.next = last ? &next : &it;
    w.ahead = last ? next_t : t + c;
    w.ahead_end = imin(w.ahead + chunk, s.p.T);
    if (!s.per_key || decay_in_range(s, w, c))
      run_chunk(s, it, w, t, c, read);
    else if (chunk == C)
      run_range(s, it, w, t, t + c, 4, read, it, t + c);
    else
      run_tokens(s, it, w, t, c, read);
  }
}

// Tokens [t0, t1) read the same, final state.
inline void read_range(const Plan& s, const Item& it, Work& w, int64_t t0, int64_t t1) {
  w.ahead = w.ahead_end = 0;
  for (int r = 0; r < C; r++) w.row_scale[r] = s.p.scale;
  for (int64_t t = t0; t < t1; t += C) {
    const int c = imin(C, t1 - t);
    pack_queries(s, it, w, t, c);
    for (int i = 0; s.p.normalize && i < s.nq * C; i++)
      w.den[i] = s.p.scale * dot(w.q + i * s.kp, w.z, s.p.K);
    for (int64_t j = 0; j < it.panels; j++) output_panel(s, it, w, t, c, C, j, nullptr, 0);
  }
}

// Tokens per turn of a state. The states of a group take turns, so that the rows of neighbouring
// heads, which share pages and DRAM rows, are visited close together.
constexpr int64_t kTurn = 64;

inline void run_prefill(const Plan& s, int64_t b, int64_t hv0, int states, int64_t part, Work& w) {
  float *const S = w.S, *const z = w.z;
  auto select = [&](int i) {
    w.S = S + i * s.kp * s.per_item * s.width;
    w.z = z + i * s.kp;
    return item_at(s, b, hv0 + i, part);
  };
  for (int i = 0; i < states; i++) load_state(s, select(i), w);
  for (int64_t t0 = 0; t0 < s.p.T; t0 += kTurn) {
    const int64_t t1 = imin(t0 + kTurn, s.p.T);
    for (int i = 0; i < states; i++) {
      const bool last = i + 1 == states;
      const Item it = select(i), next = item_at(s, b, last ? hv0 : hv0 + i + 1, part);
      load_bonus(s, it, w);
      run_range(s, it, w, t0, t1, C, s.p.causal, next, last ? t1 : t0);
    }
  }
  for (int64_t t0 = 0; !s.p.causal && t0 < s.p.T; t0 += kTurn) {
    for (int i = 0; i < states; i++) {
      const Item it = select(i);
      read_range(s, it, w, t0, imin(t0 + kTurn, s.p.T));
    }
  }
  for (int i = 0; i < states; i++) store_state(s, select(i), w);
}

// ---- decode

inline void pack_token(const Plan& s, const Item& it, Work& w, int64_t t) {
  const bool live = visible(s, it, t);
  for (int i = 0; i < s.nq; i++) load_query(s, it, t, i, w.q + i * s.kp);
  if (live) {
    load_key(s, it, t, w.k);
  } else {
    memset(w.k, 0, sizeof(float) * s.kp);
  }
  load_value(s, it, t, it.v0, it.v1 - it.v0, w.v);
  w.beta[0] = live && s.delta ? load_beta(s, it, t) : 0.0f;
  if (live && s.per_key) load_decay_row(s, it, t, w.a);
  if (!s.per_key || !live) {
    const Vec a = vexp(splat(live && s.per_head ? load_decay(s, it, t) : 0.0f));
    for (int64_t d = 0; d < s.kp; d += VL) store(w.a + d, a);
  }
}

template <typename TS>
inline void run_decode(const Plan& s, const Item& it, Work& w) {
  const auto& p = s.p;
  const int64_t base = state_offset(s, it), n = it.v1 - it.v0;
  TS* dst = static_cast<TS*>(p.present_state) + base + it.v0;
  const TS* src = dst;
  if (p.past_state) {
    src = static_cast<const TS*>(p.past_state) + base + it.v0;
  } else {
    for (int64_t d = 0; d < p.K; d++) memset(dst + d * s.state_v, 0, n * sizeof(TS));
  }
  memset(w.z, 0, sizeof(float) * s.kp);
  for (int64_t d = 0; p.past_state && p.normalize && d < p.K; d++)
    w.z[d] = load_one(p.past_state, base + d * s.state_v + p.V, p.state);
  for (int64_t t = 0; t < p.T; t++) {
    pack_token(s, it, w, t);
    const Token x = token_at(s, w, 0);
    if (p.normalize) step_normalizer(x, w.z, w.den);
    step(x, src, dst, s.state_v, w.v, w.o, it.panels * s.width, n);
    write_token(s, it, w, t, it.v0, n, it.panels * s.width);
    src = dst;
  }
  for (int64_t d = 0; it.first && p.normalize && d < p.K; d++)
    store_one(p.present_state, base + d * s.state_v + p.V, w.z[d], p.state);
}

// ---- the plan

constexpr int64_t kCachedBytes = 32 << 20;  // inputs and output this small come from a cache anyway
constexpr int64_t kGroupBytes = 512 << 10;  // the states of a group should stay in the L2 cache

// How states and columns are shared out. Columns are split only when there are too few states to
// keep the threads busy; with plenty of states, neighbours are grouped, two groups per thread for
// balance.
inline void plan_items(Plan& s, int threads) {
  const auto& p = s.p;
  const int64_t states = p.B * p.HV;
  int64_t parts = 1;
  if (states < threads)
    parts = (threads + states - 1) / states;
  else if (states % threads != 0 && states < 4 * threads)
    parts = 2;
  // In place, the item that stores z would overwrite what another item has yet to load.
  if (p.normalize && p.past_state == p.present_state) parts = 1;
  const int64_t share = round_up((p.V + parts - 1) / parts, VL);
  const int64_t pieces = (share + kMaxPanel - 1) / kMaxPanel;
  s.width = static_cast<int>(round_up((share + pieces - 1) / pieces, VL));
  s.panels = static_cast<int>((p.V + s.width - 1) / s.width);
  s.per_item = static_cast<int>((s.panels + parts - 1) / parts);
  s.parts = (s.panels + s.per_item - 1) / s.per_item;
  const int64_t fit = lmax(1, kGroupBytes / (s.kp * s.per_item * s.width * 4));
  const int64_t traffic = p.B * p.T * s.heads_out * (p.K + p.V) * 2 * size_of(p.io);
  // Four items per thread balance well; what comes from memory is worth pairs at least, if there
  // are enough.
  const int64_t least = traffic < kCachedBytes ? 1 : 2, share_of_thread = lmax(1, states / threads);
  const int64_t fair = imin(lmax(least, states / (4 * threads)), share_of_thread);
  s.group = imin(imin(threads == 1 ? p.HV : fair, fit), p.HV);
  s.groups = static_cast<int>((p.HV + s.group - 1) / s.group);
}

inline Plan make_plan(const LinearAttentionParams& p, int threads) {
  Plan s;
  s.p = p;
  if (p.scale == 0.0f) s.p.scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.K));
  s.kp = round_up(p.K, 16);
  s.state_v = p.V + (p.normalize ? 1 : 0);
  s.heads_out = lmax(p.Hq, p.HV);
  s.nq = static_cast<int>(p.Hq >= p.HV ? p.Hq / p.HV : 1);
  s.delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
  const bool gated = p.rule == UpdateRule::kGated || p.rule == UpdateRule::kGatedDelta;
  s.per_head = gated && p.decay_kind == DecayKind::kPerHead;
  s.per_key = gated && p.decay_kind == DecayKind::kPerKey;
  if (p.read != ReadMode::kBonus) s.p.bonus = nullptr;
  // A rounded state may only be rounded once per call.
  const bool one_rounding = p.T == 1 || p.state == DType::kFloat32;
  s.direct = p.T < 8 && one_rounding && p.present_state && p.causal;
  s.failed = false;
  s.plain = p.io == DType::kFloat32 && !p.normalize;
  plan_items(s, threads);
  Work w;
  s.bytes = carve(s, nullptr, &w);
  return s;
}

inline void run_item(void* arg, int64_t index) {
  Plan& s = *static_cast<Plan*>(arg);
  char* memory = static_cast<char*>(scratch_acquire(s.bytes));
  if (!memory) {
    __atomic_store_n(&s.failed, true, __ATOMIC_RELAXED);
    return;
  }
  Work w;
  carve(s, memory, &w);
  const int64_t part = index % s.parts, turn = index / s.parts;
  const int64_t b = turn / s.groups, hv0 = turn % s.groups * s.group;
  const int states = imin(s.group, s.p.HV - hv0);
  if (!s.direct) {
    run_prefill(s, b, hv0, states, part, w);
  } else {
    for (int i = 0; i < states; i++) {
      const Item it = item_at(s, b, hv0 + i, part);
      load_bonus(s, it, w);
      if (s.p.state == DType::kFloat32)
        run_decode<float>(s, it, w);
      else if (s.p.state == DType::kFloat16)
        run_decode<Half>(s, it, w);
      else
        run_decode<BFloat>(s, it, w);
    }
  }
  scratch_release(memory);
}

// Below this many multiply-adds waking another thread costs more than it saves.
constexpr int64_t kParallelWork = 100000;

inline bool run(const LinearAttentionParams& p, const Parallel& parallel) {
  const bool alone =
      !parallel.run || parallel.threads <= 1 || p.B * p.HV * p.T * p.K * p.V < kParallelWork;
  Plan s = make_plan(p, alone ? 1 : parallel.threads);
  const int64_t items = p.B * s.groups * s.parts;
  if (alone || items == 1)
    for (int64_t i = 0; i < items; i++) run_item(&s, i);
  else
    parallel.run(parallel.ctx, items, run_item, &s);
  return !s.failed;
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_LINEAR_ATTENTION_CPU_KERNEL_H_
