// LinearAttention, few tokens in one dispatch: token by token, the state in registers from the first to the last.
//
//   linear S += k v'     gated S = e^g S + k v'     delta S += beta k (v - S'k)'     gated_delta: S = e^g S, then delta
//   o = scale S'q after, before, or before plus the token itself weighed by `bonus`
//
//   query [B,T,HQ*K], key [B,T,HK*K], value [B,T,HV*V], decay [B,T,HV] or [B,T,HV*K], extra = beta [B,T,HV] or [B,T,1] (delta rules) or
//   bonus [HV*K], past, present [B,HV,K,W] (W = V or V + 1, may be one buffer), output [B,T,HO*V]
//
// A workgroup owns 32 columns of one state, an invocation 2 columns x up to 16 key dims (part, part + PARTS, ...). Sums over key dims meet in
// workgroup memory. With NORMALIZE every workgroup carries the normalizer's column besides its own, to divide by it.
// Two entry points, because a stage may have 8 storage buffers: `main` without mask, `masked` with the past in place (or none).

override PARTS: u32 = 8;
override LANES: u32 = 128; // 16 PARTS
override K_SIZE: u32 = 64; // K
override LOOPS: u32 = 8; // K / PARTS, rounded up; up to 16
override HALF: bool = false; // query, key, value, output are float16
override STATE_HALF: bool = false;
override START: u32 = 0; // from 0 zeros, 1 past, 2 present (in place)
override MAP: u32 = 0; // as in linear_attention_features.wgsl
override L2NORM: bool = false;
override DECAY: u32 = 0; // 0 none, 1 per head, 2 per key dimension
override DECAY_HALF: bool = false;
override EXTRA_HALF: bool = false;
override DELTA: bool = false;
override READ: u32 = 0; // 0 after, 1 before, 2 bonus
override NORMALIZE: bool = false;
override PRESENT: bool = true;
override MASK_BOOL: bool = true;

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
@group(0) @binding(1) var<storage, read> query: array<u32>;
@group(0) @binding(2) var<storage, read> key: array<u32>;
@group(0) @binding(3) var<storage, read> value: array<u32>;
@group(0) @binding(4) var<storage, read> past: array<u32>;
@group(0) @binding(5) var<storage, read> decay: array<u32>;
@group(0) @binding(6) var<storage, read> extra: array<u32>;
@group(0) @binding(7) var<storage, read> mask: array<u32>;
@group(0) @binding(8) var<storage, read_write> output: array<u32>;
@group(0) @binding(9) var<storage, read_write> present: array<u32>;

var<private> S: array<vec3f, 16>; // two columns of key dim part + i PARTS, and the normalizer

var<workgroup> vectors: array<f32, K_SIZE>; // k
var<workgroup> queries: array<f32, K_SIZE>;
var<workgroup> factors: array<f32, K_SIZE>; // e^g
var<workgroup> sums: array<vec3f, LANES>;

fn number(word: u32, i: u32, half: bool) -> f32 {
  if (half) { return unpack2x16float(word >> (16 * (i & 1))).x; }
  return bitcast<f32>(word);
}

fn load_query(i: u32) -> f32 { return number(query[select(i, i >> 1, HALF)], i, HALF); }
fn load_key(i: u32) -> f32 { return number(key[select(i, i >> 1, HALF)], i, HALF); }
fn load_value(i: u32) -> f32 { return number(value[select(i, i >> 1, HALF)], i, HALF); }
fn load_decay(i: u32) -> f32 { return number(decay[select(i, i >> 1, DECAY_HALF)], i, DECAY_HALF); }
fn load_extra(i: u32) -> f32 { return number(extra[select(i, i >> 1, EXTRA_HALF)], i, EXTRA_HALF); }
fn load_past(i: u32) -> f32 { return number(past[select(i, i >> 1, STATE_HALF)], i, STATE_HALF); }
fn load_present(i: u32) -> f32 { return number(present[select(i, i >> 1, STATE_HALF)], i, STATE_HALF); }

// float32 to float16 bits, to nearest, ties to even.
fn half_bits(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let size = bits & 0x7fffffff;
  var half = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  if (size < 0x38800000) { half = bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000; }
  if (size >= 0x47800000) { half = select(0x7c00u, 0x7e00u, size > 0x7f800000); }
  return half | ((bits >> 16) & 0x8000);
}

// e^x for -87 <= x <= 88: 2^n times a polynomial (Cephes) in x - n ln 2.
fn exp_exact(v: f32) -> f32 {
  let c = clamp(v, -87, 88);
  let n = round(c * 1.44269504);
  let r = fma(n, 2.12194440e-4, fma(n, -0.693359375, c));
  var e = fma(r, 1.9875691500e-4, 1.3981999507e-3);
  e = fma(e, r, 8.3334519073e-3);
  e = fma(e, r, 4.1665795894e-2);
  e = fma(e, r, 1.6666665459e-1);
  e = fma(e, r, 0.5);
  return (fma(e, r * r, r) + 1) * bitcast<f32>((i32(n) + 127) << 23u);
}

fn map(x: f32) -> f32 {
  switch (MAP) {
    case 1: { return select(exp_exact(x), x + 1, x > 0); }
    case 2: { return max(x, 0); }
    case 3: { return exp_exact(min(x, 80)); }
    case 4: { return x / (1 + exp_exact(-x)); }
    default: { return x; }
  }
}

// What element x of a head vector is divided by to make it a unit vector, in two steps: max(1, largest |x|), then the rest.
fn unit_divisors(is_key: bool) -> vec2f {
  var top = 1.0;
  for (var i = 0u; i < K_SIZE; i++) { top = max(top, abs(select(queries[i], vectors[i], is_key))); }
  var sum = (1e-6 / top) / top;
  for (var i = 0u; i < K_SIZE; i++) {
    let x = select(queries[i], vectors[i], is_key) / top;
    sum += x * x;
  }
  return vec2f(top, sqrt(sum));
}

fn softmax_parts(is_key: bool) -> vec2f {
  var top = select(queries[0], vectors[0], is_key);
  for (var i = 1u; i < K_SIZE; i++) { top = max(top, select(queries[i], vectors[i], is_key)); }
  var sum = 0.0;
  for (var i = 0u; i < K_SIZE; i++) { sum += exp_exact(select(queries[i], vectors[i], is_key) - top); }
  return vec2f(top, sum);
}

// The features of one head vector, starting at element `at`, into `vectors` (keys) or `queries`. All invocations call it together.
fn load_vector(is_key: bool, at: u32, lane: u32, seen: bool) {
  for (var i = lane; i < K_SIZE; i += LANES) {
    var x = 0.0;
    if (is_key) { x = load_key(at + i); } else { x = load_query(at + i); }
    if (is_key) { vectors[i] = map(x); } else { queries[i] = map(x); }
  }
  workgroupBarrier();
  if (MAP == 6) {
    let parts = softmax_parts(is_key);
    workgroupBarrier();
    for (var i = lane; i < K_SIZE; i += LANES) {
      if (is_key) {
        vectors[i] = exp_exact(vectors[i] - parts.x) / parts.y;
      } else {
        queries[i] = exp_exact(queries[i] - parts.x) / parts.y;
      }
    }
    workgroupBarrier();
  }
  for (var step = 0u; step < 2; step++) {
    if ((step == 0 && MAP == 5) || (step == 1 && L2NORM)) {
      let by = unit_divisors(is_key);
      workgroupBarrier();
      for (var i = lane; i < K_SIZE; i += LANES) {
        if (is_key) { vectors[i] = (vectors[i] / by.x) / by.y; } else { queries[i] = (queries[i] / by.x) / by.y; }
      }
      workgroupBarrier();
    }
  }
  if (is_key && !seen) {
    for (var i = lane; i < K_SIZE; i += LANES) { vectors[i] = 0; }
  }
  workgroupBarrier();
}

// The sum over the parts of the key dims; x and y of the invocation's columns, z of the normalizer.
fn reduce(v: vec3f, lane: u32) -> vec3f {
  sums[lane] = v;
  workgroupBarrier();
  var total = vec3f();
  for (var i = lane % 16; i < LANES; i += 16) { total += sums[i]; }
  workgroupBarrier();
  return total;
}

// The past, into S.
fn load_state(group: vec3u, lane: u32) {
  let column = group.x * 32 + 2 * (lane % 16);
  for (var i = 0u; i < LOOPS; i++) {
    let d = lane / 16 + i * PARTS;
    let at = p.past_base + ((group.z * p.HV + group.y) * K_SIZE + d) * p.W;
    if (d < K_SIZE) {
      if (column < p.W) { S[i].x = load_past(at + column); }
      if (column + 1 < p.W) { S[i].y = load_past(at + column + 1); }
      if (NORMALIZE) { S[i].z = load_past(at + p.V); }
    }
  }
}

// `hidden`: bit t is set when token t is invisible.
fn run(group: vec3u, lane: u32, hidden: u32) {
  let part = lane / 16;
  let head = group.y;
  let column = group.x * 32 + 2 * (lane % 16);
  let W = p.W;
  let state_at = (group.z * p.HV + head) * K_SIZE * W;
  let has_x = column < W;
  let has_y = column + 1 < W;
  let shared_queries = p.v_div; // query heads of this state

  if (START == 2) {
    for (var i = 0u; i < LOOPS; i++) {
      let d = part + i * PARTS;
      let at = p.present_base + state_at + d * W;
      if (d < K_SIZE) {
        if (has_x) { S[i].x = load_present(at + column); }
        if (has_y) { S[i].y = load_present(at + column + 1); }
        if (NORMALIZE) { S[i].z = load_present(at + p.V); }
      }
    }
  }
  if (START == 2) { storageBarrier(); } // the normalizer is read by all invocations, written by one

  for (var t = 0u; t < p.tokens; t++) {
    let token = group.z * p.tokens + t;
    let seen = ((hidden >> t) & 1) == 0;
    load_vector(true, p.k_base + token * p.k_row + (head / p.k_div) * K_SIZE, lane, seen);
    var value_here = vec3f(0, 0, 1);
    let value_at = p.v_base + token * p.v_row + head * p.V + column;
    if (column < p.V) { value_here.x = load_value(value_at); } else if (NORMALIZE && column == p.V) { value_here.x = 1; }
    if (column + 1 < p.V) { value_here.y = load_value(value_at + 1); } else if (NORMALIZE && column + 1 == p.V) { value_here.y = 1; }
    var factor = 1.0;
    if (DECAY == 1 && seen) { factor = exp(max(load_decay(p.decay_base + token * p.decay_row + head), -1e4)); }
    if (DECAY == 2) {
      for (var i = lane; i < K_SIZE; i += LANES) {
        factors[i] = 1;
        if (seen) { factors[i] = exp(max(load_decay(p.decay_base + token * p.decay_row + head * K_SIZE + i), -1e4)); }
      }
      workgroupBarrier();
    }
    if (READ != 0) { write_outputs(group, lane, t, head, shared_queries, column, value_here); }
    var write = value_here;
    if (DELTA) {
      var sum = vec3f();
      for (var i = 0u; i < LOOPS; i++) {
        let d = part + i * PARTS;
        if (d < K_SIZE) {
          if (DECAY == 2) { S[i] *= factors[d]; } else if (DECAY == 1) { S[i] *= factor; }
          sum += S[i] * vectors[d];
        }
      }
      var beta = 0.0;
      if (seen) { beta = load_extra(p.beta_base + token * p.beta_row + min(head, p.beta_row - 1)); }
      write = beta * (write - reduce(sum, lane));
    }
    for (var i = 0u; i < LOOPS; i++) {
      let d = part + i * PARTS;
      if (d < K_SIZE) {
        if (!DELTA) {
          if (DECAY == 2) { S[i] *= factors[d]; } else if (DECAY == 1) { S[i] *= factor; }
        }
        S[i] += vectors[d] * write;
      }
    }
    if (READ == 0) { write_outputs(group, lane, t, head, shared_queries, column, value_here); }
    workgroupBarrier();
  }
  if (PRESENT) {
    for (var i = 0u; i < LOOPS; i++) {
      let d = part + i * PARTS;
      if (d < K_SIZE) {
        let at = p.present_base + state_at + d * W + column;
        if (STATE_HALF) {
          if (has_x) { present[at >> 1] = half_bits(S[i].x) | (half_bits(S[i].y) << 16); }
        } else {
          if (has_x) { present[at] = bitcast<u32>(S[i].x); }
          if (has_y) { present[at + 1] = bitcast<u32>(S[i].y); }
        }
      }
    }
  }
}

// The outputs of one token, from the state as it is.
fn write_outputs(group: vec3u, lane: u32, t: u32, head: u32, shared_queries: u32, column: u32, value_here: vec3f) {
  let part = lane / 16;
  let token = group.z * p.tokens + t;
  for (var n = 0u; n < shared_queries; n++) {
    let output_head = head * shared_queries + n;
    load_vector(false, p.q_base + token * p.q_row + (output_head / p.q_div) * K_SIZE, lane, true);
    var sum = vec3f();
    for (var i = 0u; i < LOOPS; i++) {
      let d = part + i * PARTS;
      if (d < K_SIZE) {
        var row = S[i];
        if (READ == 2) { row += load_extra(p.bonus_base + head * K_SIZE + d) * vectors[d] * value_here; }
        sum += queries[d] * row;
      }
    }
    let total = reduce(sum, lane);
    if (part == 0) {
      var o = total.xy * p.scale;
      if (NORMALIZE) { o /= p.scale * total.z + 1e-6; }
      let at = p.o_base + (token * p.HO + output_head) * p.V + column;
      if (HALF) {
        if (column < p.V) { output[at >> 1] = half_bits(o.x) | (half_bits(o.y) << 16); }
      } else {
        if (column < p.V) { output[at] = bitcast<u32>(o.x); }
        if (column + 1 < p.V) { output[at + 1] = bitcast<u32>(o.y); }
      }
    }
  }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  if (START == 1) { load_state(group, lane); }
  run(group, lane, 0);
}

fn visible(token: u32) -> bool {
  let i = p.mask_base + token;
  if (MASK_BOOL) {
    return ((mask[i >> 2] >> (8 * (i & 3))) & 0xff) != 0;
  }
  return bitcast<f32>(mask[i]) != 0;
}

@compute @workgroup_size(LANES)
fn masked(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  var hidden = 0u;
  for (var t = 0u; t < p.tokens; t++) {
    if (!visible(group.z * p.tokens + t)) { hidden |= 1u << t; }
  }
  run(group, lane, hidden);
}
