// LinearAttention, step "diagonal": weights of token pairs within blocks of 8, for decays per key dimension (and for read=bonus).
//
//   scores [B,heads,chunks,CHUNK (s),CHUNK (r)] += for r, s in one block:
//     sum_d q_rd k_sd prod f_d over s+1..r     (over s+1..r-1 when BEFORE); 0 for r < s, and for r = s when BEFORE
//     sum_d u_d q_rd k_rd                      for r = s when BONUS
//     beta_r sum_d k_rd k_sd prod f_d          for r > s, else 0, when MATRIX (the delta rules' M, k in place of q)
//
// An invocation owns one s; the products of f grow with r, exact in the sense of linear_attention_keyed.wgsl.

override Q_HALF: bool = false;
override K_HALF: bool = false;
override DECAY: u32 = 2; // 0 none, 1 per head, 2 per key dimension
override DECAY_HALF: bool = false;
override BEFORE: bool = false;
override BONUS: bool = false;
override BONUS_HALF: bool = false;
override MATRIX: bool = false;
override MASKED: bool = false;
override MASK_BOOL: bool = true;
override BLOCKS: u32 = 8; // of 8 tokens in a chunk; 8 or 4
override CHUNK: u32 = 64; // 8 BLOCKS

// <params>
struct Params {
  tokens: u32,
  chunks: u32,
  HV: u32,
  HO: u32,
  K: u32,
  V: u32,
  W: u32,
  KQ: u32,
  VQ: u32,
  VI: u32,
  OQ: u32,
  q_div: u32,
  k_div: u32,
  v_div: u32,
  q_row: u32,
  k_row: u32,
  v_row: u32,
  o_row: u32,
  q_base: u32,
  k_base: u32,
  v_base: u32,
  o_base: u32,
  decay_row: u32,
  beta_row: u32,
  decay_base: u32,
  beta_base: u32,
  bonus_base: u32,
  mask_base: u32,
  past_base: u32,
  present_base: u32,
  slots: u32,
  slot_step: u32,
  segments: u32,
  segment_chunks: u32,
  count: u32,
  x_size: u32,
  x_quads: u32,
  x_heads: u32,
  x_base: u32,
  scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
// </params>
@group(0) @binding(1) var<storage, read> q: array<vec2u>;
@group(0) @binding(2) var<storage, read> k: array<vec2u>;
@group(0) @binding(3) var<storage, read> decay: array<u32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read> bonus: array<u32>;
@group(0) @binding(6) var<storage, read> gates: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> scores: array<f32>;

fn load_q(i: u32) -> vec4f {
  if (Q_HALF) {
    let w = q[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(q[2 * i], q[2 * i + 1]));
}

fn load_k(i: u32) -> vec4f {
  if (K_HALF) {
    let w = k[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(k[2 * i], k[2 * i + 1]));
}

fn visible(token: u32) -> bool {
  let i = p.mask_base + token;
  if (MASK_BOOL) {
    return ((mask[i >> 2] >> (8 * (i & 3))) & 0xff) != 0;
  }
  return bitcast<f32>(mask[i]) != 0;
}

fn load_decay(i: u32) -> f32 {
  if (DECAY_HALF) {
    return unpack2x16float(decay[i >> 1] >> (16 * (i & 1))).x;
  }
  return bitcast<f32>(decay[i]);
}

// f of four key dimensions of one token.
fn factor(token: u32, head: u32, d: u32) -> vec4f {
  if (DECAY == 0) { return vec4f(1); }
  if (MASKED) {
    if (!visible(token)) { return vec4f(1); }
  }
  let row = p.decay_base + token * p.decay_row;
  var g = vec4f();
  if (DECAY == 1) {
    g = vec4f(load_decay(row + head));
  } else {
    let i = row + head * p.K + 4 * d;
    let left = p.K - 4 * d;
    g.x = load_decay(i);
    if (left > 1) { g.y = load_decay(i + 1); }
    if (left > 2) { g.z = load_decay(i + 2); }
    if (left > 3) { g.w = load_decay(i + 3); }
  }
  return exp(max(g, vec4f(-1e4)));
}

fn load_bonus(i: u32) -> f32 {
  if (BONUS_HALF) {
    return unpack2x16float(bonus[i >> 1] >> (16 * (i & 1))).x;
  }
  return bitcast<f32>(bonus[i]);
}

fn bonus_quad(head: u32, d: u32) -> vec4f {
  let i = p.bonus_base + head * p.K + 4 * d;
  let left = p.K - 4 * d;
  var u = vec4f(load_bonus(i), 0, 0, 0);
  if (left > 1) { u.y = load_bonus(i + 1); }
  if (left > 2) { u.z = load_bonus(i + 2); }
  if (left > 3) { u.w = load_bonus(i + 3); }
  return u;
}

// q of output head `head`, or k of state head `head` when MATRIX.
fn left_row(token: u32, head: u32, state_head: u32) -> u32 {
  if (MATRIX) {
    return p.k_base + token * p.k_row + (state_head / p.k_div) * p.KQ;
  }
  return p.q_base + token * p.q_row + (head / p.q_div) * p.KQ;
}

fn load_left(i: u32) -> vec4f {
  if (MATRIX) { return load_k(i); }
  return load_q(i);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let head = group.y;
  var state_head = head;
  if (!MATRIX) { state_head = head / p.v_div; }
  let s = group.x * 64 + lane;
  let chunk = s / CHUNK;
  if (s >= p.tokens) { return; }
  let first = group.z * p.tokens;
  let k_at = p.k_base + (first + s) * p.k_row + (state_head / p.k_div) * p.KQ;
  let count = min(8 - lane % 8, p.tokens - s);
  var sum: array<f32, 8>;
  for (var d = 0u; d < p.KQ; d++) {
    let ks = load_k(k_at + d);
    var weight = vec4f(1);
    if (BONUS) {
      sum[0] += dot(load_left(left_row(first + s, head, state_head) + d) * bonus_quad(state_head, d), ks);
    } else if (!BEFORE && !MATRIX) {
      sum[0] += dot(load_left(left_row(first + s, head, state_head) + d), ks);
    }
    for (var m = 1u; m < 8; m++) {
      if (m < count) {
        let token = first + s + m;
        let f = factor(token, state_head, d);
        let x = load_left(left_row(token, head, state_head) + d);
        if (BEFORE) {
          sum[m] += dot(x * weight, ks);
          weight *= f;
        } else {
          weight *= f;
          sum[m] += dot(x * weight, ks);
        }
      }
    }
  }
  let at = ((group.z * groups.y + head) * p.chunks + chunk) * CHUNK * CHUNK + (s % CHUNK) * CHUNK + (s % CHUNK - lane % 8);
  for (var i = 0u; i < 8; i++) {
    var value = 0.0;
    let m = i - lane % 8; // wraps for i < s, which `count` then excludes
    if (m < count) {
      value = sum[m];
      if (MATRIX) { value *= gates[(group.z * p.HV + head) * p.tokens + s + m].w; }
    }
    scores[at + i] = value;
  }
}
