// LinearAttention, step "keyed": queries and keys with their decays multiplied in, for decays per key dimension (and for read=bonus).
//
//   q [B,T,query heads,K], k [B,T,key heads,K], decay [B,T,HV*K] (or [B,T,HV], or none), f = e^g
//   qs [B,T,HO,K] = q_r prod f over the block of r up to r      (up to r - 1 when BEFORE)
//   kp [B,T,HV,K] = k_r prod f over the block of r up to r      (delta rules only)
//   ks [B,T,HV,K] = k_s prod f over the block of s after s
//   blocks [B,HV,chunks,BLOCKS,3,K]: prod f over the block, over the chunk's blocks before it, over those after it
//
// A block is 8 tokens. The weight of the pair r > s in different blocks is then q_r f(blocks between) k_s: three factors <= 1, products of
// f over the tokens they stand for, so nothing overflows and nothing cancels (e^-G is never formed). Pairs within a block: step "diagonal".
// An invocation owns one quad of key dimensions of one chunk of one state head.

override Q_HALF: bool = false;
override K_HALF: bool = false;
override DECAY: u32 = 2; // 0 none, 1 per head, 2 per key dimension
override DECAY_HALF: bool = false;
override BEFORE: bool = false;
override DELTA: bool = false;
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
@group(0) @binding(5) var<storage, read_write> qs: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> kp: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> ks: array<vec4f>;
@group(0) @binding(8) var<storage, read_write> blocks: array<vec4f>;

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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = group.x * 64 + lane;
  let chunk = index / p.KQ;
  let d = index % p.KQ;
  if (chunk >= p.chunks) { return; }
  let head = group.y;
  let at = ((group.z * p.HV + head) * p.chunks + chunk) * 3 * BLOCKS * p.KQ + d;
  var total: array<vec4f, 8>;
  var so_far = vec4f(1);
  for (var block = 0u; block < BLOCKS; block++) {
    let t = chunk * CHUNK + block * 8;
    var f: array<vec4f, 8>;
    var up_to = vec4f(1);
    for (var i = 0u; i < 8; i++) {
      f[i] = vec4f(1);
      if (t + i >= p.tokens) { continue; }
      let token = group.z * p.tokens + t + i;
      f[i] = factor(token, head, d);
      let earlier = up_to;
      up_to *= f[i];
      for (var n = 0u; n < p.v_div; n++) {
        let output_head = head * p.v_div + n;
        let x = load_q(p.q_base + token * p.q_row + (output_head / p.q_div) * p.KQ + d);
        qs[(token * p.HO + output_head) * p.KQ + d] = x * select(up_to, earlier, BEFORE);
      }
      if (DELTA) {
        kp[(token * p.HV + head) * p.KQ + d] = up_to * load_k(p.k_base + token * p.k_row + (head / p.k_div) * p.KQ + d);
      }
    }
    var after = vec4f(1);
    for (var j = 0u; j < 8; j++) {
      let i = 7 - j;
      if (t + i >= p.tokens) { continue; }
      let token = group.z * p.tokens + t + i;
      ks[(token * p.HV + head) * p.KQ + d] = after * load_k(p.k_base + token * p.k_row + (head / p.k_div) * p.KQ + d);
      after *= f[i];
    }
    total[block] = up_to;
    blocks[at + (3 * block) * p.KQ] = up_to;
    blocks[at + (3 * block + 1) * p.KQ] = so_far;
    so_far *= up_to;
  }
  var rest = vec4f(1);
  for (var j = 1u; j <= BLOCKS; j++) {
    let block = BLOCKS - j;
    blocks[at + (3 * block + 2) * p.KQ] = rest;
    rest *= total[block];
  }
}
