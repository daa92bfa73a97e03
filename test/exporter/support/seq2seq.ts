import {
  buildModel,
  DATA_TYPE,
  Emitter,
  type GraphProto,
  type Model,
  makeNode,
  makeTensor,
  type TensorProto,
  type ValueSpec,
} from '../../../exporter/index.js';
import { random } from './run.js';

export const SEQ2SEQ = { vocabulary: 29, hidden: 12, heads: 3, dim: 4, layers: 2, positions: 40 };
const { vocabulary, hidden, heads, dim, layers, positions } = SEQ2SEQ;

/** Writes a Transformer as torch traces Marian: scale on q, [B,H,T,D], the sum of the residual normalised afterwards. */
class Tracer extends Emitter {
  constructor(private readonly weights: Map<string, TensorProto>) {
    let count = 0;
    super((stem) => `/model/${stem}_${count++}`);
  }
  weight(name: string, ...dims: number[]): string {
    if (!this.weights.has(name)) {
      const next = random([...name].reduce((a, c) => a * 31 + c.charCodeAt(0), 7));
      const count = dims.reduce((a, b) => a * b, 1);
      const [middle, width] = name.endsWith('norm')
        ? [1, 0.2]
        : [0, /^(embed|places)$/.test(name) ? 2 : 0.8];
      const values = Array.from({ length: count }, () => Math.fround(middle + next() * width));
      this.weights.set(name, makeTensor(name, 'float32', dims, values));
    }
    return name;
  }
  dim(x: string, axis: number): string {
    return this.op('Gather', [this.op('Shape', [x]), this.ints(axis)], { axis: 0 });
  }
  heads(name: string, x: string, tokens = -1): string {
    const product = this.op('MatMul', [x, this.weight(name, hidden, heads * dim)]);
    const x2 = this.op('Add', [product, this.weight(`${name}.bias`, heads * dim)]);
    return this.split(x2, tokens);
  }
  private split(x: string, tokens: number): string {
    const shape = this.op('Concat', [this.dim(x, 0), this.ints(tokens, heads, dim)], { axis: 0 });
    return this.op('Transpose', [this.op('Reshape', [x, shape])], { perm: [0, 2, 1, 3] });
  }
  embed(ids: string, past?: string): string {
    const tokens = this.op('Gather', [this.weight('embed', vocabulary, hidden), ids]);
    const start = past ? this.dim(past, 2) : this.ints(0);
    const end = this.op('Add', [start, this.dim(ids, 1)]);
    const places = this.op('Slice', [
      this.weight('places', positions, hidden),
      start,
      end,
      this.ints(0),
    ]);
    return this.op('Add', [tokens, places]);
  }
  /** float [B,1,1,S] of a mask [B,S]. */
  hidden(mask: string): string {
    const wide = this.op('Unsqueeze', [mask, this.ints(1, 2)]);
    const shown = this.op('Cast', [wide], { to: DATA_TYPE.bool });
    const [open, closed] = [0, -3.4e38].map((v) => this.constant('float32', [v], []));
    return this.op('Where', [shown, open!, closed!]);
  }
  /** float [1,1,T,T] */
  causal(ids: string): string {
    const length = this.op('Squeeze', [this.dim(ids, 1), this.ints(0)]);
    const scalar = (v: number) => this.constant('int64', [v], []);
    const range = this.op('Range', [scalar(0), length, scalar(1)]);
    const [row, column] = [1, 0].map((axis) => this.op('Unsqueeze', [range, this.ints(axis)]));
    const seen = this.op('LessOrEqual', [column!, row!]);
    const [open, closed] = [0, -3.4e38].map((v) => this.constant('float32', [v], []));
    const mask = this.op('Where', [seen, open!, closed!]);
    return this.op('Unsqueeze', [mask, this.ints(0, 1)]);
  }
  attend(name: string, x: string, k: string, v: string, mask?: string, tokens = -1): string {
    const q = this.op('Mul', [
      this.heads(`${name}.q`, x, tokens),
      this.constant('float32', [dim ** -0.5], []),
    ]);
    const turned = this.op('Transpose', [k], { perm: [0, 1, 3, 2] });
    const scores = this.op('MatMul', [q, turned]);
    const masked = mask ? this.op('Add', [scores, mask]) : scores;
    const weighed = this.op('MatMul', [this.op('Softmax', [masked], { axis: -1 }), v]);
    const back = this.op('Transpose', [weighed], { perm: [0, 2, 1, 3] });
    const shape = this.op('Concat', [this.dim(x, 0), this.ints(-1, heads * dim)], { axis: 0 });
    const out = this.weight(`${name}.o`, heads * dim, hidden);
    const projected = this.op('MatMul', [this.op('Reshape', [back, shape]), out]);
    const norm = [this.weight(`${name}.norm`, hidden), this.weight(`${name}.norm.bias`, hidden)];
    return this.op('LayerNormalization', [this.op('Add', [x, projected]), ...norm], { axis: -1 });
  }
}

function model(
  inputs: Record<string, ValueSpec>,
  outputs: Record<string, ValueSpec>,
  nodes: Tracer['nodes'],
  weights: ReadonlyMap<string, TensorProto>,
): Model {
  return buildModel({
    ...{ inputs, outputs, nodes, initializers: [...weights.values()], opsets: { '': 17 } },
  });
}

/** encoder_model.onnx: input_ids and attention_mask to last_hidden_state. */
export function encoder(): Model {
  const weights = new Map<string, TensorProto>();
  const t = new Tracer(weights);
  const x = t.embed('input_ids');
  const [k, v] = ['k', 'v'].map((what) => t.heads(`encoder.${what}`, x));
  const y = t.attend('encoder', x, k!, v!, t.hidden('attention_mask'));
  t.op('Identity', [y], {}, { output: 'last_hidden_state' });
  const tokens = ['batch_size', 'encoder_sequence_length'];
  const ids: ValueSpec = ['int64', tokens];
  return model(
    { input_ids: ids, attention_mask: ids },
    { last_hidden_state: ['float32', [...tokens, hidden]] },
    t.nodes,
    weights,
  );
}

const KINDS = ['decoder.key', 'decoder.value', 'encoder.key', 'encoder.value'] as const;

/**
 * decoder_model_merged.onnx as Optimum writes it: an If that `use_cache_branch` decides. The branch with the cache was traced
 * with one token and has no causal mask; its outputs for the encoder's keys and values are empty constants.
 *
 * @param causal the mask of the branch without a cache
 * @param tokens -1, or the number of new tokens that the branch with a cache was made for
 */
export function mergedSeq2Seq(causal = true, tokens = -1): Model {
  const weights = new Map<string, TensorProto>();
  const names = Array.from({ length: layers }, (_, i) => KINDS.map((k) => `${i}.${k}`)).flat();
  const present = names.map((n) => `present.${n}`);
  const branch = (cached: boolean): { graph: GraphProto } => {
    const t = new Tracer(weights);
    let x = t.embed('input_ids', cached ? 'past_key_values.0.decoder.key' : undefined);
    const mask = cached || !causal ? undefined : t.causal('input_ids');
    const given = t.hidden('encoder_attention_mask');
    const presents: string[] = [];
    for (let i = 0; i < layers; i++) {
      const [k, v] = (['k', 'v'] as const).map((what, j) => {
        const now = t.heads(`${i}.self.${what}`, x, cached ? tokens : -1);
        const past = `past_key_values.${i}.${KINDS[j]}`;
        return cached ? t.op('Concat', [past, now], { axis: 2 }) : now;
      });
      x = t.attend(`${i}.self`, x, k!, v!, mask, cached ? tokens : -1);
      const [ck, cv] = (['k', 'v'] as const).map((what, j) =>
        cached
          ? `past_key_values.${i}.${KINDS[2 + j]}`
          : t.heads(`${i}.cross.${what}`, 'encoder_hidden_states'),
      );
      x = t.attend(`${i}.cross`, x, ck!, cv!, given);
      const empty = () =>
        t.op('Constant', [], { value: makeTensor('', 'float32', [0, heads, 1, dim], []) });
      presents.push(k!, v!, ...(cached ? [empty(), empty()] : [ck!, cv!]));
    }
    const logits = t.op('MatMul', [x, t.weight('lm_head', hidden, vocabulary)]);
    const output = [logits, ...presents].map((name) => ({ name }));
    return {
      graph: {
        name: cached ? 'with_past' : 'no_past',
        node: t.nodes,
        initializer: [],
        input: [],
        output,
        valueInfo: [],
      },
    };
  };
  const [then, otherwise] = [branch(true), branch(false)];
  const node = makeNode('If', ['use_cache_branch'], ['logits', ...present], {
    then_branch: then,
    else_branch: otherwise,
  });
  const cache = (name: string, tokens: string): ValueSpec => [
    'float32',
    ['batch_size', heads, name.includes('encoder') ? `encoder_${tokens}` : `past_${tokens}`, dim],
  ];
  return model(
    {
      encoder_attention_mask: ['int64', ['batch_size', 'encoder_sequence_length']],
      input_ids: ['int64', ['batch_size', 'decoder_sequence_length']],
      encoder_hidden_states: ['float32', ['batch_size', 'encoder_sequence_length', hidden]],
      ...Object.fromEntries(
        names.map((n) => [`past_key_values.${n}`, cache(n, 'decoder_sequence_length')]),
      ),
      use_cache_branch: ['bool', [1]],
    },
    {
      logits: ['float32', ['batch_size', 'decoder_sequence_length', vocabulary]],
      ...Object.fromEntries(
        names.map((n) => [`present.${n}`, cache(n, 'decoder_sequence_length + 1')]),
      ),
    },
    [node],
    weights,
  );
}
