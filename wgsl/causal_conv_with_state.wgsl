// CausalConvWithState: output[b,d,t] = act(bias[d] + sum_w weight[d,0,w] x[b,d,t+w]), x = the W - 1 carried inputs, then the T new ones;
// present_state[b,d,:] = the last W - 1 of x. Gu and Dao 2023 (Mamba), arXiv 2312.00752.
//
//   input, output [B,D,T], weight [D,1,W], bias [D], past, present [B,D,W-1], all float32 or all float16; sums in float32
//
// An invocation owns two neighbouring elements (one word of float16) of the output, or of present_state (STATE), so that no word has two
// writers. Where past_state and present_state share a buffer, `past` is a copy.

override HALF: bool = false;
override PAST: bool = false;
override BIAS: bool = false;
override SILU: bool = false;
override STATE: bool = false;

// <params>
struct Params {
  tokens: u32,
  D: u32,
  W: u32,
  count: u32,
  row_base: u32,
  x_base: u32,
  weight_base: u32,
  bias_base: u32,
  past_base: u32,
  y_base: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
// </params>
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read> weight: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<u32>;
@group(0) @binding(4) var<storage, read> past: array<u32>;
@group(0) @binding(5) var<storage, read_write> result: array<u32>;

fn number(word: u32, i: u32) -> f32 {
  if (HALF) { return unpack2x16float(word >> (16 * (i & 1))).x; }
  return bitcast<f32>(word);
}

fn place(i: u32) -> u32 { return select(i, i >> 1, HALF); }

// e^x for -87 <= x <= 88, good to about 1 ulp: 2^n times a polynomial (Cephes) in x - n ln 2.
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

// x[row, i]: i < W - 1 carried, then new.
fn carried_or_new(row: u32, i: u32) -> f32 {
  if (i < p.W - 1) {
    if (!PAST) { return 0; }
    let element = row * (p.W - 1) + i;
    let at = p.past_base + element;
    return number(past[place(at)], at);
  }
  let at = p.x_base + row * p.tokens + i - (p.W - 1);
  return number(input[place(at)], at);
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

fn value(element: u32) -> f32 {
  if (STATE) {
    return carried_or_new(element / (p.W - 1), element % (p.W - 1) + p.tokens);
  }
  let row = element / p.tokens;
  let t = element % p.tokens;
  let d = (row + p.row_base) % p.D;
  var sum = 0.0;
  if (BIAS) { sum = number(bias[place(p.bias_base + d)], p.bias_base + d); }
  for (var w = 0u; w < p.W; w++) {
    let i = p.weight_base + d * p.W + w;
    sum += number(weight[place(i)], i) * carried_or_new(row, t + w);
  }
  if (SILU) { sum = sum / (1 + exp_exact(-sum)); }
  return sum;
}

fn store(first: u32, low: f32, high: f32) {
  let has_low = first < p.count;
  let has_high = first + 1 < p.count;
  if (!HALF) {
    if (has_low) { result[p.y_base + first] = bitcast<u32>(low); }
    if (has_high) { result[p.y_base + first + 1] = bitcast<u32>(high); }
    return;
  }
  let word = (p.y_base + first) >> 1;
  var bits = result[word];
  if (has_low) { bits = (bits & 0xffff0000) | half_bits(low); }
  if (has_high) { bits = (bits & 0xffff) | (half_bits(high) << 16); }
  result[word] = bits;
}

fn pair(first: u32) -> vec2f {
  var v = vec2f();
  if (first < p.count) { v.x = value(first); }
  if (first + 1 < p.count) { v.y = value(first + 1); }
  return v;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
  let index = (group.y * groups.x + group.x) * 64 + lane;
  let first = 2 * index - (p.y_base & 1); // wraps to 2^32 - 1 when the first word is shared with what lies before
  let v = pair(first);
  if (first < p.count || first + 1 < p.count) { store(first, v.x, v.y); }
}
