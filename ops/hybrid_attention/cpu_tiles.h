// HybridAttention over many tokens, in tiles of C = 16 queries and C keys.
//
// With the visible tokens of this call numbered 0, 1, ... and those before it -1, -2, ..., the
// queries of tile [q0, q0 + C) see, window w:
//
//   keys of tiles that end at or before q0 - w       all of them in S: far for every query
//   at most two tiles on the border (q0 - w, q0 + C - w - 1]   far for some queries, near for
//   others the tiles after those, up to [q0, q0 + C)        near
//
// A tile is written to S when the last query has left it behind:
//   S = e^(C decay) S + phi(k)' [v, 1], rows of phi(k) scaled by e^(decay * (tokens after it)).
//
// For each query head the weights of all near and border keys, and of sinks, are a matrix
// P [keys][C queries], so that maxima and sums over keys need no work across lanes. Then
//
//   m = max over near s, and alpha + log(phi(q)' z)
//   O = (P' V + e^(alpha - m) phi(q) S) / (sum of P + e^(alpha - m) phi(q)' z)
//
// in one sweep of products in registers. phi(q) with exp is kept as e^(u - max u), and max u goes
// to alpha.
#ifndef FLA_OPS_HYBRID_ATTENTION_CPU_TILES_H_
#define FLA_OPS_HYBRID_ATTENTION_CPU_TILES_H_

#include "ops/hybrid_attention/cpu_plan.h"

namespace fla {
namespace {

constexpr int OR = VL == 16 ? 16 : RT;  // rows of an output tile
constexpr int ON = VL == 16 ? 1 : NT;   // registers per row of an output tile
constexpr int kBorder = 2;              // tiles on the border, at most
constexpr int kFeatureTiles = 4;        // tiles whose features are kept: a power of 2 above that
static_assert(C % OR == 0 && 16 % (ON * VL) == 0, "output tiles must cover a tile");

// What one key head keeps from tile to tile.
struct HeadWork {
  Item it;
  float* keys;                      // [tiles + 1][kp][C]
  float* values;                    // [tiles + 1][C][vp]
  float* features;                  // [tiles + 1][dp][C], when E > 0
  float* sink_keys;                 // [sinks_p / C][kp][C]
  float* sink_values;               // [sinks_p][vp]
  float* phi_k;                     // [kFeatureTiles][C][fs]
  float* S;                         // [fs][vp]
  float* z;                         // [fs]
  float* q_weight;                  // [nq][D][mp]
  float* k_weight;                  // [D][mp]
  float* q_bias;                    // [nq][fs]
  float* k_bias;                    // [fs]
  float* mean;                      // [kp]
  float* distance;                  // [nq][C + window + 1 + C]: bias by distance, from -C on
  int64_t phi_tile[kFeatureTiles];  // whose features phi_k holds
  int64_t next;                     // the first token that has not been looked at
  int64_t q0;                       // keys of this call so far, in whole tiles
  int64_t count;                    // visible tokens so far
  int64_t lo;                       // the first key that may still be in the window
  int64_t newest;                   // the newest key in S
  bool any_far;                     // S is not empty
  float g;                          // log decay
};

// What is needed for one tile.
struct TileWork {
  HeadWork* heads;           // [group]
  float* rows;               // [C][max(kp, dp)]: queries of a tile, or features of theirs
  float* q;                  // [kp][C]
  float* x;                  // [dp][C]: what phi(q) is made of
  float* u;                  // [mp][C] or [C][mp]
  float* phi_q;              // [fs][C]
  float* P;                  // [tiles*C + sinks_p][C]
  float* far;                // [kBorder*C][C]: far weights on the border, without e^(alpha - m)
  float* o;                  // [C][vp]
  int64_t t[C];              // tokens of the tile
  const Item* next;          // whose rows [ahead, ahead_end) are still to be prefetched
  int64_t ahead, ahead_end;  // four rows per token
};

// Lays out the arrays of a head from `base` on; returns the bytes they take.
inline size_t carve_head(const Plan& s, char* base, HeadWork* w) {
  size_t used = 0;
  auto take = [&](int64_t floats) {
    float* at = reinterpret_cast<float*>(base + used);
    used += static_cast<size_t>(round_up(floats * 4, 64));
    return at;
  };
  const auto& p = s.p;
  const int64_t nq = s.per_item;
  w->keys = take((s.tiles + 1) * C * s.kp);
  w->values = take((s.tiles + 1) * C * s.vp);
  w->sink_keys = take(s.sinks_p * s.kp);
  w->sink_values = take(s.sinks_p * s.vp);
  w->distance = take(p.distance_bias ? nq * (p.window + 1 + 2 * C) : 0);
  w->mean = take(s.kp);
  if (!s.far) return used;
  w->features = take(p.E ? (s.tiles + 1) * C * s.dp : 0);
  w->phi_k = take(kFeatureTiles * C * s.fs);
  w->S = take(s.fs * s.vp);
  w->z = take(s.fs);
  w->q_weight = take(p.query_weight ? nq * p.D * s.mp : 0);
  w->k_weight = take(p.key_weight ? p.D * s.mp : 0);
  w->q_bias = take(nq * s.fs);
  w->k_bias = take(s.fs);
  return used;
}

inline size_t carve_tiles(const Plan& s, char* base, TileWork* w) {
  size_t used = 0;
  auto take = [&](int64_t bytes) {
    char* at = base + used;
    used += static_cast<size_t>(round_up(bytes, 64));
    return at;
  };
  auto floats = [&](int64_t n) { return reinterpret_cast<float*>(take(n * 4)); };
  w->rows = floats(C * lmax(s.kp, s.dp));
  w->q = floats(s.kp * C);
  w->P = floats((s.tiles * C + s.sinks_p) * C);
  w->o = floats(C * s.vp);
  w->x = floats(s.far && s.p.E ? s.dp * C : 0);
  w->u = floats(s.far ? s.mp * C : 0);
  w->phi_q = floats(s.far ? s.fs * C : 0);
  w->far = floats(s.far ? kBorder * C * C : 0);
  w->heads = reinterpret_cast<HeadWork*>(take(s.group * static_cast<int64_t>(sizeof(HeadWork))));
  for (int i = 0; i < s.group; i++) {
    HeadWork measured;
    HeadWork* head = base ? w->heads + i : &measured;
    used += carve_head(s, base + used, head);
  }
  return used;
}

// ---- parameters

inline void load_matrix(const Plan& s, const void* from, int64_t head, float* to) {
  for (int64_t d = 0; d < s.p.D; d++) {
    load_row(to + d * s.mp, from, (head * s.p.D + d) * s.p.M, s.p.M, s.p.parameter);
    pad_row(to + d * s.mp, s.p.M, s.mp);
  }
}

inline void load_vector(const Plan& s, const void* from, int64_t head, int64_t n, int64_t padded,
                        float* to) {
  if (from) load_row(to, from, head * n, n, s.p.parameter);
  pad_row(to, from ? n : 0, padded);
}

inline void load_parameters(const Plan& s, HeadWork& h) {
  const auto& p = s.p;
  const Item& it = h.it;
  for (int i = 0; p.distance_bias && i < it.nq; i++) {
    float* bias = h.distance + i * (p.window + 1 + 2 * C);
    pad_row(bias, 0, C);
    load_row(bias + C, p.distance_bias, (it.h0 + i) * (p.window + 1), p.window + 1, p.parameter);
    for (int64_t d = 0; d < C; d++) bias[C + p.window + 1 + d] = bias[C + p.window];
  }
  load_vector(s, p.key_mean, it.g, p.K, s.kp, h.mean);
  h.g = log_decay(s, it);
  if (!s.far) return;
  if (p.key_weight) load_matrix(s, p.key_weight, it.g, h.k_weight);
  load_vector(s, p.key_bias, it.g, s.F, s.fs, h.k_bias);
  for (int i = 0; i < it.nq; i++) {
    if (p.query_weight) load_matrix(s, p.query_weight, it.h0 + i, h.q_weight + i * p.D * s.mp);
    load_vector(s, p.query_bias, it.h0 + i, s.F, s.fs, h.q_bias + i * s.fs);
  }
}

// ---- states

FLA_INLINE int64_t tile_of(int64_t key) { return floor_div(key, C); }
// Where a tile lies among the tiles + 1 that are kept.
FLA_INLINE int64_t place_of(const Plan& s, int64_t tile) {
  const int64_t n = s.tiles + 1;
  return ((tile % n) + n) % n;
}

// base[offset..offset+n) into every C-th float from `to` on.
inline void load_column(float* to, const void* base, int64_t offset, int64_t n, DType dtype) {
  for (int64_t i = 0; i < n; i++) to[i * C] = load_one(base, offset + i, dtype);
}

// Token number n of the past into column `key` of tiles, and row `key` of values.
inline void load_past_key(const Plan& s, const Item& it, int64_t n, int64_t key, float* keys,
                          float* values, float* features) {
  const auto& p = s.p;
  const int64_t at = window_offset(s, it) + slot_of(s, n) * s.width;
  const int64_t tile = key / C, column = key % C;
  load_column(keys + tile * C * s.kp + column, p.past_window, at, p.K, p.ring);
  load_row(values + key * s.vp, p.past_window, at + p.K, p.V, p.ring);
  if (features)
    load_column(features + tile * C * s.dp + column, p.past_window, at + p.K + p.V, p.E, p.ring);
}

inline void load_states(const Plan& s, HeadWork& h) {
  const auto& p = s.p;
  const Item& it = h.it;
  memset(h.keys, 0, sizeof(float) * (s.tiles + 1) * C * s.kp);
  memset(h.values, 0, sizeof(float) * (s.tiles + 1) * C * s.vp);
  memset(h.sink_keys, 0, sizeof(float) * s.sinks_p * s.kp);
  memset(h.sink_values, 0, sizeof(float) * s.sinks_p * s.vp);
  const bool features = s.far && p.E;
  if (features) memset(h.features, 0, sizeof(float) * (s.tiles + 1) * C * s.dp);
  h.lo = lmax(p.sinks - it.n0, -p.window);
  h.newest = -1 - p.window;
  h.any_far = false;
  for (int64_t n = 0; n < p.sinks && n < it.n0; n++)
    load_past_key(s, it, n, n, h.sink_keys, h.sink_values, nullptr);
  for (int64_t i = h.lo; i < 0; i++) {
    const int64_t key = place_of(s, tile_of(i)) * C + i - tile_of(i) * C;
    load_past_key(s, it, it.n0 + i, key, h.keys, h.values, features ? h.features : nullptr);
  }
  if (!s.far) return;
  for (int64_t& tile : h.phi_tile) tile = INT64_MIN;
  memset(h.S, 0, sizeof(float) * s.fs * s.vp);
  memset(h.z, 0, sizeof(float) * s.fs);
  if (!p.past_state) return;
  const float* S = p.past_state + (it.b * p.HV + it.g) * s.F * (p.V + 1);
  for (int64_t f = 0; f < s.F; f++) {
    memcpy(h.S + f * s.vp, S + f * (p.V + 1), sizeof(float) * p.V);
    h.z[f] = S[f * (p.V + 1) + p.V];
  }
  h.any_far = true;
}

inline void store_states(const Plan& s, const HeadWork& h) {
  const auto& p = s.p;
  const Item& it = h.it;
  if (p.present_state && s.far) {
    float* S = p.present_state + (it.b * p.HV + it.g) * s.F * (p.V + 1);
    for (int64_t f = 0; f < s.F; f++) {
      memcpy(S + f * (p.V + 1), h.S + f * s.vp, sizeof(float) * p.V);
      S[f * (p.V + 1) + p.V] = h.z[f];
    }
  }
  if (!p.present_window) return;
  const int64_t head = window_offset(s, it);
  pass_window(s, it, static_cast<char*>(p.present_window) + head * size_of(p.ring));
  const int64_t end = it.n0 + h.count;
  int64_t n = end;
  for (int64_t t = p.T - 1; t >= 0 && n > it.n0; t--) {
    if (!visible(s, it, t)) continue;
    n--;
    if (n >= end - p.window || n < p.sinks)
      write_row(s, it, t, p.present_window, head + slot_of(s, n) * s.width);
    else if (it.n0 >= p.sinks)
      break;
  }
  write_count(s, p.present_window, head + (s.rows - 1) * s.width, end);
}

// Rows of one head lie HQ*K (or HV*V) elements apart, which hardware prefetchers do not follow.
template <int WRITE = 0>
inline void prefetch_row(const void* base, int64_t offset, int64_t n, DType dtype) {
  const int64_t size = size_of(dtype);
  const char* at = static_cast<const char*>(base) + offset * size;
  for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(at + i, WRITE, 3);
}

// One more row of the coming tile's tensors; called once per product, because a burst would only
// fill the miss buffers.
FLA_INLINE void prefetch_next(const Plan& s, TileWork& w) {
  if (w.ahead >= w.ahead_end) return;
  const auto& p = s.p;
  const Item& it = *w.next;
  const int64_t token = it.b * p.T + (w.ahead >> 2);
  switch (w.ahead++ & 3) {
    case 0:
      return prefetch_row(p.key, (token * p.HV + it.g) * p.K, p.K, p.io);
    case 1:
      return prefetch_row(p.query, (token * p.HQ + it.h0) * p.K, p.K * it.nq, p.io);
    case 2:
      return prefetch_row(p.value, (token * p.HV + it.g) * p.V, p.V, p.io);
    default:
      return prefetch_row<1>(p.output, (token * p.HQ + it.h0) * p.V, p.V * it.nq, p.io);
  }
}

// ---- keys of a tile, and their features

// Head `head` of the c tokens w.t as columns: to[padded][C] from [B,T,heads*n]; the columns from c
// on are 0.
inline void load_columns(const Plan& s, const Item& it, const TileWork& w, int c, const void* from,
                         int64_t heads, int64_t head, int64_t n, int64_t padded, float* to) {
  const auto& p = s.p;
  const int64_t batch = it.b * p.T;
  if (p.io == DType::kFloat32 && n == padded && c == C && w.t[C - 1] - w.t[0] == C - 1) {
    const int64_t first = ((batch + w.t[0]) * heads + head) * n;
    return transpose(static_cast<const float*>(from) + first, heads * n, to, n);
  }
  for (int r = 0; r < c; r++) {
    float* row = w.rows + r * padded;
    load_row(row, from, ((batch + w.t[r]) * heads + head) * n, n, p.io);
    pad_row(row, n, padded);
  }
  memset(w.rows + c * padded, 0, sizeof(float) * (C - c) * padded);
  transpose(w.rows, padded, to, padded);
}

// Keys and values of the c tokens w.t, the tile's keys [q0, q0 + C).
inline void load_keys(const Plan& s, const HeadWork& h, const TileWork& w, int c) {
  const auto& p = s.p;
  const Item& it = h.it;
  const int64_t place = place_of(s, tile_of(h.q0));
  float* keys = h.keys + place * C * s.kp;
  float* values = h.values + place * C * s.vp;
  load_columns(s, it, w, c, p.key, p.HV, it.g, p.K, s.kp, keys);
  if (s.far && p.E)
    load_columns(s, it, w, c, p.key_features, p.HV, it.g, p.E, s.dp, h.features + place * C * s.dp);
  memset(values + c * s.vp, 0, sizeof(float) * (C - c) * s.vp);
  for (int r = 0; r < c; r++)
    load_row(values + r * s.vp, p.value, ((it.b * p.T + w.t[r]) * p.HV + it.g) * p.V, p.V, p.io);
  const int64_t n = it.n0 + h.q0;
  for (int r = 0; r < c && n + r < p.sinks; r++) {
    const int64_t tile = (n + r) / C, column = (n + r) % C;
    for (int64_t d = 0; d < p.K; d++) h.sink_keys[(tile * s.kp + d) * C + column] = keys[d * C + r];
    memcpy(h.sink_values + (n + r) * s.vp, values + r * s.vp, sizeof(float) * p.V);
  }
}

// phi(k) of a tile [C][fs]; rows of keys that are not, or no longer, outside S are 0.
inline float* key_features(const Plan& s, HeadWork& h, TileWork& w, int64_t tile) {
  const auto& p = s.p;
  const int64_t place = tile & (kFeatureTiles - 1);
  float* phi = h.phi_k + place * C * s.fs;
  if (h.phi_tile[place] == tile) return phi;
  h.phi_tile[place] = tile;
  const float* x =
      p.E ? h.features + place_of(s, tile) * C * s.dp : h.keys + place_of(s, tile) * C * s.kp;
  if (p.key_weight) {
    for (int64_t col = 0; col < s.mp; col += ON * VL) {
      for (int r0 = 0; r0 < C; r0 += OR) {
        Vec acc[OR][ON] = {};
        fma_tile<OR, ON>(acc, x + r0, 1, C, h.k_weight + col, s.mp, p.D);
        FLA_UNROLL
        for (int r = 0; r < OR; r++) {
          FLA_UNROLL
          for (int j = 0; j < ON; j++) store(w.u + (r0 + r) * s.mp + col + j * VL, acc[r][j]);
        }
      }
    }
  } else {
    transpose_back(x, w.u, s.mp, s.mp);
  }
  for (int r = 0; r < C; r++) {
    const int64_t key = tile * C + r;
    if (key < h.lo || key <= h.newest)
      memset(phi + r * s.fs, 0, sizeof(float) * s.fs);
    else
      map_row(s, w.u + r * s.mp, h.k_bias, phi + r * s.fs, false);
  }
  return phi;
}

// Writes the keys of a tile up to `last` to S, which then is as of key min(last, end of tile).
inline void absorb(const Plan& s, HeadWork& h, TileWork& w, int64_t tile, int64_t last) {
  if (last > tile * C + C - 1) last = tile * C + C - 1;
  if (last <= h.newest) return;
  const bool decays = h.g != 0.0f;
  const float kept = decays ? exp1(h.g * (last - h.newest)) : 1.0f;
  const bool keys = last >= h.lo;
  if (!keys && !(decays && h.any_far)) {
    h.newest = last;
    return;
  }
  float* phi = key_features(s, h, w, tile);
  const float* V = h.values + place_of(s, tile) * C * s.vp;
  const int c = static_cast<int>(last - tile * C) + 1;
  for (int r = 0; decays && r < c; r++) {
    const float factor = exp1(h.g * (last - (tile * C + r)));
    for (int64_t f = 0; f < s.F; f += VL)
      store(phi + r * s.fs + f, load(phi + r * s.fs + f) * factor);
  }
  for_columns(static_cast<int>(s.vp), [&](auto n, int col) {
    constexpr int N = decltype(n)::value;
    for (int64_t f = 0; f < s.F; f += RT) {
      prefetch_next(s, w);
      float* cells = h.S + f * s.vp + col;
      Vec acc[RT][N];
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) acc[r][j] = load(cells + r * s.vp + j * VL) * kept;
      }
      fma_tile<RT, N>(acc, phi + f, 1, s.fs, V + col, s.vp, c);
      FLA_UNROLL
      for (int r = 0; r < RT; r++) {
        FLA_UNROLL
        for (int j = 0; j < N; j++) store(cells + r * s.vp + j * VL, acc[r][j]);
      }
    }
  });
  for (int64_t f = 0; f < s.F; f += VL) {
    Vec z = load(h.z + f) * kept;
    for (int r = 0; r < c; r++) z += load(phi + r * s.fs + f);
    store(h.z + f, z);
  }
  h.newest = last;
  h.any_far = true;
  // Its keys up to `last` are in S now, and the others were scaled.
  h.phi_tile[tile & (kFeatureTiles - 1)] = INT64_MIN;
}

// ---- queries of a tile

// What all query heads of a tile share.
struct Tile {
  int64_t q0;
  int c;                     // queries
  int64_t first;             // the first tile with keys that someone sees
  int64_t border0, border1;  // tiles on the border; none when border1 < border0
  int64_t sinks;             // sinks so far
};

// One value per query.
struct Lanes {
  Vec v[LC];
};

FLA_INLINE Lanes lanes(float x) {
  Lanes l;
  for (int j = 0; j < LC; j++) l.v[j] = splat(x);
  return l;
}

// fn(row, sums) for `count` rows A_r (multiple of RS): sums[LC] = A_r' X over `depth`, X
// [depth][C].
template <typename F>
FLA_INLINE void products(const float* A, int64_t row, int64_t step, const float* X, int64_t depth,
                         int64_t count, F fn) {
  for (int64_t r0 = 0; r0 < count; r0 += RS) {
    Vec acc[RS][LC] = {};
    fma_tile<RS, LC>(acc, A + r0 * row, row, step, X, C, depth);
    FLA_UNROLL
    for (int r = 0; r < RS; r++) fn(r0 + r, acc[r]);
  }
}

// How a score follows from q'k.
struct Scoring {
  float scale, softcap, slope;
  const float* distance;  // bias at distance 0, or null
  Lanes shift;            // scale * q'mean
  bool plain;             // nothing but the scale
};

// dist: distance of query 0 to the key.
FLA_INLINE Vec score(const Scoring& c, Vec product, int j, int64_t dist, int64_t window) {
  Vec x = product * c.scale;
  if (c.plain) return x;
  x -= c.shift.v[j];
  if (c.softcap != 0.0f) x = vtanh(x / c.softcap) * c.softcap;
  if (c.slope != 0.0f) {
    const Vec away = __builtin_convertvector(lane_index() + j * VL, Vec) + static_cast<float>(dist);
    x -= away * c.slope;
  }
  if (c.distance) x += dist > window ? splat(c.distance[window]) : load(c.distance + dist + j * VL);
  return x;
}

// Near scores into P; returns their maxima.
inline Lanes near_scores(const Plan& s, const HeadWork& h, TileWork& w, const Tile& tile,
                         const Scoring& scoring) {
  const auto& p = s.p;
  const Item& it = h.it;
  const Vec nothing = splat(-kInfinity);
  Lanes top = lanes(-kInfinity);
  float* P = w.P;
  for (int64_t k = tile.first; k <= tile_of(tile.q0); k++, P += C * C) {
    const float* keys = h.keys + place_of(s, k) * C * s.kp;
    const int64_t ago = tile.q0 - k * C;  // distance of query 0 to key 0
    const bool whole = k * C >= h.lo && ago >= C && ago + C <= p.window;
    prefetch_next(s, w);
    products(keys, 1, C, w.q, p.K, C, [&](int64_t r, const Vec* sums) {
      const int64_t dist = ago - r;
      for (int j = 0; j < LC; j++) {
        Vec x = score(scoring, sums[j], j, dist, p.window);
        if (!whole) {
          // Query i is at distance dist + i.
          const IVec lane = lane_index() + j * VL;
          const int32_t from = static_cast<int32_t>(-dist),
                        to = static_cast<int32_t>(p.window - dist);
          const bool there = k * C + r >= h.lo && r < (ago == 0 ? tile.c : C);
          x = (lane >= from) & (lane < to) & (there ? -1 : 0) ? x : nothing;
        }
        top.v[j] = vmax(top.v[j], x);
        store(P + r * C + j * VL, x);
      }
    });
  }
  for (int64_t k0 = 0; k0 < tile.sinks; k0 += C, P += C * C) {
    const int64_t count = round_up(imin(tile.sinks - k0, C), RS);
    products(h.sink_keys + k0 * s.kp, 1, C, w.q, p.K, count, [&](int64_t r, const Vec* sums) {
      const int64_t dist = it.n0 + tile.q0 - k0 - r;
      for (int j = 0; j < LC; j++) {
        Vec x = score(scoring, sums[j], j, dist < -C ? -C : dist, p.window);
        const IVec lane = lane_index() + j * VL;
        const int32_t from = dist < 0 ? static_cast<int32_t>(-dist) : 0;
        x = (lane >= from) & (k0 + r < tile.sinks ? -1 : 0) ? x : nothing;
        top.v[j] = vmax(top.v[j], x);
        store(P + r * C + j * VL, x);
      }
    });
  }
  return top;
}

// phi(q) of the tile's queries into w.phi_q [F][C]; returns the exponents taken out.
inline Lanes query_features(const Plan& s, const HeadWork& h, TileWork& w, int i) {
  const auto& p = s.p;
  for (int n = 0; n < 4; n++) prefetch_next(s, w);
  const float* x = p.E ? w.x : w.q;
  const float* u = x;
  if (p.query_weight) {
    products(h.q_weight + i * p.D * s.mp, 1, s.mp, x, p.D, s.mp, [&](int64_t m, const Vec* sums) {
      for (int j = 0; j < LC; j++) store(w.u + m * C + j * VL, sums[j]);
    });
    u = w.u;
  }
  const float* bias = h.q_bias + i * s.fs;
  const bool exps = p.map == HybridMap::kExp, softmax = p.map == HybridMap::kSoftmax;
  const Vec most = splat(exps ? kExpClamp : kInfinity);
  Lanes top = lanes(-kInfinity), total = lanes(0.0f);
  for (int64_t f = 0; f < s.F; f++) {
    const float* row = u + (f < p.M ? f : f - p.M) * C;
    for (int j = 0; j < LC; j++) {
      const Vec value = load(row + j * VL);
      const Vec y = vmin((f < p.M ? value : -value) + bias[f], most);
      top.v[j] = vmax(top.v[j], y);
      store(w.phi_q + f * C + j * VL, y);
    }
  }
  if (!exps && !softmax) top = lanes(0.0f);
  if (p.map == HybridMap::kIdentity) return top;
  for (int64_t f = 0; f < s.F; f++) {
    for (int j = 0; j < LC; j++) {
      float* cell = w.phi_q + f * C + j * VL;
      const Vec v = load(cell);
      Vec y;
      if (p.map == HybridMap::kElu1)
        y = v > Vec{} ? v + 1.0f : vexp(v);
      else if (p.map == HybridMap::kRelu)
        y = vmax(v, Vec{});
      else
        y = vexp(v - top.v[j]);
      total.v[j] += y;
      store(cell, y);
    }
  }
  if (!softmax) return top;
  for (int64_t f = 0; f < s.F; f++)
    for (int j = 0; j < LC; j++) {
      float* cell = w.phi_q + f * C + j * VL;
      store(cell, load(cell) / total.v[j]);
    }
  return lanes(0.0f);
}

// The far part of a tile's queries.
struct Far {
  bool any;
  Lanes lost;    // what S has lost by decay at each query
  Lanes in_S;    // phi(q)'z, the sum of far weights in S
  Lanes weight;  // the same with those on the border; both without e^(alpha - m)
  Lanes factor;  // e^(alpha - m)
};

// phi(q)'z, and phi(q)'phi(k) of the border into w.far; phi(q) is in w.phi_q.
inline void far_weights(const Plan& s, HeadWork& h, TileWork& w, const Tile& tile, Far& far) {
  const auto& p = s.p;
  Lanes sums[4] = {};
  int64_t f = 0;
  for (; f + 4 <= s.F; f += 4)
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < LC; j++)
        sums[i].v[j] += load(w.phi_q + (f + i) * C + j * VL) * h.z[f + i];
  for (; f < s.F; f++)
    for (int j = 0; j < LC; j++) sums[0].v[j] += load(w.phi_q + f * C + j * VL) * h.z[f];
  const bool decays = h.g != 0.0f;
  for (int j = 0; j < LC; j++) {
    far.lost.v[j] = splat(1.0f);
    if (decays) {
      const IVec ago = lane_index() + j * VL + static_cast<int32_t>(tile.q0 - p.window - h.newest);
      far.lost.v[j] = vexp(__builtin_convertvector(ago, Vec) * h.g);
    }
    far.in_S.v[j] = (sums[0].v[j] + sums[1].v[j] + (sums[2].v[j] + sums[3].v[j])) * far.lost.v[j];
    far.weight.v[j] = far.in_S.v[j];
  }
  float* to = w.far;
  for (int64_t k = tile.border0; k <= tile.border1; k++, to += C * C) {
    const float* phi = key_features(s, h, w, k);
    const int64_t ago = tile.q0 - k * C;
    products(phi, s.fs, 1, w.phi_q, s.F, C, [&](int64_t r, const Vec* sums) {
      for (int j = 0; j < LC; j++) {
        // Queries from w - (ago - r) on are past it.
        const IVec past = lane_index() + j * VL + static_cast<int32_t>(ago - r - p.window);
        Vec x = past >= 0 ? sums[j] : Vec{};
        if (decays) x *= vexp(__builtin_convertvector(past > 0 ? past : 0, Vec) * h.g);
        far.weight.v[j] += x;
        store(to + r * C + j * VL, x);
      }
    });
  }
}

// Scores in P become weights relative to m; returns their sums over keys.
inline Lanes weigh(const TileWork& w, const Tile& tile, const Lanes& m, const Far& far) {
  Lanes total = lanes(0.0f);
  float* P = w.P;
  const float* from = w.far;
  for (int64_t k = tile.first; k <= tile_of(tile.q0); k++) {
    const bool border = far.any && k >= tile.border0 && k <= tile.border1;
    for (int r = 0; r < C; r++, P += C) {
      for (int j = 0; j < LC; j++) {
        Vec x = vexp(load(P + j * VL) - m.v[j]);
        // Where one is not 0 the other is.
        if (border) x += load(from + r * C + j * VL) * far.factor.v[j];
        total.v[j] += x;
        store(P + j * VL, x);
      }
    }
    if (border) from += C * C;
  }
  for (int64_t r = 0; r < tile.sinks; r++, P += C) {
    for (int j = 0; j < LC; j++) {
      const Vec x = vexp(load(P + j * VL) - m.v[j]);
      total.v[j] += x;
      store(P + j * VL, x);
    }
  }
  return total;
}

// O = (P'V + factor . (phi(q) S)) / total
inline void outputs(const Plan& s, const HeadWork& h, TileWork& w, const Tile& tile, int i,
                    const Far& far, const Lanes& inverse) {
  const auto& p = s.p;
  const Item& it = h.it;
  float scale[C], factor[C];
  for (int j = 0; j < LC; j++) {
    store(scale + j * VL, inverse.v[j]);
    store(factor + j * VL, far.any ? far.factor.v[j] * far.lost.v[j] : Vec{});
  }
  const bool straight = p.io == DType::kFloat32 && tile.c == C && s.vp == p.V;
  const int64_t last = tile_of(tile.q0);
  const float* sinks = w.P + (last - tile.first + 1) * C * C;
  for (int64_t col = 0; col < s.vp; col += ON * VL) {
    for (int r0 = 0; r0 < C; r0 += OR) {
      prefetch_next(s, w);
      Vec acc[OR][ON] = {};
      if (far.any) {
        fma_tile<OR, ON>(acc, w.phi_q + r0, 1, C, h.S + col, s.vp, s.F);
        FLA_UNROLL
        for (int r = 0; r < OR; r++) {
          FLA_UNROLL
          for (int j = 0; j < ON; j++) acc[r][j] *= factor[r0 + r];
        }
      }
      for (int64_t k = tile.first; k <= last; k++) {
        prefetch_next(s, w);
        fma_tile<OR, ON>(acc, w.P + (k - tile.first) * C * C + r0, 1, C,
                         h.values + place_of(s, k) * C * s.vp + col, s.vp, C);
      }
      fma_tile<OR, ON>(acc, sinks + r0, 1, C, h.sink_values + col, s.vp, tile.sinks);
      FLA_UNROLL
      for (int r = 0; r < OR; r++) {
        float* to = straight ? static_cast<float*>(p.output) + output_offset(s, it, w.t[r0 + r], i)
                             : w.o + (r0 + r) * s.vp;
        FLA_UNROLL
        for (int j = 0; j < ON; j++) store(to + col + j * VL, acc[r][j] * scale[r0 + r]);
      }
    }
  }
  for (int r = 0; !straight && r < tile.c; r++)
    store_row(p.output, output_offset(s, it, w.t[r], i), w.o + r * s.vp, p.V, p.io);
}

// One query head of a tile.
inline void query_head(const Plan& s, HeadWork& h, TileWork& w, const Tile& tile, int i) {
  const auto& p = s.p;
  const int64_t head = h.it.h0 + i;
  load_columns(s, h.it, w, tile.c, p.query, p.HQ, head, p.K, s.kp, w.q);
  Scoring scoring;
  scoring.scale = p.scale;
  scoring.softcap = p.softcap;
  scoring.slope = p.alibi_slopes ? load_one(p.alibi_slopes, head, p.parameter) : 0.0f;
  scoring.distance = p.distance_bias ? h.distance + i * (p.window + 1 + 2 * C) + C : nullptr;
  scoring.shift = lanes(0.0f);
  for (int64_t d = 0; p.key_mean && d < p.K; d++)
    for (int j = 0; j < LC; j++)
      scoring.shift.v[j] += load(w.q + d * C + j * VL) * (h.mean[d] * p.scale);
  scoring.plain = p.softcap == 0.0f && scoring.slope == 0.0f && !p.distance_bias && !p.key_mean;
  Lanes m = near_scores(s, h, w, tile, scoring);
  Far far;
  far.any = s.far && (h.any_far || tile.border1 >= tile.border0);
  if (far.any) {
    if (p.E) load_columns(s, h.it, w, tile.c, p.query_features, p.HQ, head, p.D, s.dp, w.x);
    const Lanes taken = query_features(s, h, w, i);
    far_weights(s, h, w, tile, far);
    const float alpha = p.alpha ? load_one(p.alpha, head, p.parameter) : 0.0f;
    for (int j = 0; j < LC; j++) {
      const Vec log_factor = taken.v[j] + alpha, size = log_bound(far.weight.v[j]);
      const Vec log_weight = size > splat(-87.0f) ? log_factor + size : splat(-kInfinity);
      m.v[j] = vmax(m.v[j], log_weight);
      far.factor.v[j] = vexp(log_factor - m.v[j]);
    }
  }
  const Lanes near = weigh(w, tile, m, far);
  Lanes total, inverse;
  for (int j = 0; j < LC; j++) {
    total.v[j] = far.any ? near.v[j] + far.in_S.v[j] * far.factor.v[j] : near.v[j];
    inverse.v[j] = 1.0f / total.v[j];
  }
  if (p.lse) {
    float lse[C];
    for (int j = 0; j < LC; j++) store(lse + j * VL, m.v[j] + vlog(total.v[j]));
    for (int r = 0; r < tile.c; r++) store_lse(s, h.it, w.t[r], i, lse[r]);
  }
  outputs(s, h, w, tile, i, far, inverse);
}

// ---- the call

// Takes up to C visible tokens from h.next on into w.t; writes the outputs of the others.
inline int take_tokens(const Plan& s, HeadWork& h, TileWork& w) {
  int c = 0;
  for (; h.next < s.p.T && c < C; h.next++) {
    if (visible(s, h.it, h.next))
      w.t[c++] = h.next;
    else
      write_invisible(s, h.it, h.next);
  }
  return c;
}

// The next tile of a head; false when there is none. After it come the tokens of `next`, or of the
// head itself.
inline bool run_tile(const Plan& s, HeadWork& h, TileWork& w, const HeadWork* next) {
  const auto& p = s.p;
  const int c = take_tokens(s, h, w);
  if (c == 0) return false;
  w.next = next ? &next->it : &h.it;
  w.ahead = 4 * (next ? next->next : h.next);
  w.ahead_end = lmin(w.ahead + 4 * C, 4 * p.T);
  h.count = h.q0 + c;
  load_keys(s, h, w, c);
  const int64_t own = tile_of(h.q0);
  const int64_t behind = floor_div(h.q0 - p.window - C + 1, C);  // the last tile far for all
  Tile tile;
  tile.q0 = h.q0;
  tile.c = c;
  tile.first = imin(lmax(behind + 1, tile_of(h.lo)), own);
  tile.border0 = lmax(behind + 1, tile.first);
  tile.border1 = s.far ? floor_div(h.q0 + C - 1 - p.window, C) : tile.border0 - 1;
  tile.sinks = imin(p.sinks, h.it.n0 + h.count);
  if (s.far) absorb(s, h, w, behind, INT64_MAX);
  for (int i = 0; i < h.it.nq; i++) query_head(s, h, w, tile, i);
  h.q0 += C;
  return true;
}

// Tiles per turn of a head. The heads of a group take turns, so that the rows of neighbouring
// heads, which share pages and DRAM rows, are visited close together.
constexpr int kTurn = 4;

inline void run_tiles(const Plan& s, TileWork& w, int heads) {
  const auto& p = s.p;
  for (int i = 0; i < heads; i++) {
    HeadWork& h = w.heads[i];
    h.next = h.q0 = h.count = 0;
    load_parameters(s, h);
    load_states(s, h);
  }
  for (bool more = true; more;) {
    more = false;
    for (int i = 0; i < heads; i++) {
      HeadWork& h = w.heads[i];
      for (int turn = 0; turn < kTurn; turn++) {
        const bool last = turn + 1 == kTurn;
        if (!run_tile(s, h, w, last ? &w.heads[(i + 1) % heads] : nullptr)) break;
        more = true;
      }
    }
  }
  for (int i = 0; i < heads; i++) {
    HeadWork& h = w.heads[i];
    const int64_t last = h.count - 1 - p.window;
    if (s.far && h.count > 0)
      for (int64_t k = tile_of(h.newest + 1); k <= tile_of(last); k++) absorb(s, h, w, k, last);
    if (h.it.first) store_states(s, h);
  }
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_HYBRID_ATTENTION_CPU_TILES_H_
