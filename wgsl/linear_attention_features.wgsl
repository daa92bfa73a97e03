// LinearAttention, step "features": y = phi(x) per head vector, as float32 in rows padded to whole quads (4 elements).
//
//   x  [rows, n] of float32 or float16, anywhere in its buffer     y  [rows, ceil(n/4)] quads
//
// phi is the feature map, then the division by sqrt(sum x^2 + 1e-6) when L2NORM; rows of invisible tokens become 0. Values pass
// through unmapped (MAP = 0), with a 1 appended when ONES (the column of the normalizer).
// An invocation owns one quad; where phi needs sums over the head vector (ROWWISE), it owns a whole row.
// Numeric notes: the exponential is our own, good to about 1 ulp where WGSL allows exp() 3 + 2|x| ulp; squares are taken of x / max(|x|)
// when that is above 1, because features reach e^80.

override HALF: bool = false; // x is float16
override MAP: u32 = 0; // 0 identity, 1 elu1, 2 relu, 3 exp, 4 silu, 5 l2norm, 6 softmax
override L2NORM: bool = false;
override ROWWISE: bool = false;
override ONES: bool = false;
override MASKED: bool = false;
override MASK_BOOL: bool = true; // bytes, else float32

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
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> mask: array<u32>; // [B,T]
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

fn load(i: u32) -> f32 {
  if (HALF) {
    return unpack2x16float(x[i >> 1] >> (16 * (i & 1))).x;
  }
  return bitcast<f32>(x[i]);
}

fn visible(token: u32) -> bool {
  let i = p.mask_base + token;
  if (MASK_BOOL) {
    return ((mask[i >> 2] >> (8 * (i & 3))) & 0xff) != 0;
  }
  return bitcast<f32>(mask[i]) != 0;
}

// e^x for -87 <= x <= 88: 2^n times a polynomial (Cephes) in x - n ln 2.
fn exp_exact(v: vec4f) -> vec4f {
  let c = clamp(v, vec4f(-87), vec4f(88));
  let n = round(c * 1.44269504);
  let r = fma(n, vec4f(2.12194440e-4), fma(n, vec4f(-0.693359375), c));
  var e = fma(r, vec4f(1.9875691500e-4), vec4f(1.3981999507e-3));
  e = fma(e, r, vec4f(8.3334519073e-3));
  e = fma(e, r, vec4f(4.1665795894e-2));
  e = fma(e, r, vec4f(1.6666665459e-1));
  e = fma(e, r, vec4f(0.5));
  return (fma(e, r * r, r) + 1) * bitcast<vec4f>((vec4i(n) + 127) << vec4u(23));
}

// The quad `i` of the row that starts at element `start`; 0 past its end.
fn quad(start: u32, i: u32, n: u32) -> vec4f {
  let e = start + 4 * i;
  if (4 * i + 4 <= n) {
    return vec4f(load(e), load(e + 1), load(e + 2), load(e + 3));
  }
  var v = vec4f();
  v.x = load(e);
  if (4 * i + 1 < n) { v.y = load(e + 1); }
  if (4 * i + 2 < n) { v.z = load(e + 2); }
  return v;
}

// The maps of single elements.
fn map(v: vec4f) -> vec4f {
  switch (MAP) {
    case 1: { return select(exp_exact(v), v + 1, v > vec4f()); }
    case 2: { return max(v, vec4f()); }
    case 3: { return exp_exact(min(v, vec4f(80))); }
    case 4: { return v / (1 + exp_exact(-v)); }
    default: { return v; }
  }
}

// 1 for elements of the row, 0 for its padding.
fn inside(i: u32, n: u32) -> vec4f {
  return select(vec4f(), vec4f(1), 4 * i + vec4u(0, 1, 2, 3) < vec4u(n));
}

fn largest(v: vec4f) -> f32 {
  return max(max(v.x, v.y), max(v.z, v.w));
}

fn unit(at: u32, quads: u32) {
  var top = 1.0;
  for (var i = 0u; i < quads; i++) { top = max(top, largest(abs(y[at + i]))); }
  var sum = (1e-6 / top) / top;
  for (var i = 0u; i < quads; i++) {
    let v = y[at + i] / top;
    sum += dot(v, v);
  }
  let length = sqrt(sum);
  for (var i = 0u; i < quads; i++) { y[at + i] = (y[at + i] / top) / length; }
}

fn softmax(at: u32, quads: u32, n: u32) {
  var top = y[at].x;
  for (var i = 0u; i < quads; i++) {
    top = max(top, largest(select(vec4f(top), y[at + i], inside(i, n) > vec4f())));
  }
  var sum = 0.0;
  for (var i = 0u; i < quads; i++) {
    let e = exp_exact(y[at + i] - top) * inside(i, n);
    y[at + i] = e;
    sum += dot(e, vec4f(1));
  }
  for (var i = 0u; i < quads; i++) { y[at + i] /= sum; }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = (group.y * groups.x + group.x) * 64 + lane;
  let n = p.x_size;
  let quads = p.x_quads;
  let row = select(index / quads, index, ROWWISE);
  if (row >= p.count) { return; }
  let first = select(index % quads, 0, ROWWISE);
  let last = select(first + 1, quads, ROWWISE);
  let start = p.x_base + row * n;
  let hidden = MASKED && !visible(row / p.x_heads);
  for (var i = first; i < last; i++) {
    var v = vec4f();
    if (!hidden && 4 * i < n) { v = map(quad(start, i, n)) * inside(i, n); }
    if (ONES && n / 4 == i) { v[n % 4] = 1; }
    y[row * quads + i] = v;
  }
  if (ROWWISE && !hidden) {
    if (MAP == 6) { softmax(row * quads, quads, n); }
    if (MAP == 5) { unit(row * quads, quads); }
    if (L2NORM) { unit(row * quads, quads); }
  }
}
