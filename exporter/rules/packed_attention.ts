import type { Node } from '../ir/index.js';
import type { Facts } from '../match/facts.js';
import { headMismatch, shown } from '../match/heads.js';
import { type Rule, unsupported } from '../match/rule.js';
import type { Cache, Heads, MaskStep, Quantised, RuleResult } from '../match/sdpa.js';
import { beams, fusedSite, maskIndex, usedOutput } from './fused.js';

/** Which input is which; the first two are the hidden states and the weights, the third the bias. */
interface Inputs {
  readonly mask: number;
  readonly past: number;
  readonly added?: number;
  readonly filled?: number;
  readonly beamWidth?: number;
  readonly indirection?: number;
}

/**
 * com.microsoft.Attention, which ONNX Runtime's optimizers make of BERT and GPT-2:
 *
 *     output, present = Attention(input, weights, bias, mask_index, past, attention_bias, past_sequence_length)
 *
 * with weights [E, (Hq + Hk) * D + H * V] of the projections inside, and keys and values of earlier calls as one [2,B,H,T,D], or with
 * past_sequence_length a buffer [2,B,H,L,D], past and present in one.
 */
export const packedAttention = packedRule('com.microsoft.Attention', {
  mask: 3,
  past: 4,
  added: 5,
  filled: 6,
});

/**
 * The same of one token after others, in decoders: two inputs more, beam_width and cache_indirection. Keys lie in its cache in an order that suits
 * its CUDA kernel, the only one there is.
 */
export const decoderMaskedSelfAttention = packedRule('com.microsoft.DecoderMaskedSelfAttention', {
  mask: 3,
  past: 4,
  added: 5,
  filled: 6,
  beamWidth: 7,
  indirection: 8,
});

/**
 * The same with integers of 8 bits, as onnxruntime.quantization writes it:
 *
 *     output, present = QAttention(
 *         input, weight, bias, input_scale, weight_scale, mask_index, input_zero_point, weight_zero_point, past)
 *
 * with the scale and zero point of the weight as one number or one for each column.
 */
export const quantisedAttention = packedRule('com.microsoft.QAttention', { mask: 5, past: 8 });

function packedRule(name: string, at: Inputs): Rule {
  return {
    name,
    anchors: (node) => node.is(name.slice(name.lastIndexOf('.') + 1), 'com.microsoft'),
    match(node, facts): RuleResult {
      const refused = refusedFeature(node, at, facts);
      if (refused) return unsupported(refused);
      const quantised = node.is('QAttention', 'com.microsoft') ? quantisedInputs(node) : undefined;
      const heads = headsOfWeights(node, facts);
      if (typeof heads === 'string') return unsupported(heads);
      const [q, k, v] = heads.map((h): Heads => ({ ...h, ...(quantised && { quantised }) })) as [
        Heads,
        Heads,
        Heads,
      ];
      const partial = { q_num_heads: q.heads, kv_num_heads: v.heads, head_dim: q.dim };
      const cache = stackedCache(node, at, facts);
      if (typeof cache === 'string') return unsupported(cache, partial);
      const wrong = headMismatch(q, k, v);
      if (wrong) return unsupported(wrong, partial);
      const masks = masksOf(node, at, facts);
      if (typeof masks === 'string') return unsupported(masks, partial);
      const dtype = facts.dtype(node.inputs[quantised ? 2 : 0]!) ?? 'float32';
      return fusedSite(node, facts, { rule: name, q, k, v, masks, cache, dtype });
    },
  };
}

function refusedFeature(node: Node, at: Inputs, facts: Facts): string | undefined {
  if (node.int('do_rotary') === 1) return 'do_rotary must be 0, received 1: it brings no tables';
  const input = (i: number | undefined) => (i === undefined ? '' : (node.inputs[i] ?? ''));
  const shared = node.int('past_present_share_buffer') === 1;
  if (shared && !input(at.filled))
    return 'past_sequence_length must be given where past and present share a buffer';
  return beams(input(at.beamWidth), input(at.indirection), facts);
}

function quantisedInputs({ inputs }: Node): Quantised {
  const [valueScale, weightScale, valueZero, weightZero] = [3, 4, 6, 7].map((i) => inputs[i] ?? '');
  return {
    valueScale: valueScale!,
    weightScale: weightScale!,
    valueZero: valueZero!,
    weightZero: weightZero!,
  };
}

function headsOfWeights(node: Node, facts: Facts): [Heads, Heads, Heads] | string {
  const heads = node.int('num_heads') ?? 0;
  const [x, weight, bias] = node.inputs.map((v) => v || undefined);
  const columns = weight ? facts.dims(weight)?.[1] : undefined;
  const third = typeof columns === 'number' ? columns / 3 : 0;
  const sizes = node.ints('qkv_hidden_sizes')?.length
    ? node.ints('qkv_hidden_sizes')!
    : [third, third, third];
  const fit = sizes.every((n) => n > 0 && heads > 0 && n % heads === 0);
  if (!x || !weight || !fit || sizes.reduce((a, b) => a + b) !== columns) {
    return `weights must be [E,N] with N made of three parts that num_heads=${heads} divides, received [${shown(weight ? facts.dims(weight) : undefined)}]`;
  }
  return sizes.map((size, i): Heads => {
    const from = sizes.slice(0, i).reduce((a, b) => a + b, 0);
    return {
      value: x,
      layout: 'packed',
      weight,
      from,
      ...(bias && { bias: { value: bias, from } }),
      heads,
      dim: size / heads,
    };
  }) as [Heads, Heads, Heads];
}

function stackedCache(node: Node, at: Inputs, facts: Facts): Cache | string | undefined {
  const [past, present] = [node.inputs[at.past] ?? '', node.outputs[1] ?? ''];
  if (!past) {
    return usedOutput(node, 1, facts)
      ? `'${present}' is used although no past comes in`
      : undefined;
  }
  if (!facts.graph.isInput(past)) return `cache '${past}' must be a graph input`;
  const [use] = present ? facts.graph.uses(present) : [];
  if (use && !use.node.is('Shape')) {
    return `cache '${present}' is also read by ${use.node.opType} '${use.node.name}'`;
  }
  const filled = at.filled === undefined ? undefined : node.inputs[at.filled];
  return {
    stacked: true,
    ...(filled && { filled }),
    ...(node.is('DecoderMaskedSelfAttention', 'com.microsoft') && { opaque: true }),
    pastKey: past,
    pastValue: past,
    presentKey: present,
    presentValue: present,
  };
}

function masksOf(node: Node, { mask, added: at }: Inputs, facts: Facts): MaskStep[] | string {
  const masks: MaskStep[] = [];
  const added = at && node.inputs[at];
  if (added) masks.push({ kind: 'add', value: added });
  if (node.inputs[mask]) {
    const step = maskIndex('mask_index', node.inputs[mask], node, facts);
    if (typeof step === 'string') return step;
    masks.push(step);
  }
  // Of one token, whether its length can be seen or not.
  const last = node.is('DecoderMaskedSelfAttention', 'com.microsoft');
  if (last || node.int('unidirectional') === 1) masks.push({ kind: 'causal' });
  return masks;
}
