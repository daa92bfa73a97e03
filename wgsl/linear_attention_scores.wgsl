// LinearAttention, step "scores": the weights of pairs of tokens within each chunk of 64.
//
//   A_rs = q_r . k_s e^(g summed over s+1..r), s <= r      (BEFORE: g over s+1..r-1, s < r)
//   M_rs = beta_r k_r . k_s e^(g summed over s+1..r), s < r     (MATRIX: the delta rules' M, k in place of q)
//
//   q [B,T,query heads,K], k [B,T,key heads,K]     scores [B,heads,chunks,64 (s),64 (r)], what lies above the diagonal block is not written
//
// A workgroup owns one chunk of one head, an invocation a tile of 8 x 8 pairs: (r in block i, s in block j), j <= i. The decay of a tile is
// e^(start of i..r) e^(between j and i) e^(s+1..end of j): exponents <= 0, each summed over its own tokens. With decays per key dimension
// (KEYED) q and k come from step "keyed" with their parts of it, and tiles on the diagonal from step "diagonal".
// No workgroup memory, no barriers: operands are read through the caches, 16 quads for 64 x 4 products.

override Q_HALF: bool = false;
override K_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false;
override BEFORE: bool = false;
override MATRIX: bool = false;

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
@group(0) @binding(3) var<storage, read> gates: array<vec4f>;
@group(0) @binding(4) var<storage, read> totals: array<vec4f>; // of gates; with KEYED the blocks of step "keyed"
@group(0) @binding(5) var<storage, read_write> scores: array<vec4f>;

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

// Columns are tokens at, at + step, ...
fn q_tokens(at: u32, step: u32) -> mat4x4f {
  return mat4x4f(load_q(at), load_q(at + step), load_q(at + 2 * step), load_q(at + 3 * step));
}

fn k_tokens(at: u32, step: u32) -> mat4x4f {
  return mat4x4f(load_k(at), load_k(at + step), load_k(at + 2 * step), load_k(at + 3 * step));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = lane / 8;
  let j = lane % 8;
  let chunk = group.x;
  let head = group.y;
  if (j > i || (KEYED && i == j) || chunk * 64 + i * 8 >= p.tokens) { return; }
  var state_head = head;
  if (!MATRIX) { state_head = head / p.v_div; }
  let r0 = group.z * p.tokens + chunk * 64 + i * 8;
  let s0 = group.z * p.tokens + chunk * 64 + j * 8;
  let state = group.z * p.HV + state_head;

  // Columns s, rows r: (s 0-3, r 0-3), (s 0-3, r 4-7), (s 4-7, r 0-3), (s 4-7, r 4-7).
  var a00 = mat4x4f();
  var a01 = mat4x4f();
  var a10 = mat4x4f();
  var a11 = mat4x4f();
  let s_at = p.k_base + s0 * p.k_row + (state_head / p.k_div) * p.KQ;
  let q_at = p.q_base + r0 * p.q_row + (head / p.q_div) * p.KQ;
  let r_at = p.k_base + r0 * p.k_row + (state_head / p.k_div) * p.KQ; // MATRIX
  for (var d = 0u; d < p.KQ; d++) {
    var q0: mat4x4f;
    var q1: mat4x4f;
    if (MATRIX && !KEYED) {
      q0 = k_tokens(r_at + d, p.k_row);
      q1 = k_tokens(r_at + 4 * p.k_row + d, p.k_row);
    } else {
      q0 = q_tokens(q_at + d, p.q_row);
      q1 = q_tokens(q_at + 4 * p.q_row + d, p.q_row);
    }
    if (KEYED) {
      var between = vec4f(1);
      for (var block = j + 1; block < i; block++) {
        between *= totals[((state * p.chunks + chunk) * 24 + 3 * block) * p.KQ + d];
      }
      q0 = mat4x4f(q0[0] * between, q0[1] * between, q0[2] * between, q0[3] * between);
      q1 = mat4x4f(q1[0] * between, q1[1] * between, q1[2] * between, q1[3] * between);
    }
    let k0 = k_tokens(s_at + d, p.k_row);
    let k1 = k_tokens(s_at + 4 * p.k_row + d, p.k_row);
    q0 = transpose(q0);
    q1 = transpose(q1);
    a00 += q0 * k0;
    a01 += q1 * k0;
    a10 += q0 * k1;
    a11 += q1 * k1;
  }

  let gate = state * p.tokens + chunk * 64;
  if (GATED && i != j) {
    var weight_r: array<f32, 8>;
    var weight_s: array<f32, 8>;
    var sum = 0.0;
    for (var n = 0u; n < 8; n++) {
      if (BEFORE) { weight_r[n] = exp(sum); }
      sum += gates[gate + i * 8 + n].x;
      if (!BEFORE) { weight_r[n] = exp(sum); }
    }
    sum = 0;
    for (var block = j + 1; block < i; block++) {
      sum += totals[(state * p.chunks + chunk) * 2 + block / 4][block % 4];
    }
    for (var n = 0u; n < 8; n++) {
      weight_s[7 - n] = exp(sum);
      sum += gates[gate + j * 8 + 7 - n].x;
    }
    let w0 = vec4f(weight_r[0], weight_r[1], weight_r[2], weight_r[3]);
    let w1 = vec4f(weight_r[4], weight_r[5], weight_r[6], weight_r[7]);
    for (var n = 0u; n < 4; n++) {
      a00[n] *= w0 * weight_s[n];
      a01[n] *= w1 * weight_s[n];
      a10[n] *= w0 * weight_s[n + 4];
      a11[n] *= w1 * weight_s[n + 4];
    }
  }
  if (i == j) {
    // Row by row: f[r] carries from s to the next r what lies between; nothing above the diagonal.
    for (var s = 0u; s < 8; s++) {
      var low = select(a00[s & 3], a10[s & 3], s > 3);
      var high = select(a01[s & 3], a11[s & 3], s > 3);
      var weight = 1.0;
      for (var r = 0u; r < 8; r++) {
        var w = 0.0;
        if (r > s) {
          let earlier = weight;
          if (GATED) { weight *= exp(gates[gate + i * 8 + r].x); }
          w = select(weight, earlier, BEFORE);
        } else if (r == s && !BEFORE && !MATRIX) {
          w = 1;
        }
        if (r < 4) { low[r & 3] *= w; } else { high[r & 3] *= w; }
      }
      if (s < 4) { a00[s & 3] = low; a01[s & 3] = high; } else { a10[s & 3] = low; a11[s & 3] = high; }
    }
  }
  if (MATRIX) {
    let b0 = vec4f(gates[gate + i * 8].w, gates[gate + i * 8 + 1].w, gates[gate + i * 8 + 2].w, gates[gate + i * 8 + 3].w);
    let b1 = vec4f(gates[gate + i * 8 + 4].w, gates[gate + i * 8 + 5].w, gates[gate + i * 8 + 6].w, gates[gate + i * 8 + 7].w);
    for (var n = 0u; n < 4; n++) {
      a00[n] *= b0;
      a01[n] *= b1;
      a10[n] *= b0;
      a11[n] *= b1;
    }
  }
  let at = ((group.z * groups.y + head) * p.chunks + chunk) * 1024 + j * 128 + i * 2;
  for (var n = 0u; n < 4; n++) {
    scores[at + n * 16] = a00[n];
    scores[at + n * 16 + 1] = a01[n];
    scores[at + n * 16 + 64] = a10[n];
    scores[at + n * 16 + 65] = a11[n];
  }
}
