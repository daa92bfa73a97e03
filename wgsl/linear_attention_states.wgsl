// LinearAttention, step "states": what each chunk of 64 tokens adds to the state (rules linear and gated).
//
//   N = sum over the chunk of (k_s e^(g summed over the rest of the chunk)) v_s'
//
//   k [B,T,key heads,K], v [B,T,HV,V]     states [B,HV,slots,K,V quads]: N of chunk c in slot c + 1
//
// A workgroup owns 64 x 64 elements of one state, an invocation 8 x 8: key dims (4 ty.., 32 + 4 ty..) x columns (4 tx.., 32 + 4 tx..).
// With NORMALIZER the state's last quad of columns is (sum of weighted k, 0, 0, 0): as if v ended in a 1.
// The tile's operands are read through the caches: 4 quads for 64 products.

override K_HALF: bool = false;
override V_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // k from step "keyed"
override NORMALIZER: bool = false;

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
@group(0) @binding(5) var<storage, read_write> states: array<vec4f>;

fn load_k(i: u32) -> vec4f {
  if (K_HALF) {
    let w = k[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(k[2 * i], k[2 * i + 1]));
}

fn load_v(i: u32) -> vec4f {
  if (V_HALF) {
    let w = v[i];
    return vec4f(unpack2x16float(w.x), unpack2x16float(w.y));
  }
  return bitcast<vec4f>(vec4u(v[2 * i], v[2 * i + 1]));
}

// Column i: row * column[i].
fn outer(row: vec4f, column: vec4f) -> mat4x4f {
  return mat4x4f(row * column.x, row * column.y, row * column.z, row * column.w);
}

fn store(at: u32, tile: mat4x4f) {
  states[at] = tile[0];
  states[at + p.VQ] = tile[1];
  states[at + 2 * p.VQ] = tile[2];
  states[at + 3 * p.VQ] = tile[3];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let chunk = group.x;
  let v_tiles = (p.VI + 15) / 16;
  let k_tiles = (p.KQ + 15) / 16;
  let head = group.y / (v_tiles * k_tiles);
  let tile = group.y % (v_tiles * k_tiles);
  let ka = (tile / v_tiles) * 16 + lane / 8;
  let va = (tile % v_tiles) * 16 + lane % 8;
  if (ka >= p.KQ || va >= p.VI) { return; }
  let has_kb = ka + 8 < p.KQ;
  let has_vb = va + 8 < p.VI;
  let state = group.z * p.HV + head;
  let n = min(64, p.tokens - chunk * 64);
  let token = group.z * p.tokens + chunk * 64;
  var k_at = p.k_base + token * p.k_row + (head / p.k_div) * p.KQ + ka;
  var v_at = p.v_base + token * p.v_row + head * p.VI + va;
  let kb_step = select(0u, 8u, has_kb);
  let vb_step = select(0u, 8u, has_vb);

  // Columns va (l, left) and vb (r, right) of rows 4 ka.. (a) and 4 kb.. (b).
  var la0 = vec4f();
  var ra0 = vec4f();
  var la1 = vec4f();
  var ra1 = vec4f();
  var la2 = vec4f();
  var ra2 = vec4f();
  var la3 = vec4f();
  var ra3 = vec4f();
  var lb0 = vec4f();
  var rb0 = vec4f();
  var lb1 = vec4f();
  var rb1 = vec4f();
  var lb2 = vec4f();
  var rb2 = vec4f();
  var lb3 = vec4f();
  var rb3 = vec4f();
  var za = vec4f();
  var zb = vec4f();
  var later_a = vec4f(1);
  var later_b = vec4f(1);
  for (var s = 0u; s < n; s++) {
    var a = load_k(k_at);
    var b = load_k(k_at + kb_step);
    var left = load_v(v_at);
    var right = load_v(v_at + vb_step);
    if (GATED) {
      let weight = gates[state * p.tokens + chunk * 64 + s].z;
      a *= weight;
      b *= weight;
    }
    if (KEYED) {
      if (s % 8 == 0) {
        let at = ((state * p.chunks + chunk) * 24 + 3 * (s / 8) + 2) * p.KQ + ka;
        later_a = blocks[at];
        later_b = blocks[at + kb_step];
      }
      a *= later_a;
      b *= later_b;
    }
    if (NORMALIZER) {
      za += a;
      zb += b;
    }
    la0 += left * a.x;
    ra0 += right * a.x;
    la1 += left * a.y;
    ra1 += right * a.y;
    la2 += left * a.z;
    ra2 += right * a.z;
    la3 += left * a.w;
    ra3 += right * a.w;
    lb0 += left * b.x;
    rb0 += right * b.x;
    lb1 += left * b.y;
    rb1 += right * b.y;
    lb2 += left * b.z;
    rb2 += right * b.z;
    lb3 += left * b.w;
    rb3 += right * b.w;
    k_at += p.k_row;
    v_at += p.v_row;
  }
  let at = (state * p.slots + chunk + 1) * 4 * p.KQ * p.VQ + 4 * ka * p.VQ + va;
  store(at, mat4x4f(la0, la1, la2, la3));
  if (has_vb) { store(at + 8, mat4x4f(ra0, ra1, ra2, ra3)); }
  if (has_kb) { store(at + 32 * p.VQ, mat4x4f(lb0, lb1, lb2, lb3)); }
  if (has_kb && has_vb) { store(at + 32 * p.VQ + 8, mat4x4f(rb0, rb1, rb2, rb3)); }
  if (NORMALIZER && va == 0) {
    let z_at = at + p.VQ - 1;
    store(z_at, outer(vec4f(1, 0, 0, 0), za));
    if (has_kb) { store(z_at + 32 * p.VQ, outer(vec4f(1, 0, 0, 0), zb)); }
  }
}
