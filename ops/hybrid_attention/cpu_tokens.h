// HybridAttention token by token: decode, and every call with a cache.
//
// Works on the window tensors as they are, reading and writing single rows of them, and takes S in
// one pass per token: S = e^decay S + phi(k) [v, 1]' of the token that leaves the window, and
// phi(q)'S while it is in registers.
//
// With a cache, the prediction S'phi(k) for every cached key is kept beside it and updated with
// each token that is written to S, phi(k)'phi(k_written) [v, 1]: reading S anew for each of them
// would cost C times as much.
#ifndef FLA_OPS_HYBRID_ATTENTION_CPU_TOKENS_H_
#define FLA_OPS_HYBRID_ATTENTION_CPU_TOKENS_H_

#include "ops/hybrid_attention/cpu_plan.h"

namespace fla {
namespace {

struct TokenWork {
  float* q;           // [kp]
  float* x;           // [max(kp, dp)]
  float* u;           // [mp]
  float* bias;        // [fs]
  float* phi_q;       // [nq][fs]
  float* taken;       // [nq]: exponents taken out of phi(q)
  float* phi_k;       // [fs]
  float* leaving;     // [vs]: [v, 1] of a token that leaves
  float* weights;     // [keys]: scores, then weights, of the keys seen
  float* near;        // [nq][vs]
  float* far;         // [nq][vs]: S'phi(q)
  float* distance;    // [window+1]
  float* mean;        // [kp]
  float* cache_phi;   // [cache][fs]
  float* cache_sums;  // [cache][vs]: S'phi(k), normalizer last
  float* sums;        // [vs]
  void* window;       // a head of the window tensor, and of S, when the caller wants none
  float* S;
  int64_t keys;  // sinks + window + cache, padded
  int64_t vs;    // V + 1, padded
};

inline size_t carve_tokens(const Plan& s, char* base, TokenWork* w) {
  size_t used = 0;
  auto take = [&](int64_t floats) {
    float* at = reinterpret_cast<float*>(base + used);
    used += static_cast<size_t>(round_up(floats * 4, 64));
    return at;
  };
  const auto& p = s.p;
  const int64_t nq = s.per_item;
  w->keys = round_up(s.rows, VL) + VL;
  w->vs = round_up(p.V + 1, VL);
  w->q = take(s.kp);
  w->weights = take(w->keys);
  w->near = take(nq * w->vs);
  w->distance = take(p.window + 1);
  w->mean = take(s.kp);
  w->window = take(p.present_window ? 0 : s.rows * s.width);
  if (!s.far) return used;
  w->x = take(lmax(s.kp, s.dp));
  w->u = take(s.mp);
  w->bias = take(s.fs);
  w->phi_q = take(nq * s.fs);
  w->taken = take(nq);
  w->phi_k = take(s.fs);
  w->leaving = take(w->vs);
  w->far = take(nq * w->vs);
  w->cache_phi = take(p.cache * s.fs);
  w->cache_sums = take(p.cache * w->vs);
  w->sums = take(w->vs);
  w->S = take(p.present_state ? 0 : s.F * (p.V + 1));
  return used;
}

// One register of a row; `last` lanes of it exist when PART.
template <bool PART, typename T>
FLA_INLINE Vec get(const T* cell, int last) {
  if constexpr (PART) return load_part(cell, last);
  return load(cell);
}
template <bool PART>
FLA_INLINE void put(float* cell, Vec x, int last) {
  if constexpr (PART) return store_part(cell, x, last);
  store(cell, x);
}

// fn(Registers<N>, part, first column, lanes of the last register) over n columns.
template <typename F>
FLA_INLINE void for_all_columns(int64_t n, F fn) {
  int64_t col = 0;
  for (; col + NT * VL <= n; col += NT * VL) fn(Registers<NT>{}, Registers<0>{}, col, VL);
  for (; col + VL <= n; col += VL) fn(Registers<1>{}, Registers<0>{}, col, VL);
  if (col < n) fn(Registers<1>{}, Registers<1>{}, col, static_cast<int>(n - col));
}

// to[n] = sum over k of a_k * rows[k * stride .. + n).
template <typename T>
inline void weighted_rows(const float* a, const T* rows, int64_t stride, int64_t count, int64_t n,
                          float* to, bool add) {
  for_all_columns(n, [&](auto width, auto part, int64_t col, int last) {
    constexpr int N = decltype(width)::value;
    constexpr bool PART = decltype(part)::value != 0;
    Vec acc[N] = {};
    if (add)
      for (int j = 0; j < N; j++) acc[j] = load(to + col + j * VL);
    const T* at = rows + col;
    for (int64_t k = 0; k < count; k++, at += stride) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) acc[j] += a[k] * get<PART>(at + j * VL, last);
    }
    FLA_UNROLL
    for (int j = 0; j < N; j++) store(to + col + j * VL, acc[j]);
  });
}

inline void weighted_rows_of(DType dtype, const float* a, const void* rows, int64_t offset,
                             int64_t stride, int64_t count, int64_t n, float* to) {
  if (dtype == DType::kFloat32)
    return weighted_rows(a, static_cast<const float*>(rows) + offset, stride, count, n, to, false);
  if (dtype == DType::kFloat16)
    return weighted_rows(a, static_cast<const Half*>(rows) + offset, stride, count, n, to, false);
  weighted_rows(a, static_cast<const BFloat*>(rows) + offset, stride, count, n, to, false);
}

template <typename T>
FLA_INLINE float dot_row(const float* q, const T* row, int64_t n) {
  Vec acc{};
  int64_t i = 0;
  for (; i + VL <= n; i += VL) acc += load(q + i) * load(row + i);
  if (i < n) acc += load(q + i) * load_part(row + i, static_cast<int>(n - i));
  return sum(acc);
}

// S = kept S + phi_k v', when there is a phi_k or anything is lost; o_i = S'phi_i for nq queries.
template <int N, bool PART>
inline void step_columns(float* S, int64_t stride, int64_t F, float kept, const float* phi_k,
                         const float* v, const float* phi_q, int64_t q_stride, int nq, float* o,
                         int64_t o_stride, int last) {
  int first = 0;
  if (phi_k || kept != 1.0f) {
    Vec u[N], acc[N] = {};
    FLA_UNROLL
    for (int j = 0; j < N; j++) u[j] = phi_k ? load(v + j * VL) : Vec{};
    float* row = S;
    for (int64_t f = 0; f < F; f++, row += stride) {
      const float k = phi_k ? phi_k[f] : 0.0f, q = nq ? phi_q[f] : 0.0f;
      FLA_UNROLL
      for (int j = 0; j < N; j++) {
        const Vec x = get<PART>(row + j * VL, last) * kept + k * u[j];
        put<PART>(row + j * VL, x, last);
        acc[j] += q * x;
      }
    }
    if (nq) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) store(o + j * VL, acc[j]);
    }
    first = 1;
  }
  for (int i = first; i < nq; i++) {
    Vec acc[N] = {};
    const float* row = S;
    for (int64_t f = 0; f < F; f++, row += stride) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) acc[j] += phi_q[i * q_stride + f] * get<PART>(row + j * VL, last);
    }
    FLA_UNROLL
    for (int j = 0; j < N; j++) store(o + i * o_stride + j * VL, acc[j]);
  }
}

template <typename TR>
class Tokens {
 public:
  Tokens(const Plan& s, const Item& it, const TokenWork& w) : s_(s), p_(s.p), it_(it), w_(w) {}

  void run() {
    begin();
    for (int64_t t = 0; t < p_.T; t++) {
      if (!visible(s_, it_, t)) {
        write_invisible(s_, it_, t);
        continue;
      }
      if (s_.far) far(t);
      write_row(s_, it_, t, ring_, slot_of(s_, n_) * s_.width);
      n_++;
      for (int i = 0; i < it_.nq; i++) query(t, i);
    }
    write_count(s_, ring_, (s_.rows - 1) * s_.width, n_);
  }

 private:
  TR* row(int64_t slot) const { return ring_ + slot * s_.width; }
  TR* cached(int64_t slot) const { return row(p_.sinks + p_.window + slot); }

  // Tokens that had left the window before the token that comes next.
  int64_t departed() const { return lmax(0, n_ - p_.sinks - p_.window); }

  void begin() {
    const int64_t head = it_.b * p_.HV + it_.g;
    ring_ = p_.present_window ? static_cast<TR*>(p_.present_window) + window_offset(s_, it_)
                              : static_cast<TR*>(w_.window);
    pass_window(s_, it_, ring_);
    n_ = it_.n0;
    if (p_.key_mean) {
      load_row(w_.mean, p_.key_mean, it_.g * p_.K, p_.K, p_.parameter);
      pad_row(w_.mean, p_.K, s_.kp);
    }
    if (!s_.far) return;
    const int64_t size = s_.F * (p_.V + 1);
    S_ = p_.present_state ? p_.present_state + head * size : w_.S;
    if (!p_.past_state)
      memset(S_, 0, sizeof(float) * size);
    else if (p_.past_state + head * size != S_)
      memcpy(S_, p_.past_state + head * size, sizeof(float) * size);
    kept_ = p_.decay ? exp1(log_decay(s_, it_)) : 1.0f;
    for (int64_t c = 0; c < imin(p_.cache, departed()); c++) {
      key_features(cached(c), w_.cache_phi + c * s_.fs);
      read_state(w_.cache_phi + c * s_.fs, w_.cache_sums + c * w_.vs);
    }
  }

  // ---- far

  // x W into w.u, or x itself.
  const float* project(const float* x, const void* weight, int64_t head) const {
    if (!weight) return x;
    weighted_rows_of(p_.parameter, x, weight, head * p_.D * p_.M, p_.M, p_.D, p_.M, w_.u);
    return w_.u;
  }

  const float* load_bias(const void* bias, int64_t head) const {
    if (bias) load_row(w_.bias, bias, head * s_.F, s_.F, p_.parameter);
    pad_row(w_.bias, bias ? s_.F : 0, s_.fs);
    return w_.bias;
  }

  void key_features(const TR* at, float* phi) const {
    load_row_as(w_.x, p_.E ? at + p_.K + p_.V : at, p_.D);
    pad_row(w_.x, p_.D, round_up(p_.D, VL));
    const float* u = project(w_.x, p_.key_weight, it_.g);
    map_row(s_, u, load_bias(p_.key_bias, it_.g), phi, false);
    pad_row(phi, s_.F, round_up(s_.F, VL));
  }

  // S'phi, normalizer last.
  void read_state(const float* phi, float* to) const {
    weighted_rows(phi, static_cast<const float*>(S_), p_.V + 1, s_.F, p_.V + 1, to, false);
  }

  void load_value(const TR* at, float* to) const {
    load_row_as(to, at + p_.K, p_.V);
    to[p_.V] = 1.0f;
    pad_row(to, p_.V + 1, w_.vs);
  }

  // S moves on to token t, and every query head reads it.
  void far(int64_t t) {
    for (int i = 0; i < it_.nq; i++) query_features(t, i);
    const int64_t left = n_ - p_.window;
    const float* phi = nullptr;
    if (left >= p_.sinks) phi = leave(row(slot_of(s_, left)));
    if (p_.cache && phi) remember(phi);
    for_all_columns(p_.V + 1, [&](auto width, auto part, int64_t col, int last) {
      step_columns<decltype(width)::value, decltype(part)::value != 0>(
          S_ + col, p_.V + 1, s_.F, kept_, phi, w_.leaving + col, w_.phi_q, s_.fs, it_.nq,
          w_.far + col, w_.vs, last);
    });
  }

  // A token leaves the window. Returns the features of the token that goes to S, its value in
  // w.leaving, or null when the cache has room.
  const float* leave(const TR* token) {
    key_features(token, w_.phi_k);
    load_value(token, w_.leaving);
    if (!p_.cache) return w_.phi_k;
    const int64_t bytes = s_.width * static_cast<int64_t>(sizeof(TR));
    if (departed() < p_.cache) {
      const int64_t c = departed();
      memcpy(cached(c), token, bytes);
      memcpy(w_.cache_phi + c * s_.fs, w_.phi_k, sizeof(float) * s_.fs);
      read_state(w_.phi_k, w_.cache_sums + c * w_.vs);
      return nullptr;
    }
    int64_t best = p_.cache;
    read_state(w_.phi_k, w_.sums);
    float least = kInfinity;
    for (int64_t c = 0; c <= p_.cache; c++) {
      const float error = c < p_.cache ? recall_error(cached(c), w_.cache_sums + c * w_.vs)
                                       : recall_error(token, w_.sums);
      if (error < least) least = error, best = c;
    }
    if (best == p_.cache) return w_.phi_k;
    // The token takes the place of a cached one.
    swap_rows(w_.cache_phi + best * s_.fs, w_.phi_k, s_.fs);
    memcpy(w_.cache_sums + best * w_.vs, w_.sums, sizeof(float) * w_.vs);
    load_value(cached(best), w_.leaving);
    memcpy(cached(best), token, bytes);
    return w_.phi_k;
  }

  static void swap_rows(float* a, float* b, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
      const float x = a[i];
      a[i] = b[i];
      b[i] = x;
    }
  }

  // |v - S'phi / z'phi|^2
  float recall_error(const TR* token, const float* sums) const {
    const float total = sums[p_.V], inverse = total == 0.0f ? 0.0f : 1.0f / total;
    Vec error{};
    for (int64_t i = 0; i < p_.V; i += VL) {
      const int last = imin(VL, p_.V - i);
      const Vec v = last == VL ? load(token + p_.K + i) : load_part(token + p_.K + i, last);
      const Vec known = last == VL ? load(sums + i) : load_part(sums + i, last);
      const Vec off = v - known * inverse;
      error += off * off;
    }
    return sum(error);
  }

  // What the write of phi and w.leaving does to the predictions for cached keys.
  void remember(const float* phi) const {
    for (int64_t c = 0; c < p_.cache; c++) {
      const float product = dot(w_.cache_phi + c * s_.fs, phi, s_.F);
      float* sums = w_.cache_sums + c * w_.vs;
      for (int64_t i = 0; i < w_.vs; i += VL)
        store(sums + i, load(sums + i) + load(w_.leaving + i) * product);
    }
  }

  void query_features(int64_t t, int i) {
    const int64_t head = (it_.b * p_.T + t) * p_.HQ + it_.h0 + i;
    load_row(w_.x, p_.E ? p_.query_features : p_.query, head * p_.D, p_.D, p_.io);
    pad_row(w_.x, p_.D, round_up(p_.D, VL));
    const float* u = project(w_.x, p_.query_weight, it_.h0 + i);
    float* phi = w_.phi_q + i * s_.fs;
    w_.taken[i] = map_row(s_, u, load_bias(p_.query_bias, it_.h0 + i), phi, true);
    pad_row(phi, s_.F, round_up(s_.F, VL));
  }

  // ---- near

  // Weights of one query head, token t being the last.
  void query(int64_t t, int i) {
    const int64_t h = it_.h0 + i, head = (it_.b * p_.T + t) * p_.HQ + h;
    load_row(w_.q, p_.query, head * p_.K, p_.K, p_.io);
    pad_row(w_.q, p_.K, s_.kp);
    const int64_t sinks = imin(p_.sinks, n_);
    const int64_t window = imin(p_.window, n_ - sinks);
    const int64_t cache = s_.far ? imin(p_.cache, lmax(0, n_ - p_.sinks - p_.window)) : 0;
    const int64_t keys = sinks + window + cache;
    scores(0, sinks, w_.weights);
    scores(p_.sinks, window, w_.weights + sinks);
    scores(p_.sinks + p_.window, cache, w_.weights + sinks + window);
    add_biases(h, sinks, window, cache);
    for (int64_t k = keys; k < round_up(keys, VL); k++) w_.weights[k] = -kInfinity;
    Vec top = load(w_.weights);
    for (int64_t k = VL; k < keys; k += VL) top = vmax(top, load(w_.weights + k));
    const float m = combine(h, i, max_lane(top));
    Vec sums{};
    for (int64_t k = 0; k < keys; k += VL) {
      const Vec x = vexp(load(w_.weights + k) - m);
      sums += x;
      store(w_.weights + k, x);
    }
    float* o = w_.near + i * w_.vs;
    weighted_rows(w_.weights, row(0) + p_.K, s_.width, sinks, p_.V, o, false);
    weighted_rows(w_.weights + sinks, row(p_.sinks) + p_.K, s_.width, window, p_.V, o, true);
    weighted_rows(w_.weights + sinks + window, row(p_.sinks + p_.window) + p_.K, s_.width, cache,
                  p_.V, o, true);
    float total = sum(sums);
    if (s_.far) {
      const float* far = w_.far + i * w_.vs;
      total += factor_ * far[p_.V];
      for (int64_t c = 0; c < p_.V; c += VL) store(o + c, load(o + c) + load(far + c) * factor_);
    }
    const float inverse = 1.0f / total;
    for (int64_t c = 0; c < p_.V; c += VL) store(o + c, load(o + c) * inverse);
    store_row(p_.output, output_offset(s_, it_, t, i), o, p_.V, p_.io);
    if (p_.lse) store_lse(s_, it_, t, i, m + vlog(splat(total))[0]);
  }

  // scale * q'(k - mean), capped.
  void scores(int64_t slot, int64_t count, float* to) const {
    const float shift = p_.key_mean ? dot(w_.q, w_.mean, s_.kp) : 0.0f;
    for (int64_t k = 0; k < count; k++)
      to[k] = (dot_row(w_.q, row(slot + k), p_.K) - shift) * p_.scale;
    if (p_.softcap == 0.0f) return;
    for (int64_t k = 0; k < count; k++) to[k] = vtanh(splat(to[k] / p_.softcap))[0] * p_.softcap;
  }

  void add_biases(int64_t h, int64_t sinks, int64_t window, int64_t cache) const {
    if (!p_.alibi_slopes && !p_.distance_bias) return;
    const float slope = p_.alibi_slopes ? load_one(p_.alibi_slopes, h, p_.parameter) : 0.0f;
    if (p_.distance_bias)
      load_row(w_.distance, p_.distance_bias, h * (p_.window + 1), p_.window + 1, p_.parameter);
    const int64_t newest = n_ - 1;
    const int64_t ring = (newest - p_.sinks) % p_.window;  // its place in the ring
    for (int64_t k = 0; k < sinks + window + cache; k++) {
      int64_t distance = p_.window;
      if (k < sinks) {
        distance = newest - k;
      } else if (k < sinks + window) {
        distance = ring - (k - sinks);
        if (distance < 0) distance += p_.window;
      }
      if (p_.distance_bias) w_.weights[k] += w_.distance[imin(distance, p_.window)];
      w_.weights[k] -= slope * static_cast<float>(distance);
    }
  }

  // m of a query whose largest near score is `top`; sets the factor on its far part.
  float combine(int64_t h, int i, float top) {
    if (!s_.far) return top;
    const float alpha = p_.alpha ? load_one(p_.alpha, h, p_.parameter) : 0.0f;
    const float log_factor = w_.taken[i] + alpha;
    const float size = log_bound(splat(w_.far[i * w_.vs + p_.V]))[0];
    float m = top;
    if (size > -87.0f && log_factor + size > m) m = log_factor + size;
    factor_ = exp1(log_factor - m);
    return m;
  }

  const Plan& s_;
  const HybridAttentionParams& p_;
  const Item& it_;
  const TokenWork& w_;
  TR* ring_ = nullptr;
  float* S_ = nullptr;
  int64_t n_ = 0;
  float kept_ = 1.0f;
  float factor_ = 0.0f;
};

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_HYBRID_ATTENTION_CPU_TOKENS_H_
