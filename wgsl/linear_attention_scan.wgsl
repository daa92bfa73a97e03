// LinearAttention, step "scan": the state at the start of every chunk, and at the end.
//
//   S_0 = past_state (or 0, or where the previous piece of the sequence ended);  S_c+1 = e^(g summed over chunk c) S_c + N_c
//
//   states [B,HV,slots,K,V quads]: N_c in slot c + 1, replaced by S_c+1; S_0 goes to slot 0     (STEPS = 0)
//   STEPS = 1: only slot 0 is written (the delta rules walk from there)     STEPS = 2: the last slot is what is left behind
//   carry [B,HV,K,V quads] float32: for the next piece     past, present [B,HV,K,W], W = V or V + 1, float32 or float16
//
// An invocation owns two neighbouring elements of [B,HV,K,W], one word of float16, so that no word has two writers. past_state and
// present_state may be one buffer, which is then bound as `present` only.

override STEPS: u32 = 0;
override START: u32 = 0; // from 0 zeros, 1 past_state, 2 carry
override IN_PLACE: bool = false;
override STATE_HALF: bool = false;
override GATED: bool = false;
override KEYED: bool = false;
override CARRY: bool = false; // leave the last state in carry
override PRESENT: bool = false; // and in present_state

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
@group(0) @binding(1) var<storage, read> past: array<u32>;
@group(0) @binding(2) var<storage, read> gates: array<vec4f>;
@group(0) @binding(3) var<storage, read> blocks: array<f32>;
@group(0) @binding(4) var<storage, read_write> states: array<f32>;
@group(0) @binding(5) var<storage, read_write> carry: array<f32>;
@group(0) @binding(6) var<storage, read_write> present: array<u32>;

fn half_or_float(word: u32, i: u32) -> f32 {
  if (STATE_HALF) { return unpack2x16float(word >> (16 * (i & 1))).x; }
  return bitcast<f32>(word);
}

fn load_past(element: u32) -> f32 {
  var i = p.past_base + element;
  if (IN_PLACE) {
    i = p.present_base + element;
    return half_or_float(present[select(i, i >> 1, STATE_HALF)], i);
  }
  return half_or_float(past[select(i, i >> 1, STATE_HALF)], i);
}

// e^(g summed over chunk c) of key dimension d.
fn factor(head: u32, c: u32, d: u32) -> f32 {
  if (GATED) {
    return gates[head * p.tokens + min(p.tokens, c * 64 + 64) - 1].y;
  }
  if (KEYED) {
    let at = ((head * p.chunks + c) * 24 + 21) * 4 * p.KQ + d;
    return blocks[at] * blocks[at + 4 * p.KQ];
  }
  return 1;
}

// The last state of one element of [B,HV,K,W].
fn run(element: u32) -> f32 {
  let W = p.W;
  let head = element / (p.K * W);
  let d = element / W % p.K;
  let column = element % W;
  let padded = d * 4 * p.VQ + column;
  let size = 16 * p.KQ * p.VQ;
  var at = head * p.slots * size + padded;
  var S = 0.0;
  if (STEPS == 2) {
    S = states[at + p.chunks * size];
  } else {
    if (START == 1) { S = load_past(element); }
    if (START == 2) { S = carry[head * size + padded]; }
    states[at] = S;
  }
  if (STEPS == 0) {
    var c = 0u;
    for (; c + 4 <= p.chunks; c += 4) {
      let N = vec4f(states[at + size], states[at + 2 * size], states[at + 3 * size], states[at + 4 * size]);
      let f = vec4f(factor(head, c, d), factor(head, c + 1, d), factor(head, c + 2, d), factor(head, c + 3, d));
      for (var i = 0u; i < 4; i++) {
        at += size;
        S = f[i] * S + N[i];
        states[at] = S;
      }
    }
    for (; c < p.chunks; c++) {
      at += size;
      S = factor(head, c, d) * S + states[at];
      states[at] = S;
    }
  }
  if (CARRY) { carry[head * size + padded] = S; }
  return S;
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
  let skew = p.present_base & 1;
  let first = 2 * index - skew; // wraps to 2^32 - 1 when the first word is shared with what lies before
  if (first >= p.count && first + 1 >= p.count) { return; }
  let has_low = first < p.count;
  let has_high = first + 1 < p.count;
  var low = 0.0;
  var high = 0.0;
  if (has_low) { low = run(first); }
  if (has_high) { high = run(first + 1); }
  if (PRESENT) {
    if (STATE_HALF) {
      let word = (p.present_base + first) >> 1;
      var bits = half_bits(low) | (half_bits(high) << 16);
      if (!has_low) { bits = (bits & 0xffff0000) | (present[word] & 0xffff); }
      if (!has_high) { bits = (bits & 0xffff) | (present[word] & 0xffff0000); }
      present[word] = bits;
    } else {
      if (has_low) { present[p.present_base + first] = bitcast<u32>(low); }
      if (has_high) { present[p.present_base + first + 1] = bitcast<u32>(high); }
    }
  }
}
