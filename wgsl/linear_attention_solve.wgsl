// LinearAttention, step "solve" (delta rules): W = (I + M)^-1 diag(beta) K~ and U = (I + M)^-1 diag(beta) V for each chunk of 64 tokens.
//
//   K~_r = e^(g summed from the chunk's start to r) k_r; M, strictly lower, from step "scores"
//   k [B,T,key heads,K], v [B,T,HV,V quads], matrix M [B,HV,chunks,64 (s),64 (r)]
//   w [B,HV,64 chunks,K quads], u [B,HV,64 chunks,V quads], float32
//
// The WY form of a product of Householder-like factors (Yang et al. 2024, arXiv 2406.06484 and 2412.06464): with these, a chunk changes the
// state by R = U - W S, S' = e^G S + K^' R, and R_r is what token r adds. Forward substitution, exact for any keys.
// An invocation owns one quad of columns of [W U] for one chunk: it reads back only what it wrote itself, so there are no barriers.

override K_HALF: bool = false;
override V_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // k from step "keyed", decayed within blocks

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
@group(0) @binding(1) var<storage, read> k: array<vec2u>;
@group(0) @binding(2) var<storage, read> v: array<vec2u>;
@group(0) @binding(3) var<storage, read> gates: array<vec4f>;
@group(0) @binding(4) var<storage, read> blocks: array<vec4f>;
@group(0) @binding(5) var<storage, read> matrix: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> w: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> u: array<vec4f>;

fn load_k(i: u32) -> vec4f {
  if (K_HALF) {
    let word = k[i];
    return vec4f(unpack2x16float(word.x), unpack2x16float(word.y));
  }
  return bitcast<vec4f>(vec4u(k[2 * i], k[2 * i + 1]));
}

fn load_v(i: u32) -> vec4f {
  if (V_HALF) {
    let word = v[i];
    return vec4f(unpack2x16float(word.x), unpack2x16float(word.y));
  }
  return bitcast<vec4f>(vec4u(v[2 * i], v[2 * i + 1]));
}

fn outer(row: vec4f, column: vec4f) -> mat4x4f {
  return mat4x4f(row * column.x, row * column.y, row * column.z, row * column.w);
}

// Beta times the right-hand side of one token.
fn right_hand(token: u32, head: u32, state: u32, column: u32, decay: vec4f) -> vec4f {
  let t = token - (state / p.HV) * p.tokens;
  if (t >= p.tokens) { return vec4f(); }
  let gate = gates[state * p.tokens + t];
  if (column >= p.KQ) {
    return load_v(p.v_base + token * p.v_row + head * p.VI + column - p.KQ) * gate.w;
  }
  let x = load_k(p.k_base + token * p.k_row + (head / p.k_div) * p.KQ + column) * gate.w;
  if (KEYED) { return x * decay; }
  if (GATED) { return x * gate.y; }
  return x;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = group.x * 64 + lane;
  let columns = p.KQ + p.VQ;
  let chunk = index / columns;
  let column = index % columns;
  if (chunk >= p.chunks) { return; }
  let head = group.y;
  let state = group.z * p.HV + head;
  let token = group.z * p.tokens + chunk * 64;
  let row = (state * p.chunks + chunk) * 64;
  let blocks_to_do = min(8u, (p.tokens - chunk * 64 + 7) / 8);
  let is_w = column < p.KQ;
  let x_row = select(p.VQ, p.KQ, is_w);
  let x_at = row * x_row + select(column - p.KQ, column, is_w);
  for (var block = 0u; block < blocks_to_do; block++) {
    var decay = vec4f(1);
    if (KEYED && is_w) { decay = blocks[((state * p.chunks + chunk) * 24 + 3 * block + 1) * p.KQ + column]; }
    let t = token + 8 * block;
    // Columns are the rows of X for tokens 0-3 and 4-7 of the block.
    var x0 = mat4x4f(
      right_hand(t, head, state, column, decay), right_hand(t + 1, head, state, column, decay),
      right_hand(t + 2, head, state, column, decay), right_hand(t + 3, head, state, column, decay));
    var x1 = mat4x4f(
      right_hand(t + 4, head, state, column, decay), right_hand(t + 5, head, state, column, decay),
      right_hand(t + 6, head, state, column, decay), right_hand(t + 7, head, state, column, decay));
    var m_at = row * 16 + 2 * block;
    for (var s = 0u; s < 8 * block; s++) {
      var x: vec4f;
      if (is_w) { x = w[x_at + s * x_row]; } else { x = u[x_at + s * x_row]; }
      x0 -= outer(x, matrix[m_at]);
      x1 -= outer(x, matrix[m_at + 1]);
      m_at += 16;
    }
    for (var s = 0u; s < 8; s++) {
      let x = select(x1[s & 3], x0[s & 3], s < 4);
      let at = x_at + (8 * block + s) * x_row;
      if (is_w) { w[at] = x; } else { u[at] = x; }
      x0 -= outer(x, matrix[m_at]);
      x1 -= outer(x, matrix[m_at + 1]);
      m_at += 16;
    }
  }
}
