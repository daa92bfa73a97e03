// LinearAttention, step "output": every token's output from the state at the start of its chunk and from the chunk's own tokens.
//
//   o_r = scale (e^(g summed from the chunk's start) S' q_r + sum over s in the chunk of A_rs v_s)     (divided by the same sum for z)
//
//   q [B,T,query heads,K], states [B,HV,slots,K,V quads], scores A [B,HO,chunks,64 (s),64 (r)],
//   v [B,T,HV,V] (delta rules: the corrected values [B,HV,64 chunks,V quads]),  output [B,T,HO,V] float32 or float16
//
// A workgroup owns 64 tokens x 64 columns, an invocation 8 tokens x columns (4 tx.., 32 + 4 tx..). Sums over s stop at the block of r.
// Operands are read through the caches: 16 quads for 64 x 4 products, then 4 quads for 64.

override Q_HALF: bool = false;
override V_HALF: bool = false;
override O_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // q from step "keyed"
override BEFORE: bool = false;
override DELTA: bool = false;
override CAUSAL: bool = true; // else the state is all there is, in slot 0
override NORMALIZE: bool = false;

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
@group(0) @binding(2) var<storage, read> states: array<vec4f>;
@group(0) @binding(3) var<storage, read> scores: array<vec4f>;
@group(0) @binding(4) var<storage, read> v: array<vec2u>;
@group(0) @binding(5) var<storage, read> gates: array<vec4f>;
@group(0) @binding(6) var<storage, read> blocks: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> output: array<vec2u>;

fn load_q(i: u32) -> vec4f {
  if (Q_HALF) {
    let w = q[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(q[2 * i], q[2 * i + 1]));
}

fn load_v(i: u32) -> vec4f {
  if (V_HALF) {
    let w = v[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(v[2 * i], v[2 * i + 1]));
}

fn q_tokens(at: u32) -> mat4x4f {
  return mat4x4f(load_q(at), load_q(at + p.q_row), load_q(at + 2 * p.q_row), load_q(at + 3 * p.q_row));
}

fn outer(row: vec4f, column: vec4f) -> mat4x4f {
  return mat4x4f(row * column.x, row * column.y, row * column.z, row * column.w);
}

// Rows of the state of four key dimensions, each times its decay.
fn state_rows(at: u32, decay: vec4f) -> mat4x4f {
  if (KEYED) {
    return mat4x4f(states[at] * decay.x, states[at + p.VQ] * decay.y, states[at + 2 * p.VQ] * decay.z, states[at + 3 * p.VQ] * decay.w);
  }
  return mat4x4f(states[at], states[at + p.VQ], states[at + 2 * p.VQ], states[at + 3 * p.VQ]);
}

// float32 to float16 bits, to nearest, ties to even.
fn half_bits(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let size = bits & 0x7fffffff;
  var half = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  if (size < 0x38800000) { half = bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000; }
  if (size >= 0x47800000) { half = select(0x7c00u, 0x7e00u, size > 0x7f800000); }
  return half | ((bits >> 16) & 0x8000);
}

fn store(at: u32, o: vec4f) {
  if (O_HALF) {
    output[at] = vec2u(half_bits(o.x) | (half_bits(o.y) << 16), half_bits(o.z) | (half_bits(o.w) << 16));
  } else {
    let bits = bitcast<vec4u>(o);
    output[2 * at] = bits.xy;
    output[2 * at + 1] = bits.zw;
  }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let chunk = group.x;
  let v_tiles = (p.OQ + 15) / 16;
  let head = group.y / v_tiles;
  let block = lane / 8;
  let va = (group.y % v_tiles) * 16 + lane % 8;
  let r = chunk * 64 + block * 8;
  if (r >= p.tokens || va >= p.OQ) { return; }
  let has_vb = va + 8 < p.OQ;
  let vb_step = select(0u, 8u, has_vb);
  let state_head = head / p.v_div;
  let state = group.z * p.HV + state_head;
  let slot = (state * p.slots + chunk * p.slot_step) * 4 * p.KQ * p.VQ;

  // Columns are tokens: o0 those of 0-3, o1 of 4-7; rows are columns of the output, a those at va, b at vb.
  var o0a = mat4x4f();
  var o0b = mat4x4f();
  var o1a = mat4x4f();
  var o1b = mat4x4f();
  var z0 = vec4f();
  var z1 = vec4f();
  let z_quad = p.V / 4;
  let q_at = p.q_base + (group.z * p.tokens + r) * p.q_row + (head / p.q_div) * p.KQ;
  for (var d = 0u; d < p.KQ; d++) {
    var decay = vec4f(1);
    if (KEYED) { decay = blocks[((state * p.chunks + chunk) * 24 + 3 * block + 1) * p.KQ + d]; }
    let q0 = q_tokens(q_at + d);
    let q1 = q_tokens(q_at + d + 4 * p.q_row);
    let at = slot + 4 * d * p.VQ;
    let sa = state_rows(at + va, decay);
    o0a += sa * q0;
    o1a += sa * q1;
    let sb = state_rows(at + va + vb_step, decay);
    o0b += sb * q0;
    o1b += sb * q1;
    if (NORMALIZE) {
      let z = transpose(state_rows(at + z_quad, decay))[p.V % 4];
      z0 += z * q0;
      z1 += z * q1;
    }
  }
  if (GATED) {
    let gate = state * p.tokens + r;
    for (var i = 0u; i < 4; i++) {
      var d0 = 1.0;
      var d1 = 1.0;
      if (BEFORE) {
        if (block > 0 || i > 0) { d0 = gates[gate + i - 1].y; }
        d1 = gates[gate + i + 3].y;
      } else {
        d0 = gates[gate + i].y;
        d1 = gates[gate + i + 4].y;
      }
      o0a[i] *= d0;
      o0b[i] *= d0;
      o1a[i] *= d1;
      o1b[i] *= d1;
      z0[i] *= d0;
      z1[i] *= d1;
    }
  }
  if (CAUSAL) {
    var score_at = ((group.z * p.HO + head) * p.chunks + chunk) * 1024 + 2 * block;
    var v_at = p.v_base + (group.z * p.tokens + chunk * 64) * p.v_row + state_head * p.VI;
    if (DELTA) { v_at = (state * p.chunks + chunk) * 64 * p.VQ; }
    let v_row = select(p.v_row, p.VQ, DELTA);
    let end = min(8 * block + 8, p.tokens - chunk * 64);
    for (var s = 0u; s < end; s++) {
      let w0 = scores[score_at];
      let w1 = scores[score_at + 1];
      let left = load_v(v_at + va);
      let right = load_v(v_at + va + vb_step);
      o0a += outer(left, w0);
      o0b += outer(right, w0);
      o1a += outer(left, w1);
      o1b += outer(right, w1);
      if (NORMALIZE) {
        var one = 1.0;
        if (DELTA) { one = load_v(v_at + z_quad)[p.V % 4]; }
        z0 += one * w0;
        z1 += one * w1;
      }
      score_at += 16;
      v_at += v_row;
    }
  }
  let o_at = p.o_base + (group.z * p.tokens + r) * p.o_row + head * p.OQ + va;
  let count = min(8, p.tokens - r);
  for (var i = 0u; i < 8; i++) {
    if (i >= count) { break; }
    var factor = p.scale;
    if (NORMALIZE) { factor /= p.scale * select(z1[i & 3], z0[i & 3], i < 4) + 1e-6; }
    store(o_at + i * p.o_row, select(o1a[i & 3], o0a[i & 3], i < 4) * factor);
    if (has_vb) { store(o_at + i * p.o_row + 8, select(o1b[i & 3], o0b[i & 3], i < 4) * factor); }
  }
}
