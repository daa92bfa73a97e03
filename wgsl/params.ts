/**
 * The uniforms of each operator's shaders, in order: one `Params` struct of 32-bit words. `npm run gen` writes the struct into the
 * shaders, `packParams` fills it.
 */

const linearAttention = [
  // sizes
  'tokens', // per batch row
  'chunks',
  'HV',
  'HO',
  'K',
  'V',
  'W', // V + normalize
  'KQ', // quads (4 elements) of a key head
  'VQ', // quads of a row of the state
  'VI', // quads of a value head
  'OQ', // quads of an output head
  // heads: what an output head is divided by for its query and its state, a state for its key
  'q_div',
  'k_div',
  'v_div',
  // quads (elements in features and decode) per token, and where the tensor starts in its binding
  'q_row',
  'k_row',
  'v_row',
  'o_row',
  'q_base',
  'k_base',
  'v_base',
  'o_base',
  // elements
  'decay_row',
  'beta_row',
  'decay_base',
  'beta_base',
  'bonus_base',
  'mask_base',
  'past_base',
  'present_base',
  // states per head; their distance from chunk to chunk in step "output"
  'slots',
  'slot_step',
  'segments',
  'segment_chunks',
  // features, scan and pack: rows or elements in all; row length in elements and quads; rows per token
  'count',
  'x_size',
  'x_quads',
  'x_heads',
  'x_base',
  'scale',
] as const;

const causalConvWithState = [
  'tokens',
  'D',
  'W',
  'count', // elements in all
  'row_base', // the first row's number
  'x_base',
  'weight_base',
  'bias_base',
  'past_base',
  'y_base',
] as const;

export const paramFields = {
  linear_attention: linearAttention,
  causal_conv_with_state: causalConvWithState,
} as const;

export type Params = Partial<
  Record<(typeof linearAttention)[number] | (typeof causalConvWithState)[number], number>
>;

const isFloat = (name: string) => name === 'scale';

/** The struct and the binding as they stand in the shaders. */
export function paramsWgsl(fields: readonly string[]): string {
  const members = fields.map((name) => `  ${name}: ${isFloat(name) ? 'f32' : 'u32'},\n`).join('');
  return `struct Params {\n${members}}\n@group(0) @binding(0) var<uniform> p: Params;\n`;
}

/** Bytes between the params of two dispatches: the offset alignment of uniform bindings. */
export const PARAMS_STRIDE = 256;

/** Writes `params` into `words` in the order of `fields`; what is not given is 0. */
export function packParams(
  fields: readonly (keyof Params)[],
  params: Params,
  words: Uint32Array,
): void {
  const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
  for (const [i, name] of fields.entries()) {
    (isFloat(name) ? floats : words)[i] = params[name] ?? 0;
  }
}
