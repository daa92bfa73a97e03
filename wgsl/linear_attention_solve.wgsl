// LinearAttention, step "solve" (delta rules): W = (I + M)^-1 diag(beta) K~ and U = (I + M)^-1 diag(beta) V for each chunk.
//
//   K~_r = e^(g summed from the chunk's start to r) k_r; M, strictly lower, from step "scores"
//   k [B,T,key heads,K], v [B,T,HV,V quads], matrix M [B,HV,chunks,CHUNK (s),CHUNK (r)]
//   wu [B,HV,chunks CHUNK,K quads of W + V quads of U], float32
//
// The WY form of a product of Householder-like factors (Yang et al. 2024, arXiv 2406.06484 and 2412.06464): with these, a chunk changes the
// state by R = U - W S, S' = e^G S + K^' R, and R_r is what token r adds. Forward substitution, exact for any keys.
// An invocation owns two quads of columns of [W U] for one chunk, in blocks of 8 tokens: it reads back only what it wrote itself, so there
// are no barriers.

override K_HALF: bool = false;
override V_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // k from step "keyed", decayed within blocks
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
@group(0) @binding(1) var<storage, read> k: array<vec2u>;
@group(0) @binding(2) var<storage, read> v: array<vec2u>;
@group(0) @binding(3) var<storage, read> gates: array<vec4f>;
@group(0) @binding(4) var<storage, read> blocks: array<vec4f>;
@group(0) @binding(5) var<storage, read> matrix: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> wu: array<vec4f>;

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

fn store(at: u32, x0: vec4f, x1: vec4f, x2: vec4f, x3: vec4f, row: u32) {
  wu[at] = x0;
  wu[at + row] = x1;
  wu[at + 2 * row] = x2;
  wu[at + 3 * row] = x3;
}

// What values (x) and keys (y) of token t are multiplied by: beta, beta and decay; 0 past the last token.
fn factors(t: u32, state: u32) -> vec2f {
  if (t >= p.tokens) { return vec2f(); }
  let beta = gates[state * p.tokens + t].w;
  if (GATED) { return vec2f(beta, beta * gates[state * p.tokens + t].y); }
  return vec2f(beta);
}

// The right-hand side of one token, one quad of it.
fn right_hand(token: u32, head: u32, column: u32, factor: vec2f, decay: vec4f) -> vec4f {
  if (column >= p.KQ) {
    return load_v(p.v_base + token * p.v_row + head * p.VI + column - p.KQ) * factor.x;
  }
  let x = load_k(p.k_base + token * p.k_row + (head / p.k_div) * p.KQ + column) * factor.y;
  if (KEYED) { return x * decay; }
  return x;
}

fn decay_of(block: u32, column: u32) -> vec4f {
  if (KEYED && column < p.KQ) { return blocks[block * 3 * p.KQ + p.KQ + column]; }
  return vec4f(1);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = group.x * 64 + lane;
  let columns = p.KQ + p.VQ;
  let pairs = (columns + 1) / 2;
  let chunk = index / pairs;
  let ca = index % pairs;
  let cb = min(ca + pairs, columns - 1);
  if (chunk >= p.chunks) { return; }
  let has_cb = ca + pairs < columns;
  let head = group.y;
  let state = group.z * p.HV + head;
  let row = (state * p.chunks + chunk) * CHUNK;
  let blocks_to_do = min(BLOCKS, (p.tokens - chunk * CHUNK + 7) / 8);
  let m_row = CHUNK / 4;
  for (var block = 0u; block < blocks_to_do; block++) {
    let t_block = chunk * CHUNK + 8 * block;
    let t = group.z * p.tokens + t_block;
    let decay_a = decay_of((state * p.chunks + chunk) * BLOCKS + block, ca);
    let decay_b = decay_of((state * p.chunks + chunk) * BLOCKS + block, cb);
    // Columns ca (l, left) and cb (r, right) of [W U] of the block's tokens 0-7.
    let f0 = factors(t_block, state);
    var l0 = right_hand(t, head, ca, f0, decay_a);
    var r0 = right_hand(t, head, cb, f0, decay_b);
    let f1 = factors(t_block + 1, state);
    var l1 = right_hand(t + 1, head, ca, f1, decay_a);
    var r1 = right_hand(t + 1, head, cb, f1, decay_b);
    let f2 = factors(t_block + 2, state);
    var l2 = right_hand(t + 2, head, ca, f2, decay_a);
    var r2 = right_hand(t + 2, head, cb, f2, decay_b);
    let f3 = factors(t_block + 3, state);
    var l3 = right_hand(t + 3, head, ca, f3, decay_a);
    var r3 = right_hand(t + 3, head, cb, f3, decay_b);
    let f4 = factors(t_block + 4, state);
    var l4 = right_hand(t + 4, head, ca, f4, decay_a);
    var r4 = right_hand(t + 4, head, cb, f4, decay_b);
    let f5 = factors(t_block + 5, state);
    var l5 = right_hand(t + 5, head, ca, f5, decay_a);
    var r5 = right_hand(t + 5, head, cb, f5, decay_b);
    let f6 = factors(t_block + 6, state);
    var l6 = right_hand(t + 6, head, ca, f6, decay_a);
    var r6 = right_hand(t + 6, head, cb, f6, decay_b);
    let f7 = factors(t_block + 7, state);
    var l7 = right_hand(t + 7, head, ca, f7, decay_a);
    var r7 = right_hand(t + 7, head, cb, f7, decay_b);
    var m_at = row * m_row + 2 * block;
    var x_at = row * columns;
    for (var s = 0u; s < 8 * block; s++) {
      let a = wu[x_at + ca];
      let b = wu[x_at + cb];
      let m0 = matrix[m_at];
      let m1 = matrix[m_at + 1];
      l0 -= a * m0.x;
      r0 -= b * m0.x;
      l1 -= a * m0.y;
      r1 -= b * m0.y;
      l2 -= a * m0.z;
      r2 -= b * m0.z;
      l3 -= a * m0.w;
      r3 -= b * m0.w;
      l4 -= a * m1.x;
      r4 -= b * m1.x;
      l5 -= a * m1.y;
      r5 -= b * m1.y;
      l6 -= a * m1.z;
      r6 -= b * m1.z;
      l7 -= a * m1.w;
      r7 -= b * m1.w;
      m_at += m_row;
      x_at += columns;
    }
    // Row by row: what is done is taken out of the rows below.
    var m0 = matrix[m_at];
    var m1 = matrix[m_at + 1];
    l1 -= l0 * m0.y;
    r1 -= r0 * m0.y;
    l2 -= l0 * m0.z;
    r2 -= r0 * m0.z;
    l3 -= l0 * m0.w;
    r3 -= r0 * m0.w;
    l4 -= l0 * m1.x;
    r4 -= r0 * m1.x;
    l5 -= l0 * m1.y;
    r5 -= r0 * m1.y;
    l6 -= l0 * m1.z;
    r6 -= r0 * m1.z;
    l7 -= l0 * m1.w;
    r7 -= r0 * m1.w;
    m0 = matrix[m_at + m_row];
    m1 = matrix[m_at + m_row + 1];
    l2 -= l1 * m0.z;
    r2 -= r1 * m0.z;
    l3 -= l1 * m0.w;
    r3 -= r1 * m0.w;
    l4 -= l1 * m1.x;
    r4 -= r1 * m1.x;
    l5 -= l1 * m1.y;
    r5 -= r1 * m1.y;
    l6 -= l1 * m1.z;
    r6 -= r1 * m1.z;
    l7 -= l1 * m1.w;
    r7 -= r1 * m1.w;
    m0 = matrix[m_at + 2 * m_row];
    m1 = matrix[m_at + 2 * m_row + 1];
    l3 -= l2 * m0.w;
    r3 -= r2 * m0.w;
    l4 -= l2 * m1.x;
    r4 -= r2 * m1.x;
    l5 -= l2 * m1.y;
    r5 -= r2 * m1.y;
    l6 -= l2 * m1.z;
    r6 -= r2 * m1.z;
    l7 -= l2 * m1.w;
    r7 -= r2 * m1.w;
    m1 = matrix[m_at + 3 * m_row + 1];
    l4 -= l3 * m1.x;
    r4 -= r3 * m1.x;
    l5 -= l3 * m1.y;
    r5 -= r3 * m1.y;
    l6 -= l3 * m1.z;
    r6 -= r3 * m1.z;
    l7 -= l3 * m1.w;
    r7 -= r3 * m1.w;
    m1 = matrix[m_at + 4 * m_row + 1];
    l5 -= l4 * m1.y;
    r5 -= r4 * m1.y;
    l6 -= l4 * m1.z;
    r6 -= r4 * m1.z;
    l7 -= l4 * m1.w;
    r7 -= r4 * m1.w;
    m1 = matrix[m_at + 5 * m_row + 1];
    l6 -= l5 * m1.z;
    r6 -= r5 * m1.z;
    l7 -= l5 * m1.w;
    r7 -= r5 * m1.w;
    m1 = matrix[m_at + 6 * m_row + 1];
    l7 -= l6 * m1.w;
    r7 -= r6 * m1.w;
    store(x_at + ca, l0, l1, l2, l3, columns);
    store(x_at + ca + 4 * columns, l4, l5, l6, l7, columns);
    if (has_cb) {
      store(x_at + cb, r0, r1, r2, r3, columns);
      store(x_at + cb + 4 * columns, r4, r5, r6, r7, columns);
    }
  }
}
