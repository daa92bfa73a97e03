import { DATA_TYPE, type Model } from '../../../exporter/index.js';
import { packedWeights, Writer } from './families.js';
import { makeLayer } from './layer.js';

/** Tokens that the buffers of these decoders have room for. */
export const ROOM = 12;

/** A decoder of one layer over hidden states [B,1,E], whose cache is a buffer that is written in place. */
export interface OneToken {
  readonly name: string;
  readonly pattern: string;
  /** What ONNX Runtime says instead of running it on the CPU; `wrong`: it takes the whole buffer for cached tokens (#32723). */
  readonly noKernel?: RegExp | 'wrong';
  readonly build: () => Model;
}

const MICROSOFT = { domain: 'com.microsoft' };
const layer = () => makeLayer(12, 4, 4, 8);

function start(): { w: Writer; padding: string } {
  const w = new Writer(layer());
  w.inputs.x = ['float32', ['batch', 1, 12]];
  w.outputs.y = ['float32', ['batch', 1, 12]];
  w.inputs.past_sequence_length = ['int32', [1]];
  const mask = w.maskInput(['batch', 'total_sequence']);
  return { w, padding: w.op('Cast', [mask], { to: DATA_TYPE.int32 }) };
}

/** Keys and values apart. */
function multiHead(opType: string, order: (parts: Record<string, string>) => string[]): Model {
  const { w, padding } = start();
  const { heads, dim, bq, bk, bv } = w.layer;
  for (const what of ['key', 'value']) {
    w.inputs[`past_key_values.0.${what}`] = ['float32', ['batch', heads, ROOM, dim]];
    w.outputs[`present.0.${what}`] = ['float32', ['batch', heads, ROOM, dim]];
  }
  const bias = w.weight('bias', [3 * bq.length], [...bq, ...bk, ...bv]);
  const [q, k, v] = [w.product('q'), w.product('k'), w.product('v')];
  const attrs = {
    num_heads: heads,
    ...(opType.startsWith('D') && { past_present_share_buffer: 1 }),
  };
  const presents = ['present.0.key', 'present.0.value'];
  w.ops(opType, [q!, k!, v!, ...order({ bias, padding })], ['att', ...presents], attrs, MICROSOFT);
  return w.project('att');
}

/** Keys and values in one, projections inside. */
function packed(opType: string): Model {
  const { w, padding } = start();
  const { heads, dim } = w.layer;
  w.inputs.past_0 = ['float32', [2, 'batch', heads, ROOM, dim]];
  w.outputs.present_0 = ['float32', [2, 'batch', heads, ROOM, dim]];
  const { weight, bias } = packedWeights(w);
  w.ops(
    opType,
    ['x', weight, bias, padding, 'past_0', '', 'past_sequence_length'],
    ['att', 'present_0'],
    {
      num_heads: heads,
      past_present_share_buffer: 1,
      ...(opType === 'Attention' && { unidirectional: 1 }),
    },
    MICROSOFT,
  );
  return w.project('att');
}

const PAST = ['past_key_values.0.key', 'past_key_values.0.value', 'past_sequence_length'];

export const ONE_TOKEN: readonly OneToken[] = [
  {
    name: 'DecoderMaskedMultiHeadAttention',
    pattern: 'com.microsoft.DecoderMaskedMultiHeadAttention',
    build: () =>
      multiHead('DecoderMaskedMultiHeadAttention', ({ bias, padding }) => [
        padding!,
        '',
        ...PAST,
        '',
        '',
        bias!,
      ]),
  },
  {
    name: 'MultiHeadAttention',
    pattern: 'com.microsoft.MultiHeadAttention',
    noKernel: 'wrong',
    build: () =>
      multiHead('MultiHeadAttention', ({ bias, padding }) => [bias!, padding!, '', ...PAST]),
  },
  {
    name: 'com.microsoft.Attention',
    pattern: 'com.microsoft.Attention',
    noKernel: /past_sequence_length tensor must be of one element/,
    build: () => packed('Attention'),
  },
  {
    name: 'DecoderMaskedSelfAttention',
    pattern: 'com.microsoft.DecoderMaskedSelfAttention',
    noKernel: /Could not find an implementation/,
    build: () => packed('DecoderMaskedSelfAttention'),
  },
];

/** The numbers of the layer. */
export const oneTokenLayer = layer;
