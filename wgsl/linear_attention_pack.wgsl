// LinearAttention, step "pack": outputs from rows of quads (float32) to their place in a tensor whose rows are no whole quads.
//
//   x [rows, ceil(n/4)] quads     y [rows, n] of float32 or float16, anywhere in its buffer
//
// An invocation owns two neighbouring elements, one word of float16, so that no word has two writers.

override HALF: bool = false;

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
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn load(element: u32) -> f32 {
  return x[(element / p.x_size) * 4 * p.x_quads + element % p.x_size];
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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = (group.y * groups.x + group.x) * 64 + lane;
  let first = 2 * index - (p.x_base & 1); // wraps to 2^32 - 1 when the first word is shared with what lies before
  if (first >= p.count && first + 1 >= p.count) { return; }
  let has_low = first < p.count;
  let has_high = first + 1 < p.count;
  if (!HALF) {
    if (has_low) { y[p.x_base + first] = bitcast<u32>(load(first)); }
    if (has_high) { y[p.x_base + first + 1] = bitcast<u32>(load(first + 1)); }
    return;
  }
  let word = (p.x_base + first) >> 1;
  var bits = y[word];
  if (has_low) { bits = (bits & 0xffff0000) | half_bits(load(first)); }
  if (has_high) { bits = (bits & 0xffff) | (half_bits(load(first + 1)) << 16); }
  y[word] = bits;
}
