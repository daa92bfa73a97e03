// LinearAttention, step "scores": the weights of pairs of tokens within each chunk.
//
//   A_rs = q_r . k_s e^(g summed over s+1..r), s <= r      (BEFORE: g over s+1..r-1, s < r)
//   M_rs = beta_r k_r . k_s e^(g summed over s+1..r), s < r     (MATRIX: the delta rules' M, k in place of q)
//
//   q [B,T,query heads,K], k [B,T,key heads,K]     scores [B,heads,chunks,CHUNK (s),CHUNK (r)], what lies above the diagonal block is not written
//
// An invocation owns a tile of 8 x 8 pairs of one chunk: (r in block i, s in block j), j <= i. The decay of a tile is
// e^(start of i..r) e^(between j and i) e^(s+1..end of j): exponents <= 0, each summed over its own tokens. With decays per key dimension
// (KEYED) q and k come from step "keyed" with their parts of it, and tiles on the diagonal from step "diagonal".
// No workgroup memory, no barriers: operands are read through the caches, 16 quads for 64 x 4 products.

override Q_HALF: bool = false;
override K_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false;
override BEFORE: bool = false;
override MATRIX: bool = false;
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

// start + x, start + x + y, ...
fn sums(v: vec4f, start: f32) -> vec4f {
  let x = start + v.x;
  let y = x + v.y;
  let z = y + v.z;
  return vec4f(x, y, z, z + v.w);
}

fn scaled(tile: mat4x4f, rows: vec4f, columns: vec4f) -> mat4x4f {
  return mat4x4f(tile[0] * rows * columns.x, tile[1] * rows * columns.y, tile[2] * rows * columns.z, tile[3] * rows * columns.w);
}

fn store(at: u32, tile: mat4x4f) {
  scores[at] = tile[0];
  scores[at + CHUNK / 4] = tile[1];
  scores[at + CHUNK / 2] = tile[2];
  scores[at + 3 * CHUNK / 4] = tile[3];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  // Tiles are numbered row by row: (0,0), (1,0), (1,1), (2,0), ...
  let index = group.x * 64 + lane;
  let tiles = BLOCKS * (BLOCKS + 1) / 2;
  let chunk = index / tiles;
  let tile = index % tiles;
  let i = u32((sqrt(f32(8 * tile) + 1.5) - 1) / 2);
  let j = tile - i * (i + 1) / 2;
  let head = group.y;
  if (chunk >= p.chunks || (KEYED && i == j) || chunk * CHUNK + i * 8 >= p.tokens) { return; }
  var state_head = head;
  if (!MATRIX) { state_head = head / p.v_div; }
  let r0 = group.z * p.tokens + chunk * CHUNK + i * 8;
  let s0 = group.z * p.tokens + chunk * CHUNK + j * 8;
  let state = group.z * p.HV + state_head;

  // Rows r 0-3 (l, low) and 4-7 (h, high) of columns s 0-7.
  var l0 = vec4f();
  var h0 = vec4f();
  var l1 = vec4f();
  var h1 = vec4f();
  var l2 = vec4f();
  var h2 = vec4f();
  var l3 = vec4f();
  var h3 = vec4f();
  var l4 = vec4f();
  var h4 = vec4f();
  var l5 = vec4f();
  var h5 = vec4f();
  var l6 = vec4f();
  var h6 = vec4f();
  var l7 = vec4f();
  var h7 = vec4f();
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
        between *= totals[((state * p.chunks + chunk) * 3 * BLOCKS + 3 * block) * p.KQ + d];
      }
      q0 = mat4x4f(q0[0] * between, q0[1] * between, q0[2] * between, q0[3] * between);
      q1 = mat4x4f(q1[0] * between, q1[1] * between, q1[2] * between, q1[3] * between);
    }
    let k0 = k_tokens(s_at + d, p.k_row);
    let k1 = k_tokens(s_at + 4 * p.k_row + d, p.k_row);
    q0 = transpose(q0);
    q1 = transpose(q1);
    l0 += q0 * k0[0];
    h0 += q1 * k0[0];
    l1 += q0 * k0[1];
    h1 += q1 * k0[1];
    l2 += q0 * k0[2];
    h2 += q1 * k0[2];
    l3 += q0 * k0[3];
    h3 += q1 * k0[3];
    l4 += q0 * k1[0];
    h4 += q1 * k1[0];
    l5 += q0 * k1[1];
    h5 += q1 * k1[1];
    l6 += q0 * k1[2];
    h6 += q1 * k1[2];
    l7 += q0 * k1[3];
    h7 += q1 * k1[3];
  }
  var a00 = mat4x4f(l0, l1, l2, l3);
  var a01 = mat4x4f(h0, h1, h2, h3);
  var a10 = mat4x4f(l4, l5, l6, l7);
  var a11 = mat4x4f(h4, h5, h6, h7);

  let gate = state * p.tokens + chunk * CHUNK;
  let r_gate = gate + i * 8;
  if (GATED && i != j) {
    let r0 = sums(vec4f(gates[r_gate].x, gates[r_gate + 1].x, gates[r_gate + 2].x, gates[r_gate + 3].x), 0);
    let r1 = sums(vec4f(gates[r_gate + 4].x, gates[r_gate + 5].x, gates[r_gate + 6].x, gates[r_gate + 7].x), r0.w);
    var between = 0.0;
    for (var block = j + 1; block < i; block++) {
      between += totals[(state * p.chunks + chunk) * (BLOCKS / 4) + block / 4][block % 4];
    }
    let s_gate = gate + j * 8;
    let s1 = sums(vec4f(0, gates[s_gate + 7].x, gates[s_gate + 6].x, gates[s_gate + 5].x), between).wzyx;
    let s0 = sums(vec4f(gates[s_gate + 4].x, gates[s_gate + 3].x, gates[s_gate + 2].x, gates[s_gate + 1].x), s1.x).wzyx;
    var w0 = exp(r0);
    var w1 = exp(r1);
    if (BEFORE) {
      w1 = vec4f(w0.w, w1.xyz);
      w0 = vec4f(1, w0.xyz);
    }
    let v0 = exp(s0);
    let v1 = exp(s1);
    a00 = scaled(a00, w0, v0);
    a01 = scaled(a01, w1, v0);
    a10 = scaled(a10, w0, v1);
    a11 = scaled(a11, w1, v1);
  }
  if (i == j) {
    // Column by column from the last: the weights of s over r are those of s + 1 times f of s + 1, and 1 where they begin.
    var f0 = vec4f(1);
    var f1 = vec4f(1);
    if (GATED) {
      f0 = exp(vec4f(gates[r_gate].x, gates[r_gate + 1].x, gates[r_gate + 2].x, gates[r_gate + 3].x));
      f1 = exp(vec4f(gates[r_gate + 4].x, gates[r_gate + 5].x, gates[r_gate + 6].x, gates[r_gate + 7].x));
    }
    var w0 = vec4f();
    var w1 = vec4f();
    if (!BEFORE) { w1.w = 1; }
    a11[3] *= w1;
    w1 *= f1.w;
    if (BEFORE) { w1.w = 1; } else { w1.z = 1; }
    a11[2] *= w1;
    w1 *= f1.z;
    if (BEFORE) { w1.z = 1; } else { w1.y = 1; }
    a11[1] *= w1;
    w1 *= f1.y;
    if (BEFORE) { w1.y = 1; } else { w1.x = 1; }
    a11[0] *= w1;
    w1 *= f1.x;
    if (BEFORE) { w1.x = 1; } else { w0.w = 1; }
    a01[3] *= w1;
    a00[3] *= w0;
    w1 *= f0.w;
    w0 *= f0.w;
    if (BEFORE) { w0.w = 1; } else { w0.z = 1; }
    a01[2] *= w1;
    a00[2] *= w0;
    w1 *= f0.z;
    w0 *= f0.z;
    if (BEFORE) { w0.z = 1; } else { w0.y = 1; }
    a01[1] *= w1;
    a00[1] *= w0;
    w1 *= f0.y;
    w0 *= f0.y;
    if (BEFORE) { w0.y = 1; } else { w0.x = 1; }
    a01[0] *= w1;
    a00[0] *= w0;
    a10 = mat4x4f();
    if (MATRIX) {
      a00[0].x = 0;
      a00[1].y = 0;
      a00[2].z = 0;
      a00[3].w = 0;
      a11[0].x = 0;
      a11[1].y = 0;
      a11[2].z = 0;
      a11[3].w = 0;
    }
  }
  if (MATRIX) {
    let b0 = vec4f(gates[r_gate].w, gates[r_gate + 1].w, gates[r_gate + 2].w, gates[r_gate + 3].w);
    let b1 = vec4f(gates[r_gate + 4].w, gates[r_gate + 5].w, gates[r_gate + 6].w, gates[r_gate + 7].w);
    a00 = scaled(a00, b0, vec4f(1));
    a01 = scaled(a01, b1, vec4f(1));
    a10 = scaled(a10, b0, vec4f(1));
    a11 = scaled(a11, b1, vec4f(1));
  }
  let at = ((group.z * groups.y + head) * p.chunks + chunk) * CHUNK * CHUNK / 4 + j * 2 * CHUNK + i * 2;
  store(at, a00);
  store(at + 1, a01);
  store(at + CHUNK, a10);
  store(at + CHUNK + 1, a11);
}
