// LinearAttention, step "walk" (delta rules): from chunk to chunk through one segment of the sequence.
//
//   R = U - W S,  S' = e^(g summed over the chunk) S + sum over the chunk of (k_s e^(g summed over the rest of the chunk)) R_s'
//
//   k [B,T,key heads,K]; wu from step "solve": W and U side by side; states [B,HV,slots,K,V quads]: S at the start of chunk c in slot c, read in slot 0 of the
//   segment and written in the others; U is replaced by R.
//   MAPS: the segment as an affine map of the state before it, S' = Map S + N: the walk of the columns [N Map] from [0 I] with U = [U 0].
//   maps [B,HV,segments,K,V quads + K quads], rest [B,HV,segments,CHUNK,V quads + K quads] takes R, U stays as it is.
//
// A workgroup owns one segment of one state, 64 columns of it. An invocation owns 64 / SPAN tokens x as many columns of R, then as many key
// dims x columns of S; between the two all of them meet at a barrier. Columns do not depend on each other. This is the one step that goes
// through a sequence: with SPAN = 16 a workgroup has 256 invocations and takes less time for a chunk, with SPAN = 8 it has 64 and takes
// less work.

override K_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false; // k from step "keyed"
override MAPS: bool = false;
override SPAN: u32 = 8; // 8 or 16
override LANES: u32 = 64; // SPAN^2
override LARGE: bool = true; // SPAN is 8
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
@group(0) @binding(2) var<storage, read> gates: array<vec4f>;
@group(0) @binding(3) var<storage, read> blocks: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> wu: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> rest: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> states: array<vec4f>; // or maps

fn load_k(i: u32) -> vec4f {
  if (K_HALF) {
    let word = k[i];
    return vec4f(unpack2x16float(word.x), unpack2x16float(word.y));
  }
  return bitcast<vec4f>(vec4u(k[2 * i], k[2 * i + 1]));
}

fn state_rows(at: u32, row: u32) -> mat4x4f {
  return mat4x4f(states[at], states[at + row], states[at + 2 * row], states[at + 3 * row]);
}

fn scaled(tile: mat4x4f, factor: vec4f) -> mat4x4f {
  return mat4x4f(tile[0] * factor.x, tile[1] * factor.y, tile[2] * factor.z, tile[3] * factor.w);
}

fn store_rows(at: u32, row: u32, tile: mat4x4f) {
  states[at] = tile[0];
  states[at + row] = tile[1];
  states[at + 2 * row] = tile[2];
  states[at + 3 * row] = tile[3];
}

fn w_tokens(at: u32, row: u32) -> mat4x4f {
  return mat4x4f(wu[at], wu[at + row], wu[at + 2 * row], wu[at + 3 * row]);
}

fn u_tokens(at: u32, row: u32, column: u32) -> mat4x4f {
  if (MAPS && column >= p.VQ) { return mat4x4f(); }
  return w_tokens(at + p.KQ + column, row);
}

fn load_r(at: u32) -> vec4f {
  if (MAPS) { return rest[at]; }
  return wu[at];
}

fn store_r(at: u32, row: u32, tile: mat4x4f) {
  if (MAPS) {
    rest[at] = tile[0];
    rest[at + row] = tile[1];
    rest[at + 2 * row] = tile[2];
    rest[at + 3 * row] = tile[3];
  } else {
    wu[at] = tile[0];
    wu[at + row] = tile[1];
    wu[at + 2 * row] = tile[2];
    wu[at + 3 * row] = tile[3];
  }
}

// The columns 4 column.. of the identity, rows 4 d..
fn identity(d: u32, column: u32) -> mat4x4f {
  let one = select(0.0, 1.0, column == p.VQ + d);
  return mat4x4f(vec4f(one, 0, 0, 0), vec4f(0, one, 0, 0), vec4f(0, 0, one, 0), vec4f(0, 0, 0, one));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let segment = group.x;
  let columns = select(p.VQ, p.VQ + p.KQ, MAPS);
  let wu_row = p.KQ + p.VQ;
  let tiles = (columns + 15) / 16;
  let head = group.y / tiles;
  let va = (group.y % tiles) * 16 + lane % SPAN;
  let vb = min(va + 8, columns - 1);
  let busy = va < columns;
  let has_vb = LARGE && va + 8 < columns;
  let part = lane / SPAN;
  let first_token = part * (64 / SPAN);
  let state = group.z * p.HV + head;
  let size = 4 * p.KQ * columns;
  let first_chunk = segment * p.segment_chunks;
  let last_chunk = min(first_chunk + p.segment_chunks, p.chunks);
  var slot = (state * p.slots + first_chunk) * size;
  let slot_step = select(size, 0, MAPS);
  let rest_at = (state * p.segments + segment) * CHUNK * columns;
  if (MAPS) {
    slot = (state * p.segments + segment) * size;
    for (var d = part; d < p.KQ && busy; d += SPAN) {
      store_rows(slot + 4 * d * columns + va, columns, identity(d, va));
      if (has_vb) { store_rows(slot + 4 * d * columns + vb, columns, identity(d, vb)); }
    }
    storageBarrier();
  }
  for (var chunk = first_chunk; chunk < last_chunk; chunk++) {
    let row = (state * p.chunks + chunk) * CHUNK;
    let n = min(CHUNK, p.tokens - chunk * CHUNK);
    var r_row = wu_row;
    var r_at = row * wu_row + p.KQ;
    if (MAPS) {
      r_row = columns;
      r_at = rest_at;
    }

    if (busy && first_token < n) {
      let at = (row + first_token) * wu_row;
      // Columns va (l, left) and vb (r, right) of the tokens 0-7 of R; when not LARGE, columns va of the tokens 0-3.
      let u0a = u_tokens(at, wu_row, va);
      var l0 = u0a[0];
      var l1 = u0a[1];
      var l2 = u0a[2];
      var l3 = u0a[3];
      var l4: vec4f;
      var l5: vec4f;
      var l6: vec4f;
      var l7: vec4f;
      var r0: vec4f;
      var r1: vec4f;
      var r2: vec4f;
      var r3: vec4f;
      var r4: vec4f;
      var r5: vec4f;
      var r6: vec4f;
      var r7: vec4f;
      if (LARGE) {
        let u0b = u_tokens(at, wu_row, vb);
        let u1a = u_tokens(at + 4 * wu_row, wu_row, va);
        let u1b = u_tokens(at + 4 * wu_row, wu_row, vb);
        l4 = u1a[0];
        r0 = u0b[0];
        r4 = u1b[0];
        l5 = u1a[1];
        r1 = u0b[1];
        r5 = u1b[1];
        l6 = u1a[2];
        r2 = u0b[2];
        r6 = u1b[2];
        l7 = u1a[3];
        r3 = u0b[3];
        r7 = u1b[3];
      }
      for (var d = 0u; d < p.KQ; d++) {
        let w0 = w_tokens(at + d, wu_row);
        let sa = state_rows(slot + 4 * d * columns + va, columns);
        l0 -= sa * w0[0];
        l1 -= sa * w0[1];
        l2 -= sa * w0[2];
        l3 -= sa * w0[3];
        if (LARGE) {
          let w1 = w_tokens(at + 4 * wu_row + d, wu_row);
          l4 -= sa * w1[0];
          l5 -= sa * w1[1];
          l6 -= sa * w1[2];
          l7 -= sa * w1[3];
          let sb = state_rows(slot + 4 * d * columns + vb, columns);
          r0 -= sb * w0[0];
          r1 -= sb * w0[1];
          r2 -= sb * w0[2];
          r3 -= sb * w0[3];
          r4 -= sb * w1[0];
          r5 -= sb * w1[1];
          r6 -= sb * w1[2];
          r7 -= sb * w1[3];
        }
      }
      let to = r_at + first_token * r_row;
      store_r(to + va, r_row, mat4x4f(l0, l1, l2, l3));
      if (LARGE) { store_r(to + 4 * r_row + va, r_row, mat4x4f(l4, l5, l6, l7)); }
      if (has_vb) {
        store_r(to + vb, r_row, mat4x4f(r0, r1, r2, r3));
        store_r(to + 4 * r_row + vb, r_row, mat4x4f(r4, r5, r6, r7));
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
        fa = vec4f(gates[state * p.tokens + chunk * CHUNK + n - 1].y);
        fb = fa;
      }
      if (KEYED) {
        let b_at = ((state * p.chunks + chunk) * 3 * BLOCKS + 3 * BLOCKS - 3) * p.KQ;
        fa = blocks[b_at + ka] * blocks[b_at + p.KQ + ka];
        fb = blocks[b_at + kb] * blocks[b_at + p.KQ + kb];
      }
      let s00 = scaled(state_rows(at_a + va, columns), fa);
      // Columns va (l, left) and vb (r, right) of rows 4 ka.. (a) and 4 kb.. (b); when not LARGE, columns va of rows 4 ka...
      var la0 = s00[0];
      var la1 = s00[1];
      var la2 = s00[2];
      var la3 = s00[3];
      var lb0: vec4f;
      var ra0: vec4f;
      var rb0: vec4f;
      var lb1: vec4f;
      var ra1: vec4f;
      var rb1: vec4f;
      var lb2: vec4f;
      var ra2: vec4f;
      var rb2: vec4f;
      var lb3: vec4f;
      var ra3: vec4f;
      var rb3: vec4f;
      if (LARGE) {
        let s01 = scaled(state_rows(at_a + vb, columns), fa);
        let s10 = scaled(state_rows(at_b + va, columns), fb);
        let s11 = scaled(state_rows(at_b + vb, columns), fb);
        ra0 = s01[0];
        lb0 = s10[0];
        rb0 = s11[0];
        ra1 = s01[1];
        lb1 = s10[1];
        rb1 = s11[1];
        ra2 = s01[2];
        lb2 = s10[2];
        rb2 = s11[2];
        ra3 = s01[3];
        lb3 = s10[3];
        rb3 = s11[3];
      }
      var k_at = p.k_base + (group.z * p.tokens + chunk * CHUNK) * p.k_row + (head / p.k_div) * p.KQ;
      var from_r = r_at;
      var later_a = vec4f(1);
      var later_b = vec4f(1);
      for (var s = 0u; s < n; s++) {
        if (KEYED && s % 8 == 0) {
          let b_at = ((state * p.chunks + chunk) * 3 * BLOCKS + 3 * (s / 8) + 2) * p.KQ;
          later_a = blocks[b_at + ka];
          later_b = blocks[b_at + kb];
        }
        var weight = 1.0;
        if (GATED) { weight = gates[state * p.tokens + chunk * CHUNK + s].z; }
        var a = load_k(k_at + ka);
        if (GATED) { a *= weight; }
        if (KEYED) { a *= later_a; }
        let left = load_r(from_r + va);
        la0 += left * a.x;
        la1 += left * a.y;
        la2 += left * a.z;
        la3 += left * a.w;
        if (LARGE) {
          var b = load_k(k_at + kb);
          if (GATED) { b *= weight; }
          if (KEYED) { b *= later_b; }
          let right = load_r(from_r + vb);
          lb0 += left * b.x;
          ra0 += right * a.x;
          rb0 += right * b.x;
          lb1 += left * b.y;
          ra1 += right * a.y;
          rb1 += right * b.y;
          lb2 += left * b.z;
          ra2 += right * a.z;
          rb2 += right * b.z;
          lb3 += left * b.w;
          ra3 += right * a.w;
          rb3 += right * b.w;
        }
        k_at += p.k_row;
        from_r += r_row;
      }
      store_rows(at_a + slot_step + va, columns, mat4x4f(la0, la1, la2, la3));
      if (has_vb) { store_rows(at_a + slot_step + vb, columns, mat4x4f(ra0, ra1, ra2, ra3)); }
      if (LARGE && ka + 8 < p.KQ) {
        store_rows(at_b + slot_step + va, columns, mat4x4f(lb0, lb1, lb2, lb3));
        if (has_vb) { store_rows(at_b + slot_step + vb, columns, mat4x4f(rb0, rb1, rb2, rb3)); }
      }
    }
    slot += slot_step;
    storageBarrier();
  }
}
