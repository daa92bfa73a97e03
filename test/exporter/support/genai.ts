import { DATA_TYPE, type Model, makeTensor } from '../../../exporter/index.js';
import { VOCABULARY } from './decoder.js';
import { ropeTable } from './families/rope.js';
import { Writer } from './families.js';
import { makeLayer } from './layer.js';
import { random } from './run.js';

const HIDDEN = 32;
const HEADS = 4;
const KV_HEADS = 2;
const DIM = 16;
const LAYERS = 2;
const MICROSOFT = { domain: 'com.microsoft' };

/**
 * A decoder of two layers as onnxruntime-genai's builder writes it: 4-bit weights, packed QKV, GroupQueryAttention with the
 * rotary embedding inside, SkipSimplifiedLayerNormalization, a gated MLP.
 */
export function genaiModel(): Model {
  const w = new Writer(makeLayer(HIDDEN, HEADS, KV_HEADS, DIM));
  const next = random(31);
  const numbers = (name: string, ...dims: number[]) => {
    const count = dims.reduce((a, b) => a * b, 1);
    return w.weight(
      name,
      dims,
      Array.from({ length: count }, () => Math.fround(next())),
    );
  };
  const product = (name: string, x: string, from: number, to: number) => {
    const bytes = Array.from({ length: (to * from) / 2 }, () => Math.floor((next() + 1) * 128));
    w.weights.push(makeTensor(`${name}.qweight`, 'uint8', [to, from / 32, 16], bytes));
    const scales = w.weight(
      `${name}.scales`,
      [(to * from) / 32],
      Array((to * from) / 32).fill(1 / 32),
    );
    const attrs = { K: from, N: to, bits: 4, block_size: 32, accuracy_level: 0 };
    return w.op('MatMulNBits', [x, `${name}.qweight`, scales], attrs, MICROSOFT);
  };
  w.inputs.input_ids = ['int64', ['batch_size', 'sequence_length']];
  w.maskInput(['batch_size', 'total_sequence_length']);
  delete w.inputs.x;
  w.outputs.y = ['float32', ['batch_size', 'sequence_length', VOCABULARY]];
  for (let i = 0; i < LAYERS; i++)
    for (const what of ['key', 'value']) {
      const dims = (tokens: string) => ['float32', ['batch_size', KV_HEADS, tokens, DIM]] as const;
      w.inputs[`past_key_values.${i}.${what}`] = dims('past_sequence_length');
      w.outputs[`present.${i}.${what}`] = dims('total_sequence_length');
    }
  // seqlens_k is [B,1] here.
  const sum = w.op('ReduceSum', ['attention_mask', w.ints(1)], { keepdims: 1 });
  const seqlens = w.op('Cast', [w.op('Sub', [sum, w.ints(1)])], { to: DATA_TYPE.int32 });
  const width = w.op('Gather', [w.op('Shape', ['attention_mask']), w.constant('int64', [1], [])]);
  const total = w.op('Cast', [width], { to: DATA_TYPE.int32 });
  const tables = (['cos', 'sin'] as const).map((t) =>
    w.weight(`${t}_cache`, [64, DIM / 2], ropeTable(t, { rotary: DIM }, 64)),
  );
  const epsilon = { epsilon: { float: 1e-6 } };
  let skip = w.op('Gather', [numbers('embed_tokens', VOCABULARY, HIDDEN), 'input_ids']);
  let x = w.op('SimplifiedLayerNormalization', [skip, numbers('norm', HIDDEN)], {
    axis: -1,
    ...epsilon,
  });
  for (let i = 0; i < LAYERS; i++) {
    const qkv = product(`layers.${i}.qkv`, x, HIDDEN, (HEADS + 2 * KV_HEADS) * DIM);
    const past = ['key', 'value'].map((what) => `past_key_values.${i}.${what}`);
    const inputs = [qkv, '', '', ...past, seqlens, total, ...tables];
    const outputs = [`attn.${i}`, `present.${i}.key`, `present.${i}.value`];
    const attrs = { num_heads: HEADS, kv_num_heads: KV_HEADS, do_rotary: 1 };
    const scale = { scale: { float: 0.25 }, softcap: { float: 0 }, local_window_size: -1 };
    w.ops('GroupQueryAttention', inputs, outputs, { ...attrs, ...scale }, MICROSOFT);
    const normed = (name: string, value: string): [string, string] => {
      const [y, , , sumOf] = w.ops(
        'SkipSimplifiedLayerNormalization',
        [skip, value, numbers(name, HIDDEN)],
        [`${name}.y`, '', '', `${name}.sum`],
        epsilon,
        MICROSOFT,
      );
      return [y!, sumOf!];
    };
    const o = product(`layers.${i}.o`, outputs[0]!, HEADS * DIM, HIDDEN);
    [x, skip] = normed(`layers.${i}.post_norm`, o);
    const gate = product(`layers.${i}.gate`, x, HIDDEN, 64);
    const active = w.op('Mul', [gate, w.op('Sigmoid', [gate])]);
    const up = w.op('Mul', [active, product(`layers.${i}.up`, x, HIDDEN, 64)]);
    [x, skip] = normed(`layers.${i}.next_norm`, product(`layers.${i}.down`, up, 64, HIDDEN));
  }
  w.op('MatMul', [x, numbers('lm_head', HIDDEN, VOCABULARY)], {}, { output: 'y' });
  return w.build(21);
}
