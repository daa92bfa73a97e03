// What the two ways through HybridAttention share: the plan of a call, a head's rows in the window
// tensors, features.
#ifndef FLA_OPS_HYBRID_ATTENTION_CPU_PLAN_H_
#define FLA_OPS_HYBRID_ATTENTION_CPU_PLAN_H_

#include "ops/common/scratch.h"
#include "ops/common/tile.h"
#include "ops/common/vec.h"
#include "ops/gen/hybrid_attention_constants.h"
#include "ops/hybrid_attention/cpu.h"

namespace fla {
namespace {

using gen::hybrid_attention::kExpClamp;

constexpr int64_t kCountBase = static_cast<int64_t>(gen::hybrid_attention::kCountBase);
constexpr int kCountDigits = 4;
constexpr int64_t kCountLimit = kCountBase * kCountBase * kCountBase * kCountBase;
constexpr float kInfinity = __builtin_inff();

// The plan of one call, shared by all work items.
struct Plan {
  HybridAttentionParams p;
  int64_t rows, width;     // of one head in past_window and present_window
  int64_t F;               // features per head
  int64_t kp, vp, dp, mp;  // K, V, D, M padded: row strides of packed buffers
  int64_t fs;              // row stride of features; stores may run over F by a register
  int64_t tiles;           // key tiles that the queries of a tile see
  int64_t sinks_p;         // sinks padded to whole tiles
  int heads;               // query heads per key head
  int per_item, parts;     // query heads per work item, and work items that share a key head
  int group;               // key heads per work item, neighbours in memory
  int groups;              // per batch row
  bool far;                // HybridAttention
  bool direct;             // token by token
  size_t bytes;            // scratch per item
  bool failed;             // out of memory in some item
};

// One key head with some of its query heads.
struct Item {
  int64_t b, g, h0;
  int nq;      // query heads [h0, h0 + nq)
  bool first;  // also owns the states
  int64_t n0;  // tokens before this call
};

FLA_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
FLA_INLINE float log_decay(const Plan& s, const Item& it) {
  if (!s.p.decay) return 0.0f;
  const float g = load_one(s.p.decay, it.g, s.p.parameter);
  return g > -1e30f ? g : -1e30f;  // 0 times this is 0
}

// ---- a head's rows in the window tensors

FLA_INLINE int64_t window_offset(const Plan& s, const Item& it) {
  return (it.b * s.p.HV + it.g) * s.rows * s.width;
}

// Row of token number n.
FLA_INLINE int64_t slot_of(const Plan& s, int64_t n) {
  return n < s.p.sinks ? n : s.p.sinks + (n - s.p.sinks) % s.p.window;
}

// `row` is the last row of a head.
inline int64_t read_count(const void* base, int64_t row, DType dtype) {
  int64_t n = 0;
  for (int i = kCountDigits - 1; i >= 0; i--) {
    const float digit = load_one(base, row + i, dtype);
    n = n * kCountBase + (digit >= 0.0f && digit < kCountBase ? static_cast<int64_t>(digit) : 0);
  }
  return n;
}

inline void write_count(const Plan& s, void* base, int64_t row, int64_t n) {
  if (n >= kCountLimit) n -= s.p.window * (kCountLimit / 2 / s.p.window);
  for (int64_t i = 0; i < s.width; i++) {
    store_one(base, row + i, i < kCountDigits ? static_cast<float>(n % kCountBase) : 0.0f,
              s.p.ring);
    n /= kCountBase;
  }
}

// Copies a head's rows from the past, or clears them; `to` is a head of the same dtype.
inline void pass_window(const Plan& s, const Item& it, void* to) {
  const int64_t size = size_of(s.p.ring), bytes = s.rows * s.width * size;
  if (!s.p.past_window) {
    memset(to, 0, bytes);
    return;
  }
  const char* from = static_cast<const char*>(s.p.past_window) + window_offset(s, it) * size;
  if (from != to) memcpy(to, from, bytes);
}

// base[offset..offset+n) = from[at..at+n), between dtypes of which one is float32 or both are the
// same.
inline void copy_row(void* base, int64_t offset, DType dtype, const void* from, int64_t at,
                     int64_t n, DType from_dtype) {
  if (dtype == from_dtype) {
    const int64_t size = size_of(dtype);
    memcpy(static_cast<char*>(base) + offset * size, static_cast<const char*>(from) + at * size,
           n * size);
    return;
  }
  float part[64];
  for (int64_t i = 0; i < n; i += 64) {
    const int64_t c = imin(64, n - i);
    load_row(part, from, at + i, c, from_dtype);
    store_row(base, offset + i, part, c, dtype);
  }
}

// Key, value and features of token t into the row that starts at `offset`.
inline void write_row(const Plan& s, const Item& it, int64_t t, void* base, int64_t offset) {
  const auto& p = s.p;
  const int64_t head = (it.b * p.T + t) * p.HV + it.g;
  copy_row(base, offset, p.ring, p.key, head * p.K, p.K, p.io);
  copy_row(base, offset + p.K, p.ring, p.value, head * p.V, p.V, p.io);
  if (p.E) copy_row(base, offset + p.K + p.V, p.ring, p.key_features, head * p.E, p.E, p.io);
}

// ---- tokens

inline bool visible(const Plan& s, const Item& it, int64_t t) {
  return !s.p.mask || load_one(s.p.mask, it.b * s.p.T + t, s.p.mask_dtype) != 0.0f;
}

FLA_INLINE int64_t output_offset(const Plan& s, const Item& it, int64_t t, int i) {
  return ((it.b * s.p.T + t) * s.p.HQ + it.h0 + i) * s.p.V;
}

FLA_INLINE void store_lse(const Plan& s, const Item& it, int64_t t, int i, float lse) {
  if (s.p.lse) s.p.lse[(it.b * s.p.T + t) * s.p.HQ + it.h0 + i] = lse;
}

// The output of a token that is not there.
inline void write_invisible(const Plan& s, const Item& it, int64_t t) {
  const int64_t size = size_of(s.p.io);
  for (int i = 0; i < it.nq; i++) {
    memset(static_cast<char*>(s.p.output) + output_offset(s, it, t, i) * size, 0, s.p.V * size);
    store_lse(s, it, t, i, -kInfinity);
  }
}

FLA_INLINE void pad_row(float* row, int64_t n, int64_t padded) {
  for (int64_t i = n; i < padded; i++) row[i] = 0.0f;
}

// ---- features

// x = map([u; -u] + bias), u and bias of any length, for one token. Writes up to VL - 1 zeros
// behind the F features. shift: with exp, the largest exponent is taken out and returned.
inline float map_row(const Plan& s, const float* u, const float* bias, float* x, bool shift) {
  const int64_t M = s.p.M, F = s.F;
  for (int64_t i = 0; i < M; i += VL) store(x + i, load(u + i) + load(bias + i));
  if (s.p.signs == 2)
    for (int64_t i = 0; i < M; i += VL) store(x + M + i, load(bias + M + i) - load(u + i));
  float taken = 0.0f;
  if (s.p.map == HybridMap::kSoftmax || (s.p.map == HybridMap::kExp && shift)) {
    for (int64_t i = F; i < round_up(F, VL); i++) x[i] = -kInfinity;
    Vec top = load(x);
    for (int64_t i = VL; i < F; i += VL) top = vmax(top, load(x + i));
    taken = max_lane(top);
    if (s.p.map == HybridMap::kExp && taken > kExpClamp) taken = kExpClamp;
  }
  Vec total{};
  for (int64_t i = 0; i < F; i += VL) {
    const Vec v = load(x + i);
    Vec y = v;
    switch (s.p.map) {
      case HybridMap::kIdentity:
        break;
      case HybridMap::kElu1:
        y = v > Vec{} ? v + 1.0f : vexp(v);
        break;
      case HybridMap::kRelu:
        y = vmax(v, Vec{});
        break;
      case HybridMap::kExp:
        y = vexp(vmin(v, splat(kExpClamp)) - taken);
        break;
      case HybridMap::kSoftmax:
        y = vexp(v - taken);
        total += y;
        break;
    }
    store(x + i, y);
  }
  pad_row(x, F, round_up(F, VL));
  if (s.p.map == HybridMap::kSoftmax) {
    const float inverse = 1.0f / sum(total);
    for (int64_t i = 0; i < F; i += VL) store(x + i, load(x + i) * inverse);
    return 0.0f;
  }
  return taken;
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_HYBRID_ATTENTION_CPU_PLAN_H_
