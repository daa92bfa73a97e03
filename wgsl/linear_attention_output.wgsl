// LinearAttention, step "output": every token's output from the state at the start of its chunk and from the chunk's own tokens.
//
//   o_r = scale (e^(g summed from the chunk's start) S' q_r + sum over s in the chunk of A_rs v_s)     (divided by the same sum for z)
//
//   q [B,T,query heads,K], states [B,HV,slots,K,V quads], scores A [B,HO,chunks,CHUNK (s),CHUNK (r)],
//   v [B,T,HV,V] (delta rules: the corrected values beside W [B,HV,chunks CHUNK,K quads + V quads]),  output [B,T,HO,V] float32 or float16
//
// A workgroup owns 64 tokens (one or two chunks) x 64 columns, an invocation 8 tokens x columns (4 tx.., 32 + 4 tx..). Sums over s stop at the block of r.
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

// The first `n` of four tokens.
fn store_tokens(at: u32, n: u32, tile: mat4x4f) {
  store(at, tile[0]);
  if (n > 1) { store(at + p.o_row, tile[1]); }
  if (n > 2) { store(at + 2 * p.o_row, tile[2]); }
  if (n > 3) { store(at + 3 * p.o_row, tile[3]); }
}

fn scaled(tile: mat4x4f, columns: vec4f) -> mat4x4f {
  return mat4x4f(tile[0] * columns.x, tile[1] * columns.y, tile[2] * columns.z, tile[3] * columns.w);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let v_tiles = (p.OQ + 15) / 16;
  let head = group.y / v_tiles;
  let t = group.x * 64 + lane / 8 * 8;
  let chunk = t / CHUNK;
  let block = t % CHUNK / 8;
  let va = (group.y % v_tiles) * 16 + lane % 8;
  if (t >= p.tokens || va >= p.OQ) { return; }
  let has_vb = va + 8 < p.OQ;
  let vb_step = select(0u, 8u, has_vb);
  let state_head = head / p.v_div;
  let state = group.z * p.HV + state_head;
  let slot = (state * p.slots + chunk * p.slot_step) * 4 * p.KQ * p.VQ;

  // Columns va (l, left) and vb (r, right) of the block's tokens 0-7, and the normalizer of tokens 0-3 and 4-7.
  var l0 = vec4f();
  var r0 = vec4f();
  var l1 = vec4f();
  var r1 = vec4f();
  var l2 = vec4f();
  var r2 = vec4f();
  var l3 = vec4f();
  var r3 = vec4f();
  var l4 = vec4f();
  var r4 = vec4f();
  var l5 = vec4f();
  var r5 = vec4f();
  var l6 = vec4f();
  var r6 = vec4f();
  var l7 = vec4f();
  var r7 = vec4f();
  var z0 = vec4f();
  var z1 = vec4f();
  let z_quad = p.V / 4;
  let q_at = p.q_base + (group.z * p.tokens + t) * p.q_row + (head / p.q_div) * p.KQ;
  for (var d = 0u; d < p.KQ; d++) {
    var decay = vec4f(1);
    if (KEYED) { decay = blocks[((state * p.chunks + chunk) * 3 * BLOCKS + 3 * block + 1) * p.KQ + d]; }
    let q0 = q_tokens(q_at + d);
    let q1 = q_tokens(q_at + d + 4 * p.q_row);
    let at = slot + 4 * d * p.VQ;
    let sa = state_rows(at + va, decay);
    l0 += sa * q0[0];
    l1 += sa * q0[1];
    l2 += sa * q0[2];
    l3 += sa * q0[3];
    l4 += sa * q1[0];
    l5 += sa * q1[1];
    l6 += sa * q1[2];
    l7 += sa * q1[3];
    let sb = state_rows(at + va + vb_step, decay);
    r0 += sb * q0[0];
    r1 += sb * q0[1];
    r2 += sb * q0[2];
    r3 += sb * q0[3];
    r4 += sb * q1[0];
    r5 += sb * q1[1];
    r6 += sb * q1[2];
    r7 += sb * q1[3];
    if (NORMALIZE) {
      let z = transpose(state_rows(at + z_quad, decay))[p.V % 4];
      z0 += z * q0;
      z1 += z * q1;
    }
  }
  if (GATED) {
    let gate = state * p.tokens + t;
    var d0 = vec4f(gates[gate].y, gates[gate + 1].y, gates[gate + 2].y, gates[gate + 3].y);
    var d1 = vec4f(gates[gate + 4].y, gates[gate + 5].y, gates[gate + 6].y, gates[gate + 7].y);
    if (BEFORE) {
      d1 = vec4f(d0.w, d1.xyz);
      var first = 1.0;
      if (block > 0) { first = gates[gate - 1].y; }
      d0 = vec4f(first, d0.xyz);
    }
    l0 *= d0.x;
    r0 *= d0.x;
    l1 *= d0.y;
    r1 *= d0.y;
    l2 *= d0.z;
    r2 *= d0.z;
    l3 *= d0.w;
    r3 *= d0.w;
    l4 *= d1.x;
    r4 *= d1.x;
    l5 *= d1.y;
    r5 *= d1.y;
    l6 *= d1.z;
    r6 *= d1.z;
    l7 *= d1.w;
    r7 *= d1.w;
    z0 *= d0;
    z1 *= d1;
  }
  if (CAUSAL) {
    var score_at = ((group.z * p.HO + head) * p.chunks + chunk) * CHUNK * CHUNK / 4 + 2 * block;
    var v_at = p.v_base + (group.z * p.tokens + chunk * CHUNK) * p.v_row + state_head * p.VI;
    if (DELTA) { v_at = (state * p.chunks + chunk) * CHUNK * p.v_row + p.KQ; }
    let end = min(8 * block + 8, p.tokens - chunk * CHUNK);
    for (var s = 0u; s < end; s++) {
      let w0 = scores[score_at];
      let w1 = scores[score_at + 1];
      let left = load_v(v_at + va);
      let right = load_v(v_at + va + vb_step);
      l0 += left * w0.x;
      r0 += right * w0.x;
      l1 += left * w0.y;
      r1 += right * w0.y;
      l2 += left * w0.z;
      r2 += right * w0.z;
      l3 += left * w0.w;
      r3 += right * w0.w;
      l4 += left * w1.x;
      r4 += right * w1.x;
      l5 += left * w1.y;
      r5 += right * w1.y;
      l6 += left * w1.z;
      r6 += right * w1.z;
      l7 += left * w1.w;
      r7 += right * w1.w;
      if (NORMALIZE) {
        var one = 1.0;
        if (DELTA) { one = load_v(v_at + z_quad)[p.V % 4]; }
        z0 += one * w0;
        z1 += one * w1;
      }
      score_at += CHUNK / 4;
      v_at += p.v_row;
    }
  }
  var f0 = vec4f(p.scale);
  var f1 = f0;
  if (NORMALIZE) {
    f0 /= p.scale * z0 + 1e-6;
    f1 /= p.scale * z1 + 1e-6;
  }
  let n = p.tokens - t;
  let o_at = p.o_base + (group.z * p.tokens + t) * p.o_row + head * p.OQ + va;
  store_tokens(o_at, n, scaled(mat4x4f(l0, l1, l2, l3), f0));
  if (n > 4) { store_tokens(o_at + 4 * p.o_row, n - 4, scaled(mat4x4f(l4, l5, l6, l7), f1)); }
  if (has_vb) {
    store_tokens(o_at + 8, n, scaled(mat4x4f(r0, r1, r2, r3), f0));
    if (n > 4) { store_tokens(o_at + 8 + 4 * p.o_row, n - 4, scaled(mat4x4f(r4, r5, r6, r7), f1)); }
  }
}
