// LinearAttention, step "chain" (delta rules): the state at the start of every segment, S_i+1 = Map_i S_i + N_i.
//
//   maps [B,HV,segments,K,V quads + K quads] of (N, Map) from step "walk"; states [B,HV,slots,K,V quads]: slot 0 is read, the slots of the
//   segments' first chunks are written.
//
// A workgroup owns 64 columns of one state and goes from segment to segment; an invocation owns 4 key dims x 4 columns at a time.

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

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let tiles = (p.VQ + 15) / 16;
  let head = group.y / tiles;
  let v = (group.y % tiles) * 16 + lane % 16;
  let busy = v < p.VQ;
  let state = group.z * p.HV + head;
  let columns = p.VQ + p.KQ;
  let size = 4 * p.KQ * p.VQ;
  for (var segment = 0u; segment + 1 < p.segments; segment++) {
    let start = (state * p.slots + segment * p.segment_chunks) * size;
    let to = start + p.segment_chunks * size;
    let map = (state * p.segments + segment) * 4 * p.KQ * columns;
    for (var k = lane / 16; k < p.KQ && busy; k += 16) {
      let row = map + 4 * k * columns;
      let n = map_rows(row + v, columns);
      var s0 = n[0];
      var s1 = n[1];
      var s2 = n[2];
      var s3 = n[3];
      for (var d = 0u; d < p.KQ; d++) {
        let m = map_rows(row + p.VQ + d, columns);
        let s = state_rows(start + 4 * d * p.VQ + v);
        s0 += s * m[0];
        s1 += s * m[1];
        s2 += s * m[2];
        s3 += s * m[3];
      }
      store_rows(to + 4 * k * p.VQ + v, mat4x4f(s0, s1, s2, s3));
    }
    storageBarrier();
  }
}
