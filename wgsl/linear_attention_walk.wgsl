// LinearAttention, step "walk" (delta rules): from chunk to chunk through one segment of the sequence.
//
//   R = U - W S,  S' = e^(g summed over the chunk) S + sum over the chunk of (k_s e^(g summed over the rest of the chunk)) R_s'
//
//   k [B,T,key heads,K]; w, u from step "solve"; states [B,HV,slots,K,V quads]: S at the start of chunk c in slot c, read in slot 0 of the
//   segment and written in the others; u is replaced by R.
//   MAPS: the segment as an affine map of the state before it, S' = Map S + N: the walk of the columns [N Map] from [0 I] with U = [U 0].
//   maps [B,HV,segments,K,V quads + K quads], rest [B,HV,segments,64,V quads + K quads] takes R, u stays as it is.
//
// A workgroup owns one segment of one state, 64 columns of it. An invocation owns 8 tokens x 8 columns of R, then 8 key dims x 8 columns
// of S; between the two all of them meet at a barrier. Columns do not depend on each other.

override K_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // k from step "keyed"
override MAPS: bool = false;

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
@group(0) @binding(2) var<storage, read> gates: array<vec4f>;
@group(0) @binding(3) var<storage, read> blocks: array<vec4f>;
@group(0) @binding(4) var<storage, read> w: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> u: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> rest: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> states: array<vec4f>; // or maps

fn load_k(i: u32) -> vec4f {
  if (K_HALF) {
    let word = k[i];
    return vec4f(unpack2x16float(word.x), unpack2x16float(word.y));
  }
  return bitcast<vec4f>(vec4u(k[2 * i], k[2 * i + 1]));
}

fn outer(row: vec4f, column: vec4f) -> mat4x4f {
  return mat4x4f(row * column.x, row * column.y, row * column.z, row * column.w);
}

fn state_rows(at: u32, row: u32) -> mat4x4f {
  return mat4x4f(states[at], states[at + row], states[at + 2 * row], states[at + 3 * row]);
}

fn scaled(tile: mat4x4f, factor: vec4f) -> mat4x4f {
  return mat4x4f(tile[0] * factor.x, tile[1] * factor.y, tile[2] * factor.z, tile[3] * factor.w);
}

fn store_rows(at: u32, row: u32, tile: mat4x4f) {
  for (var i = 0u; i < 4; i++) { states[at + i * row] = tile[i]; }
}

fn w_tokens(at: u32) -> mat4x4f {
  return mat4x4f(w[at], w[at + p.KQ], w[at + 2 * p.KQ], w[at + 3 * p.KQ]);
}

fn load_u(at: u32, column: u32) -> vec4f {
  if (MAPS && column >= p.VQ) { return vec4f(); }
  return u[at];
}

fn u_tokens(at: u32, column: u32) -> mat4x4f {
  return mat4x4f(
    load_u(at, column), load_u(at + p.VQ, column), load_u(at + 2 * p.VQ, column), load_u(at + 3 * p.VQ, column));
}

fn load_r(at: u32) -> vec4f {
  if (MAPS) { return rest[at]; }
  return u[at];
}

fn store_r(at: u32, row: u32, tile: mat4x4f) {
  for (var i = 0u; i < 4; i++) {
    if (MAPS) { rest[at + i * row] = tile[i]; } else { u[at + i * row] = tile[i]; }
  }
}

// The columns 4 column.. of the identity, rows 4 d..
fn identity(d: u32, column: u32) -> mat4x4f {
  let one = select(0.0, 1.0, column == p.VQ + d);
  return mat4x4f(vec4f(one, 0, 0, 0), vec4f(0, one, 0, 0), vec4f(0, 0, one, 0), vec4f(0, 0, 0, one));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let segment = group.x;
  let columns = select(p.VQ, p.VQ + p.KQ, MAPS);
  let tiles = (columns + 15) / 16;
  let head = group.y / tiles;
  let va = (group.y % tiles) * 16 + lane % 8;
  let vb = min(va + 8, columns - 1);
  let busy = va < columns;
  let has_vb = va + 8 < columns;
  let part = lane / 8;
  let state = group.z * p.HV + head;
  let size = 4 * p.KQ * columns;
  let first_chunk = segment * p.segment_chunks;
  let last_chunk = min(first_chunk + p.segment_chunks, p.chunks);
  var slot = (state * p.slots + first_chunk) * size;
  let slot_step = select(size, 0, MAPS);
  let rest_at = (state * p.segments + segment) * 64 * columns;
  if (MAPS) {
    slot = (state * p.segments + segment) * size;
    for (var d = part; d < p.KQ && busy; d += 8) {
      store_rows(slot + 4 * d * columns + va, columns, identity(d, va));
      if (has_vb) { store_rows(slot + 4 * d * columns + vb, columns, identity(d, vb)); }
    }
    storageBarrier();
  }
  for (var chunk = first_chunk; chunk < last_chunk; chunk++) {
    let row = (state * p.chunks + chunk) * 64;
    let n = min(64, p.tokens - chunk * 64);
    let r_row = select(p.VQ, columns, MAPS);
    var r_at = row * p.VQ;
    if (MAPS) { r_at = rest_at; }

    if (busy && part * 8 < n) {
      let at = (row + part * 8) * p.VQ;
      var r0a = u_tokens(at + va, va);
      var r0b = u_tokens(at + vb, vb);
      var r1a = u_tokens(at + 4 * p.VQ + va, va);
      var r1b = u_tokens(at + 4 * p.VQ + vb, vb);
      let w_at = (row + part * 8) * p.KQ;
      for (var d = 0u; d < p.KQ; d++) {
        let w0 = w_tokens(w_at + d);
        let w1 = w_tokens(w_at + 4 * p.KQ + d);
        let sa = state_rows(slot + 4 * d * columns + va, columns);
        r0a -= sa * w0;
        r1a -= sa * w1;
        let sb = state_rows(slot + 4 * d * columns + vb, columns);
        r0b -= sb * w0;
        r1b -= sb * w1;
      }
      let to = r_at + part * 8 * r_row;
      store_r(to + va, r_row, r0a);
      store_r(to + 4 * r_row + va, r_row, r1a);
      if (has_vb) {
        store_r(to + vb, r_row, r0b);
        store_r(to + 4 * r_row + vb, r_row, r1b);
      }
    }
    storageBarrier();

    for (var ka = part; ka < p.KQ && busy; ka += 16) {
      let kb = min(ka + 8, p.KQ - 1);
      let at_a = slot + 4 * ka * columns;
      let at_b = slot + 4 * kb * columns;
      var fa = vec4f(1);
      var fb = vec4f(1);
      if (GATED) {
        fa = vec4f(gates[state * p.tokens + chunk * 64 + n - 1].y);
        fb = fa;
      }
      if (KEYED) {
        let b_at = ((state * p.chunks + chunk) * 24 + 21) * p.KQ;
        fa = blocks[b_at + ka] * blocks[b_at + p.KQ + ka];
        fb = blocks[b_at + kb] * blocks[b_at + p.KQ + kb];
      }
      var n00 = scaled(state_rows(at_a + va, columns), fa); // (ka, va)
      var n01 = scaled(state_rows(at_a + vb, columns), fa); // (ka, vb)
      var n10 = scaled(state_rows(at_b + va, columns), fb);
      var n11 = scaled(state_rows(at_b + vb, columns), fb);
      var k_at = p.k_base + (group.z * p.tokens + chunk * 64) * p.k_row + (head / p.k_div) * p.KQ;
      var r = r_at;
      var later_a = vec4f(1);
      var later_b = vec4f(1);
      for (var s = 0u; s < n; s++) {
        var a = load_k(k_at + ka);
        var b = load_k(k_at + kb);
        if (GATED) {
          let weight = gates[state * p.tokens + chunk * 64 + s].z;
          a *= weight;
          b *= weight;
        }
        if (KEYED) {
          if (s % 8 == 0) {
            let b_at = ((state * p.chunks + chunk) * 24 + 3 * (s / 8) + 2) * p.KQ;
            later_a = blocks[b_at + ka];
            later_b = blocks[b_at + kb];
          }
          a *= later_a;
          b *= later_b;
        }
        let left = load_r(r + va);
        let right = load_r(r + vb);
        n00 += outer(left, a);
        n01 += outer(right, a);
        n10 += outer(left, b);
        n11 += outer(right, b);
        k_at += p.k_row;
        r += r_row;
      }
      store_rows(at_a + slot_step + va, columns, n00);
      if (has_vb) { store_rows(at_a + slot_step + vb, columns, n01); }
      if (ka + 8 < p.KQ) {
        store_rows(at_b + slot_step + va, columns, n10);
        if (has_vb) { store_rows(at_b + slot_step + vb, columns, n11); }
      }
    }
    slot += slot_step;
    storageBarrier();
  }
}
