// LinearAttention, step "chain" (delta rules): the state at the start of every segment, S_i+1 = Map_i S_i + N_i.
//
//   maps [B,HV,segments,K,V quads + K quads] of (N, Map) from step "walk"; states [B,HV,slots,K,V quads]: slot 0 is read, the slots of the
//   segments' first chunks are written.
//
// A workgroup owns 64 columns of one state and goes from segment to segment; an invocation owns 8 key dims x 8 columns at a time.

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
@group(0) @binding(1) var<storage, read> maps: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> states: array<vec4f>;

fn state_rows(at: u32) -> mat4x4f {
  return mat4x4f(states[at], states[at + p.VQ], states[at + 2 * p.VQ], states[at + 3 * p.VQ]);
}

fn map_rows(at: u32, row: u32) -> mat4x4f {
  return mat4x4f(maps[at], maps[at + row], maps[at + 2 * row], maps[at + 3 * row]);
}

fn store_rows(at: u32, tile: mat4x4f) {
  states[at] = tile[0];
  states[at + p.VQ] = tile[1];
  states[at + 2 * p.VQ] = tile[2];
  states[at + 3 * p.VQ] = tile[3];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let tiles = (p.VQ + 15) / 16;
  let head = group.y / tiles;
  let va = (group.y % tiles) * 16 + lane % 8;
  let vb = min(va + 8, p.VQ - 1);
  let busy = va < p.VQ;
  let has_vb = va + 8 < p.VQ;
  let state = group.z * p.HV + head;
  let columns = p.VQ + p.KQ;
  let size = 4 * p.KQ * p.VQ;
  for (var segment = 0u; segment + 1 < p.segments; segment++) {
    let start = (state * p.slots + segment * p.segment_chunks) * size;
    let to = start + p.segment_chunks * size;
    let map = (state * p.segments + segment) * 4 * p.KQ * columns;
    for (var ka = lane / 8; ka < p.KQ && busy; ka += 16) {
      let kb = min(ka + 8, p.KQ - 1);
      let row_a = map + 4 * ka * columns;
      let row_b = map + 4 * kb * columns;
      var n00 = map_rows(row_a + va, columns);
      var n01 = map_rows(row_a + vb, columns);
      var n10 = map_rows(row_b + va, columns);
      var n11 = map_rows(row_b + vb, columns);
      for (var d = 0u; d < p.KQ; d++) {
        let m0 = map_rows(row_a + p.VQ + d, columns);
        let m1 = map_rows(row_b + p.VQ + d, columns);
        let sa = state_rows(start + 4 * d * p.VQ + va);
        n00 += sa * m0;
        n10 += sa * m1;
        let sb = state_rows(start + 4 * d * p.VQ + vb);
        n01 += sb * m0;
        n11 += sb * m1;
      }
      let at_a = to + 4 * ka * p.VQ;
      let at_b = to + 4 * kb * p.VQ;
      store_rows(at_a + va, n00);
      if (has_vb) { store_rows(at_a + vb, n01); }
      if (ka + 8 < p.KQ) {
        store_rows(at_b + va, n10);
        if (has_vb) { store_rows(at_b + vb, n11); }
      }
    }
    storageBarrier();
  }
}
