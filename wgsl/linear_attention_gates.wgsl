// LinearAttention, step "gates": decay per head and beta of every token, in the forms that the other steps use.
//
//   decay [B,T,HV], beta [B,T,HV] or [B,T,1], float32 or float16
//   gates [B,HV,T] of (g, e^(g summed over the chunk up to this token), e^(g summed over the rest of the chunk), beta)
//   totals [B,HV,chunks,BLOCKS]: g summed over blocks of 8 tokens
//
// A workgroup owns 64 tokens of one head, one or two chunks. Every sum is taken over exactly the tokens it is about, never as a difference of two
// longer sums, so that a token that forgets everything costs its neighbours no precision.

override GATED: bool = true;
override DECAY_HALF: bool = false;
override BETA: bool = true;
override BETA_HALF: bool = false;
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
@group(0) @binding(1) var<storage, read> decay: array<u32>;
@group(0) @binding(2) var<storage, read> beta: array<u32>;
@group(0) @binding(3) var<storage, read> mask: array<u32>;
@group(0) @binding(4) var<storage, read_write> gates: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> totals: array<f32>;

var<workgroup> chunk_g: array<f32, 64>;

fn visible(token: u32) -> bool {
  let i = p.mask_base + token;
  if (MASK_BOOL) {
    return ((mask[i >> 2] >> (8 * (i & 3))) & 0xff) != 0;
  }
  return bitcast<f32>(mask[i]) != 0;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x * 64 + lane;
  let head = group.z * p.HV + group.y;
  let token = group.z * p.tokens + t;
  let there = t < p.tokens;
  var seen = there;
  if (MASKED && there) { seen = visible(token); }
  var g = 0.0;
  if (GATED && seen) {
    let i = p.decay_base + token * p.decay_row + group.y;
    if (DECAY_HALF) {
      g = unpack2x16float(decay[i >> 1] >> (16 * (i & 1))).x;
    } else {
      g = bitcast<f32>(decay[i]);
    }
    g = max(g, -1e4);
  }
  var b = 0.0;
  if (BETA && seen) {
    let i = p.beta_base + token * p.beta_row + min(group.y, p.beta_row - 1);
    if (BETA_HALF) {
      b = unpack2x16float(beta[i >> 1] >> (16 * (i & 1))).x;
    } else {
      b = bitcast<f32>(beta[i]);
    }
  }
  chunk_g[lane] = g;
  workgroupBarrier();
  var before = 0.0;
  var after = 0.0;
  if (GATED) {
    let start = lane - lane % CHUNK;
    for (var i = start; i <= lane; i++) { before += chunk_g[i]; }
    for (var i = lane + 1; i < start + CHUNK; i++) { after += chunk_g[i]; }
    let block = group.x * 8 + lane;
    if (lane < 8 && block < p.chunks * BLOCKS) {
      var total = 0.0;
      for (var i = 0u; i < 8; i++) { total += chunk_g[8 * lane + i]; }
      totals[head * p.chunks * BLOCKS + block] = total;
    }
  }
  if (there) {
    gates[head * p.tokens + t] = vec4f(g, exp(before), exp(after), b);
  }
}
